"""From the wish to stop to its proof; by hand, and when the gateway goes down (docs/api.md#stops)."""

from __future__ import annotations

import itertools

import pytest
from gpugate_testing.playbook import (
    QUEUED,
    RUNNING,
    STOPPED,
    Scenario,
    StartError,
    StartOk,
    StopError,
    StopOk,
    policy,
)

from gpugate.core.commands import InspectPod, PersistPendingStops, Probe, StopPod
from gpugate.core.events import (
    ForcedShutdownRequested,
    GatewayStarted,
    ManualStartRequested,
    ManualStopRequested,
    RequestArrived,
    RequestFinished,
    ResponseStarted,
    ShutdownRequested,
    StopCallFailed,
)
from gpugate.core.states import CallingStart, Draining, Ready, ShutDown, Status, Stopped, Stopping, Unknown
from gpugate.errors import Ambiguous, NotFound, RateLimited, Transient
from gpugate.provider_api import Phase


def ready(play: Scenario) -> Scenario:
    """A pod that serves since 0 s; nobody is being answered."""
    return play.set_report(0, RUNNING).at(0, GatewayStarted(), state=Ready)


def stopping(play: Scenario) -> Scenario:
    """A stop by hand went out at 10 s."""
    return ready(play).at(10, ManualStopRequested(), gives=["reply accepted", "stop 0"], state=Stopping)


# --- proof ------------------------------------------------------------------------------------


def test_an_accepted_stop_proves_nothing() -> None:
    """Status is STOPPING until a look shows it stopped."""
    play = (
        stopping(Scenario(policy())).at(10, StopOk(), gives=[]).set_report(0, Phase.STOPPING).at(60, gives=[])
    )
    assert play.machine.status is Status.STOPPING
    play.set_report(0, STOPPED).at(66, gives=["session 0 closes: hand"], state=Stopped)


def test_a_stop_that_is_ignored_is_sent_again_for_ever() -> None:
    """The pauses double from `stop_retry` up to five minutes; each is an alarm; the status says why."""
    play = stopping(Scenario(policy()))
    sent = [10.0]
    for _ in range(9):
        play.at(sent[-1], StopOk(), state=Stopping)
        sent.append(play.machine.pending_stops.next_due)
        play.at(sent[-1], gives=["stop 0"])
    pauses = [round(later - earlier) for earlier, later in itertools.pairwise(sent)]
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert play.machine.last_error == "alpha: the stop is not proved, sending it again (try 10)"


def test_a_stop_that_is_sent_again_is_an_alarm() -> None:
    """Money may be running away."""
    play = stopping(Scenario(policy())).at(10, StopOk())
    play.hidden = frozenset({InspectPod, Probe, PersistPendingStops})
    play.at(15, gives=["stop 0", "alarm 0 transient"])


def test_a_stop_that_fails_is_sent_again() -> None:
    """Until it is proved."""
    play = stopping(Scenario(policy())).at(11, StopError(Transient("down")), gives=[]).at(15.9, gives=[])
    play.at(16, gives=["stop 0"]).set_report(0, STOPPED).at(16, StopOk(), gives=["session 0 closes: hand"])


def test_an_answer_to_a_stop_that_takes_long() -> None:
    """A look comes before the stop is sent again, however slow the provider is."""
    play = stopping(Scenario(policy())).at(100, gives=[]).set_report(0, STOPPED)
    play.at(100, StopOk(), gives=["session 0 closes: hand"], state=Stopped)


def test_a_stop_whose_pod_is_gone() -> None:
    """There is no such pod: that is proof, once a look says so too."""
    play = (
        stopping(Scenario(policy())).set_report(0, NotFound("no pod")).at(11, StopError(NotFound("no pod")))
    )
    play.at(11, gives=None, state=Stopped)


def test_a_pod_that_says_it_is_stopping_is_not_told_again_for_a_while() -> None:
    """Patience of a minute, then the stop is sent again."""
    play = stopping(Scenario(policy())).set_report(0, Phase.STOPPING).at(10, StopOk()).at(69, gives=[])
    play.at(71, gives=["stop 0"])


def test_a_look_that_fails_proves_nothing() -> None:
    """ "I could not look" is never "stopped"."""
    play = stopping(Scenario(policy())).set_report(0, Transient()).at(10, StopOk())
    play.at(14, gives=[], state=Stopping).at(15, gives=["stop 0"], state=Stopping)


# --- arrivals while stopping ------------------------------------------------------------------


def test_a_request_while_the_pod_stops() -> None:
    """It waits for the next start, which comes right after the proof."""
    play = stopping(Scenario(policy())).at(11, RequestArrived(1), gives=[]).at(12, StopOk(), gives=[])
    play.set_report(0, STOPPED).at(13, gives=["session 0 closes: hand", "start 0"], state=CallingStart)


def test_a_request_while_the_stop_cannot_be_sent() -> None:
    """Not known to stop, and wanted again: a start is idempotent, and the stretch goes on."""
    play = stopping(Scenario(policy())).at(11, StopError(Transient()), gives=[])
    play.at(12, RequestArrived(1), gives=["start 0"]).at(13, StartOk(report=RUNNING), gives=["admit 1 run 2"])


def test_a_request_while_the_only_other_provider_is_free() -> None:
    """When the first one's stop is not proved after a second try, the next provider is asked."""
    play = stopping(Scenario(policy(2))).at(10, StopOk()).at(11, RequestArrived(1), gives=[])
    play.at(15, gives=["stop 0"]).at(16, RequestArrived(2), gives=["start 1"])


def test_a_pod_appears_elsewhere_while_one_stops() -> None:
    """It is adopted."""
    stopping(Scenario(policy(2))).set_report(1, RUNNING).at(
        40, gives=["session 1 opens: adopted"], state=Ready
    )


# --- by hand ----------------------------------------------------------------------------------


def test_a_stop_by_hand_while_somebody_is_answered() -> None:
    """POD_BUSY, and nothing happens."""
    ready(Scenario(policy())).at(1, RequestArrived(1)).at(
        2, ManualStopRequested(), gives=["reply POD_BUSY"], state=Ready
    )


def test_a_stop_by_hand_while_somebody_waits() -> None:
    """POD_BUSY, and nothing happens."""
    play = Scenario(policy()).at(0, GatewayStarted(), RequestArrived(1), gives=["start 0"])
    play.at(1, ManualStopRequested(), gives=["reply POD_BUSY"], state=CallingStart)


def test_a_forced_stop() -> None:
    """Streams are cut unfinished; who waits or has no answer yet gets POD_STOPPED."""
    play = ready(Scenario(policy())).at(1, RequestArrived(1), RequestArrived(2)).at(2, ResponseStarted(1))
    play.at(3, ManualStopRequested(True), gives=["reply accepted", "cut 1", "refuse 2 POD_STOPPED", "stop 0"])
    play.at(4, RequestFinished(1), RequestFinished(2), gives=[]).set_report(0, STOPPED)
    play.at(5, StopOk(), gives=["session 0 closes: forced"])


def test_a_forced_stop_while_the_pod_starts() -> None:
    """Who waits gets POD_STOPPED; the stop follows the start that is out."""
    play = Scenario(policy()).at(0, GatewayStarted(), RequestArrived(1)).at(1, ManualStopRequested(True))
    play.at(1, state=Stopping)
    assert play.refusals[1].code == "POD_STOPPED"


def test_a_start_is_accepted_after_the_stop_was_ordered() -> None:
    """It is billed from the accepted start to the proved stop, so it is a session."""
    play = Scenario(policy()).at(
        0, GatewayStarted(), ManualStartRequested(), gives=["reply accepted", "start 0"]
    )
    play.at(1, ManualStopRequested(), gives=["reply accepted", "stop 0"])
    play.at(2, StartOk(), gives=["session 0 opens: hand"], state=Stopping)
    play.at(3, StopOk(), gives=["session 0 closes: hand"], state=Stopped)


def test_a_start_is_queued_after_the_stop_was_ordered() -> None:
    """A queued start is not billed; the stop cancels it."""
    play = Scenario(policy()).at(0, GatewayStarted(), ManualStartRequested()).at(1, ManualStopRequested())
    play.at(2, StartOk(report=QUEUED), gives=[]).at(3, StopOk(), gives=[], state=Stopped)


def test_a_start_is_refused_after_the_stop_was_ordered() -> None:
    """Nothing follows from it but the proof."""
    play = Scenario(policy()).at(0, GatewayStarted(), ManualStartRequested()).at(1, ManualStopRequested())
    play.at(2, StartError(Ambiguous()), gives=[], state=Stopping).at(3, StopOk(), state=Stopped)


def test_a_stop_by_hand_while_the_pod_is_off() -> None:
    """Already so."""
    Scenario(policy()).at(0, GatewayStarted()).at(
        1, ManualStopRequested(), gives=["reply accepted"], state=Stopped
    )


def test_a_stop_by_hand_while_a_stop_is_not_proved() -> None:
    """It is sent again at once."""
    stopping(Scenario(policy())).at(10, StopOk()).at(
        11, ManualStopRequested(), gives=["reply accepted", "stop 0"]
    )


def test_a_stop_by_hand_ends_a_start_by_hand() -> None:
    """Nobody wants the pod any more: nothing starts after the stop."""
    play = stopping(Scenario(policy())).at(11, ManualStartRequested(), gives=["reply accepted"])
    play.at(12, ManualStopRequested(), gives=["reply accepted"]).set_report(0, STOPPED).at(
        13, StopOk(), state=Stopped
    )


def test_a_start_by_hand_while_the_pod_stops() -> None:
    """It happens after the proof."""
    play = (
        stopping(Scenario(policy()))
        .at(11, ManualStartRequested(), gives=["reply accepted"])
        .set_report(0, STOPPED)
    )
    play.at(12, StopOk(), gives=["session 0 closes: hand", "start 0"])


# --- going down -------------------------------------------------------------------------------


def test_the_gateway_goes_down_while_nothing_runs() -> None:
    """Nothing is left to do."""
    Scenario(policy()).at(0, GatewayStarted()).at(1, ShutdownRequested(), gives=[], state=ShutDown)


def test_the_gateway_goes_down_while_an_answer_runs() -> None:
    """It has its grace; who waits or comes is refused; then the pod is stopped and proved so."""
    play = (
        ready(Scenario(policy()))
        .at(1, RequestArrived(1))
        .at(2, ShutdownRequested(), gives=[], state=Draining)
    )
    play.at(3, RequestArrived(2), gives=["refuse 2 SHUTTING_DOWN"]).at(
        4, RequestFinished(1), gives=["stop 0"]
    )
    play.set_report(0, STOPPED).at(5, StopOk(), gives=["session 0 closes: shutdown"], state=ShutDown)
    assert play.refusals[2].retry_after_s == 5


def test_the_grace_is_over() -> None:
    """What still runs is cut, what has not begun is refused."""
    play = (
        ready(Scenario(policy()))
        .at(1, RequestArrived(1), RequestArrived(2))
        .at(1, ResponseStarted(1))
        .at(2, ShutdownRequested())
    )
    play.at(6.9, gives=[]).at(7, gives=["cut 1", "refuse 2 SHUTTING_DOWN", "stop 0"], state=Stopping)


def test_a_second_signal() -> None:
    """What still runs is cut at once."""
    play = (
        ready(Scenario(policy()))
        .at(1, RequestArrived(1))
        .at(1, ResponseStarted(1))
        .at(2, ShutdownRequested())
    )
    play.at(3, ForcedShutdownRequested(), gives=["cut 1", "stop 0"], state=Stopping)


def test_the_pod_is_kept() -> None:
    """`on_exit = "keep"`: it runs on for the next gateway to adopt."""
    play = ready(Scenario(policy())).at(1, ShutdownRequested(True), gives=[], state=ShutDown)
    assert Status.READY is play.machine.status


def test_the_pod_is_kept_and_another_is_still_being_stopped() -> None:
    """What was to be stopped elsewhere is proved first."""
    play = (
        Scenario(policy(2)).set_report(0, RUNNING).set_report(1, RUNNING).at(0, GatewayStarted(), state=Ready)
    )
    play.at(1, ShutdownRequested(True), gives=[], state=Stopping).set_report(1, STOPPED)
    assert Status.STOPPING is play.machine.status
    play.at(2, StopOk(1), gives=["session 1 closes: stray"], state=ShutDown)
    assert ShutDown(Status.READY, 0) == play.machine.state


def test_the_pod_is_kept_after_the_last_answer() -> None:
    """The grace is the same; nothing that is told sounds like a stop."""
    play = (
        ready(Scenario(policy()))
        .at(1, RequestArrived(1))
        .at(2, ShutdownRequested(True), gives=[], state=Draining)
    )
    assert Status.READY is play.machine.status
    play.at(3, RequestFinished(1), gives=[], state=ShutDown)
    assert Status.READY is play.machine.status


def test_a_pod_that_was_to_be_stopped_is_kept() -> None:
    """Its session was over, but the gateway goes first, and leaves it."""
    play = ready(Scenario(policy(max_session=100))).at(90, RequestArrived(1)).at(100, state=Draining)
    assert Status.STOPPING is play.machine.status
    play.at(110, ShutdownRequested(True), gives=[], state=Draining).at(
        114, RequestFinished(1), gives=[], state=ShutDown
    )
    assert Status.READY is play.machine.status


def test_a_pod_that_is_kept_is_lost() -> None:
    """Then it is off, and that is told."""
    play = (
        ready(Scenario(policy()))
        .at(25, RequestArrived(1))
        .at(26, ShutdownRequested(True))
        .set_report(0, STOPPED)
    )
    play.at(31, gives=["refuse 1 SHUTTING_DOWN", "session 0 closes: lost"], state=ShutDown)
    assert Status.STOPPED is play.machine.status


def test_a_start_that_is_kept() -> None:
    """It may come up after the gateway has gone: it is told as what it was."""
    play = Scenario(policy()).at(0, GatewayStarted(), ManualStartRequested(), gives=None)
    play.at(1, ShutdownRequested(True), gives=[], state=ShutDown)
    assert Status.STARTING is play.machine.status


def test_the_gateway_goes_down_while_requests_wait() -> None:
    """They get SHUTTING_DOWN, and the start that is out is stopped."""
    play = Scenario(policy()).at(0, GatewayStarted(), RequestArrived(1), gives=["start 0"])
    play.at(1, ShutdownRequested(), gives=["refuse 1 SHUTTING_DOWN", "stop 0"], state=Stopping)


def test_the_gateway_goes_down_while_the_pod_stops() -> None:
    """The proof is still wanted."""
    play = (
        stopping(Scenario(policy()))
        .at(11, ShutdownRequested(), gives=[], state=Stopping)
        .set_report(0, STOPPED)
    )
    play.at(12, StopOk(), gives=["session 0 closes: hand"], state=ShutDown)


def test_the_gateway_goes_down_while_the_session_ends() -> None:
    """A drain that runs already ends within `shutdown_grace`, and never later than it would have."""
    play = ready(Scenario(policy(max_session=100))).at(90, RequestArrived(1)).at(100, state=Draining)
    play.at(110, ShutdownRequested(), gives=[], state=Draining).at(
        115, gives=["refuse 1 SHUTTING_DOWN", "stop 0"]
    )


def test_the_pod_vanishes_while_the_gateway_goes_down() -> None:
    """Nobody is requeued any more, and there is nothing to stop."""
    play = (
        ready(Scenario(policy())).at(25, RequestArrived(1)).at(26, ShutdownRequested()).set_report(0, STOPPED)
    )
    play.at(31, gives=["refuse 1 SHUTTING_DOWN", "session 0 closes: lost"], state=ShutDown)


def test_the_gateway_goes_down_before_it_knows_anything() -> None:
    """One good try to stop what may run, and no more."""
    play = Scenario(policy()).set_report(0, Transient()).at(0, GatewayStarted(), state=Unknown)
    play.at(1, ShutdownRequested(), gives=["stop 0"], state=Stopping).at(
        2, StopError(Transient()), state=ShutDown
    )


def test_the_gateway_goes_down_before_it_finds_the_pod_of_an_open_session() -> None:
    """The ledger says that it may run: its stop must be confirmed, and the next gateway goes on with it."""
    play = Scenario(policy(2), inherited=frozenset({1}))
    play.set_report(0, Transient()).set_report(1, Transient()).at(0, GatewayStarted(), state=Unknown)
    play.at(1, ShutdownRequested(), gives=["stop 0", "stop 1"], state=Stopping)
    for call in play.out(StopPod):
        play.at(2, StopCallFailed(call.op, Transient()))
    assert isinstance(play.machine.state, Stopping)
    assert frozenset({1}) == play.machine.pending_stops.unconfirmed_providers
    assert not play.machine.snapshot().confirmed


def test_the_gateway_goes_down_when_it_has_seen_a_pod_run() -> None:
    """What was found before everything was known is stopped, and proved so."""
    play = (
        Scenario(policy(2))
        .set_report(0, RUNNING)
        .set_report(1, Transient())
        .set_report(1, None)
        .at(0, GatewayStarted(), state=Unknown)
    )
    play.at(1, ShutdownRequested(), gives=["session 0 opens: adopted", "stop 0", "stop 1"], state=Stopping)
    play.set_report(1, Transient())
    play.at(2, StopError(Transient(), 1), StopOk(0), gives=[], state=Stopping)
    play.set_report(0, STOPPED).at(8, gives=None)
    play.at(8, *([StopOk(0)] if play.out(StopPod) else []), state=ShutDown)


def test_the_gateway_goes_down_before_it_knows_anything_and_keeps() -> None:
    """Nothing is touched."""
    play = (
        Scenario(policy())
        .set_report(0, None)
        .at(0, GatewayStarted())
        .at(1, ShutdownRequested(True), gives=[], state=ShutDown)
    )
    assert None is play.machine.status


@pytest.mark.parametrize(("keep", "gives"), [(False, ["session 1 opens: adopted", "stop 1"]), (True, [])])
def test_a_pod_appears_while_the_gateway_goes_down(keep: bool, gives: list[str]) -> None:
    """It is not adopted any more: stopped with the rest, or left where it is."""
    play = (
        stopping(Scenario(policy(2))).at(11, ShutdownRequested(keep), state=Stopping).set_report(1, RUNNING)
    )
    play.at(42, gives=gives, state=Stopping)


def test_by_hand_while_the_gateway_goes_down() -> None:
    """A start is refused; a stop is what happens anyway."""
    play = stopping(Scenario(policy())).at(11, ShutdownRequested())
    play.at(12, ManualStartRequested(), gives=["reply SHUTTING_DOWN"], state=Stopping)
    play.set_report(0, STOPPED).at(13, StopOk(), state=ShutDown)
    play.at(
        14, ManualStartRequested(), ManualStopRequested(), gives=["reply SHUTTING_DOWN"] * 2, state=ShutDown
    )
    play.at(15, ShutdownRequested(), gives=[], state=ShutDown)


# --- what nobody here asked for ---------------------------------------------------------------


def resting(play: Scenario) -> Scenario:
    """Nothing runs; the last look was at 0 s."""
    return play.at(0, GatewayStarted(), state=Stopped)


@pytest.mark.parametrize("event", [ShutdownRequested(), ManualStopRequested()])
def test_a_console_start_that_no_look_has_shown(event: ShutdownRequested | ManualStopRequested) -> None:
    """A clean exit and a stop by hand look once more, and stop what they find."""
    play = resting(Scenario(policy())).set_report(0, RUNNING).at(20, event, state=Stopping)
    assert [StopPod(play.out(StopPod)[0].op, 0)] == play.out(StopPod)
    play.set_report(0, STOPPED).at(
        21, StopOk(), state=ShutDown if isinstance(event, ShutdownRequested) else Stopped
    )


def test_an_exit_right_after_a_look() -> None:
    """What was seen a moment ago is not asked again."""
    resting(Scenario(policy())).at(4.9, ShutdownRequested(), state=ShutDown)


def test_an_exit_that_cannot_look() -> None:
    """One good try; nothing was known to run, so nothing is owed."""
    play = (
        resting(Scenario(policy()))
        .set_report(0, Transient("HTTP 500"))
        .at(20, ShutdownRequested(), gives=[], state=ShutDown)
    )
    assert play.machine.pending_stops.unconfirmed_providers == frozenset()


def test_an_exit_that_has_looked_too_often() -> None:
    """A rate limit is waited out, and then it is looked."""
    play = (
        resting(Scenario(policy()))
        .set_report(0, RateLimited(3))
        .at(20, ShutdownRequested(), gives=[], state=Stopping)
    )
    play.set_report(0, RUNNING).at(22.9, gives=[]).at(
        23, gives=["session 0 opens: adopted", "stop 0"], state=Stopping
    )


def test_an_exit_while_the_host_is_offline() -> None:
    """It was off when it was seen last: no stop that can never be proved."""
    resting(Scenario(policy())).set_report(0, Phase.UNREACHABLE).at(
        20, ShutdownRequested(), gives=[], state=ShutDown
    )


def test_an_exit_that_keeps_the_pod() -> None:
    """What runs is left for the next start to adopt, so nobody looks."""
    resting(Scenario(policy())).set_report(0, RUNNING).at(
        20, ShutdownRequested(True), gives=[], state=ShutDown
    )


def test_a_console_start_elsewhere_at_the_exit() -> None:
    """The other providers are looked at as well, and the one that serves is told to stop once."""
    play = ready(Scenario(policy(2))).set_report(1, RUNNING)
    play.at(20, ShutdownRequested(), gives=["stop 0", "session 1 opens: adopted", "stop 1"], state=Stopping)


def test_a_request_while_a_stop_by_hand_looks() -> None:
    """It does not wait for that look: a start is as good."""
    play = (
        resting(Scenario(policy()))
        .set_report(0, None)
        .at(20, ManualStopRequested(), gives=["reply accepted"], state=Stopping)
    )
    play.at(21, RequestArrived(1), gives=["start 0"])
    play.set_report(0, RUNNING).at(22, StartOk(report=RUNNING), state=Ready)


def test_an_exit_while_somebody_elses_stop_hangs() -> None:
    """A pod that says it is stopping has its patience, then it is told."""
    play = (
        resting(Scenario(policy()))
        .set_report(0, Phase.STOPPING)
        .at(20, ShutdownRequested(), gives=["session 0 opens: adopted"], state=Stopping)
    )
    play.at(79, gives=[]).at(81, gives=["stop 0"], state=Stopping)


def test_a_stop_that_comes_too_soon() -> None:
    """It goes out again as soon as the provider takes it; one that is refused again and again less often."""
    play = Scenario(policy()).set_report(0, RUNNING).at(0, GatewayStarted())
    play.at(1, ManualStopRequested(), gives=None).at(1, StopError(RateLimited("too soon", 0.8)), gives=[])
    play.at(1.7, gives=[]).at(1.9, StopError(RateLimited("too soon", 0.8)), gives=["stop 0"])
    play.at(11.7, gives=[]).at(12, gives=["stop 0"])
