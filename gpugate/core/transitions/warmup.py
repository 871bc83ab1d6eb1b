"""From a running pod to one that serves: health probes, preload, the limit of the session."""

from __future__ import annotations

from typing import TypeVar

from attrs import evolve

from gpugate.core.commands import (
    AS_IT_COMES,
    CheckDevice,
    ListModels,
    LoadOptions,
    PreloadModel,
    Probe,
    PullModel,
    StopCause,
)
from gpugate.core.events import (
    DeadlineReached,
    ModelPulled,
    ModelsListed,
    PodInspected,
    PreloadFinished,
    ProbeFinished,
    UpstreamFailed,
)
from gpugate.core.machine import PodMachine
from gpugate.core.pending_stops import STOPPED_PHASES
from gpugate.core.request_queue import Ticket, full_name
from gpugate.core.start_plan import PullFailed, WarmupTimedOut
from gpugate.core.states import (
    AfterFailure,
    AfterStop,
    Draining,
    Preloading,
    Pulling,
    Ready,
    Stopping,
    Warming,
    WarmingUp,
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

WarmingState = TypeVar("WarmingState", Warming, Pulling, Preloading)

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
) -> Warming | Pulling | Preloading | Ready:
    """Healthy: ask which models of `pod.pull` are there, preload the first waiting request's, or serve."""
    if event.op != was.probe_op:
        return was
    if not event.healthy:
        return evolve(was, probe_op=None, probe_detail=event.detail)
    if not pod.policy.pull:
        return preload_or_serve(pod, was, now)
    op = pod.next_op()
    pod.commands.append(ListModels(op, was.endpoints["ollama"]))
    return Pulling(
        attempt=was.attempt,
        endpoints=was.endpoints,
        op=op,
        give_up_at=now + pod.policy.pull_timeout,
        models=pod.policy.pull,
        served=was.served,
        degraded_reason=was.degraded_reason,
    )


def preload_or_serve(pod: PodMachine, was: Warming | Pulling, now: float) -> Preloading | Ready:
    """Load the first waiting request's model, or serve at once."""
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
        problem=was.problem if isinstance(was, Pulling) else "",
    )


@transition
def upstream_failed_while_warming(
    pod: PodMachine, was: WarmingState, event: UpstreamFailed, now: float
) -> WarmingState:
    """A request that met the trouble waits for the recovery, in its old place in the queue."""
    if event.run_id == was.run_id:
        pod.commands += pod.queue.requeue_lease(event.resendable, now)
    return was


def first_with_model(pod: PodMachine) -> Ticket | None:
    """Return the first waiting request that names a model; an upload does not."""
    return next((ticket for ticket in pod.queue.waiting if ticket.model), None)


def model_to_preload(pod: PodMachine) -> tuple[str, LoadOptions] | None:
    """Return the model to load before the pod serves, and how; None for no preload.

    It is loaded as the first waiting request wants it: otherwise the engine would load it a second time.
    """
    wanted = pod.policy.preload
    if wanted == "none":
        return None
    first = first_with_model(pod)
    if first is not None and first.model and wanted in ("requested", first.model, f"{first.model}:latest"):
        return first.model, first.load
    model = pod.idle_timer.scheduled_model or (None if wanted == "requested" else wanted)
    return None if model is None else (model, AS_IT_COMES)


# --- pulling -------------------------------------------------------------------------------------


@transition
def models_listed(
    pod: PodMachine, was: Pulling, event: ModelsListed, now: float
) -> Pulling | Preloading | Ready:
    """Pull what is missing of `pod.pull`, one model after the other."""
    if event.op != was.op:
        return was
    missing = (model for model in was.models if full_name(model) not in event.models)
    return pull_next(pod, evolve(was, models=tuple(missing)), now)


@transition
def model_pulled(
    pod: PodMachine, was: Pulling, event: ModelPulled, now: float
) -> Pulling | Preloading | AfterStop | Ready:
    """Pull the next one. Without the model that is waited for the start has failed; without another not."""
    if event.op != was.op:
        return was
    if not event.error:
        return pull_next(pod, evolve(was, models=was.models[1:]), now)
    message = f"{was.models[0]} could not be pulled: {event.error}"
    if is_requested(pod, was.models[:1]):
        return leave_provider(pod, was.attempt, PullFailed(message), now, anywhere=event.anywhere)
    return pull_next(pod, without_models(pod, was, was.models[:1], message), now)


@transition
def pull_deadline(
    pod: PodMachine, was: Pulling, event: DeadlineReached, now: float
) -> Preloading | Ready | Draining | AfterStop:
    """`pod.pull_timeout` is over: serve without what is missing, unless it is waited for."""
    if now >= pod.session_deadline_at:
        return session_over(pod, was, now)
    message = f"{', '.join(was.models)} could not be pulled within {pod.policy.pull_timeout:g} s"
    if is_requested(pod, was.models):
        return leave_provider(pod, was.attempt, PullFailed(message), now)
    return preload_or_serve(pod, without_models(pod, was, was.models, message), now)


def pull_next(pod: PodMachine, was: Pulling, now: float) -> Pulling | Preloading | Ready:
    """Pull the model that is waited for first, else the next one; without any left preload or serve."""
    if not was.models:
        return preload_or_serve(pod, was, now)
    models = tuple(sorted(was.models, key=lambda model: not is_requested(pod, (model,))))
    op = pod.next_op()
    pod.commands.append(PullModel(op, was.endpoints["ollama"], was.provider, models[0]))
    return evolve(was, op=op, models=models)


def is_requested(pod: PodMachine, models: tuple[str, ...]) -> bool:
    """Return whether the first waiting request wants one of these models."""
    first = first_with_model(pod)
    return first is not None and full_name(first.model or "") in map(full_name, models)


def without_models(pod: PodMachine, was: Pulling, models: tuple[str, ...], message: str) -> Pulling:
    """Say that these models could not be pulled, and go on without them."""
    pod.publish_problem(was.provider, message, PullFailed(message))
    problem = "; ".join(filter(None, (was.problem, message)))
    return evolve(was, models=tuple(model for model in was.models if model not in models), problem=problem)


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


def become_ready(pod: PodMachine, was: WarmingUp, now: float) -> Ready:
    """The pod serves; the idle clock starts if no request holds a lease."""
    pod.plan.start_requested = False
    problem = "" if isinstance(was, Warming) else was.problem
    pod.last_problem = f"{pod.provider_name(was.provider)}: {problem}" if problem else None
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


def session_over(pod: PodMachine, was: WarmingUp, now: float) -> Draining | AfterStop:
    """`pod.max_session` is over. A pod that has served drains; another start has failed."""
    if was.served:
        return drain_or_stop(pod, was, StopCause.MAX_SESSION, now)
    return session_over_before_ready(pod, was, now)


def drain_or_stop(
    pod: PodMachine, was: WarmingUp | Ready, cause: StopCause, now: float
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
    pod: PodMachine, was: WarmingUp | Ready | Draining, event: PodInspected, now: float
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
