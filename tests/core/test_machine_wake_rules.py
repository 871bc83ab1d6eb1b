"""Wake rules in the machine: they forbid starts, and nothing else (docs/rules.md#wake-rules)."""

from __future__ import annotations

from gpugate_testing.playbook import RUNNING, STOPPED, Scenario, StartError, StartOk, policy

from gpugate.core.events import (
    BudgetUpdated,
    GatewayStarted,
    ManualStartRequested,
    RequestArrived,
    RequestFinished,
)
from gpugate.core.idle_policy import FixedIdlePolicy, PrewarmWindow
from gpugate.core.request_queue import BudgetVerdict
from gpugate.core.states import CallingStart, Ready, Stopped
from gpugate.errors import Transient

DENIED = "the wake rule number 1 does not let this start it"


def at_rest(*denied: int | None, **more: object) -> Scenario:
    """Nothing runs, and a rule forbids to start it for these tickets."""
    play = Scenario(policy(), **more)  # type: ignore[arg-type]
    play.machine.wake_refusal = lambda ticket: DENIED if ticket in denied else ""
    return play.at(0, GatewayStarted(), state=Stopped)


def test_an_arrival_that_would_have_to_start_the_pod() -> None:
    """Refused at once with the rule's words; nothing is asked of the provider."""
    play = at_rest(1).at(1, RequestArrived(1), gives=["refuse 1 WAKE_DENIED"], state=Stopped)

    assert DENIED == play.refusals[1].message


def test_a_pod_on_its_way_serves_everyone() -> None:
    """A request that may not start one waits for the pod that another has started."""
    play = at_rest(2).at(1, RequestArrived(1), gives=["start 0"]).at(2, RequestArrived(2), gives=[])
    play.set_report(0, RUNNING).at(3, StartOk(report=RUNNING), state=Ready)

    assert {} == play.refusals


def test_a_pod_that_serves() -> None:
    """Serves everyone, without asking."""
    play = at_rest(2).at(1, RequestArrived(1)).set_report(0, RUNNING).at(2, StartOk(report=RUNNING))
    play.at(3, RequestFinished(1)).at(4, RequestArrived(2), gives=["admit 2 run 1"], state=Ready)


def test_the_one_who_may_start_leaves_before_the_next_attempt() -> None:
    """Then nothing is started for the other one."""
    play = at_rest(2).at(1, RequestArrived(1), RequestArrived(2), gives=["start 0"])
    play.at(2, StartError(Transient("503")))
    play.at(2.1, RequestFinished(1), gives=["refuse 2 WAKE_DENIED"])


def test_a_pod_that_is_lost() -> None:
    """Is started again only for a request that may."""
    play = at_rest(1).at(1, RequestArrived(2)).set_report(0, RUNNING).at(2, StartOk(report=RUNNING))
    play.at(3, RequestFinished(2)).at(4, RequestArrived(1), gives=["admit 1 run 1"]).set_report(0, STOPPED)
    play.at(100)

    assert "WAKE_DENIED" == play.refusals[1].code


def test_a_start_by_hand() -> None:
    """Refused while the pod is off; accepted where it comes anyway."""
    manual = ManualStartRequested("bob", DENIED)
    play = at_rest().at(1, manual, gives=["reply WAKE_DENIED"], state=Stopped)
    play.at(2, RequestArrived(1)).at(3, manual, gives=["reply accepted"], state=CallingStart)


def test_the_rule_speaks_before_the_budget() -> None:
    """Each who waits hears what stands in its own way."""
    spent = BudgetUpdated(BudgetVerdict(exhausted_reason="spent"))
    play = at_rest(1).at(1, spent).at(2, RequestArrived(1), RequestArrived(2))

    assert ["WAKE_DENIED", "BUDGET_EXCEEDED"] == [play.refusals[ticket].code for ticket in (1, 2)]


def test_a_prewarm() -> None:
    """Is not made if a rule forbids it; the window is used up."""
    idle = FixedIdlePolicy(900.0, window=PrewarmWindow(100.0, 200.0))
    for denied, state in ((True, Stopped), (False, CallingStart)):
        play = at_rest(*[None] * denied, idle=idle)
        play.machine.queue.last_demand_at = 0.0
        play.at(150, state=state)
