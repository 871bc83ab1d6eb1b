"""A pod that serves: idle stop, lost and unhealthy pods, draining, and the confirmation of its stop."""

from __future__ import annotations

from typing import TypeVar

from attrs import evolve

from gpugate.core.commands import Probe, StopCause
from gpugate.core.events import (
    AllStopsConfirmed,
    DeadlineReached,
    DemandRaised,
    DeviceChecked,
    ForcedShutdownRequested,
    LastLeaseReleased,
    PodInspected,
    ProbeFinished,
    UpstreamFailed,
)
from gpugate.core.machine import PodMachine
from gpugate.core.pending_stops import STOPPED_PHASES
from gpugate.core.states import (
    AfterStop,
    Draining,
    Provisioning,
    Ready,
    ShutDown,
    StartAttempt,
    Stopping,
    Warming,
)
from gpugate.core.transition_table import transition
from gpugate.core.transitions.manual import finish_shutdown, stopped_by_hand
from gpugate.core.transitions.start import begin_start, when_nothing_runs
from gpugate.core.transitions.warmup import ON_CPU, drain_or_stop, pod_lost, stop_pod
from gpugate.errors import NoCapacity
from gpugate.provider_api import Phase

ServingState = TypeVar("ServingState", Ready, Draining)
NOT_YET_OR_NOT_SEEN = frozenset({Phase.UNREACHABLE, Phase.QUEUED, Phase.PROVISIONING, Phase.STARTING})
"""Phases of a pod that serves which say: perhaps not. An engine replaces a lost pod by itself, so it comes
up again without a start (docs/providers.md#kubernetes-pods)."""


# --- ready ---------------------------------------------------------------------------------------


@transition
def idle_or_session_deadline(
    pod: PodMachine, was: Ready, event: DeadlineReached, now: float
) -> Provisioning | Draining | Stopping:
    """Unused for `pod.idle_timeout`: stop. Past `pod.max_session`: admit no request, and stop soon."""
    if now >= pod.session_deadline_at:
        if pod.hand_over is not None and (after := pod.hand_over.at_admission_end(was, now)) is not None:
            return after
        return drain_or_stop(pod, was, StopCause.MAX_SESSION, now)
    return stop_pod(pod, was.provider, StopCause.IDLE, now)


@transition
def ready_inspected(
    pod: PodMachine, was: Ready, event: PodInspected, now: float
) -> Ready | Draining | AfterStop:
    """A pod that is gone is lost; one that stops drains; one that is unreachable or comes up is probed."""
    if event.provider == was.provider and event.report.phase is Phase.STOPPING:
        return drain_or_stop(pod, was, StopCause.STOPPED_ELSEWHERE, now)
    if event.provider == was.provider and event.report.phase in NOT_YET_OR_NOT_SEEN:
        return probe_health(pod, was)
    return serving_inspected(pod, was, event, now)


@transition
def draining_inspected(
    pod: PodMachine, was: Draining, event: PodInspected, now: float
) -> Draining | AfterStop:
    """A pod that is gone is lost, while it drains, too."""
    return serving_inspected(pod, was, event, now)


def serving_inspected(
    pod: PodMachine, was: ServingState, event: PodInspected, now: float
) -> ServingState | AfterStop:
    """Lose a pod that is gone or has failed, and take over an address that has changed."""
    phase = event.report.phase
    if event.provider != was.provider:
        return was
    if phase in STOPPED_PHASES or phase is Phase.FAILED:
        return pod_lost(pod, was, event, now)
    if phase is Phase.RUNNING and "ollama" in event.report.endpoints:
        return evolve(was, endpoints=event.report.endpoints)
    return was


@transition
def upstream_failed(pod: PodMachine, was: Ready, event: UpstreamFailed, now: float) -> Ready:
    """An exchange broke: inspect the provider and probe the pod's health, now."""
    if event.run_id != was.run_id:
        return was
    pod.inspect_schedule.schedule(was.provider, now)
    return probe_health(pod, was)


def probe_health(pod: PodMachine, was: Ready) -> Ready:
    """Probe the pod's health, unless a probe is out."""
    if was.probe_op is not None:
        return was
    op = pod.next_op()
    pod.commands.append(Probe(op, was.endpoints["ollama"]))
    return evolve(was, probe_op=op)


@transition
def health_probed(pod: PodMachine, was: Ready, event: ProbeFinished, now: float) -> Ready | Warming:
    """Healthy: serve on. Otherwise warm up again: new requests wait instead of failing."""
    if event.op != was.probe_op:
        return was
    if event.healthy:
        return evolve(was, probe_op=None)
    pod.publish_problem(was.provider, f"the pod runs, but its Ollama does not answer: {event.detail}")
    pod.inspect_schedule.schedule(was.provider, now)
    attempt = StartAttempt(
        run_id=was.run_id,
        provider=was.provider,
        number=1,
        since=now,
        capacity_deadline=now + pod.policy.capacity_wait,
    )
    return Warming(
        attempt=attempt,
        endpoints=was.endpoints,
        began_at=now,
        probe_op=None,
        probe_at=now + pod.policy.probe_interval_s(was.provider, 0.0),
        served=True,
        probe_detail=event.detail,
    )


@transition
def device_checked(pod: PodMachine, was: Ready, event: DeviceChecked, now: float) -> Ready:
    """All loaded models run on the CPU: publish that, and serve on."""
    if event.run_id == was.run_id and event.on_cpu:
        pod.publish_problem(was.provider, ON_CPU, NoCapacity(ON_CPU))
    return was


# --- draining and stopping -----------------------------------------------------------------------


@transition
def drain_finished(
    pod: PodMachine,
    was: Draining,
    event: LastLeaseReleased | DeadlineReached | ForcedShutdownRequested,
    now: float,
) -> Stopping | ShutDown:
    """The last response ended, or its time is over: stop the pod, or leave it."""
    pod.abort_leases(pod.shutting_down_error if pod.shutting_down else stopped_by_hand, now)
    if pod.shutting_down and pod.keep_pod:
        return finish_shutdown(pod, was)
    return stop_pod(pod, was.provider, was.cause, now)


@transition
def demand_while_stopping(pod: PodMachine, was: Stopping, event: DemandRaised, now: float) -> AfterStop:
    """A new start begins as soon as no stop stands in its way."""
    return was if pod.shutting_down or not pod.has_payable_demand else begin_start(pod, now)


@transition
def all_stops_confirmed(pod: PodMachine, was: Stopping, event: AllStopsConfirmed, now: float) -> AfterStop:
    """Every pod was seen stopped."""
    return when_nothing_runs(pod, now)
