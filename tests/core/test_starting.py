"""From the first demand to a pod that runs: attempts, pauses, errors, queues (docs/api.md#which-provider)."""

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

from gpugate.core.commands import InspectPod
from gpugate.core.events import (
    GatewayStarted,
    InspectFailed,
    ManualStartRequested,
    RequestArrived,
    RequestFinished,
    StartAccepted,
)
from gpugate.core.states import (
    BackingOff,
    CallingStart,
    Provisioning,
    Ready,
    Stopped,
    Stopping,
    VerifyingStart,
)
from gpugate.errors import (
    Ambiguous,
    AuthFailed,
    Blocked,
    Conflict,
    Misconfigured,
    NoCapacity,
    NoFunds,
    NotFound,
    ProviderError,
    RateLimited,
    Transient,
)
from gpugate.provider_api import Phase, PodReport


def cold(play: Scenario) -> Scenario:
    """A gateway that came up, and nothing runs."""
    return play.at(0, GatewayStarted(), state=Stopped)


def test_a_request_while_the_pod_is_off() -> None:
    """Start, wait until it runs and answers, then the request goes on."""
    play = cold(Scenario(policy())).at(1, RequestArrived(1), gives=["start 0"], state=CallingStart)
    play.at(2, StartOk(), gives=["session 0 opens: request"], state=Provisioning).set_health(False)
    play.set_report(0, STARTING).at(30, gives=[]).set_report(0, RUNNING).at(60, gives=[])
    play.set_health(True).at(61, gives=["admit 1 run 1"], state=Ready)


def test_many_requests_while_the_pod_is_off() -> None:
    """Exactly one start, however many ask."""
    play = cold(Scenario(policy())).at(1, *(RequestArrived(n) for n in range(1, 51)), gives=["start 0"])
    play.at(2, StartOk()).at(3, RequestArrived(51), gives=[]).set_report(0, RUNNING)
    play.at(4, gives=["admit 1 run 1"], state=Ready)


def test_a_start_by_hand() -> None:
    """It is a demand without a request; the idle clock starts when the pod is ready."""
    play = cold(Scenario(policy(idle_timeout=60)))
    play.at(1, ManualStartRequested(), gives=["reply accepted", "start 0"])
    play.at(2, ManualStartRequested(), gives=["reply accepted"])
    play.at(3, StartOk(report=RUNNING), gives=["session 0 opens: hand"], state=Ready)
    play.set_report(0, RUNNING).at(4, ManualStartRequested(), gives=["reply accepted"], state=Ready)
    play.at(63, gives=["stop 0"], state=Stopping)


def test_a_pod_that_runs_at_once() -> None:
    """The answer to the start may say already that it runs, and since when it is billed."""
    play = cold(Scenario(policy())).at(1, RequestArrived(1))
    play.at(
        2, StartOk(report=RUNNING, up_s=50), gives=["session 0 opens: request, 50 s ago", "admit 1 run 1"]
    )


def test_a_transient_error_three_times() -> None:
    """Three attempts with doubling pauses, then 503 and a proved stop."""
    play = cold(Scenario(policy())).at(1, RequestArrived(1), gives=["start 0"])
    play.at(1, StartError(Transient("boom")), gives=[], state=BackingOff)
    play.at(1.99, gives=[]).at(2, gives=["start 0"], state=CallingStart)
    play.at(2, StartError(Transient("boom")), gives=[]).at(3.99, gives=[]).at(4, gives=["start 0"])
    play.at(4, StartError(Transient("boom")), gives=["refuse 1 POD_START_FAILED", "stop 0"], state=Stopping)
    play.at(5, StopOk(), gives=[], state=Stopped)
    error = play.refusals[1]
    assert error.message == "pod could not be started: alpha: boom"
    assert error.retry_after_s == 60
    assert error.reason == "transient"


def test_no_cool_down_after_a_failure() -> None:
    """The next request tries again at once, with all its attempts."""
    play = (
        cold(Scenario(policy(start_attempts=1))).at(1, RequestArrived(1)).at(1, StartError(Transient("boom")))
    )
    play.at(2, StopOk(), state=Stopped).at(2, RequestArrived(2), gives=["start 0"])


def test_the_second_attempt_succeeds() -> None:
    """The request never hears of the first."""
    play = cold(Scenario(policy())).at(1, RequestArrived(1)).at(1, StartError(Transient()))
    play.at(2, gives=["start 0"]).at(
        3, StartOk(report=RUNNING), gives=["session 0 opens: request", "admit 1 run 1"]
    )
    assert play.machine.last_error is None


@pytest.mark.parametrize(("chance", "pause"), [(0.0, 0.8), (0.5, 1.0), (0.999, 1.2)])
def test_the_backoff_jitters(chance: float, pause: float) -> None:
    """At most 20 % to either side."""
    assert policy().backoff_s(1, chance) == pytest.approx(pause, abs=0.001)


def test_the_pauses_double_up_to_a_minute() -> None:
    """Exponential, from `start_backoff`, and never absurd."""
    assert [policy().backoff_s(n, 0.5) for n in (1, 2, 3, 4, 20)] == [1, 2, 4, 8, 60]


def test_the_answer_of_a_start_was_lost() -> None:
    """An unsure start is looked up before it is asked again: it worked after all."""
    play = cold(Scenario(policy())).at(1, RequestArrived(1)).set_report(0, STARTING)
    play.at(2, StartError(Ambiguous("timeout")), state=BackingOff)
    play.at(3, gives=["session 0 opens: request"], state=Provisioning)


def test_the_answer_was_lost_and_a_look_shows_nothing() -> None:
    """Then it is asked again."""
    play = cold(Scenario(policy())).at(1, RequestArrived(1)).at(2, StartError(Ambiguous("timeout")))
    play.at(3, gives=["start 0"], state=CallingStart)


def test_the_answer_was_lost_and_nobody_can_look() -> None:
    """A start is idempotent, so it is asked again."""
    play = (
        cold(Scenario(policy()))
        .at(1, RequestArrived(1))
        .set_report(0, Transient())
        .at(2, StartError(Ambiguous()))
    )
    play.at(3, gives=["start 0"])


def test_a_late_answer_of_an_older_look() -> None:
    """Only the look that is waited for settles the doubt."""
    play = (
        cold(Scenario(policy())).set_report(0, None).at(1, RequestArrived(1)).at(2, StartError(Ambiguous()))
    )
    play.at(3, state=VerifyingStart).at(
        4, InspectFailed(10_000, 0, Transient()), gives=[], state=VerifyingStart
    )
    play.set_report(0, STOPPED).at(5, gives=["start 0"])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NoFunds("no money"), "funds"),
        (AuthFailed("bad key"), "auth"),
        (Blocked("1010"), "blocked"),
        (NotFound("no such pod"), "not_found"),
        (Misconfigured("bad image"), "config"),
        (NoCapacity("no GPU"), "capacity"),
    ],
)
def test_an_error_that_no_attempt_mends(error: ProviderError, reason: str) -> None:
    """One attempt; the message says what it was; one good try at a stop, and no alarm."""
    play = cold(Scenario(policy(), hidden=(InspectPod,))).at(1, RequestArrived(1), gives=["start 0"])
    play.at(1, StartError(error), gives=[f"complain 0 {reason}", "refuse 1 POD_START_FAILED", "stop 0"])
    assert play.refusals[1].reason == reason
    assert play.refusals[1].message == f"pod could not be started: alpha: {error.message}"
    play.set_report(0, AuthFailed("bad key")).at(2, StopError(AuthFailed("bad key"))).at(60, state=Stopped)


def test_a_pod_runs_although_the_start_was_refused() -> None:
    """Once a look has shown it, only a look at a stopped pod will do."""
    play = (
        cold(Scenario(policy()))
        .at(1, RequestArrived(1))
        .set_report(0, RUNNING)
        .at(1, StartError(NoFunds()), state=Stopping)
    )
    play.at(2, StopOk(), state=Stopping).set_report(0, Transient()).at(4, state=Stopping)
    assert play.machine.pending_stops.unconfirmed_providers == {0}


@pytest.mark.parametrize("error", [Transient(), Ambiguous(), Conflict(), ProviderError("plain")])
def test_an_error_that_another_attempt_may_mend(error: ProviderError) -> None:
    """It is tried again after a look, because the outcome is not sure."""
    play = (
        cold(Scenario(policy()))
        .set_report(0, None)
        .at(1, RequestArrived(1))
        .at(1, StartError(error), state=BackingOff)
    )
    play.at(2, gives=[], state=VerifyingStart).set_report(0, STOPPED).at(2, gives=["start 0"])


def test_an_unsure_start_that_failed_is_stopped_for_certain() -> None:
    """After attempts whose outcome is unknown only a look at a stopped pod will do."""
    play = cold(Scenario(policy(start_attempts=1))).at(1, RequestArrived(1)).at(1, StartError(Ambiguous()))
    play.set_report(0, Transient()).at(2, StopOk(), state=Stopping).at(3600, state=Stopping)
    play.set_report(0, STOPPED).at(3601, StopOk(), state=Stopped)


def test_a_doubt_outlives_a_later_refusal() -> None:
    """A stop given up because the pod was wanted again is still owed when that start is refused."""
    play = cold(Scenario(policy(start_attempts=1))).at(1, RequestArrived(1)).at(1, StartError(Ambiguous()))
    play.set_report(0, Transient()).at(2, StopError(Transient()), state=Stopping)
    play.at(3, RequestArrived(2), gives=["start 0"]).at(4, StartError(NoFunds()), state=Stopping)
    play.at(5, StopError(Transient())).at(3600, state=Stopping)
    assert play.machine.pending_stops.unconfirmed_providers == {0}


def test_a_rate_limit_is_no_attempt() -> None:
    """Its Retry-After is kept, up to 60 s, and the attempts are all still there; without one pauses grow."""
    play = (
        cold(Scenario(policy(start_attempts=1)))
        .at(0, RequestArrived(1))
        .at(0, StartError(RateLimited(30)), gives=[])
    )
    play.at(29.9, gives=[]).at(30, gives=["start 0"]).at(30, StartError(RateLimited(3600)))
    play.at(89.9, gives=[]).at(90, gives=["start 0"])
    play.at(91, StartError(RateLimited())).at(94.9, gives=[]).at(95, gives=["start 0"])


def test_a_rate_limit_for_ever() -> None:
    """Within `start_timeout` it is patience, after it a failure."""
    play = cold(Scenario(policy(start_timeout=100))).at(0, RequestArrived(1), gives=["start 0"])
    play.at(0, StartError(RateLimited(60))).at(60, StartError(RateLimited(60)), gives=["start 0"])
    play.at(120, gives=["start 0"]).at(
        120, StartError(RateLimited(60)), gives=["refuse 1 POD_START_FAILED", "stop 0"]
    )


def test_looks_are_rate_limited() -> None:
    """A provider that looks were too many for is left alone for as long as it wants, up to 60 s."""
    play = cold(Scenario(policy(), hidden=())).at(0, RequestArrived(1)).at(0, StartOk())
    play.set_report(0, RateLimited(20)).at(0.1, gives=["look 0", "complain 0 transient"])
    play.at(20, gives=[]).at(20.2, gives=["look 0"])


def test_no_capacity_within_the_wait() -> None:
    """It is asked again for `capacity_wait`, then it has failed."""
    play = (
        cold(Scenario(policy(capacity_wait=40)))
        .at(0, RequestArrived(1))
        .at(0, StartError(NoCapacity()), gives=[])
    )
    for when in (15, 30, 40):
        play.at(when, gives=["start 0"]).at(when, StartError(NoCapacity()))
    play.at(40, state=Stopping)
    assert play.refusals[1].reason == "capacity"


def test_a_transient_error_does_not_prolong_the_wait_for_capacity() -> None:
    """`capacity_wait` counts from the first ask."""
    play = cold(Scenario(policy(capacity_wait=10))).at(0, RequestArrived(1)).at(9, StartError(Transient()))
    play.at(10.5, StartError(NoCapacity()), state=Stopping)


def test_a_start_is_queued_at_the_provider() -> None:
    """Within `capacity_wait` it is watched; nothing is billed until it leaves the queue."""
    play = cold(Scenario(policy(capacity_wait=3600, max_wait=9999)))
    play.at(0, RequestArrived(1)).set_report(0, QUEUED).at(
        0, StartError(NoCapacity(queued=True)), gives=[], state=Provisioning
    )
    play.at(599, gives=[], state=Provisioning)
    play.set_report(0, STARTING).at(605, gives=["session 0 opens: request"])
    play.set_report(0, RUNNING).at(611, gives=["admit 1 run 1"], state=Ready)


def test_a_queued_start_may_outlast_the_start_timeout() -> None:
    """`start_timeout` counts from when the queue is left."""
    play = cold(Scenario(policy(capacity_wait=3600, start_timeout=100, max_wait=9999)))
    play.at(0, RequestArrived(1)).set_report(0, QUEUED).at(0, StartOk(report=QUEUED), gives=[])
    play.at(1000, gives=[], state=Provisioning).set_report(0, STARTING)
    play.at(1090, gives=["session 0 opens: request"], state=Provisioning).at(1110, state=Stopping)


def test_a_start_is_queued_for_too_long() -> None:
    """Past `capacity_wait` it has failed, and a stop cancels it, or it would fire with nobody there."""
    play = cold(Scenario(policy(capacity_wait=20))).at(0, RequestArrived(1)).set_report(0, QUEUED)
    play.at(0, StartOk(report=QUEUED)).at(19, gives=[])
    play.at(25, gives=["refuse 1 POD_START_FAILED", "stop 0"])
    assert play.refusals[1].reason == "capacity"
    play.set_report(0, Transient()).at(26, StopOk()).at(3600, state=Stopping)


def test_a_queued_start_without_patience() -> None:
    """`capacity_wait = 0`: the queue is as good as a refusal, but the stop has to be proved."""
    play = cold(Scenario(policy())).at(0, RequestArrived(1))
    play.at(0, StartError(NoCapacity(queued=True)), gives=["refuse 1 POD_START_FAILED", "stop 0"])
    play.set_report(0, Transient()).at(1, StopOk()).at(3600, state=Stopping)


def test_accepted_but_never_running() -> None:
    """Past `start_timeout` that provider has failed; its pod is stopped and proved so."""
    play = (
        cold(Scenario(policy(start_timeout=500)))
        .set_report(0, STARTING)
        .at(0, RequestArrived(1))
        .at(1, StartOk())
    )
    play.at(500.9, gives=[]).at(501, gives=["refuse 1 POD_START_FAILED", "stop 0"], state=Stopping)
    assert play.refusals[1].reason == "timeout"
    play.at(502, StopOk(), gives=[]).set_report(0, STOPPED).at(508, gives=["session 0 closes: start_failed"])


def test_a_start_fails_after_it_was_accepted() -> None:
    """The pod fails while it comes up: another attempt, after a look."""
    play = cold(Scenario(policy())).at(0, RequestArrived(1)).at(1, StartOk()).set_report(0, Phase.FAILED)
    play.at(2, gives=[], state=BackingOff).at(5, gives=["start 0"])


@pytest.mark.parametrize("billed", [True, False])
def test_an_accepted_start_turns_out_impossible(billed: bool) -> None:
    """No attempt mends that; the stop of what was accepted is proved, also if nothing was billed."""
    report = PodReport(Phase.FAILED, billed=billed, failure=Misconfigured("ErrImagePull: no such image"))
    play = (
        cold(Scenario(policy())).at(0, RequestArrived(1)).at(1, StartOk(report=PodReport(Phase.PROVISIONING)))
    )
    play.set_report(0, report).at(3, state=Stopping)
    assert play.refusals[1].reason == "config"
    assert "ErrImagePull: no such image" in play.refusals[1].message
    play.at(4, StopError(Transient("once more")), state=Stopping)
    play.at(12, StopOk()).set_report(0, STOPPED).at(30, state=Stopped)


def test_a_failure_that_may_pass() -> None:
    """A report whose error is no proof is another attempt, as without one."""
    report = PodReport(Phase.FAILED, failure=Transient("the node restarts"))
    play = cold(Scenario(policy())).at(0, RequestArrived(1)).at(1, StartOk()).set_report(0, report)
    play.at(2, gives=[], state=BackingOff).at(5, gives=["start 0"])


def test_a_pod_vanishes_while_it_starts() -> None:
    """Gone is gone: no attempt mends that."""
    play = cold(Scenario(policy())).at(0, RequestArrived(1)).at(1, StartOk()).set_report(0, Phase.GONE)
    play.at(2, gives=["refuse 1 POD_START_FAILED", "stop 0"])
    assert play.refusals[1].reason == "not_found"


def test_a_look_lags_behind_the_start() -> None:
    """For a while after the start a look may still say stopped (docs/providers.md#vastai-creation)."""
    play = cold(Scenario(policy(health_interval=5))).at(0, RequestArrived(1)).at(1, StartOk())
    play.at(5.9, gives=[], state=Provisioning)
    play.set_report(0, RUNNING).at(6, state=Ready)


def test_the_only_client_hangs_up_during_the_pause() -> None:
    """Nobody wants it any more: no further attempt, and the doubtful one is stopped."""
    play = (
        cold(Scenario(policy()))
        .at(0, RequestArrived(1))
        .at(0, StartError(Transient()))
        .at(0.5, RequestFinished(1), gives=[])
    )
    play.at(1, gives=["stop 0"], state=Stopping).at(2, StopOk(), gives=[], state=Stopped)


def test_the_only_client_hangs_up_while_it_waits_for_capacity() -> None:
    """No further attempt; the refusals were clean, so one good try at a stop is enough."""
    play = cold(Scenario(policy(capacity_wait=60))).at(0, RequestArrived(1)).at(0, StartError(NoCapacity()))
    play.at(5, RequestFinished(1)).at(15, gives=["stop 0"]).set_report(0, Transient())
    play.at(16, StopError(Transient()), gives=[], state=Stopped)


def test_the_only_client_hangs_up_before_the_refusal() -> None:
    """The start that is out fails: no further attempt."""
    cold(Scenario(policy())).at(0, RequestArrived(1)).at(1, RequestFinished(1)).at(
        2, StartError(Transient()), gives=["stop 0"]
    )


def test_the_only_client_hangs_up_before_the_doubt_is_settled() -> None:
    """Nothing is seen, nobody waits: it is not asked again."""
    play = (
        cold(Scenario(policy())).set_report(0, None).at(0, RequestArrived(1)).at(0, StartError(Transient()))
    )
    play.at(1, state=VerifyingStart).at(2, RequestFinished(1)).set_report(0, STOPPED).at(2, state=Stopping)


def test_the_only_client_hangs_up_while_the_pod_starts() -> None:
    """The pod is paid for already: it becomes ready, and its idle clock runs."""
    play = (
        cold(Scenario(policy()))
        .at(0, RequestArrived(1))
        .at(1, StartOk())
        .at(2, RequestFinished(1))
        .set_report(0, RUNNING)
    )
    play.at(4, gives=[], state=Ready).at(1000, gives=["stop 0"])


def test_a_stale_yes() -> None:
    """The answer to no start of ours opens no session."""
    play = cold(Scenario(policy())).at(0, RequestArrived(1))
    play.at(1, StartAccepted(9999, RUNNING), gives=[], state=CallingStart)


# --- failover ---------------------------------------------------------------------------------


def test_the_first_provider_has_no_capacity() -> None:
    """The next is asked within the same held request; the first is stopped and proved so."""
    play = cold(Scenario(policy(2))).at(0, RequestArrived(1), gives=["start 0"])
    play.at(0, StartError(NoCapacity()), gives=["start 1", "stop 0"])
    play.at(1, StopOk(0), StartOk(1, RUNNING), gives=["session 1 opens: request", "admit 1 run 1"])
    assert play.machine.pending_stops.by_provider == {}


def test_every_start_begins_with_the_first() -> None:
    """Whoever served last."""
    play = cold(Scenario(policy(2, idle_timeout=10))).at(0, RequestArrived(1)).at(0, StartError(NoCapacity()))
    play.at(1, StopOk(0), StartOk(1, RUNNING)).at(2, RequestFinished(1)).at(12, gives=["stop 1"]).at(
        13, StopOk(1), state=Stopped
    )
    play.at(14, RequestArrived(2), gives=["start 0"])


def test_all_providers_fail() -> None:
    """The message names each one's failure, the reason is the last one's."""
    play = cold(Scenario(policy(2))).at(0, RequestArrived(1)).at(0, StartError(NoFunds("no money")))
    play.at(1, StartError(NoCapacity("no GPU"), 1), gives=["refuse 1 POD_START_FAILED", "stop 1"])
    error = play.refusals[1]
    assert error.message == "pod could not be started: alpha: no money; beta: no GPU"
    assert error.reason == "capacity"
    play.at(2, StopOk(0), state=Stopping).at(3, StopOk(1), state=Stopped)


def test_the_first_provider_never_runs() -> None:
    """After `start_timeout` the next one is asked, and the loser is stopped for certain."""
    play = (
        cold(Scenario(policy(2, start_timeout=60)))
        .set_report(0, STARTING)
        .at(0, RequestArrived(1))
        .at(1, StartOk())
    )
    play.at(61, gives=["start 1", "stop 0"]).at(62, StopOk(0), StartOk(1, RUNNING))
    play.at(62, state=Ready).set_report(0, STOPPED).at(70, gives=["session 0 closes: start_failed"])


def test_the_first_provider_uses_up_its_attempts() -> None:
    """Attempts are per provider."""
    play = cold(Scenario(policy(2, start_attempts=2))).at(0, RequestArrived(1)).at(0, StartError(Transient()))
    play.at(1, gives=["start 0"]).at(1, StartError(Transient()), gives=["start 1", "stop 0"])
    play.at(1, StartError(Transient(), 1)).at(2, gives=["start 1"])


def test_a_warm_up_that_fails_moves_on() -> None:
    """With a list a pod that never becomes ready is one more failure to start."""
    play = cold(Scenario(policy(2, warmup_timeout=60))).set_health(False).at(0, RequestArrived(1))
    play.set_report(0, RUNNING).at(1, StartOk(report=RUNNING)).at(61, gives=["start 1", "stop 0"])
    play.set_report(1, RUNNING).at(62, StopOk(0), StartOk(1, RUNNING)).at(122, state=Stopping)
    assert play.refusals[1].code == "POD_START_FAILED"
    assert play.refusals[1].reason == "timeout"


def test_the_losers_stop_is_refused_while_the_next_one_serves() -> None:
    """It is sent again for ever, with an alarm, beside the pod that serves."""
    play = (
        cold(Scenario(policy(2, start_timeout=60)))
        .set_report(0, STARTING)
        .at(0, RequestArrived(1))
        .at(1, StartOk())
    )
    play.at(61).at(62, StartOk(1, RUNNING), StopError(Transient("down"), 0), state=Ready)
    play.set_report(1, RUNNING).at(67, gives=["stop 0"]).at(67, StopError(Transient("down"), 0)).at(
        76.9, gives=[]
    )
    play.at(77, gives=["stop 0"], state=Ready)
    assert play.machine.pending_stops.unconfirmed_providers == {0}


NO_ADDRESS = "running, but the provider tells no address of its Ollama"


@pytest.mark.parametrize(
    ("view", "why"),
    [
        (PodReport(Phase.RUNNING, detail="port 11434 is not mapped"), "port 11434 is not mapped"),
        (PodReport(Phase.RUNNING), NO_ADDRESS),
        (PodReport(Phase.PROVISIONING, detail="pulling the image"), "pulling the image"),
        (Transient("HTTP 500"), "could not look: HTTP 500"),
    ],
)
def test_a_start_that_is_given_up_says_what_it_waited_for(view: PodReport | Transient, why: str) -> None:
    """The last look's word is in the answer, not only that the time is over."""
    play = (
        cold(Scenario(policy(max_wait=900)))
        .at(1, RequestArrived(1))
        .at(2, StartOk())
        .set_report(0, view)
        .at(603)
    )
    said = f"pod could not be started: alpha: accepted, but not running within 600 s: {why}"
    assert play.refusals[1].message == said


def test_a_start_that_says_nothing() -> None:
    """Then the sentence ends where our knowledge does."""
    play = (
        cold(Scenario(policy(max_wait=900)))
        .at(1, RequestArrived(1))
        .at(2, StartOk())
        .set_report(0, STARTING)
        .at(603)
    )
    said = "pod could not be started: alpha: accepted, but not running within 600 s"
    assert play.refusals[1].message == said
