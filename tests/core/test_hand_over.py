"""A pod is replaced before its time limit: nobody waits, and the old one is stopped in time."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from gpugate_testing.playbook import RUNNING, STOPPED, Scenario, StartError, StartOk, StopOk

from gpugate.core.commands import StartPod
from gpugate.core.events import (
    BudgetUpdated,
    GatewayStarted,
    ManualStopRequested,
    RequestArrived,
    RequestFinished,
    ResponseStarted,
    ShutdownRequested,
    UpstreamFailed,
)
from gpugate.core.policy import Policy, ProviderLimits
from gpugate.core.request_queue import BudgetVerdict
from gpugate.core.states import CallingStart, Draining, Provisioning, Ready, ShutDown, Stopped, Stopping
from gpugate.errors import NoCapacity
from gpugate.provider_api import Endpoint, Phase, PodReport

OTHER = PodReport(Phase.RUNNING, "pod-2", {"ollama": Endpoint("http://127.0.0.1:2")})
STARTING = PodReport(Phase.STARTING, "pod-2")
SLOTS = (ProviderLimits(name="alpha", twin=1), ProviderLimits(name="alpha-2", twin=0, is_second=True))


def busy(slots: tuple[ProviderLimits, ...] = SLOTS, **numbers: Any) -> Scenario:
    """A pod that serves a long answer since 0 s; its session ends at 1000 s, its admission at 970 s."""
    numbers = {"max_session": 1000.0, "idle_timeout": 2000.0, **numbers}
    play = Scenario(Policy(providers=slots, **numbers))
    play.at(0, GatewayStarted(), RequestArrived(1)).set_report(0, RUNNING)
    return play.at(0, StartOk(report=RUNNING)).at(1, ResponseStarted(1), state=Ready)


def asked(**numbers: Any) -> Scenario:
    """The same at 950 s: a second pod is asked for, and looks see it come up."""
    return busy(**numbers).at(950).set_report(1, STARTING)


def test_new_requests_go_to_the_next_pod() -> None:
    """It is asked for 20 s before the admission ends; once it serves, the old one is stopped when done."""
    play = busy().at(949.9, gives=None).at(950, gives=["start 1"]).set_report(1, STARTING)
    play.at(951, StartOk(1, STARTING), gives=["session 1 opens: request"], state=Ready)
    play.at(955, RequestArrived(2), gives=["admit 2 run 1"]).set_report(1, OTHER)
    play.at(960, RequestArrived(3), gives=["admit 3 run 2"], state=Ready)
    assert play.machine.state.endpoints == OTHER.endpoints  # type: ignore[union-attr]
    play.at(970, RequestFinished(1), gives=[]).at(975, RequestFinished(2), gives=["stop 0"], state=Ready)
    play.set_report(0, STOPPED).at(976, StopOk(0), gives=["session 0 closes: max_session"])
    play.at(1500, RequestArrived(4), gives=["admit 4 run 2"], state=Ready)


def test_the_old_one_ends_in_time() -> None:
    """An answer that lasts until the limit is broken off."""
    play = asked().at(951, StartOk(1, STARTING)).set_report(1, OTHER).at(999, gives=None)
    play.at(1000, gives=["cut 1", "stop 0"], state=Ready).set_report(0, STOPPED).at(1001, StopOk(0))
    assert play.machine.pending_stops.by_provider == {}
    assert set(play.machine.open_sessions.by_provider) == {1}


def test_back_and_forth() -> None:
    """The third pod is in the first slot again."""
    play = asked().at(951, StartOk(1, OTHER), gives=None).set_report(1, OTHER)
    play.at(952, RequestFinished(1), RequestArrived(2), gives=None).set_report(0, STOPPED).at(953, StopOk(0))
    play.at(1900, gives=None).at(1901, gives=["start 0"])


def test_no_gpu_for_the_second() -> None:
    """It is asked for again; requests wait from the end of the admission on, the old one ends in time."""
    play = busy().at(950, StartError(NoCapacity(), 1)).set_report(1, STOPPED).at(951, StopOk(1), gives=None)
    play.at(964, gives=None, state=Ready).at(965.1, gives=["start 1"])
    play.at(966, StartError(NoCapacity(), 1), gives=["stop 1"]).at(967, StopOk(1))
    play.at(970, state=Draining).at(980, RequestArrived(2), gives=[])
    play.at(1000, gives=["cut 1", "stop 0"], state=Stopping).set_report(0, STOPPED)
    play.at(1001, StopOk(0), gives=["session 0 closes: max_session", "start 0"], state=CallingStart)


def test_a_successor_that_is_late() -> None:
    """Who comes after the end of the admission waits for it, not for a third pod."""
    play = asked().at(951, StartOk(1, STARTING)).at(971, RequestArrived(2), gives=None, state=Provisioning)
    play.at(999).set_report(1, OTHER).at(1000, gives=["admit 2 run 2", "cut 1", "stop 0"], state=Ready)


def test_idle_by_then() -> None:
    """No second pod is paid for where nobody is there."""
    play = busy(idle_timeout=60.0).at(930, RequestFinished(1), gives=None)
    play.at(970).at(970, gives=None)
    assert play.out(StartPod) == []


def test_used_now_and_then_is_in_use() -> None:
    """It would be there at the limit still: somebody may come."""
    busy(idle_timeout=600.0).at(900, RequestFinished(1), gives=None).at(950, gives=["start 1"])


def test_a_spent_budget_starts_nothing() -> None:
    """Then the limit is as it is without a second slot, in time."""
    spent = BudgetUpdated(BudgetVerdict(exhausted_reason="spent"))
    busy().at(900, spent, gives=None).at(969, gives=[]).at(970, state=Draining)


def test_a_provider_with_a_time_limit_of_its_own() -> None:
    """The pod is drained before the provider ends it, one slot or two; `max_session` may be earlier."""
    limited = (ProviderLimits(name="alpha", time_limit_s=500.0),)
    busy(limited).at(469.9, state=Ready).at(470, state=Draining).at(500, gives=["cut 1", "stop 0"])
    busy(limited, max_session=300.0).at(270, state=Draining)
    busy(limited, max_session=0.0).at(470, state=Draining)


def test_a_limit_too_short_for_two() -> None:
    """Two pods would run nearly all the time: none is handed over."""
    play = busy(max_session=60.0).at(29, gives=None)
    assert play.out(StartPod) == []


def test_a_stop_by_hand_stops_both() -> None:
    """Whatever the second is doing."""
    play = asked().at(951, StartOk(1, STARTING), gives=None)
    play.at(952, ManualStopRequested(force=True), gives=["reply accepted", "cut 1", "stop 0", "stop 1"])
    play = asked().at(951, StartOk(1, OTHER)).set_report(1, OTHER).at(952, RequestArrived(2), gives=None)
    play.at(953, ManualStopRequested(force=True))
    assert sorted(play.machine.pending_stops.by_provider) == [0, 1]
    play.set_report(0, STOPPED).set_report(1, STOPPED).at(954, StopOk(0), StopOk(1)).at(980, state=Stopped)


def test_a_shutdown_during_a_hand_over() -> None:
    """Both are stopped; with keep the new one stays."""
    play = asked().at(951, StartOk(1, OTHER)).set_report(1, OTHER).at(952, RequestArrived(2), gives=None)
    play.at(953, ShutdownRequested(keep=True), state=Draining).at(958, gives=None)
    assert list(play.machine.pending_stops.by_provider) == [0]
    play.set_report(0, STOPPED).at(959, StopOk(0)).at(980, state=ShutDown)
    assert set(play.machine.open_sessions.by_provider) == {1}


def test_the_old_one_is_lost_while_it_leaves() -> None:
    """Requests that had not begun go to the new one."""
    play = asked().at(951, StartOk(1, STARTING)).at(952, RequestArrived(2)).set_report(1, OTHER).at(954)
    play.set_report(0, STOPPED).at(
        990, gives=["cut 1", "requeue 2", "session 0 closes: lost", "admit 2 run 2"]
    )


def test_an_exchange_with_the_old_one_breaks() -> None:
    """It is sent to the new one."""
    play = asked().at(951, StartOk(1, STARTING)).at(952, RequestArrived(2)).set_report(1, OTHER).at(954)
    play.at(955, UpstreamFailed(1, 2), gives=["requeue 2", "admit 2 run 2"])


def test_the_new_one_is_lost() -> None:
    """The old one's answers go on; who waits gets a new start once its slot is free."""
    play = asked().at(951, StartOk(1, OTHER)).set_report(1, OTHER).at(952, RequestArrived(2), gives=None)
    play.set_report(1, STOPPED).at(985, gives=["requeue 2", "session 1 closes: lost"], state=Stopping)
    play.at(990, RequestFinished(1), gives=["stop 0"]).set_report(0, STOPPED)
    play.at(991, StopOk(0), gives=["session 0 closes: max_session", "start 0"])


def test_the_one_that_serves_is_lost_meanwhile() -> None:
    """One pod is enough: the successor is stopped, and who waits gets a new start."""
    play = asked().at(951, StartOk(1, STARTING), RequestArrived(2), gives=None).set_report(0, STOPPED)
    play.at(985, gives=None)
    assert 1 in play.machine.pending_stops.by_provider


def test_a_successor_that_fails() -> None:
    """It is stopped and proved so, and the old one serves on."""
    play = asked().at(951, StartOk(1, STARTING)).at(957).set_report(1, evolve(STARTING, phase=Phase.FAILED))
    play.at(958, gives=["stop 1"], state=Ready).set_report(1, STOPPED)
    play.at(959, StopOk(1), gives=["session 1 closes: start_failed"], state=Ready)


def test_an_ordinary_start_never_asks_the_second_slot() -> None:
    """It is no other provider to fall back on."""
    play = Scenario(Policy(providers=SLOTS, start_attempts=1))
    play.at(0, GatewayStarted(), RequestArrived(1)).at(1, StartError(NoCapacity()), gives=None)
    assert play.refusals[1].code == "POD_START_FAILED"


def test_the_shutdown_leaves_the_old_one_its_grace() -> None:
    """Its answer may go on for `server.shutdown_grace`, as that of the new one; then both are stopped."""
    play = asked(shutdown_grace=10.0).at(951, StartOk(1, OTHER)).set_report(1, OTHER)
    play.at(952, RequestArrived(2), gives=None).at(953, ShutdownRequested(), state=Draining)
    play.at(958, RequestFinished(1), gives=["stop 0"])
    play.at(963, gives=["refuse 2 SHUTTING_DOWN", "stop 1"], state=Stopping)
    play.set_report(0, STOPPED).set_report(1, STOPPED).at(964, StopOk(0), StopOk(1)).at(970, state=ShutDown)


def test_both_are_found_after_a_crash() -> None:
    """The pod in the first slot is adopted, the other is stopped: at most one serves."""
    play = Scenario(Policy(providers=SLOTS, max_session=1000.0)).set_report(0, RUNNING).set_report(1, OTHER)
    play.at(0, GatewayStarted(), gives=None, state=Ready)
    assert list(play.machine.pending_stops.by_provider) == [1]
