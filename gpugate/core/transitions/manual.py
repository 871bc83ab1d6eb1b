"""What an operator asks for: a manual start or stop, and the shutdown of the gateway."""

from __future__ import annotations

from typing import TypeVar

from attrs import evolve

from gpugate.core.commands import ResolveManualRequest, StopCause
from gpugate.core.events import ManualStartRequested, ManualStopRequested, PodInspected, ShutdownRequested
from gpugate.core.machine import NEEDS_NEW_START, PodMachine
from gpugate.core.pending_stops import STOPPED_PHASES
from gpugate.core.states import (
    AfterAccept,
    AfterStop,
    BackingOff,
    CallingStart,
    Draining,
    Preloading,
    Provisioning,
    Pulling,
    Ready,
    ShutDown,
    State,
    Stopped,
    Stopping,
    Unknown,
    VerifyingStart,
    Warming,
    WarmingUp,
    provider_of,
)
from gpugate.core.transition_table import transition
from gpugate.core.transitions.boot import judge_boot
from gpugate.core.transitions.start import begin_start
from gpugate.core.transitions.warmup import stop_pod
from gpugate.errors import BudgetExceeded, GateError, PodBusy, PodStopped, WakeDenied
from gpugate.provider_api import Phase

PodState = TypeVar(
    "PodState",
    CallingStart,
    BackingOff,
    VerifyingStart,
    Provisioning,
    Warming,
    Pulling,
    Preloading,
    Ready,
    Draining,
)
RestingState = TypeVar("RestingState", Stopped, Stopping)


def stopped_by_hand() -> PodStopped:
    """Return the error for requests that a manual stop ends."""
    return PodStopped("the pod was stopped by hand")


# --- manual start --------------------------------------------------------------------------------


@transition
def manual_start(
    pod: PodMachine, was: Stopped | Stopping, event: ManualStartRequested, now: float
) -> AfterStop:
    """A manual start is a demand without a request."""
    return begin_start(pod, now) if accept_manual_start(pod, event) else was


@transition
def manual_start_at_boot(
    pod: PodMachine, was: Unknown, event: ManualStartRequested, now: float
) -> Unknown | AfterAccept:
    """Start once it is known what runs."""
    return judge_boot(pod, was, now) if accept_manual_start(pod, event) else was


def accept_manual_start(pod: PodMachine, event: ManualStartRequested) -> bool:
    """Accept or refuse a manual start; return True if it is one more reason to start.

    A user over the share is told "accepted" where a start is wanted anyway, but adds no reason to start.
    """
    refusal = start_refusal(pod, event)
    pod.commands.append(ResolveManualRequest(None if pod.has_payable_demand else refusal))
    pod.plan.start_requested = pod.plan.start_requested or refusal is None
    if refusal is None:
        pod.idle_timer.keep_when_ready(event.keep_s, event.model)
    return refusal is None


def start_refusal(pod: PodMachine, event: ManualStartRequested) -> GateError | None:
    """Return why this user may not start a pod; None if the user may."""
    if pod.shutting_down:
        return pod.shutting_down_error()
    if event.denied:
        return WakeDenied(event.denied)
    reason = pod.budget_gate.refusal_reason(event.user)
    return BudgetExceeded(reason) if reason else None


@transition
def manual_start_repeated(
    pod: PodMachine, was: PodState, event: ManualStartRequested, now: float
) -> PodState:
    """The pod is on its way or serves; if it is about to stop, it is wanted again afterwards."""
    if isinstance(was, NEEDS_NEW_START):
        accept_manual_start(pod, event)
        return was
    refusal = start_refusal(pod, event)
    refused = pod.shutting_down or event.keep_s  # who only wants it to run has what it wants
    pod.commands.append(ResolveManualRequest(refusal if refused else None))
    wanted = pod.plan.start_requested or refusal is None
    if refusal is None and event.keep_s:
        pod.idle_timer.keep_when_ready(event.keep_s, event.model)
        if isinstance(was, Ready):
            pod.idle_timer.begin_keep(now)
    pod.plan.start_requested = wanted and not isinstance(was, Ready) and not pod.shutting_down
    pod.idle_timer.prewarmed_run_id = 0  # a prewarmed pod becomes one that was asked for
    return was


# --- manual stop ---------------------------------------------------------------------------------


@transition
def manual_stop(
    pod: PodMachine, was: PodState, event: ManualStopRequested, now: float
) -> PodState | Stopping:
    """Refused while a request waits or is answered, unless forced."""
    if not accept_manual_stop(pod, event, now):
        return was
    return stop_pod(pod, was.provider, StopCause.FORCED if event.force else StopCause.MANUAL, now)


@transition
def manual_stop_at_boot(
    pod: PodMachine, was: Unknown, event: ManualStopRequested, now: float
) -> Unknown | Stopping:
    """It is not known what runs: stop at every provider."""
    if not accept_manual_stop(pod, event, now):
        return was
    for provider in range(len(pod.policy.providers)):
        if isinstance(seen := was.inspections.get(provider), PodInspected):
            pod.open_found_session(seen, now)
        pod.order_stop(provider, StopCause.MANUAL, now)
    return Stopping()


@transition
def manual_stop_repeated(
    pod: PodMachine, was: RestingState, event: ManualStopRequested, now: float
) -> RestingState | Stopping:
    """Stopped already, as far as is known: inspect again, and send a pending stop again now."""
    if not accept_manual_stop(pod, event, now):
        return was
    pod.pending_stops.resend_all(now)
    pod.inspect_idle_providers(StopCause.MANUAL, now)
    return Stopping() if pod.pending_stops.by_provider else was


def accept_manual_stop(pod: PodMachine, event: ManualStopRequested, now: float) -> bool:
    """Accept or refuse a manual stop; if accepted, end all requests and forget why the pod was wanted."""
    if pod.queue.busy and not event.force:
        pod.commands.append(ResolveManualRequest(PodBusy()))
        return False
    pod.commands.append(ResolveManualRequest())
    pod.plan.start_requested = False
    pod.reject_waiting(stopped_by_hand)
    pod.abort_leases(stopped_by_hand, now)
    pod.idle_timer.suppress_prewarm()
    pod.idle_timer.cancel_keep()
    return True


@transition
def manual_after_shutdown(
    pod: PodMachine, was: ShutDown, event: ManualStartRequested | ManualStopRequested, now: float
) -> ShutDown:
    """The gateway goes down: refused."""
    pod.commands.append(ResolveManualRequest(pod.shutting_down_error()))
    return was


# --- shutdown ------------------------------------------------------------------------------------


@transition
def shutdown_while_starting(
    pod: PodMachine,
    was: CallingStart | BackingOff | VerifyingStart | Provisioning,
    event: ShutdownRequested,
    now: float,
) -> Stopping | ShutDown:
    """Reject waiting requests; stop what may come up, or leave it for the next gateway to adopt."""
    stop_admitting(pod, event)
    inspect_before_exit(pod, was.provider, now)
    return finish_shutdown(pod, was) if event.keep else stop_pod(pod, was.provider, StopCause.SHUTDOWN, now)


@transition
def shutdown_while_serving(
    pod: PodMachine, was: WarmingUp | Ready, event: ShutdownRequested, now: float
) -> Draining | Stopping | ShutDown:
    """Reject waiting requests, give running responses their grace, then stop the pod or leave it."""
    stop_admitting(pod, event)
    inspect_before_exit(pod, was.provider, now)
    if pod.queue.leases:
        return Draining(
            run_id=was.run_id,
            provider=was.provider,
            endpoints=was.endpoints,
            until=now + pod.policy.shutdown_grace,
            cause=StopCause.SHUTDOWN,
            kept=event.keep,
        )
    return finish_shutdown(pod, was) if event.keep else stop_pod(pod, was.provider, StopCause.SHUTDOWN, now)


@transition
def shutdown_while_draining(pod: PodMachine, was: Draining, event: ShutdownRequested, now: float) -> Draining:
    """Running responses keep the rest of their grace, at most `server.shutdown_grace`."""
    stop_admitting(pod, event)
    inspect_before_exit(pod, was.provider, now)
    return evolve(was, kept=event.keep, until=min(was.until, now + pod.policy.shutdown_grace))


# A shutdown before it is known what runs:
#
# 1. The pod is to be kept: leave everything as it is.
# 2. A provider that was not inspected, or whose inspection told nothing: one good try at a stop; where the
#    ledger has an open session of an earlier gateway, a stop that must be confirmed.
# 3. A provider where a pod was found: a stop that must be confirmed.
# 4. A provider that was seen stopped, by its inspection or by that of an inherited stop: nothing.
@transition
def shutdown_at_boot(
    pod: PodMachine, was: Unknown, event: ShutdownRequested, now: float
) -> Stopping | ShutDown:
    """Stop what was found; where nothing is known yet, make one good try."""
    stop_admitting(pod, event)
    if event.keep:  # 1
        return finish_shutdown(pod, was)
    for provider in range(len(pod.policy.providers)):
        seen = was.inspections.get(provider)
        if seen is None and provider in pod.views.seen:  # 4
            continue
        if not isinstance(seen, PodInspected) or seen.report.phase is Phase.UNREACHABLE:  # 2
            may_run = provider in pod.inherited_sessions
            pod.order_stop(provider, StopCause.SHUTDOWN, now, until_seen_stopped=may_run)
        elif seen.report.phase not in STOPPED_PHASES:  # 3
            pod.stop_found_pod(seen, StopCause.SHUTDOWN, now)
    return finish_shutdown(pod, was)


@transition
def shutdown_at_rest(
    pod: PodMachine, was: Stopped | Stopping | ShutDown, event: ShutdownRequested, now: float
) -> Stopping | ShutDown:
    """Nothing runs, as far as is known: inspect once more. A pending stop goes on."""
    stop_admitting(pod, event)
    if not isinstance(was, ShutDown):
        inspect_before_exit(pod, None, now)
    return finish_shutdown(pod, was)


def finish_shutdown(pod: PodMachine, was: State) -> Stopping | ShutDown:
    """Return the last state; or the wait for a stop that is pending, at another provider for example."""
    if pod.keep_pod and not isinstance(was, Stopping | ShutDown):
        pod.shutdown_state = ShutDown(pod.status, provider_of(was))
    is_stopping = pod.pending_stops.by_provider or pod.plan.leaving_provider is not None
    return Stopping() if is_stopping else pod.shutdown_state


def inspect_before_exit(pod: PodMachine, served_by: int | None, now: float) -> None:
    """Inspect the other providers: after the exit nothing would find a pod that was started elsewhere.

    Where an earlier gateway left a session open and nothing was seen since, a stop has to be confirmed.
    """
    if not pod.keep_pod:
        for provider in pod.inherited_sessions - pod.views.seen - {served_by}:
            pod.order_stop(provider, StopCause.SHUTDOWN, now)
        pod.inspect_idle_providers(StopCause.SHUTDOWN, now, but=served_by)


def stop_admitting(pod: PodMachine, event: ShutdownRequested) -> None:
    """Begin the shutdown: reject waiting and new requests, and want no start any more."""
    pod.shutting_down, pod.keep_pod, pod.plan.start_requested = True, event.keep, False
    pod.reject_waiting(pod.shutting_down_error)
