"""Executes the machine's commands: at providers, pod and leases, on the disk and on the event bus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial

from attrs import frozen

from gpugate.billing.cost_math import ZERO
from gpugate.billing.model import StartOrigin
from gpugate.billing.recorder import Recorder
from gpugate.core.commands import (
    AbortResponse,
    Admit,
    CheckDevice,
    CleanUpOrphans,
    Command,
    InspectPod,
    ListModels,
    LoadOptions,
    PersistPendingStops,
    PreloadModel,
    Probe,
    PublishProviderProblem,
    PullModel,
    RecordSessionEnd,
    RecordSessionStart,
    Reject,
    Requeue,
    ResolveManualRequest,
    ScalePod,
    StartPod,
    StopPod,
)
from gpugate.core.events import Event, PodInspected
from gpugate.errors import GateError, QueueFull, QueueTimeout, WakeDenied
from gpugate.lifecycle.gpu_need import GpuNeed
from gpugate.lifecycle.lease import Lease, LeaseTable, ServingPod
from gpugate.lifecycle.pod_calls import PodCalls, PodClient, PullProgress
from gpugate.lifecycle.provider_worker import ConfiguredProvider, ProviderWorker, ReportSanitizer
from gpugate.lifecycle.state_files import PendingStopStore
from gpugate.lifecycle.status import (
    EventBus,
    ModelPulling,
    PodObservations,
    ProviderCalled,
    ProviderProblem,
    ReplicasAsked,
    RequestWaited,
    SessionEnded,
    SessionStarted,
    WakeRefused,
)
from gpugate.provider_api import Endpoint, PodReport, Provider
from gpugate.tasks import CrashHandler, report_crash


@frozen(kw_only=True)
class MachineLink:
    """What the runner needs of the machine while it executes a command; the lifecycle provides it.

    Attributes:
        on_event: brings a result into the machine.
        serving: the pod that serves; it does whenever a request is admitted.
        start_origin: who has caused the start that is being executed.
        set_model: the model, and how to load it, of a requeued ticket; not known at its fast admission.
        ready_in_s: how long the start that is under way will take; None without one, or if it is not known.
    """

    on_event: Callable[[Event], None]
    serving: Callable[[], ServingPod | None]
    start_origin: Callable[[], StartOrigin]
    set_model: Callable[[int, str | None, LoadOptions], None]
    ready_in_s: Callable[[], float | None]


class CommandRunner:
    """Executes commands, and owns the workers and tasks that take their time over it.

    Attributes:
        manual_error: the outcome of the latest manual request: None if it was accepted.
        gpu_need: what the models need, where a provider chooses the GPU by it.
    """

    def __init__(
        self,
        *,
        machine: MachineLink,
        providers: Sequence[ConfiguredProvider],
        pod: PodClient,
        leases: LeaseTable,
        observations: PodObservations,
        events: EventBus,
        recorder: Recorder,
        pending_stops: PendingStopStore,
        health_interval_s: float,
        on_crash: CrashHandler,
    ) -> None:
        self.manual_error: GateError | None = None
        self.gpu_need: GpuNeed | None = None
        self.pod_calls = PodCalls(pod, machine.on_event, health_interval_s, on_crash, self._publish_pull)
        self._machine = machine
        self._providers = tuple(providers)
        self._names = tuple(configured.name for configured in providers)
        self._leases = leases
        self._observations = observations
        self._events = events
        self._recorder = recorder
        self._pending_stops = pending_stops
        self._health_interval_s = health_interval_s
        self._on_crash = on_crash
        self._workers: tuple[ProviderWorker, ...] = ()
        pending = pending_stops.load()
        self._unconfigured = pending - frozenset(self._names)
        self.restored_stops = self._indices(pending)
        self.inherited_sessions = self._indices(recorder.inherited_sessions())

    def _indices(self, names: Iterable[str]) -> frozenset[int]:
        return frozenset(self._names.index(name) for name in names if name in self._names)

    def start(self) -> None:
        """Start a worker for each provider; warn of pending stops at providers that are not configured."""
        self._workers = tuple(map(self._new_worker, self._providers))
        for name in sorted(self._unconfigured):
            message = "its pod was never seen stopped, and it is not configured any more"
            self._publish_problem(name, message, "config", alarm=True)

    def _new_worker(self, configured: ConfiguredProvider) -> ProviderWorker:
        name, observations = configured.name, self._observations
        sanitizer = ReportSanitizer(
            observations.wall,
            observations.boottime,
            warn=lambda text: self._publish_problem(name, text, "config"),
            start_bound=partial(self._recorder.start_time_bound, name),
        )
        age_s = partial(self._age_s, name)
        on_called = partial(self._publish_call, name)
        return ProviderWorker(configured, self._machine.on_event, age_s, sanitizer, self._on_crash, on_called)

    def set_gpu_need(self, need: GpuNeed) -> None:
        """Tell the providers before each start what the models need, and watch whether they have it."""
        self.gpu_need = need
        self.pod_calls.on_small_gpu = self._note_small_gpu

    def _note_small_gpu(self, endpoint: Endpoint) -> None:
        session = self._observations.session_at(endpoint)
        if session is None or self.gpu_need is None:
            return
        provider = self._providers[self._names.index(session.provider)].provider
        if provider.chooses_gpu(provider.config):
            self.gpu_need.note_too_small(session.report.gpu_bytes)

    def slow_call(self) -> str | None:
        """Return which provider has not answered a call for long, for people; None if none."""
        return next(filter(None, (worker.slow_call() for worker in self._workers)), None)

    async def aclose(self) -> None:
        """Cancel the calls that are out and close the providers."""
        await self.pod_calls.aclose()
        await asyncio.gather(*(worker.aclose() for worker in self._workers), return_exceptions=True)

    async def stop_without_machine(self, limit_s: float) -> bool:
        """Stop the pods of all providers, for a machine that has failed; False: not all confirmed in time.

        The stops that are not confirmed stay on the disk, so that the next gateway goes on with them.
        """
        self._save_pending_stops(self._names)
        self._recorder.on_stops_changed(frozenset(self._names))
        stops = [worker.stop_now(limit_s, self._health_interval_s) for worker in self._workers]
        results = await asyncio.gather(*stops, return_exceptions=True)
        pending = [
            name for name, confirmed in zip(self._names, results, strict=True) if confirmed is not True
        ]
        self._save_pending_stops(pending)
        return not pending

    def execute(self, commands: Iterable[Command], now: float) -> None:
        """Execute commands in order. One that fails is reported; the next may be a stop, and is executed."""
        for command in commands:
            try:
                self._execute(command, now)
            except Exception as error:
                report_crash(f"lifecycle: {type(command).__name__}", error, self._on_crash)

    def _execute(self, command: Command, now: float) -> None:
        match command:
            case Admit() | Reject() | Requeue() | AbortResponse():
                self._update_lease(command, now)
            case StartPod(_, provider):
                self._say_need(self._providers[provider].provider)
                record = partial(
                    self._recorder.record_start_intent, self._names[provider], self._machine.start_origin()
                )
                self._workers[provider].send(command, record)
            case StopPod(_, provider):
                self._workers[provider].send(command, self._recorder.flush)
            case ScalePod(_, provider, replicas):
                self._workers[provider].send(command)
                self._events.publish(ReplicasAsked(provider=self._names[provider], replicas=replicas))
            case InspectPod() | CleanUpOrphans():
                self._workers[command.provider].send(command)
            case Probe():
                self.pod_calls.probe(command)
            case ListModels():
                self.pod_calls.list_models(command)
            case PullModel():
                self.pod_calls.pull(command)
            case PreloadModel():
                self.pod_calls.preload(command)
            case CheckDevice():
                self.pod_calls.check_device(command)
            case ResolveManualRequest(error):
                self.manual_error = error
            case PersistPendingStops(providers):
                self._save_pending_stops(self._names[index] for index in providers)
            case RecordSessionStart():
                self._start_session(command)
            case RecordSessionEnd():
                self._end_session(command)
            case PublishProviderProblem(provider=provider, message=message, reason=reason, alarm=alarm):
                self._publish_problem(self._names[provider], message, reason, alarm=alarm)

    def _say_need(self, provider: Provider) -> None:
        if self.gpu_need is not None and provider.chooses_gpu(provider.config):
            provider.needed_gpu_bytes = self.gpu_need.for_start()

    def on_inspected(self, event: PodInspected) -> None:
        """Take over a provider's newest report for the status."""
        self._observations.observe(self._names[event.provider], event.report)
        serving = self._machine.serving()
        if serving is not None and serving.provider == self._names[event.provider]:
            self.pod_calls.watch_gpu(serving.endpoints["ollama"])

    def _update_lease(self, command: Admit | Reject | Requeue | AbortResponse, now: float) -> None:
        lease = self._leases.get(command.ticket)
        if lease is None:  # its client has hung up
            return
        if isinstance(command, Admit):
            pod = self._machine.serving()
            assert pod is not None
            self._leases.admit(lease, pod, now)
            self._events.publish(lease_waited(lease, now))
            return
        if isinstance(command, Reject) and isinstance(command.error, QueueFull | QueueTimeout):
            command.error.retry_after_s = self._machine.ready_in_s() or command.error.retry_after_s
        if isinstance(command, Reject) and lease.admitted_at is None:
            self._events.publish(lease_waited(lease, now, command.error))
        self._leases.take_back(lease, command, now)
        if isinstance(command, Reject) and isinstance(command.error, WakeDenied):
            self._events.publish(WakeRefused(user=lease.user, message=command.error.message))
        if isinstance(command, Requeue) and lease.model_hint is not None:
            self._machine.set_model(lease.number, *lease.asked_model())

    def _save_pending_stops(self, names: Iterable[str]) -> None:
        self._pending_stops.save(sorted({*names, *self._unconfigured}))

    def _start_session(self, command: RecordSessionStart) -> None:
        name = self._names[command.provider]
        session = self._observations.start_session(command.run_id, name, command.report, command.up_s)
        self._events.publish(
            SessionStarted(
                run_id=command.run_id,
                provider=name,
                cause=command.cause,
                report=command.report,
                at=session.began_at,
            )
        )

    def _end_session(self, command: RecordSessionEnd) -> None:
        session = self._observations.end_session(self._names[command.provider])
        uptime = self._observations.uptime(session) if command.billed else timedelta(0)
        self._events.publish(
            SessionEnded(
                run_id=command.run_id,
                provider=session.provider,
                cause=command.cause,
                began_at=session.began_at,
                cost=self._observations.cost(session) if command.billed else ZERO,
                at=session.began_at + uptime,
                billed=command.billed,
            )
        )

    def _publish_call(self, provider: str, call: str, outcome: str, seconds: float) -> None:
        self._events.publish(ProviderCalled(provider=provider, call=call, outcome=outcome, seconds=seconds))

    def _publish_pull(self, command: PullModel, progress: PullProgress, goes_on: bool) -> None:
        name = self._names[command.provider]
        self._events.publish(ModelPulling(provider=name, progress=progress, goes_on=goes_on))

    def _publish_problem(self, provider: str, message: str, reason: str, *, alarm: bool = False) -> None:
        at: datetime = self._observations.wall()
        self._events.publish(
            ProviderProblem(provider=provider, message=message, reason=reason, alarm=alarm, at=at)
        )

    def _age_s(self, provider: str, report: PodReport) -> float:
        """Return how long a pod has been billed: by the ledger or the provider, whichever says longer."""
        recorded = self._recorder.age_s(provider, report)
        return max(self._observations.age_s(report), recorded or 0.0)


def lease_waited(
    lease: Lease, now: float, error: GateError | None = None, *, left: bool = False
) -> RequestWaited:
    """Return the event of a lease that waits no longer."""
    return RequestWaited(
        request_id=lease.request_id,
        user=lease.user,
        purpose=lease.purpose,
        waited_s=now - lease.arrived_at,
        error=error,
        left=left,
    )
