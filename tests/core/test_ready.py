"""A pod that serves: leases, idle clock, session limit, a pod that is lost (docs/api.md#retries)."""

from __future__ import annotations

import pytest
from gpugate_testing.playbook import (
    RUNNING,
    STARTING,
    STOPPED,
    PreloadOk,
    Scenario,
    StartOk,
    StopOk,
    policy,
)

from gpugate.core.commands import Probe
from gpugate.core.events import (
    ForcedShutdownRequested,
    GatewayStarted,
    ManualStartRequested,
    ProbeFinished,
    RequestArrived,
    RequestFinished,
    ResponseStarted,
    UpstreamFailed,
)
from gpugate.core.states import CallingStart, Draining, Preloading, Ready, Stopped, Stopping, Warming
from gpugate.errors import Transient
from gpugate.provider_api import Endpoint, Phase, PodReport


def ready(play: Scenario) -> Scenario:
    """A pod that serves since 0 s, with ticket 1 answered at 10 s."""
    play.at(0, GatewayStarted(), RequestArrived(1)).set_report(0, RUNNING).at(
        0, StartOk(report=RUNNING), state=Ready
    )
    return play.at(5, ResponseStarted(1)).at(10, RequestFinished(1), state=Ready)


def test_a_request_while_the_pod_serves() -> None:
    """It goes on in the same step; nothing is queued, nothing is asked."""
    ready(Scenario(policy())).at(20, RequestArrived(2), gives=["admit 2 run 1"])


def test_nobody_comes_for_the_idle_timeout() -> None:
    """Stopped, proved so, and the session is closed."""
    play = ready(Scenario(policy())).at(909.9, gives=[]).at(910, gives=["stop 0"], state=Stopping)
    play.at(911, StopOk(), gives=[]).set_report(0, Phase.STOPPING).at(915, gives=[], state=Stopping)
    play.set_report(0, STOPPED).at(921, gives=["session 0 closes: idle"], state=Stopped)


def test_the_idle_clock_runs_from_the_end_of_the_last_lease() -> None:
    """Not from an arrival, and not from the first of two ends."""
    play = (
        ready(Scenario(policy()))
        .at(100, RequestArrived(2), RequestArrived(3))
        .at(200, RequestFinished(3))
        .at(2000, gives=[])
    )
    play.at(2000, RequestFinished(2)).at(2899.9, gives=[]).at(2900, gives=["stop 0"])


def test_a_lease_outlasts_the_idle_timeout() -> None:
    """An answer that runs is never cut by the idle stop."""
    ready(Scenario(policy())).at(100, RequestArrived(2)).at(50_000, gives=None, state=Ready)


def test_a_request_arrives_at_the_very_moment_of_the_idle_stop() -> None:
    """Who arrives before the check keeps the pod."""
    play = ready(Scenario(policy())).at(909.999, RequestArrived(2), gives=["admit 2 run 1"])
    play.at(2000, gives=[], state=Ready).at(2000, RequestFinished(2)).at(2900, gives=["stop 0"])


def test_a_request_arrives_just_after_the_idle_stop() -> None:
    """Who arrives after the check waits for the next start instead of failing."""
    play = ready(Scenario(policy())).at(910, gives=["stop 0"]).at(910, RequestArrived(2), gives=[])
    play.at(911, StopOk()).set_report(0, STOPPED).at(912, gives=["session 0 closes: idle", "start 0"])
    play.at(913, StartOk(report=RUNNING), gives=["session 0 opens: request", "admit 2 run 2"])


def test_the_session_reaches_its_limit_under_a_lease() -> None:
    """Nobody new is admitted, the answer has its grace, who waits gets a new start."""
    play = ready(Scenario(policy(max_session=100))).at(50, RequestArrived(2)).at(99.9, gives=[])
    play.at(100, gives=[], state=Draining).at(101, RequestArrived(3), gives=[]).at(
        110, RequestFinished(2), gives=["stop 0"]
    )
    play.at(111, StopOk()).set_report(0, STOPPED).at(113, gives=["session 0 closes: max_session", "start 0"])


def test_an_answer_outlasts_the_grace_of_the_session() -> None:
    """After `drain_grace` it is cut."""
    play = (
        ready(Scenario(policy(max_session=100)))
        .at(50, RequestArrived(2), RequestArrived(3))
        .at(51, ResponseStarted(2))
    )
    play.at(129.9, gives=[]).at(130, gives=["cut 2", "refuse 3 POD_STOPPED", "stop 0"], state=Stopping)


def test_the_session_reaches_its_limit_and_nobody_is_served() -> None:
    """It is stopped at once."""
    ready(Scenario(policy(max_session=100))).at(100, gives=["stop 0"], state=Stopping)


def test_the_limit_counts_from_the_providers_own_start() -> None:
    """An adopted pod has used up a part of its session already."""
    play = (
        Scenario(policy(max_session=100)).set_report(0, RUNNING, up_s=70).at(0, GatewayStarted(), state=Ready)
    )
    play.at(29.9, gives=[]).at(30, gives=["stop 0"])


def test_an_arrival_at_the_limit_with_a_stray_beside() -> None:
    """It is admitted or it waits, never both: the state that admits is the state that is told."""
    play = Scenario(policy(2, max_session=100)).set_report(0, RUNNING).set_report(1, RUNNING)
    play.at(0, GatewayStarted(), state=Ready).set_report(1, None)
    play.machine.handle(RequestArrived(1), 100.5)
    assert isinstance(play.machine.state, Ready)
    assert list(play.machine.queue.leases) == [1]


# --- lost -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [Phase.STOPPED, Phase.GONE])
def test_the_pod_is_gone_behind_our_back(gone: Phase) -> None:
    """Answers that have begun break, the others go back to the queue, and a new start begins."""
    play = (
        ready(Scenario(policy()))
        .at(20, RequestArrived(2), RequestArrived(3))
        .at(21, ResponseStarted(2))
        .set_report(0, gone)
    )
    play.at(30.1, gives=["cut 2", "requeue 3", "session 0 closes: lost", "start 0"])
    play.at(31, StartOk(report=RUNNING), gives=["session 0 opens: request", "admit 3 run 2"])


def test_the_pod_is_gone_and_nobody_needs_it() -> None:
    """The session ends; nothing is started."""
    ready(Scenario(policy())).set_report(0, STOPPED).at(31, gives=["session 0 closes: lost"], state=Stopped)


def test_the_pod_is_lost_twice_under_one_request() -> None:
    """The second time it is POD_STOPPED."""
    play = (
        ready(Scenario(policy()))
        .at(20, RequestArrived(2))
        .set_report(0, STOPPED)
        .at(30.1, state=None)
        .set_report(0, RUNNING)
    )
    play.at(31, StartOk(report=RUNNING)).set_report(0, STOPPED)
    play.at(62, gives=["refuse 2 POD_STOPPED", "session 0 closes: lost"], state=Stopped)


def test_who_lost_the_pod_goes_back_to_its_old_place() -> None:
    """Before all that came later, in the old order, with a full wait before it."""
    play = (
        ready(Scenario(policy(max_wait=60)))
        .at(20, RequestArrived(2), RequestArrived(3))
        .set_report(0, STOPPED)
    )
    play.at(30.1, RequestArrived(4)).set_report(0, RUNNING).at(31, StartOk(report=RUNNING))
    play.at(32, RequestFinished(2), gives=["admit 3 run 2"]).at(
        33, RequestFinished(3), gives=["admit 4 run 2"]
    )


def test_who_lost_the_pod_goes_back_before_those_who_wait() -> None:
    """The queue was not empty: the old place is the first one."""
    play = (
        Scenario(policy())
        .at(0, GatewayStarted(), RequestArrived(1), RequestArrived(2), RequestArrived(3))
        .set_report(0, RUNNING)
    )
    play.at(1, StartOk(report=RUNNING)).set_report(0, STOPPED).at(32, state=CallingStart).set_report(
        0, RUNNING
    )
    play.at(33, StartOk(report=RUNNING), gives=["session 0 opens: request", "admit 1 run 2"])


def test_one_of_two_answers_ends_while_the_session_ends() -> None:
    """The other one keeps its grace, and no idle clock runs."""
    play = (
        ready(Scenario(policy(max_session=100)))
        .at(50, RequestArrived(2), RequestArrived(3))
        .at(60, RequestFinished(2))
    )
    assert play.machine.queue.idle_since is None
    play.at(70, RequestArrived(4)).at(100, state=Draining).at(
        105, RequestFinished(3), gives=[], state=Draining
    )
    play.at(106, RequestFinished(4), gives=["stop 0"])


def test_a_lost_lease_frees_its_drain_slot() -> None:
    """Seven events in order that random lives do not find."""
    play = (
        Scenario(policy())
        .at(0, GatewayStarted(), RequestArrived(1), RequestArrived(2))
        .set_report(0, RUNNING)
    )
    play.at(1, StartOk(report=RUNNING), state=Ready).at(2, ResponseStarted(1)).set_report(0, STOPPED)
    play.at(32, state=None).set_report(0, RUNNING).at(33, StartOk(report=RUNNING), gives=None)
    assert list(play.machine.queue.leases) == [2]
    assert play.machine.queue.admit_slots_used == 1


def test_the_end_of_a_lease_of_a_lost_pod() -> None:
    """It starts no idle clock of the pod that serves now, and frees nobody's slot."""
    play = (
        ready(Scenario(policy()))
        .at(20, RequestArrived(2))
        .at(20, ResponseStarted(2))
        .set_report(0, STOPPED)
        .at(40, RequestArrived(3))
    )
    play.set_report(0, RUNNING).at(41, StartOk(report=RUNNING), state=Ready).at(
        42, RequestFinished(2), gives=[]
    )
    assert list(play.machine.queue.leases) == [3]
    assert play.machine.queue.idle_since is None


def test_the_pod_failed_while_it_served() -> None:
    """It is stopped first: a failed pod may be billed; then the new start comes."""
    play = ready(Scenario(policy())).at(20, RequestArrived(2)).set_report(0, Phase.FAILED)
    play.at(30.1, gives=["requeue 2", "stop 0"], state=Stopping).set_report(0, STOPPED)
    play.at(31, StopOk(), gives=["session 0 closes: lost", "start 0"])


def test_a_stop_in_the_console_while_answers_run() -> None:
    """Nobody new is admitted; the answers have their grace; then the stop is proved."""
    play = (
        ready(Scenario(policy()))
        .at(20, RequestArrived(2))
        .set_report(0, Phase.STOPPING)
        .at(30.1, gives=[], state=Draining)
    )
    play.at(31, RequestFinished(2), gives=["stop 0"], state=Stopping)


def test_the_pod_vanishes_while_it_drains() -> None:
    """What has not begun waits for the next pod."""
    play = (
        ready(Scenario(policy(max_session=35)))
        .at(20, RequestArrived(2))
        .set_report(0, RUNNING)
        .at(35, state=Draining)
    )
    play.at(35, UpstreamFailed(1)).set_report(0, STOPPED)
    play.at(61, gives=["requeue 2", "session 0 closes: lost", "start 0"])


def test_the_provider_cannot_be_looked_at_while_the_pod_serves() -> None:
    """That says nothing of the pod: it goes on serving; the trouble is told once."""
    play = (
        ready(Scenario(policy(), hidden=(Probe,))).set_report(0, Transient("down")).at(20, RequestArrived(2))
    )
    play.at(40, gives=["look 0", "complain 0 transient"], state=Ready)
    play.at(70, gives=["look 0"], state=Ready)
    assert play.machine.last_error == "alpha: could not look: down"


def test_an_address_changes_while_the_pod_serves() -> None:
    """The next request goes to the new one."""
    moved = PodReport(Phase.RUNNING, "pod-1", {"ollama": Endpoint("http://127.0.0.1:2")})
    play = ready(Scenario(policy())).set_report(0, moved).at(40, gives=[], state=Ready)
    assert play.machine.state.endpoints["ollama"].url == "http://127.0.0.1:2"


# --- doubts -----------------------------------------------------------------------------------


def test_an_exchange_breaks_and_the_pod_is_well() -> None:
    """One look and one health check; nothing else happens."""
    play = ready(Scenario(policy(), hidden=())).at(20, RequestArrived(2), gives=None)
    play.at(20, UpstreamFailed(1), gives=["probe", "look 0"], state=Ready)
    play.at(49, gives=[], state=Ready)


def test_an_exchange_breaks_and_the_pod_is_gone() -> None:
    """The look that follows at once finds it out, and the request goes back."""
    play = ready(Scenario(policy())).set_health(None).at(20, RequestArrived(2)).set_report(0, STOPPED)
    play.at(20, UpstreamFailed(1), gives=["requeue 2", "session 0 closes: lost", "start 0"])


def test_the_health_check_is_faster_than_the_look() -> None:
    """The pod is ill, then seen stopped: it was lost, not a start that failed; a new start begins."""
    play = ready(Scenario(policy(start_attempts=1))).set_report(0, None).set_health(False)
    play.at(20, RequestArrived(2), gives=["admit 2 run 1"]).at(20, UpstreamFailed(1), gives=[], state=Warming)
    play.set_report(0, STOPPED).at(21, gives=["requeue 2", "session 0 closes: lost", "start 0"])


def test_an_ill_pod_is_lost_during_a_second_preload() -> None:
    """Even then it is a pod that was lost."""
    play = (
        ready(Scenario(policy(start_attempts=1)))
        .set_health(False)
        .at(20, RequestArrived(2))
        .at(20, UpstreamFailed(1))
    )
    play.at(20, RequestArrived(3, "llama3")).set_health(True).at(21, state=Preloading).set_report(0, STOPPED)
    play.at(30, gives=["requeue 2", "session 0 closes: lost", "start 0"])


def test_the_health_is_lost_while_the_pod_serves() -> None:
    """Back to WARMING: who comes now waits; when it is healthy again they go on, in order."""
    play = ready(Scenario(policy())).set_health(False).at(20, UpstreamFailed(1), state=Warming)
    play.at(21, RequestArrived(2, "llama3"), gives=[]).set_health(True).at(22, gives=["preload llama3"])
    play.at(23, PreloadOk(), gives=["admit 2 run 1"], state=Ready)


def test_requests_that_failed_wait_for_the_recovery() -> None:
    """In their old places, and without an end of their own: one that is answered goes on."""
    play = ready(Scenario(policy())).at(20, RequestArrived(2), RequestArrived(3), RequestArrived(4))
    play.at(20, ResponseStarted(3)).set_health(False).at(20, UpstreamFailed(1, 4), state=Warming)
    play.at(21, UpstreamFailed(1, 4), UpstreamFailed(1, 2), RequestArrived(5), gives=None)
    assert [2, 4, 5] == [ticket.number for ticket in play.machine.queue.waiting]
    assert [3] == list(play.machine.queue.leases)
    play.set_health(True).at(25, gives=["admit 2 run 1"], state=Ready)


def test_an_ill_pod_that_never_recovers_refuses_those_that_failed() -> None:
    """They are told with the others, when the warm-up is given up."""
    play = ready(Scenario(policy())).at(20, RequestArrived(2)).set_health(False)
    play.at(20, UpstreamFailed(1, 2)).at(20, UpstreamFailed(1, 2), gives=["requeue 2"])
    play.at(200, gives=["refuse 2 WARMUP_TIMEOUT", "stop 0"], state=Stopping)


def test_an_ill_pod_never_recovers() -> None:
    """After `warmup_timeout` it is stopped, and who waits is told."""
    play = ready(Scenario(policy())).set_health(False).at(20, UpstreamFailed(1)).at(21, RequestArrived(2))
    play.at(200, gives=["refuse 2 WARMUP_TIMEOUT", "stop 0"], state=Stopping)


def test_a_running_answer_ends_while_the_pod_is_ill() -> None:
    """Its lease ends; when the pod is well again the idle clock runs from then."""
    play = (
        ready(Scenario(policy()))
        .set_health(False)
        .at(20, RequestArrived(2))
        .at(20, UpstreamFailed(1))
        .at(30, RequestFinished(2))
    )
    play.set_health(True).at(31, state=Ready).at(929, gives=[]).at(932, gives=["stop 0"])


def test_trouble_with_an_older_pod() -> None:
    """It says nothing of the pod that serves now."""
    ready(Scenario(policy(), hidden=())).at(20).at(20, UpstreamFailed(7), gives=[], state=Ready)


def test_many_exchanges_break_at_once() -> None:
    """One health check is enough, and one look at a time."""
    play = (
        ready(Scenario(policy()))
        .set_report(0, None)
        .set_health(None)
        .at(20, *(UpstreamFailed(1) for _ in range(9)))
    )
    play.at(25)
    assert len(play.out(Probe)) == 1
    assert len(play._out) == 2


def test_a_look_was_out_already_when_the_exchange_broke() -> None:
    """What it shows is older than the trouble: another look follows at once."""
    play = (
        ready(Scenario(policy()))
        .set_report(0, None)
        .set_health(None)
        .at(31, RequestArrived(2))
        .at(31, UpstreamFailed(1))
    )
    old = play._out[0]
    play._out.remove(old)
    play.at(32, play._seen(old, RUNNING), gives=[]).set_report(0, STOPPED)
    play.at(32, gives=["requeue 2", "session 0 closes: lost", "start 0"])


def test_a_stale_health_check_while_the_pod_serves() -> None:
    """Only the check that is out counts."""
    ready(Scenario(policy())).at(20, ProbeFinished(10_000, False), gives=[], state=Ready)


def test_the_provider_says_unreachable() -> None:
    """It is asked itself before anything is decided."""
    play = (
        ready(Scenario(policy()))
        .set_health(None)
        .set_report(0, Phase.UNREACHABLE)
        .at(40, gives=[], state=Ready)
    )
    assert len(play.out(Probe)) == 1
    play.set_health(False).at(41, state=Warming)


@pytest.mark.parametrize("phase", [Phase.QUEUED, Phase.PROVISIONING, Phase.STARTING])
def test_the_engine_replaces_a_lost_pod(phase: Phase) -> None:
    """A pod that serves comes up again by itself: it is probed, and warms up without a new start."""
    play = ready(Scenario(policy())).set_health(None).set_report(0, phase).at(40, state=Ready)
    assert len(play.out(Probe)) == 1
    play.set_health(False).at(41, RequestArrived(2), state=Warming)
    play.set_report(0, RUNNING).set_health(True).at(60, state=Ready)


def test_a_start_by_hand_while_it_drains() -> None:
    """It is accepted, and happens after the stop."""
    play = ready(Scenario(policy(max_session=30))).at(20, RequestArrived(2)).at(30, state=Draining)
    play.at(31, ManualStartRequested(), gives=["reply accepted"]).at(
        32, RequestFinished(2), gives=["stop 0"]
    ).set_report(0, STOPPED)
    play.at(33, StopOk(), gives=["session 0 closes: max_session", "start 0"])


def test_a_second_signal_is_meant_for_running_answers() -> None:
    """While it drains they are cut at once."""
    play = (
        ready(Scenario(policy(max_session=30)))
        .at(20, RequestArrived(2))
        .at(21, ResponseStarted(2))
        .at(30, state=Draining)
    )
    play.at(31, ForcedShutdownRequested(), gives=["cut 2", "stop 0"])


def test_a_pod_that_starts_over() -> None:
    """A reboot behind our back is not a loss; exchanges that break will tell."""
    ready(Scenario(policy())).at(20, RequestArrived(2)).set_report(0, STARTING).at(60, gives=[], state=Ready)


def test_the_session_reaches_its_limit_while_the_pod_comes() -> None:
    """Paid from the accepted start: not a second more, and no second try that would end the same way."""
    numbers = {"max_session": 100.0, "start_timeout": 500.0, "warmup_timeout": 500.0}
    for seen in (STARTING, RUNNING):
        play = (
            Scenario(policy(**numbers))
            .at(0, GatewayStarted(), RequestArrived(1))
            .set_health(False)
            .set_report(0, seen)
        )
        play.at(10, StartOk()).at(109.9, gives=[])
        play.at(110, gives=["refuse 1 WARMUP_TIMEOUT", "stop 0"], state=Stopping)


def test_the_session_reaches_its_limit_in_a_preload() -> None:
    """The same; with a list the next provider is asked."""
    play = (
        Scenario(policy(2, max_session=100))
        .at(0, GatewayStarted(), RequestArrived(1, "qwen3"))
        .set_report(0, RUNNING)
    )
    play.at(10, StartOk(report=RUNNING), state=Preloading)
    play.at(110, gives=["start 1", "stop 0"], state=CallingStart)


def test_an_adopted_session_reaches_its_limit_before_it_serves() -> None:
    """That is no failed start: who waits gets a new one, once the old pod is seen stopped."""
    play = (
        Scenario(policy(max_session=100))
        .set_health(False)
        .set_report(0, RUNNING, up_s=70)
        .at(0, GatewayStarted())
    )
    play.at(10, RequestArrived(1), state=Warming).at(30, gives=["stop 0"], state=Stopping).set_report(
        0, STOPPED
    )
    play.at(31, StopOk(), gives=["session 0 closes: max_session", "start 0"], state=CallingStart)


def test_an_ill_pods_session_reaches_its_limit() -> None:
    """What runs has its grace; who waits gets a new start."""
    play = (
        ready(Scenario(policy(max_session=100, drain_grace=20)))
        .at(90, RequestArrived(2), ResponseStarted(2))
        .set_health(False)
    )
    play.at(95, UpstreamFailed(1), state=Warming).at(96, RequestArrived(3), gives=[]).at(
        100, gives=[], state=Draining
    )
    play.at(120, gives=["cut 2", "stop 0"], state=Stopping).set_report(0, STOPPED)
    play.at(121, StopOk(), gives=["session 0 closes: max_session", "start 0"], state=CallingStart)


def test_the_second_session_has_its_own_limit() -> None:
    """Counted from its own start, not from the first one's."""
    play = (
        ready(Scenario(policy(max_session=100)))
        .at(100, state=Stopping)
        .set_report(0, STOPPED)
        .at(101, StopOk())
    )
    play.at(150, RequestArrived(2), gives=None).set_report(0, RUNNING).at(
        160, StartOk(report=RUNNING), state=Ready
    )
    play.at(161, RequestFinished(2)).at(259.9, gives=[]).at(260, gives=["stop 0"], state=Stopping)
