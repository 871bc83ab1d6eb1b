"""From the decision to start to a running pod: calls of `start()`, their errors, failover, provisioning.

The functions that are no transitions are used by the other modules of this package, too: whatever fails later
on comes back here (`attempt_failed`, `leave_provider`), and so does rest (`when_nothing_runs`).
"""

from __future__ import annotations

from attrs import evolve

from gpugate.core.commands import InspectPod, StartPod, StopCause
from gpugate.core.events import (
    DeadlineReached,
    DemandRaised,
    InspectFailed,
    PodInspected,
    StartAccepted,
    StartCallFailed,
)
from gpugate.core.machine import PodMachine
from gpugate.core.pending_stops import ACTIVE_PHASES, STOPPED_PHASES
from gpugate.core.start_plan import StartCall, WarmupTimedOut
from gpugate.core.states import (
    AfterAccept,
    AfterFailure,
    AfterStop,
    BackingOff,
    CallingStart,
    Preloading,
    Provisioning,
    StartAttempt,
    Starting,
    Stopped,
    Stopping,
    VerifyingStart,
    Warming,
    WarmingUp,
)
from gpugate.core.transition_table import transition
from gpugate.errors import Ambiguous, Conflict, NoCapacity, NotFound, ProviderError, RateLimited, Transient
from gpugate.provider_api import Phase, PodReport

NO_GPU = "the pod has no GPU"


# --- rest, and the first call --------------------------------------------------------------------


@transition
def demand_raised(pod: PodMachine, was: Stopped, event: DemandRaised, now: float) -> AfterStop:
    """The first request that needs the pod starts it."""
    if not pod.has_payable_demand:
        return was
    pod.plan.resume_at_provider = None
    return begin_start(pod, now)


@transition
def prewarm_due(pod: PodMachine, was: Stopped, event: DeadlineReached, now: float) -> AfterStop:
    """A request is expected: start before it comes, if its window, the budget and the wake rules allow."""
    if not pod.idle_timer.consume_window(now) or pod.budget_gate.is_exhausted or pod.wake_refusal(None):
        return was
    pod.plan.resume_at_provider = None
    pod.plan.start_requested = True
    after = begin_start(pod, now)
    pod.idle_timer.prewarmed_run_id = pod.plan.run_id
    return after


# What follows when nothing runs and nothing is on its way:
#
# 1. A stop is pending and no start is wanted: wait for its confirmation.
# 2. The gateway goes down: it ends with the last confirmation.
# 3. A start is wanted: begin it.
# 4. Otherwise rest, and inspect each provider from time to time.
def when_nothing_runs(pod: PodMachine, now: float) -> AfterStop:
    """Return the state that follows when there is no pod any more."""
    is_stopping = bool(pod.pending_stops.by_provider) or pod.plan.leaving_provider is not None
    if is_stopping and not pod.has_payable_demand:  # 1
        return Stopping()
    if pod.shutting_down:  # 2
        return Stopping() if is_stopping else pod.shutdown_state
    if pod.has_payable_demand:  # 3
        return begin_start(pod, now)
    pod.idle_timer.forget_schedule()  # 4
    pod.reconcile_all(now)
    return Stopped()


def begin_start(pod: PodMachine, now: float) -> AfterStop:
    """Begin a run at the first provider, or go on with the run that waited for a stop."""
    if pod.plan.resume_at_provider is not None and pod.plan.failures:
        return start_from(pod, pod.plan.resume_at_provider, now)
    if pod.plan.next_free_provider(0) is None:
        return Stopping()
    pod.plan.new_run()
    return start_from(pod, 0, now)


def start_from(pod: PodMachine, first: int, now: float) -> AfterStop:
    """Ask the next provider from `first` on; wait if a stop that may soon be confirmed comes before it."""
    plan = pod.plan
    provider = plan.next_free_provider(first)
    plan.resume_at_provider = None
    if provider is not None:
        pod.pending_stops.abandon(provider)
        return call_start(pod, first_attempt(pod, provider, now), now)
    if plan.failures and plan.all_stuck_from(first):
        plan.start_requested = False
        pod.reject_waiting(plan.error)
        return when_nothing_runs(pod, now)
    plan.resume_at_provider = first
    return Stopping()


def first_attempt(pod: PodMachine, provider: int, now: float) -> StartAttempt:
    """Return the first attempt of the current run at this provider."""
    return StartAttempt(
        run_id=pod.plan.run_id,
        provider=provider,
        number=1,
        since=now,
        capacity_deadline=now + pod.policy.capacity_wait,
    )


def call_start(pod: PodMachine, attempt: StartAttempt, now: float) -> CallingStart:
    """Call `start()` of the attempt's provider."""
    op = pod.next_op()
    pod.inspect_schedule.cancel(attempt.provider)
    pod.commands.append(StartPod(op, attempt.provider))
    pod.plan.called(StartCall(op, attempt.provider, pod.plan.run_id, pod.start_cause))
    return CallingStart(attempt=attempt, op=op)


# --- the result of a call ------------------------------------------------------------------------


@transition
def start_accepted(pod: PodMachine, was: CallingStart, event: StartAccepted, now: float) -> AfterAccept:
    """The provider accepted the start: it is billed from now on, unless it is queued there."""
    if event.op != was.op:
        return was
    pod.plan.take_result(event.op)
    pod.open_session(was.provider, was.run_id, pod.start_cause, event.report, event.up_s, now)
    return after_accept(pod, was.attempt, event.report, event.up_s, now)


# What follows a failed call of `start()`:
#
# 1. Rate limited: no attempt was used; call again after the pause the provider asks for, until
#    `pod.start_timeout` is over.
# 2. No capacity, within `pod.capacity_wait`: wait in the provider's queue if it has taken the start into one,
#    else call again every 15 s.
# 3. Anything else is a failed attempt: see `attempt_failed`.
#
# 1 and 2 only while a start is still wanted.
@transition
def start_call_failed(pod: PodMachine, was: CallingStart, event: StartCallFailed, now: float) -> AfterAccept:
    """The error decides: again, after an inspection, after a pause, or the next provider."""
    if event.op != was.op:
        return was
    error, attempt = event.error, was.attempt
    if pod.has_payable_demand and isinstance(error, RateLimited):  # 1
        if now - attempt.since >= pod.policy.start_timeout:
            return leave_provider(pod, attempt, error, now)
        pod.publish_problem(was.provider, error.in_full, error)
        retry_at = now + pod.plan.rate_limit_delay_s(error)
        return BackingOff(attempt=attempt, retry_at=retry_at, must_inspect=False)
    pod.plan.not_rate_limited()
    if pod.has_payable_demand and isinstance(error, NoCapacity) and now < attempt.capacity_deadline:  # 2
        pod.publish_problem(was.provider, error.in_full, error)
        if error.queued:
            return after_accept(pod, attempt, PodReport(Phase.QUEUED), 0.0, now)
        retry_at = min(now + pod.policy.capacity_retry_s, attempt.capacity_deadline)
        return BackingOff(attempt=attempt, retry_at=retry_at, must_inspect=False)
    return attempt_failed(pod, attempt, error, now)  # 3


@transition
def backoff_over(
    pod: PodMachine, was: BackingOff, event: DeadlineReached, now: float
) -> VerifyingStart | AfterStop:
    """Call again if a start is still wanted; inspect first where the last outcome is not known."""
    if not pod.has_payable_demand:
        return abandon_start(pod, was, now)
    if not was.must_inspect:
        return call_start(pod, was.attempt, now)
    op = pod.next_op()
    pod.commands.append(InspectPod(op, was.provider))
    return VerifyingStart(attempt=was.attempt, op=op)


@transition
def start_verified(
    pod: PodMachine, was: VerifyingStart, event: PodInspected | InspectFailed, now: float
) -> VerifyingStart | AfterAccept:
    """A start whose result was lost has worked after all, or it is called again."""
    if event.op != was.op:
        return was
    if isinstance(event, PodInspected) and event.report.phase in ACTIVE_PHASES:
        return after_accept(pod, was.attempt, event.report, event.up_s, now)
    if isinstance(event, PodInspected) and event.report.phase in STOPPED_PHASES:
        pod.close_session(was.provider, StopCause.LOST)
    if not pod.has_payable_demand:
        return abandon_start(pod, was, now)
    return call_start(pod, was.attempt, now)


def abandon_start(pod: PodMachine, was: BackingOff | VerifyingStart, now: float) -> AfterStop:
    """No start is wanted any more: make no further attempt, and stop what the last one may have left."""
    unsure = isinstance(was, VerifyingStart) or was.must_inspect or not has_left_no_pod(pod, was.attempt)
    pod.order_stop(was.provider, StopCause.START_FAILED, now, until_seen_stopped=unsure)
    return when_nothing_runs(pod, now)


def after_accept(
    pod: PodMachine, attempt: StartAttempt, report: PodReport, up_s: float, now: float
) -> AfterAccept:
    """Return the state that follows when a pod is coming up, by this report."""
    provider = attempt.provider
    pod.inspect_schedule.schedule(provider, now + pod.policy.inspect_interval_s(provider, 0.0))
    return provisioning_progress(pod, Provisioning(attempt=attempt, accepted_at=now), report, up_s, now)


# --- failing -------------------------------------------------------------------------------------


# What follows a failed attempt (docs/api.md#which-provider):
#
# 1. No start is wanted any more: leave the provider.
# 2. The outcome is not known (transient, ambiguous, conflict, an unnamed ProviderError) and attempts are
#    left: back off, inspect, then call again.
# 3. Anything else (no funds, authentication, not found, no capacity, ...): another call would have the same
#    result. Leave the provider.
def attempt_failed(
    pod: PodMachine, attempt: StartAttempt, error: ProviderError, now: float, *, pod_ran: bool = False
) -> AfterFailure:
    """Return the state that follows a failed attempt; `pod_ran` if its pod had been seen running."""
    if not pod.has_payable_demand:  # 1
        return leave_provider(pod, attempt, error, now)
    if not is_outcome_unknown(error) or attempt.number >= pod.policy.start_attempts:  # 3
        return leave_provider(pod, attempt, error, now)
    pod.publish_problem(attempt.provider, error.in_full, error)  # 2
    pod.requeue_leases(now)
    pod.inspect_schedule.cancel(attempt.provider)
    deadline = now + pod.policy.capacity_wait if pod_ran else attempt.capacity_deadline
    return BackingOff(
        attempt=evolve(attempt, number=attempt.number + 1, capacity_deadline=deadline),
        retry_at=now + pod.plan.backoff_s(attempt.number),
        must_inspect=True,
    )


def leave_provider(
    pod: PodMachine,
    attempt: StartAttempt,
    error: ProviderError,
    now: float,
    *,
    anywhere: bool = False,
    accepted: bool = False,
) -> AfterStop:
    """Stop what may run at this provider, and go on to the next one if a start is still wanted.

    `anywhere`: the next one would fail in the same way, so the run ends.

    The stop is "one good try" if no pod can be there: nothing was left before and the provider refused the
    start outright. A start that is queued there is not refused: left alone it would run some day, and be
    billed with no request waiting (docs/providers.md#vastai-queued-starts). Nor is one that was
    `accepted`, and found impossible later.
    """
    clean = has_left_no_pod(pod, attempt)
    refused = not is_outcome_unknown(error)
    queued = isinstance(error, NoCapacity) and error.queued
    pod.publish_problem(attempt.provider, error.in_full, error)
    pod.plan.failures.append((attempt.provider, error))
    pod.requeue_leases(now)
    must_be_seen = queued or accepted or not (clean and refused)
    pod.order_stop(attempt.provider, StopCause.START_FAILED, now, until_seen_stopped=must_be_seen)
    if not pod.has_payable_demand:
        return when_nothing_runs(pod, now)
    if anywhere:
        return start_from(pod, len(pod.policy.providers), now)
    if pod.policy.providers[attempt.provider].is_second:  # a hand-over has failed: begin in front
        return start_from(pod, 0, now)
    return start_from(pod, attempt.provider + 1, now)


def is_outcome_unknown(error: ProviderError) -> bool:
    """Return whether the call may have worked although it failed, so that an inspection has to tell."""
    return isinstance(error, Transient | Ambiguous | Conflict) or type(error) is ProviderError


def has_left_no_pod(pod: PodMachine, attempt: StartAttempt) -> bool:
    """Return whether nothing before this call can have left a pod running at its provider."""
    provider = attempt.provider
    return (
        attempt.number == 1
        and provider not in pod.open_sessions
        and provider not in pod.pending_stops.abandoned_providers
    )


# --- provisioning --------------------------------------------------------------------------------


@transition
def provisioning_inspected(
    pod: PodMachine, was: Provisioning, event: PodInspected, now: float
) -> AfterAccept:
    """Running with an address: warm it up. Stopped, failed, gone or queued too long: it failed."""
    if event.provider != was.provider:
        return was
    return provisioning_progress(pod, was, event.report, event.up_s, now)


# What a report means for a start that was accepted:
#
# 1. It is billed (no longer queued): open a session.
# 2. Running without a GPU, while a later provider could be asked: leave it. Otherwise it will have to do.
# 3. Running, and the address of its Ollama is known: warm it up.
# 4. Queued: keep waiting until `pod.capacity_wait` is over or no start is wanted any more, then take it out
#    of the queue. `pod.start_timeout` counts from when it leaves the queue.
# 5. STOPPED shortly after it was accepted: a provider's read may lag behind the start
#    (docs/providers.md#vastai-creation). Keep waiting.
# 6. Stopped, failed or gone: this attempt has failed.
# 7. Otherwise keep waiting, and remember for messages what the provider says.
def provisioning_progress(
    pod: PodMachine, was: Provisioning, report: PodReport, up_s: float, now: float
) -> AfterAccept:
    """Return the state that follows a report about an accepted start."""
    attempt = was.attempt
    if report.phase in ACTIVE_PHASES:  # 1
        pod.open_session(was.provider, was.run_id, pod.start_cause, report, up_s, now)
    if report.phase is Phase.RUNNING and report.cpu_only and may_fail_over(pod, was):  # 2
        return leave_provider(pod, attempt, NoCapacity(NO_GPU), now)
    if report.phase is Phase.RUNNING and "ollama" in report.endpoints:  # 3
        return Warming(
            attempt=attempt,
            endpoints=report.endpoints,
            began_at=now,
            probe_op=None,
            probe_at=now,
            degraded_reason=NO_GPU if report.cpu_only else "",
            provider_detail=report.detail,
        )
    if report.phase is Phase.QUEUED:  # 4
        if now >= attempt.capacity_deadline or not pod.has_payable_demand:
            error = NoCapacity(report.detail or "no GPU is free, the start is queued", queued=True)
            return leave_provider(pod, attempt, error, now)
        return evolve(was, accepted_at=now)
    if report.phase is Phase.STOPPED and now - was.accepted_at < pod.policy.health_interval:  # 5
        return was
    failed = fail_if_not_active(pod, was, report, now)  # 6
    return failed or evolve(was, provider_detail=_waits_for(report))  # 7


def _waits_for(report: PodReport) -> str:
    if report.detail or report.phase is not Phase.RUNNING:
        return report.detail
    return "running, but the provider tells no address of its Ollama"


def fail_if_not_active(
    pod: PodMachine, was: Provisioning | WarmingUp, report: PodReport, now: float
) -> AfterFailure | None:
    """Return the state that follows if the report shows that this attempt has failed, else None.

    What a pod that has stopped is billed ends here: the next attempt is another session.
    """
    if report.phase is Phase.STOPPED:
        pod.close_session(was.provider, StopCause.LOST)
    if report.phase is Phase.GONE:
        return leave_provider(pod, was.attempt, NotFound(report.detail or "the pod is gone"), now)
    if report.phase is Phase.FAILED and report.failure is not None and not is_outcome_unknown(report.failure):
        return leave_provider(pod, was.attempt, report.failure, now, accepted=True)
    if report.phase in (Phase.STOPPED, Phase.FAILED):
        error = Transient(report.detail or f"the pod is {report.phase}", output=report.output)
        return attempt_failed(pod, was.attempt, error, now, pod_ran=not isinstance(was, Provisioning))
    return None


@transition
def provisioning_deadline(
    pod: PodMachine, was: Provisioning, event: DeadlineReached, now: float
) -> AfterStop:
    """Accepted, but not running within `pod.start_timeout`, or `pod.max_session` is over."""
    if now >= pod.session_deadline_at:
        return session_over_before_ready(pod, was, now)
    message = f"accepted, but not running within {pod.policy.start_timeout:g} s"
    return leave_provider(pod, was.attempt, Ambiguous(with_provider_detail(pod, message, was)), now)


def with_provider_detail(pod: PodMachine, message: str, was: Provisioning | Warming) -> str:
    """Append what the last probe saw, and the last inspection's error or what the provider said last."""
    error = pod.views.errors.get(was.provider, "").removeprefix(f"{pod.provider_name(was.provider)}: ")
    probed = was.probe_detail if isinstance(was, Warming) else ""
    detail = "; ".join(filter(None, (probed, error or was.provider_detail)))
    return f"{message}: {detail}" if detail else message


def may_fail_over(pod: PodMachine, was: Provisioning | Preloading) -> bool:
    """Return whether a start is wanted, and a later provider can be asked now."""
    return pod.has_payable_demand and pod.plan.next_free_provider(was.provider + 1) is not None


def session_over_before_ready(pod: PodMachine, was: Starting, now: float) -> AfterStop:
    """`pod.max_session` is over before the pod served.

    If the session is older than this attempt (adopted, or a stop that was never confirmed), stop, and a new
    start follows the confirmation. Otherwise a new start would end in the same way, paid each time: failed.
    """
    if pod.open_sessions.began_at(was.provider) < was.attempt.since:
        pod.order_stop(was.provider, StopCause.MAX_SESSION, now)
        return Stopping()
    error = WarmupTimedOut("pod failed to become ready: pod.max_session was over")
    return leave_provider(pod, was.attempt, error, now)
