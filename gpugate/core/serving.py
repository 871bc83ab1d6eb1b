"""The rows of the table from a ready pod to a proved stop, and what is asked for by hand."""

from __future__ import annotations

from typing import TypeVar

from attrs import evolve

from gpugate.core.commands import Probe, ResolveManualRequest
from gpugate.core.engine import NEEDS_NEW_START
from gpugate.core.events import (
    AllStopsConfirmed,
    DeadlineReached,
    DemandRaised,
    DeviceChecked,
    ForcedShutdownRequested,
    LastLeaseReleased,
    ManualStartRequested,
    ManualStopRequested,
    PodInspected,
    ProbeFinished,
    ShutdownRequested,
    UpstreamFailed,
)
from gpugate.core.pending_stops import STOPPED_PHASES
from gpugate.core.states import (
    AfterAccept,
    AfterStop,
    BackingOff,
    CallingStart,
    Draining,
    Preloading,
    Provisioning,
    Ready,
    ShutDown,
    State,
    Stopped,
    Stopping,
    Unknown,
    VerifyingStart,
    Warming,
    status_of,
)
from gpugate.core.transition_table import transition
from gpugate.core.warming import ON_CPU, WarmupTransitions
from gpugate.errors import BudgetExceeded, GateError, NoCapacity, PodBusy, PodStopped, ShuttingDown
from gpugate.provider_api import Phase

StartingState = CallingStart | BackingOff | VerifyingStart | Provisioning | Warming | Preloading
PodState = TypeVar(
    "PodState", CallingStart, BackingOff, VerifyingStart, Provisioning, Warming, Preloading, Ready, Draining
)
ServingState = TypeVar("ServingState", Ready, Draining)
RestingState = TypeVar("RestingState", Stopped, Stopping)


def manually_stopped() -> PodStopped:
    return PodStopped("the pod was stopped by hand")


def shutting_down() -> ShuttingDown:
    return ShuttingDown(retry_after_s=5)


class ServeTransitions(WarmupTransitions):
    """Ready, Draining, Stopping, and start, stop and close from any state."""

    # --- ready --------------------------------------------------------------------------------

    @transition
    def idle_or_session_deadline(self, was: Ready, event: DeadlineReached, now: float) -> Draining | Stopping:
        """Idle for `pod.idle_timeout`: stop. Past `pod.max_session`: admit nobody, and stop soon."""
        if now >= self.session_deadline_at:
            return self.drain_or_stop(was, "max_session", now)
        return self.stop_pod(was.provider, "idle", now)

    @transition
    def ready_inspected(self, was: Ready, event: PodInspected, now: float) -> Ready | Draining | AfterStop:
        """Believe the provider: a pod that is gone is lost, one that stops gets nobody new."""
        if event.provider == was.provider and event.report.phase is Phase.STOPPING:
            return self.drain_or_stop(was, "stopped_elsewhere", now)
        if event.provider == was.provider and event.report.phase is Phase.UNREACHABLE:
            return self.probe_health(was)
        return self.serving_inspected(was, event, now)

    @transition
    def draining_inspected(self, was: Draining, event: PodInspected, now: float) -> Draining | AfterStop:
        """A pod that is gone is lost, in its last minutes too."""
        return self.serving_inspected(was, event, now)

    def serving_inspected(
        self, was: ServingState, event: PodInspected, now: float
    ) -> ServingState | AfterStop:
        """A lost pod is noted, an address may have changed."""
        phase = event.report.phase
        if event.provider != was.provider:
            return was
        if phase in STOPPED_PHASES or phase is Phase.FAILED:
            return self.pod_lost(was, event, now)
        if phase is Phase.RUNNING and "ollama" in event.report.endpoints:
            return evolve(was, endpoints=event.report.endpoints)
        return was

    @transition
    def upstream_failed(self, was: Ready, event: UpstreamFailed, now: float) -> Ready:
        """An exchange broke: look at the provider and at the pod's health, now."""
        if event.run_id != was.run_id:
            return was
        self.inspect_schedule.schedule(was.provider, now)
        return self.probe_health(was)

    def probe_health(self, was: Ready) -> Ready:
        if was.probe_op is not None:
            return was
        op = self.next_op()
        self.commands.append(Probe(op, was.endpoints["ollama"]))
        return evolve(was, probe_op=op)

    @transition
    def health_probed(self, was: Ready, event: ProbeFinished, now: float) -> Ready | Warming:
        """Healthy after all, or back to warming: those who come now wait instead of failing."""
        if event.op != was.probe_op:
            return was
        if event.healthy:
            return evolve(was, probe_op=None)
        self.publish_problem(was.provider, f"the pod runs, but its Ollama does not answer: {event.detail}")
        self.inspect_schedule.schedule(was.provider, now)
        return Warming(
            run_id=was.run_id,
            provider=was.provider,
            attempt=1,
            endpoints=was.endpoints,
            since=now,
            began_at=now,
            probe_op=None,
            probe_at=now + self.policy.probe_interval_s(was.provider, 0.0),
            served=True,
        )

    @transition
    def device_checked(self, was: Ready, event: DeviceChecked, now: float) -> Ready:
        """All that is loaded runs on the CPU: say so; nobody is disturbed for it."""
        if event.run_id == was.run_id and event.on_cpu:
            self.publish_problem(was.provider, ON_CPU, NoCapacity(ON_CPU))
        return was

    # --- draining and stopping ----------------------------------------------------------------

    @transition
    def drain_finished(
        self, was: Draining, event: LastLeaseReleased | DeadlineReached | ForcedShutdownRequested, now: float
    ) -> Stopping | ShutDown:
        """The last answer ended, or had its time."""
        self.abort_leases(manually_stopped if not self.shutting_down else shutting_down, now)
        if self.shutting_down and self.keep_pod:
            return self.finish_shutdown(was)
        return self.stop_pod(was.provider, was.cause, now)

    @transition
    def demand_while_stopping(self, was: Stopping, event: DemandRaised, now: float) -> AfterStop:
        """Who comes now waits for the next start, which begins as soon as no stop is in its way."""
        return was if self.shutting_down or not self.has_payable_demand else self.begin_start(now)

    @transition
    def all_stops_confirmed(self, was: Stopping, event: AllStopsConfirmed, now: float) -> AfterStop:
        """Every pod was seen stopped."""
        return self.next_when_nothing_runs(now)

    # --- by hand ------------------------------------------------------------------------------

    @transition
    def manual_start(self, was: Stopped | Stopping, event: ManualStartRequested, now: float) -> AfterStop:
        """A start by hand is a demand without a request."""
        return self.begin_start(now) if self.accept_manual_start(event) else was

    @transition
    def manual_start_at_boot(
        self, was: Unknown, event: ManualStartRequested, now: float
    ) -> Unknown | AfterAccept:
        """It happens when it is known what runs."""
        return self.judge_boot(was, now) if self.accept_manual_start(event) else was

    def accept_manual_start(self, event: ManualStartRequested) -> bool:
        """Whether this wish is one more reason to start; where there is one already it is granted anyway."""
        refusal = self.start_refusal(event)
        self.commands.append(ResolveManualRequest(None if self.has_payable_demand else refusal))
        self.start_requested = self.start_requested or refusal is None
        return refusal is None

    def start_refusal(self, event: ManualStartRequested) -> GateError | None:
        if self.shutting_down:
            return shutting_down()
        told = self.budget_gate.refusal_reason(event.user)
        return BudgetExceeded(told) if told else None

    @transition
    def manual_start_repeated(self, was: PodState, event: ManualStartRequested, now: float) -> PodState:
        """Already on its way, or wanted again as soon as this stop is through."""
        if isinstance(was, NEEDS_NEW_START):
            self.accept_manual_start(event)
            return was
        self.commands.append(ResolveManualRequest(shutting_down() if self.shutting_down else None))
        wished = self.start_requested or self.start_refusal(event) is None
        self.start_requested = wished and not isinstance(was, Ready) and not self.shutting_down
        self.idle_timer.prewarmed_run_id = 0  # it is asked for now
        return was

    @transition
    def manual_stop(self, was: PodState, event: ManualStopRequested, now: float) -> PodState | Stopping:
        """Refused while anybody waits or is answered, unless forced."""
        if not self.accept_manual_stop(event, now):
            return was
        return self.stop_pod(was.provider, "forced" if event.force else "hand", now)

    @transition
    def manual_stop_at_boot(self, was: Unknown, event: ManualStopRequested, now: float) -> Unknown | Stopping:
        """Not known what runs: stop everything."""
        if not self.accept_manual_stop(event, now):
            return was
        for provider in range(len(self.policy.providers)):
            self.order_stop(provider, "hand", now)
        return Stopping()

    @transition
    def manual_stop_repeated(
        self, was: RestingState, event: ManualStopRequested, now: float
    ) -> RestingState | Stopping:
        """Already so, as far as is known: look again. A stop that is not proved is sent again now."""
        if not self.accept_manual_stop(event, now):
            return was
        for order in self.pending_stops.by_provider.values():
            if not order.is_inspect_only:
                order.send_at = now
        self.inspect_idle_providers("hand", now)
        return Stopping() if self.pending_stops.by_provider else was

    @transition
    def manual_after_shutdown(
        self, was: ShutDown, event: ManualStartRequested | ManualStopRequested, now: float
    ) -> ShutDown:
        """Too late."""
        self.commands.append(ResolveManualRequest(shutting_down()))
        return was

    def accept_manual_stop(self, event: ManualStopRequested, now: float) -> bool:
        if self.queue.busy and not event.force:
            self.commands.append(ResolveManualRequest(PodBusy()))
            return False
        self.commands.append(ResolveManualRequest())
        self.start_requested = False
        self.reject_waiting(manually_stopped)
        self.abort_leases(manually_stopped, now)
        self.idle_timer.suppress_prewarm()
        return True

    # --- going down ---------------------------------------------------------------------------

    @transition
    def shutdown_while_starting(
        self,
        was: CallingStart | BackingOff | VerifyingStart | Provisioning,
        event: ShutdownRequested,
        now: float,
    ) -> Stopping | ShutDown:
        """Refuse who waits; what may come up is stopped, or left to be adopted."""
        self.stop_admitting(event)
        self.inspect_before_exit(was.provider, now)
        return self.finish_shutdown(was) if event.keep else self.stop_pod(was.provider, "shutdown", now)

    @transition
    def shutdown_while_serving(
        self, was: Warming | Preloading | Ready, event: ShutdownRequested, now: float
    ) -> Draining | Stopping | ShutDown:
        """Refuse who waits, give running answers their grace, then stop the pod or leave it."""
        self.stop_admitting(event)
        self.inspect_before_exit(was.provider, now)
        if self.queue.leases:
            until = now + self.policy.shutdown_grace
            return Draining(
                run_id=was.run_id,
                provider=was.provider,
                endpoints=was.endpoints,
                until=until,
                cause="shutdown",
                kept=event.keep,
            )
        return self.finish_shutdown(was) if event.keep else self.stop_pod(was.provider, "shutdown", now)

    @transition
    def shutdown_while_draining(self, was: Draining, event: ShutdownRequested, now: float) -> Draining:
        """The answers that run have their grace already."""
        self.stop_admitting(event)
        self.inspect_before_exit(was.provider, now)
        return evolve(was, kept=event.keep)

    @transition
    def shutdown_at_boot(self, was: Unknown, event: ShutdownRequested, now: float) -> Stopping | ShutDown:
        """What was found is stopped; where nothing is known yet, one good try is made."""
        self.stop_admitting(event)
        if event.keep:
            return self.finish_shutdown(was)
        for provider in range(len(self.policy.providers)):
            seen = was.inspections.get(provider)
            if not isinstance(seen, PodInspected):
                self.order_stop(provider, "shutdown", now, firm=False)
            elif seen.report.phase not in STOPPED_PHASES:
                self.order_stop(provider, "shutdown", now)
        return self.finish_shutdown(was)

    @transition
    def shutdown_at_rest(
        self, was: Stopped | Stopping | ShutDown, event: ShutdownRequested, now: float
    ) -> Stopping | ShutDown:
        """Nothing runs, as far as is known: look once more. A stop that is not proved goes on."""
        self.stop_admitting(event)
        if not isinstance(was, ShutDown):
            self.inspect_before_exit(None, now)
        return self.finish_shutdown(was)

    def finish_shutdown(self, was: State) -> Stopping | ShutDown:
        """Nothing more to do, unless a stop elsewhere is not proved yet."""
        if self.keep_pod and not isinstance(was, Stopping | ShutDown):
            self.shutdown_state = ShutDown(status_of(was), getattr(was, "provider", None))
        return Stopping() if self.pending_stops.by_provider else self.shutdown_state

    def inspect_before_exit(self, served_by: int | None, now: float) -> None:
        """Nobody looks after this process: what a console has started is found now, or bills for long."""
        if not self.keep_pod:
            self.inspect_idle_providers("shutdown", now, but=served_by)

    def stop_admitting(self, event: ShutdownRequested) -> None:
        self.shutting_down, self.keep_pod, self.start_requested = True, event.keep, False
        self.reject_waiting(shutting_down)
