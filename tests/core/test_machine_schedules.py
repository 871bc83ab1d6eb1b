"""Schedules in the machine: a pod is started, and kept, used or not (docs/rules.md#schedules)."""

from __future__ import annotations

from gpugate_testing.playbook import RUNNING, Scenario, StartOk, policy

from gpugate.core.events import (
    BudgetUpdated,
    GatewayStarted,
    ManualStartRequested,
    ManualStopRequested,
    RequestArrived,
    RequestFinished,
)
from gpugate.core.request_queue import BudgetVerdict
from gpugate.core.states import CallingStart, Ready, Stopped

SPENT = BudgetUpdated(BudgetVerdict(exhausted_reason="spent"))


def fired(keep_s: float = 100.0, model: str | None = None) -> ManualStartRequested:
    """A schedule fires."""
    return ManualStartRequested("schedule", "", keep_s, model)


def at_rest() -> Scenario:
    """Nothing runs; idle pods are stopped after 10 s."""
    return Scenario(policy(idle_timeout=10.0)).at(0, GatewayStarted(), state=Stopped)


def test_it_is_kept_from_ready_on() -> None:
    """For as long as the schedule says, although nobody uses it."""
    play = at_rest().at(1, fired(), state=CallingStart)
    assert "schedule" == play.machine.start_cause
    play.set_report(0, RUNNING).at(50, StartOk(report=RUNNING), state=Ready)

    assert 150 == play.machine.idle_deadline_at


def test_use_does_not_shorten_it() -> None:
    """After it the idle timeout counts as ever."""
    play = at_rest().at(1, fired()).set_report(0, RUNNING).at(50, StartOk(report=RUNNING))
    play.at(60, RequestArrived(1)).at(61, RequestFinished(1))
    assert 150 == play.machine.idle_deadline_at
    play.at(145, RequestArrived(2)).at(146, RequestFinished(2))
    assert 156 == play.machine.idle_deadline_at


def test_a_pod_that_serves() -> None:
    """Is kept from the firing on."""
    play = at_rest().at(1, RequestArrived(1)).set_report(0, RUNNING).at(2, StartOk(report=RUNNING))
    play.at(3, RequestFinished(1)).at(5, fired(), gives=["reply accepted"], state=Ready)

    assert 105 == play.machine.idle_deadline_at


def test_a_stop_by_hand_ends_it() -> None:
    """The next pod is kept as ever."""
    play = at_rest().at(1, fired()).set_report(0, RUNNING).at(2, StartOk(report=RUNNING), state=Ready)
    play.at(3, ManualStopRequested())

    assert play.machine.idle_timer.kept_until < 0


def test_a_spent_budget() -> None:
    """Refused while the pod is off, and a pod that serves is not kept for it."""
    at_rest().at(1, SPENT).at(2, fired(), gives=["reply BUDGET_EXCEEDED"], state=Stopped)
    play = at_rest().at(1, RequestArrived(1)).set_report(0, RUNNING).at(2, StartOk(report=RUNNING))
    play.at(3, RequestFinished(1)).at(4, SPENT).at(5, fired(), gives=["reply BUDGET_EXCEEDED"], state=Ready)

    assert 13 == play.machine.idle_deadline_at


def test_its_model_is_loaded_first() -> None:
    """As a request's would be."""
    play = at_rest().at(1, fired(model="llava:13b")).set_report(0, RUNNING)
    play.at(2, StartOk(report=RUNNING), gives=["session 0 opens: schedule", "preload llava:13b"])
