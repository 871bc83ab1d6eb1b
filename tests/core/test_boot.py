"""What the machine makes of what it finds when it comes up, and later (docs/api.md#adoption)."""

from __future__ import annotations

import pytest
from gpugate_testing.playbook import (
    QUEUED,
    RUNNING,
    STARTING,
    STOPPED,
    Scenario,
    StartError,
    StartOk,
    StopError,
    StopOk,
    policy,
)

from gpugate.core.commands import CheckDevice, InspectPod, PersistPendingStops, Probe, PublishProviderProblem
from gpugate.core.events import (
    GatewayStarted,
    ManualStartRequested,
    ManualStopRequested,
    RequestArrived,
    RequestFinished,
    ShutdownRequested,
)
from gpugate.core.states import BackingOff, Provisioning, Ready, Stopped, Stopping, Unknown, Warming
from gpugate.errors import AuthFailed, RateLimited, Transient
from gpugate.provider_api import Phase, PodReport


def test_nothing_runs() -> None:
    """With everything stopped the gateway rests, and asks for nothing."""
    play = Scenario(policy(2)).at(0, GatewayStarted(), gives=[], state=Stopped)
    play.at(3600, gives=[], state=Stopped)


def test_a_running_pod_is_adopted_and_its_idle_clock_starts() -> None:
    """Adopted: it warms, serves, is a session from the provider's own start, and stops when idle."""
    play = Scenario(policy(idle_timeout=900)).set_report(0, RUNNING, up_s=120)
    play.at(0, GatewayStarted(), gives=["session 0 opens: adopted, 120 s ago"], state=Ready)
    play.at(899.9, gives=[]).at(900, gives=["stop 0"], state=Stopping)


def test_a_pod_found_later_is_adopted() -> None:
    """Somebody starts the pod in the console: the next look finds it."""
    play = Scenario(policy(reconcile_interval=30)).at(0, GatewayStarted(), state=Stopped)
    play.at(10).set_report(0, RUNNING).at(30, gives=["session 0 opens: adopted"], state=Ready)


def test_a_pod_on_its_way_is_adopted() -> None:
    """A pod that is still starting is adopted as well, and serves when it runs."""
    play = Scenario(policy()).set_report(0, STARTING)
    play.at(0, GatewayStarted(), gives=["session 0 opens: adopted"], state=Provisioning)
    play.at(5).set_report(0, RUNNING).at(6, gives=[], state=Ready)


def test_found_at_two_providers() -> None:
    """The first in the list is adopted, the other is stopped and proved so; it is billed until then."""
    play = Scenario(policy(2)).set_report(0, RUNNING).set_report(1, RUNNING)
    opened = ["session 1 opens: adopted", "session 0 opens: adopted"]
    play.at(0, GatewayStarted(), gives=[*opened, "stop 1"], state=Ready)
    play.at(1, StopOk(1)).set_report(1, STOPPED).at(8, gives=["session 1 closes: stray"], state=Ready)
    assert play.machine.pending_stops.by_provider == {}


def test_found_at_the_second_of_two_providers() -> None:
    """What runs is adopted wherever it runs; nothing else is started."""
    play = Scenario(policy(2)).set_report(1, RUNNING)
    play.at(0, GatewayStarted(), gives=["session 1 opens: adopted"], state=Ready)
    play.at(1, RequestArrived(1), gives=["admit 1 run 1"])


def test_a_second_pod_appears_while_one_serves() -> None:
    """A stray at another provider is stopped; the pod that serves goes on."""
    play = Scenario(policy(2)).set_report(0, RUNNING).at(0, GatewayStarted(), state=Ready)
    play.at(1, RequestArrived(1)).set_report(1, RUNNING).at(30, gives=["session 1 opens: adopted", "stop 1"])
    assert isinstance(play.machine.state, Ready)


@pytest.mark.parametrize("healthy", [None, False])
def test_a_second_pod_appears_while_one_starts(healthy: bool | None) -> None:
    """Somebody starts the other provider's pod in its console: it is told of and stopped."""
    play = Scenario(policy(2), hidden=(InspectPod, Probe, PersistPendingStops, CheckDevice)).at(
        0, GatewayStarted()
    )
    play.set_health(healthy).at(1, RequestArrived(1), gives=["start 0"]).set_report(1, RUNNING)
    play.at(2, StartOk(0, STARTING if healthy is None else RUNNING), gives=["session 0 opens: request"])
    play.set_report(0, STARTING if healthy is None else RUNNING).at(29.9, gives=[])
    play.at(30.1, gives=["alarm 1 conflict", "session 1 opens: adopted", "stop 1"])
    assert isinstance(play.machine.state, Provisioning if healthy is None else Warming)
    play.set_report(1, STOPPED).at(31, StopOk(1)).set_report(0, RUNNING).set_health(True)
    play.at(40, gives=["admit 1 run 1"], state=Ready)


def test_a_second_pod_appears_while_a_start_is_tried_again() -> None:
    """Also between two attempts: who waits is served by the provider that comes first."""
    play = (
        Scenario(policy(2, start_backoff=60))
        .at(0, GatewayStarted())
        .at(1, RequestArrived(1))
        .set_report(1, RUNNING)
    )
    play.at(2, StartError(Transient()), state=BackingOff).at(31, gives=["session 1 opens: adopted", "stop 1"])


def test_a_debt_is_told_as_paid_at_once() -> None:
    """The notebook of unproved stops is emptied when the proof comes, also beside a serving pod."""
    play = Scenario(policy(2), hidden=(InspectPod, Probe, PublishProviderProblem)).set_report(0, RUNNING)
    play.at(0, GatewayStarted(), state=Ready).set_report(1, RUNNING)
    play.at(29, RequestArrived(1), gives=["admit 1 run 1"]).at(
        30, gives=["session 1 opens: adopted", "stop 1", "owe 1"]
    )
    play.set_report(1, STOPPED).at(
        31, StopOk(1), gives=["session 1 closes: stray", "owe nothing"], state=Ready
    )


def test_the_provider_cannot_be_looked_at() -> None:
    """Nothing is known and nothing is done, until a look succeeds."""
    play = Scenario(policy()).set_report(0, Transient("no route")).at(0, GatewayStarted(), state=Unknown)
    play.at(60, gives=[], state=Unknown)
    assert play.machine.last_error == "alpha: could not look: no route"
    play.set_report(0, STOPPED).at(66, state=Stopped)
    assert play.machine.last_error is None


def test_the_first_look_comes_too_soon() -> None:
    """`gpugate check --live` has looked a moment ago: looked again when the provider wants, unsaid."""
    play = Scenario(policy(), hidden=(InspectPod,)).set_report(0, RateLimited(5))
    play.at(0, GatewayStarted(), gives=[], state=Unknown)
    assert play.machine.last_error is None
    play.set_report(0, STOPPED).at(4.9, gives=[], state=Unknown).at(6.1, gives=[], state=Stopped)


def test_the_looks_go_on_coming_too_soon() -> None:
    """Something else uses up what the provider allows: that is told, once."""
    play = Scenario(policy(), hidden=(InspectPod,)).set_report(0, RateLimited(5))
    play.at(0, GatewayStarted(), gives=[])
    play.at(6.1, gives=["complain 0 transient"]).at(30, gives=[])
    assert "could not look" in (play.machine.last_error or "")


def test_a_request_while_the_provider_cannot_be_looked_at() -> None:
    """Once every provider was asked, a start is as good as a look: it is idempotent."""
    play = Scenario(policy()).set_report(0, AuthFailed("bad key")).at(0, GatewayStarted(), state=Unknown)
    play.at(1, RequestArrived(1), gives=["start 0"])


def test_a_request_before_the_first_look_is_back() -> None:
    """It waits for the look, so that a pod that runs is found and not started twice."""
    play = (
        Scenario(policy())
        .set_report(0, None)
        .at(0, GatewayStarted(), RequestArrived(1), gives=[], state=Unknown)
    )
    play.at(1).set_report(0, RUNNING).at(1, gives=["session 0 opens: adopted", "admit 1 run 1"])


def test_a_start_by_hand_before_the_first_look_is_back() -> None:
    """It is accepted, and happens when it is known that nothing runs."""
    play = Scenario(policy()).set_report(0, None)
    play.at(0, GatewayStarted(), ManualStartRequested(), gives=["reply accepted"], state=Unknown)
    play.at(1).set_report(0, STOPPED).at(1, gives=["start 0"])


def test_a_stop_by_hand_before_the_first_look_is_back() -> None:
    """Not known what runs: everything is stopped, and proved so."""
    play = Scenario(policy(2)).set_report(0, None).set_report(1, None)
    play.at(0, GatewayStarted(), ManualStopRequested(), gives=["reply accepted", "stop 0", "stop 1"])
    play.set_report(0, STOPPED).set_report(1, STOPPED).at(1, StopOk(0), StopOk(1)).at(1, state=Stopped)


def test_an_unproved_stop_is_inherited() -> None:
    """A stop that the last gateway could not prove goes on, at boot, before anything is adopted."""
    play = Scenario(policy(), owed=frozenset({0})).set_report(0, RUNNING)
    play.at(0, GatewayStarted(), gives=["stop 0"], state=Stopping)
    play.at(1, StopOk()).at(5.9, gives=[]).at(6, gives=["stop 0"], state=Stopping)
    play.set_report(0, STOPPED).at(7, StopOk(), gives=[], state=Stopped)


def test_an_unproved_stop_at_one_of_two_providers_is_inherited() -> None:
    """The other provider is looked at meanwhile, and what runs there is adopted."""
    play = Scenario(policy(2), owed=frozenset({1})).set_report(0, RUNNING).set_report(1, None)
    play.at(0, GatewayStarted(), gives=["stop 1", "session 0 opens: adopted"], state=Ready)


def test_a_queued_start_is_found_and_nobody_wants_it() -> None:
    """A start that waits at the provider would fire with nobody there: it is cancelled."""
    play = Scenario(policy()).set_report(0, QUEUED)
    play.at(0, GatewayStarted(), gives=["stop 0"], state=Stopping)


def test_a_failed_pod_is_found() -> None:
    """It is stopped: failed pods may be billed, unless the provider knows better."""
    play = Scenario(policy()).set_report(0, Phase.FAILED)
    play.at(0, GatewayStarted(), gives=["session 0 opens: adopted", "stop 0"], state=Stopping)
    play = Scenario(policy()).set_report(0, PodReport(Phase.FAILED, billed=False))
    play.at(0, GatewayStarted(), gives=["stop 0"], state=Stopping)


def test_an_unreachable_pod_is_found() -> None:
    """It may be billed: no word of it, in particular not STOPPED. It is adopted when it runs again."""
    play = (
        Scenario(policy()).set_report(0, Phase.UNREACHABLE).at(0, GatewayStarted(), gives=[], state=Unknown)
    )
    play.at(10, gives=[], state=Unknown)
    assert "alpha: the pod is unreachable" == play.machine.last_error
    play.set_report(0, RUNNING).at(16, gives=["session 0 opens: adopted"], state=Ready)


def test_killed_in_the_middle_of_a_failover() -> None:
    """The first one's stop is confirmed, the second cannot be looked at: it is not said that nothing runs."""
    play = Scenario(policy(2), owed=frozenset({0})).set_report(1, Transient("HTTP 500"))
    play.at(0, GatewayStarted(), gives=["stop 0"], state=Unknown).at(1, StopOk(0), gives=[], state=Unknown)
    play.at(100, gives=[], state=Unknown)
    assert (None, True) == (play.machine.status, play.machine.snapshot().all_inspected)
    assert "beta: could not look: HTTP 500" == play.machine.last_error
    play.set_report(1, RUNNING).at(106, gives=["session 1 opens: adopted"], state=Ready)


def test_killed_in_the_middle_of_a_failover_and_nothing_runs() -> None:
    """STOPPED as soon as both were seen so, whichever is first."""
    play = Scenario(policy(2), owed=frozenset({0})).set_report(1, None)
    play.at(0, GatewayStarted(), gives=["stop 0"]).at(1, StopOk(0), gives=[], state=Unknown)
    play.at(2).set_report(1, STOPPED).at(2, gives=[], state=Stopped)
    play = Scenario(policy(2), owed=frozenset({0}))
    play.at(0, GatewayStarted(), gives=["stop 0"], state=Stopping).at(1, StopOk(0), gives=[], state=Stopped)
    assert "STOPPED" == play.machine.status


def test_a_run_ends_and_a_provider_was_never_seen() -> None:
    """The first one's pod is stopped; what the second has is not known yet."""
    play = Scenario(policy(2, idle_timeout=60)).set_report(1, Transient("down")).at(0, GatewayStarted())
    play.at(1, RequestArrived(1), gives=["start 0"]).set_report(0, RUNNING).at(2, StartOk(report=RUNNING))
    play.at(3, RequestFinished(1), state=Ready).at(63, gives=None, state=Stopping).set_report(0, STOPPED)
    play.at(64, StopOk(), state=Stopped)
    assert None is play.machine.status
    play.set_report(1, STOPPED).at(95, state=Stopped)
    assert "STOPPED" == play.machine.status


def test_an_exit_and_an_open_session_was_never_seen() -> None:
    """A provider where an earlier gateway left a session open is not left without a confirmed stop."""
    play = Scenario(policy(2), inherited=frozenset({1})).set_report(1, Transient("down"))
    play.at(0, GatewayStarted()).at(1, RequestArrived(1), gives=["start 0"])
    play.at(2, StartError(AuthFailed("bad key")), gives=None).at(2, StopOk(0))
    play.at(3, StartError(AuthFailed("bad key"), 1), gives=None).at(3, StopError(Transient("down"), 1))
    play.at(4, ShutdownRequested(), gives=None, state=Stopping)
    play.at(60, gives=None, state=Stopping)


def test_an_adopted_pod_fails_and_nobody_waits() -> None:
    """Nobody wants it: it is stopped, no attempt is made."""
    play = Scenario(policy()).set_report(0, STARTING).at(0, GatewayStarted())
    play.set_report(0, Phase.FAILED).at(5, gives=["stop 0"], state=Stopping)


def test_demand_during_an_inherited_stop() -> None:
    """It waits for the proof, then the start comes."""
    play = Scenario(policy(), owed=frozenset({0})).at(
        0, GatewayStarted(), RequestArrived(1), gives=["stop 0"]
    )
    play.at(1, StopOk(), gives=["start 0"]).at(2, StartOk(report=RUNNING)).at(3, state=Ready)
