"""From a running pod to one that serves: health probes, preload, the limit of the session."""

from __future__ import annotations

from typing import TypeVar

from attrs import evolve

from gpugate.core.commands import AS_IT_COMES, CheckDevice, LoadOptions, PreloadModel, Probe, StopCause
from gpugate.core.events import DeadlineReached, PodInspected, PreloadFinished, ProbeFinished, UpstreamFailed
from gpugate.core.machine import PodMachine
from gpugate.core.pending_stops import STOPPED_PHASES
from gpugate.core.start_plan import WarmupTimedOut
from gpugate.core.states import (
    AfterFailure,
    AfterStop,
    Draining,
    Preloading,
    Ready,
    Stopping,
    Warming,
)
from gpugate.core.transition_table import transition
from gpugate.core.transitions.start import (
    fail_if_not_active,
    leave_provider,
    may_fail_over,
    session_over_before_ready,
    when_nothing_runs,
    with_provider_detail,
)
from gpugate.errors import NoCapacity, Transient
from gpugate.provider_api import Phase

WarmingState = TypeVar("WarmingState", Warming, Preloading)

ON_CPU = "the model runs on the CPU only"


# --- warming -------------------------------------------------------------------------------------


@transition
def warming_inspected(
    pod: PodMachine, was: WarmingState, event: PodInspected, now: float
) -> WarmingState | AfterFailure:
    """A pod that stops while it warms up has failed; an address may still change."""
    if event.provider != was.provider:
        return was
    if event.report.phase is Phase.RUNNING and "ollama" in event.report.endpoints:
        return evolve(was, endpoints=event.report.endpoints)
    if was.served and event.report.phase in STOPPED_PHASES | {Phase.FAILED}:
        return pod_lost(pod, was, event, now)
    return fail_if_not_active(pod, was, event.report, now) or was


@transition
def warmup_deadline(
    pod: PodMachine, was: Warming, event: DeadlineReached, now: float
) -> Warming | Draining | AfterStop:
    """Probe health again; give up after `pod.warmup_timeout`, or when `pod.max_session` is over."""
    if now >= pod.session_deadline_at:
        return session_over(pod, was, now)
    if now >= was.began_at + pod.policy.warmup_timeout:
        error = WarmupTimedOut(with_provider_detail(pod, "pod failed to become ready", was))
        return leave_provider(pod, was.attempt, error, now)
    op = pod.next_op()
    pod.commands.append(Probe(op, was.endpoints["ollama"]))
    delay = pod.policy.probe_interval_s(was.provider, now - was.attempt.since)
    return evolve(was, probe_op=op, probe_at=now + delay)


@transition
def warmup_probed(
    pod: PodMachine, was: Warming, event: ProbeFinished, now: float
) -> Warming | Preloading | Ready:
    """Healthy: preload the first waiting request's model, or serve."""
    if event.op != was.probe_op:
        return was
    if not event.healthy:
        return evolve(was, probe_op=None, probe_detail=event.detail)
    wanted = model_to_preload(pod)
    if wanted is None:
        pod.commands.append(CheckDevice(was.run_id, was.endpoints["ollama"]))
        return become_ready(pod, was, now)
    op = pod.next_op()
    pod.commands.append(PreloadModel(op, was.endpoints["ollama"], *wanted))
    return Preloading(
        attempt=was.attempt,
        endpoints=was.endpoints,
        op=op,
        give_up_at=now + pod.policy.preload_limit_s,
        model=wanted[0],
        served=was.served,
        degraded_reason=was.degraded_reason,
    )


@transition
def upstream_failed_while_warming(
    pod: PodMachine, was: WarmingState, event: UpstreamFailed, now: float
) -> WarmingState:
    """A request that met the trouble waits for the recovery, in its old place in the queue."""
    if event.run_id == was.run_id:
        pod.commands += pod.queue.requeue_lease(event.resendable, now)
    return was


def model_to_preload(pod: PodMachine) -> tuple[str, LoadOptions] | None:
    """Return the model to load before the pod serves, and how; None for no preload.

    It is loaded as the first waiting request wants it: otherwise the engine would load it a second time.
    """
    wanted = pod.policy.preload
    if wanted == "none":
        return None
    first = next((ticket for ticket in pod.queue.waiting if ticket.model), None)
    if first is not None and first.model and wanted in ("requested", first.model, f"{first.model}:latest"):
        return first.model, first.load
    model = pod.idle_timer.scheduled_model or (None if wanted == "requested" else wanted)
    return None if model is None else (model, AS_IT_COMES)


# --- preloading ----------------------------------------------------------------------------------


@transition
def preload_finished(
    pod: PodMachine, was: Preloading, event: PreloadFinished, now: float
) -> Preloading | Ready | AfterStop:
    """Serve, even if the preload failed. A model on the CPU: the next provider, if it can be asked."""
    if event.op != was.op:
        return was
    if not event.on_cpu:
        return become_ready(pod, was, now)
    if not was.served and may_fail_over(pod, was):
        return leave_provider(pod, was.attempt, NoCapacity(ON_CPU), now)
    return become_ready(pod, evolve(was, degraded_reason=ON_CPU), now)


@transition
def preload_deadline(
    pod: PodMachine, was: Preloading, event: DeadlineReached, now: float
) -> Ready | Draining | AfterStop:
    """The preload takes too long: serve without it, unless `pod.max_session` is over."""
    if now >= pod.session_deadline_at:
        return session_over(pod, was, now)
    return become_ready(pod, was, now)


def become_ready(pod: PodMachine, was: Warming | Preloading, now: float) -> Ready:
    """The pod serves; the idle clock starts if no request holds a lease."""
    pod.plan.start_requested = False
    pod.last_problem = None
    pod.idle_timer.begin_keep(now)
    if not was.served and pod.started_here:
        pod.idle_timer.policy.on_start_finished(now - was.attempt.since)
    if not pod.queue.leases:
        pod.queue.idle_since = now
    pod.reconcile_all(now)
    if was.degraded_reason:
        pod.publish_problem(was.provider, was.degraded_reason, NoCapacity(was.degraded_reason))
    return Ready(run_id=was.run_id, provider=was.provider, endpoints=was.endpoints)


# --- ends that several states share --------------------------------------------------------------


def session_over(pod: PodMachine, was: Warming | Preloading, now: float) -> Draining | AfterStop:
    """`pod.max_session` is over. A pod that has served drains; another start has failed."""
    if was.served:
        return drain_or_stop(pod, was, StopCause.MAX_SESSION, now)
    return session_over_before_ready(pod, was, now)


def drain_or_stop(
    pod: PodMachine, was: Warming | Preloading | Ready, cause: StopCause, now: float
) -> Draining | Stopping:
    """Give running responses `pod.drain_grace`, then stop; without any stop now."""
    if not pod.queue.leases:
        return stop_pod(pod, was.provider, cause, now)
    return Draining(
        run_id=was.run_id,
        provider=was.provider,
        endpoints=was.endpoints,
        until=now + pod.policy.drain_grace,
        cause=cause,
    )


def stop_pod(pod: PodMachine, provider: int, cause: StopCause, now: float) -> Stopping:
    """Stop the pod, and wait for the confirmation."""
    pod.order_stop(provider, cause, now)
    return Stopping()


def pod_lost(
    pod: PodMachine, was: Warming | Preloading | Ready | Draining, event: PodInspected, now: float
) -> AfterStop:
    """A pod that served is gone: requests without a response wait for a new start."""
    phase = event.report.phase
    message = event.report.detail or f"the pod is {phase} behind our back"
    pod.publish_problem(was.provider, Transient(message, output=event.report.output).in_full)
    pod.requeue_leases(now)
    if phase in STOPPED_PHASES:
        pod.close_session(was.provider, StopCause.LOST)
        pod.inspect_schedule.schedule(was.provider, now + pod.policy.reconcile_interval_s(was.provider))
    else:  # a failed pod may still be billed
        pod.order_stop(was.provider, StopCause.LOST, now)
    return when_nothing_runs(pod, now)
