"""The rows of the table from an accepted start to a ready pod: watching, health, preload."""

from __future__ import annotations

from typing import TypeVar

from attrs import evolve

from gpugate.core.commands import CheckDevice, PreloadModel, Probe
from gpugate.core.events import DeadlineReached, PodInspected, PreloadFinished, ProbeFinished
from gpugate.core.pending_stops import ACTIVE_PHASES, STOPPED_PHASES
from gpugate.core.starting import AcceptedState, StartTransitions, WarmupTimedOut
from gpugate.core.states import (
    AfterAccept,
    AfterFailure,
    AfterStop,
    Draining,
    Preloading,
    Provisioning,
    Ready,
    Stopping,
    Warming,
)
from gpugate.core.transition_table import transition
from gpugate.errors import Ambiguous, NoCapacity, NotFound, Transient
from gpugate.provider_api import Phase, PodReport

WarmingState = TypeVar("WarmingState", Warming, Preloading)

ON_CPU = "the model runs on the CPU only"
NO_GPU = "the pod has no GPU"


def _waits_for(report: PodReport) -> str:
    """What a pod on its way is waiting for, for people."""
    if report.detail or report.phase is not Phase.RUNNING:
        return report.detail
    return "running, but the provider tells no address of its Ollama"


class WarmupTransitions(StartTransitions):
    """Provisioning, Warming, Preloading."""

    # --- from accepted to healthy -------------------------------------------------------------

    @transition
    def provisioning_inspected(self, was: Provisioning, event: PodInspected, now: float) -> AfterAccept:
        """Running with an address: warm it. Stopped, failed, gone or queued too long: it failed."""
        return (
            was
            if event.provider != was.provider
            else self.provisioning_progress(was, event.report, event.up_s, now)
        )

    def provisioning_progress(
        self, was: Provisioning, report: PodReport, up_s: float, now: float
    ) -> AfterAccept:
        if report.phase in ACTIVE_PHASES and report.phase is not Phase.QUEUED:
            self.open_session(was.provider, was.run_id, self.start_cause, report, up_s, now)
        if report.phase is Phase.RUNNING and report.cpu_only and self.may_fail_over(was):
            return self.leave_provider(was, NoCapacity(NO_GPU), now)
        if report.phase is Phase.RUNNING and "ollama" in report.endpoints:
            return Warming(
                run_id=was.run_id,
                provider=was.provider,
                attempt=was.attempt,
                endpoints=report.endpoints,
                since=was.since,
                began_at=now,
                probe_op=None,
                probe_at=now,
                degraded_reason=NO_GPU if report.cpu_only else "",
                provider_detail=report.detail,
            )
        if report.phase is Phase.QUEUED and (now >= was.capacity_deadline or not self.has_payable_demand):
            # Left alone it would run some day, and bill unused (docs/providers.md#vastai-queued-starts).
            error = NoCapacity(report.detail or "no GPU is free, the start is queued", queued=True)
            return self.leave_provider(was, error, now)
        if report.phase is Phase.QUEUED:
            return evolve(was, accepted_at=now)  # its time to start begins when it leaves the queue
        if report.phase is Phase.STOPPED and now - was.accepted_at < self.policy.health_interval:
            return was  # a read may lag behind the start it should show (docs/providers.md#vastai-creation)
        return self.fail_if_not_active(was, report, now) or evolve(was, provider_detail=_waits_for(report))

    def fail_if_not_active(self, was: AcceptedState, report: PodReport, now: float) -> AfterFailure | None:
        if report.phase is Phase.GONE:
            return self.leave_provider(was, NotFound(report.detail or "the pod is gone"), now)
        if report.phase in (Phase.STOPPED, Phase.FAILED):
            said = report.detail or f"the pod is {report.phase}"
            return self.attempt_failed(was, Transient(said, output=report.output), now)
        return None

    @transition
    def start_deadline(self, was: Provisioning, event: DeadlineReached, now: float) -> AfterStop:
        """Accepted, but not running within `pod.start_timeout`, or its `pod.max_session` is over."""
        if now >= self.session_deadline_at:
            return self.session_deadline_before_ready(was, now)
        said = f"accepted, but not running within {self.policy.start_timeout:g} s"
        return self.leave_provider(was, Ambiguous(self.with_provider_detail(said, was)), now)

    def with_provider_detail(self, said: str, was: Provisioning | Warming) -> str:
        """With what the last look said: who reads "too late" has to know of what."""
        blind = self.inspect_errors.get(was.provider, "").removeprefix(
            f"{self.provider_name(was.provider)}: "
        )
        why = blind or was.provider_detail
        return f"{said}: {why}" if why else said

    @transition
    def warming_inspected(
        self, was: WarmingState, event: PodInspected, now: float
    ) -> WarmingState | AfterFailure:
        """A pod that stops while it warms has failed; an address may still change."""
        if event.provider != was.provider:
            return was
        if event.report.phase is Phase.RUNNING and "ollama" in event.report.endpoints:
            return evolve(was, endpoints=event.report.endpoints)
        if was.served and event.report.phase in STOPPED_PHASES | {Phase.FAILED}:
            return self.pod_lost(was, event, now)
        return self.fail_if_not_active(was, event.report, now) or was

    def pod_lost(
        self, was: Warming | Preloading | Ready | Draining, event: PodInspected, now: float
    ) -> AfterStop:
        """A pod that served is gone: who has no answer yet waits for a new start (docs/api.md#retries)."""
        phase = event.report.phase
        said = event.report.detail or f"the pod is {phase} behind our back"
        self.publish_problem(was.provider, Transient(said, output=event.report.output).in_full)
        self.requeue_leases(now)
        if phase in STOPPED_PHASES:
            self.close_session(was.provider, "lost")
            self.inspect_schedule.schedule(was.provider, now + self.policy.reconcile_interval_s(was.provider))
        else:
            self.order_stop(was.provider, "lost", now)
        return self.next_when_nothing_runs(now)

    @transition
    def warmup_deadline(
        self, was: Warming, event: DeadlineReached, now: float
    ) -> Warming | Draining | AfterStop:
        """Check health again; give up after `pod.warmup_timeout`, or when `pod.max_session` is over."""
        if now >= self.session_deadline_at:
            return self.session_deadline(was, now)
        if now >= was.began_at + self.policy.warmup_timeout:
            return self.leave_provider(
                was, WarmupTimedOut(self.with_provider_detail("pod failed to become ready", was)), now
            )
        op = self.next_op()
        self.commands.append(Probe(op, was.endpoints["ollama"]))
        pause = self.policy.probe_interval_s(was.provider, now - was.since)
        return evolve(was, probe_op=op, probe_at=now + pause)

    @transition
    def warmup_probed(self, was: Warming, event: ProbeFinished, now: float) -> Warming | Preloading | Ready:
        """Healthy: preload the first waiting request's model, or serve."""
        if event.op != was.probe_op:
            return was
        if not event.healthy:
            return evolve(was, probe_op=None)
        wanted = self.model_to_preload()
        if wanted is None:
            self.commands.append(CheckDevice(was.run_id, was.endpoints["ollama"]))
            return self.become_ready(was, now)
        op = self.next_op()
        self.commands.append(PreloadModel(op, was.endpoints["ollama"], *wanted))
        return Preloading(
            run_id=was.run_id,
            provider=was.provider,
            attempt=was.attempt,
            endpoints=was.endpoints,
            since=was.since,
            op=op,
            give_up_at=now + self.policy.preload_limit_s,
            served=was.served,
            degraded_reason=was.degraded_reason,
        )

    def model_to_preload(self) -> tuple[str, bool] | None:
        """The model to load before READY, and whether it embeds."""
        if self.policy.preload == "none":
            return None
        if self.policy.preload != "requested":
            return self.policy.preload, False
        first = next(iter(self.queue.waiting), None)
        return (first.model, first.embeds) if first is not None and first.model else None

    @transition
    def preload_finished(
        self, was: Preloading, event: PreloadFinished, now: float
    ) -> Preloading | Ready | AfterStop:
        """Loaded or failed: a preload never fails a start. On the CPU: the next provider, if there is one."""
        if event.op != was.op:
            return was
        if not event.on_cpu:
            return self.become_ready(was, now)
        if not was.served and self.may_fail_over(was):
            return self.leave_provider(was, NoCapacity(ON_CPU), now)
        return self.become_ready(evolve(was, degraded_reason=ON_CPU), now)

    @transition
    def preload_deadline(
        self, was: Preloading, event: DeadlineReached, now: float
    ) -> Ready | Draining | AfterStop:
        """The preload takes too long: the pod serves without it, unless its `pod.max_session` is over."""
        return (
            self.session_deadline(was, now)
            if now >= self.session_deadline_at
            else self.become_ready(was, now)
        )

    # --- the session's limit ------------------------------------------------------------------

    def session_deadline(self, was: Warming | Preloading, now: float) -> Draining | AfterStop:
        return (
            self.drain_or_stop(was, "max_session", now)
            if was.served
            else self.session_deadline_before_ready(was, now)
        )

    def session_deadline_before_ready(
        self, was: Provisioning | Warming | Preloading, now: float
    ) -> AfterStop:
        """Over before it served. What was older than this start gets a new one; else that would go on so
        for ever, paid each time: it has failed.
        """
        _, began = self.open_sessions[was.provider]
        if began < was.since:
            return self.stop_pod(was.provider, "max_session", now)
        return self.leave_provider(
            was, WarmupTimedOut("pod.max_session was over before the pod was ready"), now
        )

    def drain_or_stop(self, was: Warming | Preloading | Ready, cause: str, now: float) -> Draining | Stopping:
        if not self.queue.leases:
            return self.stop_pod(was.provider, cause, now)
        until = now + self.policy.shutdown_grace
        return Draining(
            run_id=was.run_id, provider=was.provider, endpoints=was.endpoints, until=until, cause=cause
        )

    def stop_pod(self, provider: int, cause: str, now: float) -> Stopping:
        self.order_stop(provider, cause, now)
        return Stopping()

    def may_fail_over(self, was: Provisioning | Preloading) -> bool:
        """Somebody wants a better pod, and the list has one that can be asked now."""
        return self.has_payable_demand and self.next_free_provider(was.provider + 1) is not None

    def become_ready(self, was: Warming | Preloading, now: float) -> Ready:
        self.start_requested = False
        self.last_problem = None
        if not was.served and self.last_start_call[1] == was.run_id:
            self.idle_timer.policy.on_start_finished(now - was.since)
        if not self.queue.leases:
            self.queue.idle_since = now
        for provider in range(len(self.policy.providers)):
            if provider not in self.pending_stops.by_provider:
                self.inspect_schedule.schedule(provider, now + self.policy.reconcile_interval_s(provider))
        if was.degraded_reason:
            self.publish_problem(was.provider, was.degraded_reason, NoCapacity(was.degraded_reason))
        return Ready(run_id=was.run_id, provider=was.provider, endpoints=was.endpoints)
