"""`Lifecycle`: owns the pod's state machine, and is the only one that brings events into it.

Theory of operation. The machine (`core/machine.py`) is synchronous and pure. All that takes time happens in
tasks outside and comes back as an event: a provider's answer from its `ProviderWorker`, a probe's result from
`PodCalls`, a deadline from the `DeadlineTimer`, a request from `acquire`. All end in `_process_event`,
which runs without an `await`. So an idle stop and an arriving request cannot cross: one of them is first, and
the other is decided on what it has left. Nothing outside this package ever holds the machine.

A request that finds the pod serving and nobody waiting takes a short way, `admit_fast` and `release_fast`: an
event, its commands and the deadlines would cost 10 us more.

An error in `_process_event` leaves the pod in no known state. Then nothing is decided any more (`failure`):
all requests are ended, `on_failure` ends the gateway, and `close` stops the pods without the machine.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from decimal import Decimal
from math import inf, isfinite

from gpugate import clock
from gpugate.billing.model import BY_HAND, StartOrigin
from gpugate.billing.recorder import Recorder
from gpugate.billing.start_times import NO_MODEL, StartTimes
from gpugate.core.commands import AS_IT_COMES, LoadOptions, StartCause
from gpugate.core.events import (
    BudgetUpdated,
    DeadlineReached,
    Event,
    ForcedShutdownRequested,
    GatewayStarted,
    InspectFailed,
    ManualStartRequested,
    ManualStopRequested,
    PodInspected,
    RequestArrived,
    RequestFinished,
    ResponseStarted,
    ShutdownRequested,
    UpstreamFailed,
    cause_of,
)
from gpugate.core.idle_policy import IdlePolicy
from gpugate.core.machine import PodMachine
from gpugate.core.policy import Policy
from gpugate.core.request_queue import BodyBudget, BudgetVerdict
from gpugate.core.states import (
    BackingOff,
    CallingStart,
    Draining,
    MachineSnapshot,
    Preloading,
    Ready,
    ShutDown,
    Status,
    Stopped,
    Stopping,
    name_of,
)
from gpugate.core.transitions import TABLE
from gpugate.core.transitions.warmup import model_to_preload
from gpugate.errors import ProviderUnavailable, QueueFull, ShuttingDown, WakeDenied
from gpugate.lifecycle.command_runner import CommandRunner, MachineLink, lease_waited
from gpugate.lifecycle.diagnosis import Diagnosis, PendingDiagnosis
from gpugate.lifecycle.gpu_need import GpuNeed
from gpugate.lifecycle.lease import Lease, LeaseTable, OpenRequest, ServingPod, WakePolicy, WakeRequest
from gpugate.lifecycle.pod_calls import PodClient
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.lifecycle.state_files import IdleHistoryStore, PendingStopStore
from gpugate.lifecycle.status import (
    EventBus,
    PodObservations,
    PodStatus,
    QueueChanged,
    StateChanged,
    StatusBuilder,
    WaitProgress,
    WakeRefused,
)
from gpugate.provider_api import MAIN_POD, Price
from gpugate.tasks import CrashHandler, report_crash, report_to_loop

IN_FLIGHT_INTERVAL_S = 0.25
"""How often a changed number of admitted requests is published at most."""

START_PATH = "/api/v1/gpu/start"
"""The path that wake rules see for a manual start."""

BY_SCHEDULE = "schedule"
"""The user of a start that a schedule makes, in wake rules and the ledger."""

DIAGNOSIS_MARGIN_S = 1.0
"""A health check alone may take `pod.health_interval`, and its result has to be heard."""

_PROBES_END = (Preloading, Ready, Stopping, Stopped, CallingStart, BackingOff, ShutDown)
"""The calls to a pod that is warming are of no use once one of these states is entered."""


class DeadlineTimer:
    """The one timer for all the machine's deadlines; it is set to the earliest of them.

    A deadline that is put off need not be told: the timer fires too early, changes nothing and is set again.

    Attributes:
        at: loop time at which `on_due` is called; `inf` if it is not set.
    """

    def __init__(self, on_due: Callable[[], None]) -> None:
        self.at = inf
        self._on_due = on_due
        self._handle: asyncio.TimerHandle | None = None
        self._closed = False

    def set(self, at: float) -> None:
        """Replace the time; `inf` for none."""
        if self._handle is not None:
            self._handle.cancel()
        due = isfinite(at) and not self._closed
        self.at = at
        self._handle = asyncio.get_running_loop().call_at(at, self._fire) if due else None

    def bring_forward(self, at: float) -> None:
        """Set it to `at` if that is earlier."""
        if at < self.at:
            self.set(at)

    def close(self) -> None:
        """Never fire again."""
        self._closed = True
        self.set(inf)

    def _fire(self) -> None:
        self.at, self._handle = inf, None
        self._on_due()


class Lifecycle:
    """The lifecycle, queue and idle timer of one pod behind one or more providers.

    Attributes:
        serving: the pod that serves, or None; a plain attribute, as every request reads it.
        failure: the error after which nothing is decided any more, or None; only `close` is left to be
            called.
        wake_policy: the wake rules, asked where a start is needed; None without rules.
        on_first_byte: takes how many seconds after its admission a request's first byte came; None: unwanted.
        on_wait: takes the lease of a request that begins to wait, in the request's task; None: unwanted.

    Args:
        providers: in the order in which a start asks them.
        recorder: keeps the ledger; subscribe its `on_event` to `events` first.
        start_times: how long earlier starts took.
        fallback_price: where a provider reports none.
        wall: the calendar.
        boottime: the clock that is never set; durations of sessions are measured with it.
        random_fraction: in [0, 1), for the jitter of retries.
        idle_policy: None: the fixed `policy.idle_timeout`.
        name: the pod's, in its status.
        bodies: what requests that wait may keep, where several pods share it; None: `policy.max_bytes`.
        on_failure: called once when `failure` is set; `close` has to follow.
    """

    def __init__(
        self,
        *,
        providers: Sequence[ConfiguredProvider],
        pod: PodClient,
        policy: Policy,
        fallback_price: Price,
        events: EventBus,
        pending_stops: PendingStopStore | None = None,
        idle_policy: IdlePolicy | None = None,
        idle_history: IdleHistoryStore | None = None,
        recorder: Recorder | None = None,
        start_times: StartTimes | None = None,
        wall: Callable[[], datetime] = clock.utc_now,
        boottime: Callable[[], float] = clock.boottime,
        random_fraction: Callable[[], float] = random.random,
        on_crash: CrashHandler = report_to_loop,
        on_failure: Callable[[], None] = lambda: None,
        name: str = MAIN_POD,
        bodies: BodyBudget | None = None,
    ) -> None:
        self.serving: ServingPod | None = None
        self.failure: BaseException | None = None
        self.wake_policy: WakePolicy | None = None
        self.on_first_byte: Callable[[float], None] | None = None
        self.on_wait: Callable[[Lease], None] | None = None
        self._providers = tuple(providers)
        self._names = tuple(configured.name for configured in providers)
        self._policy = policy
        self._events = events
        self._recorder = recorder or Recorder()
        self._idle_history = idle_history or IdleHistoryStore()
        self._wall = wall
        self._on_crash = on_crash
        self._on_failure = on_failure
        self._manual_start_user = BY_HAND
        self._last_ticket = 0
        self._leases = LeaseTable(self._recorder)
        observations = PodObservations(wall, boottime, fallback_price)
        self._status = StatusBuilder(name, self._names, observations, start_times or StartTimes())
        self._runner = CommandRunner(
            machine=MachineLink(
                on_event=self._process_event,
                serving=lambda: self.serving,
                start_origin=self._start_origin,
                set_model=lambda *known: self._machine.set_model(*known),
                ready_in_s=self.ready_in_s,
            ),
            providers=self._providers,
            pod=pod,
            leases=self._leases,
            observations=observations,
            events=events,
            recorder=self._recorder,
            pending_stops=pending_stops or PendingStopStore(),
            health_interval_s=policy.health_interval,
            on_crash=on_crash,
        )
        self._machine = PodMachine(
            TABLE,
            policy,
            random_fraction,
            self._runner.restored_stops,
            idle_policy,
            self._runner.inherited_sessions,
            bodies,
        )
        self._machine.wake_refusal = self._wake_refusal
        self._last = self._machine.snapshot()
        self._timer = DeadlineTimer(self._on_timer)
        self._diagnoses: set[PendingDiagnosis] = set()
        self._stopping_providers: frozenset[int] = frozenset()
        self._published_queue = (0, 0)
        self._in_flight_timer: asyncio.TimerHandle | None = None
        self._drained = asyncio.Event()
        self._shut_down = asyncio.Event()
        self._status_known = asyncio.Event()

    # --- start and end of the gateway ---------------------------------------------------------

    async def open(self) -> None:
        """Inspect the providers, adopt a pod that runs, go on with the pending stops of the last gateway."""
        self._loop = asyncio.get_running_loop()
        self._runner.start()
        self._machine.restore_idle_history(self._idle_history.load(), self._loop.time())
        self._process_event(GatewayStarted())

    async def close(self, *, keep: bool, stop_wait_s: float) -> bool:
        """Reject who waits, give running responses their grace, then stop the pod, or keep it.

        Returns True when every stop is confirmed, False when one was not within `stop_wait_s`.
        """
        self._process_event(ShutdownRequested(keep))
        await self._drained.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(stop_wait_s):
                await self._shut_down.wait()
        if self.failure is not None:
            confirmed = keep or await self._runner.stop_without_machine(stop_wait_s)
        else:
            confirmed = self._shut_down.is_set() or self._last.confirmed
        if self._in_flight_timer is not None:
            self._in_flight_timer.cancel()
        await self._runner.aclose()
        self._timer.close()
        return confirmed

    def abort_in_flight(self) -> None:
        """Break off the responses that still have their grace: a second signal came."""
        self._process_event(ForcedShutdownRequested())

    # --- requests -----------------------------------------------------------------------------

    def acquire(
        self,
        *,
        model: str | None = None,
        load: LoadOptions = AS_IT_COMES,
        user: str = BY_HAND,
        request_id: str = "",
        purpose: str = "",
        body_bytes: int = 0,
        asks: Callable[[], WakeRequest] | None = None,
    ) -> Lease:
        """Return the lease of a new request, admitted at once if the pod serves and nobody waits.

        A request that cannot even wait (queue full, shutdown) has been rejected: the lease's wait raises.
        `body_bytes` is what is kept of its body while it waits, `asks` what the wake rules are asked.
        """
        self._last_ticket += 1
        number, now = self._last_ticket, self._loop.time()
        lease = Lease(number, now, user, request_id, self.mark_response_started, self.release, asks, purpose)
        self._leases.add(lease)
        serving, machine = (None if self._machine.needs_every_event else self.serving), self._machine
        if serving is not None and machine.admit_fast(number, model, load, user, now, body_bytes):
            self._leases.admit(lease, serving, now)
            self._publish_in_flight_soon()
        else:
            if self.on_wait is not None:
                self.on_wait(lease)
            self._process_event(RequestArrived(number, model, load, user, body_bytes))
            if self.failure is not None:
                lease.reject(ShuttingDown(retry_after_s=5))
        return lease

    @contextmanager
    def reading_body(self) -> Iterator[Callable[[int], None]]:
        """Count a body against `queue.max_bytes` while it is read.

        Yields a function that takes up so many bytes more; it raises QueueFull where a request with such a
        body would have to wait and could not.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            try:
                self._machine.check_room(size)
            except QueueFull as error:
                error.retry_after_s = self.ready_in_s() or error.retry_after_s
                raise
            self._machine.queue.bodies.reading += size
            held += size

        try:
            yield hold
        finally:
            self._machine.queue.bodies.reading -= held

    def mark_response_started(self, lease: Lease) -> None:
        """The first byte of this lease's response is leaving: it cannot be repeated any more."""
        now = self._loop.time()
        self._machine.handle(ResponseStarted(lease.number), now)
        if self.on_first_byte is not None and lease.admitted_at is not None:
            self.on_first_byte(now - lease.admitted_at)

    def release(self, lease: Lease) -> None:
        """The request of this lease has ended, well or not; a second call does nothing."""
        now = self._loop.time()
        if not self._leases.remove(lease, now):
            return
        if self._machine.needs_every_event or not self._machine.release_fast(lease.number, now):
            if lease.admitted_at is None and lease.error is None:
                self._events.publish(lease_waited(lease, now, left=True))
            self._process_event(RequestFinished(lease.number))
            return
        if self._timer.at > now + self._machine.idle_timeout_s:
            self._timer.set(self._machine.next_deadline_at)  # the idle stop, perhaps
        self._publish_in_flight_soon()

    async def diagnose(self, run: int, lease: Lease | None = None) -> Diagnosis:
        """Find out whether the pod of this run lives, after an exchange with it broke before its first byte.

        A lease that has lost its pod has been requeued or rejected by the time that this returns.

        Args:
            lease: of a request that can be sent again: it is requeued if the pod is unhealthy.
        """
        diagnosis = PendingDiagnosis(run, lease)
        self._diagnoses.add(diagnosis)
        try:
            self._process_event(UpstreamFailed(run, None if lease is None else lease.number))
            diagnosis.update(self._last.state, looked=False)
            return await diagnosis.wait(self._policy.health_interval + DIAGNOSIS_MARGIN_S)
        finally:
            self._diagnoses.discard(diagnosis)

    # --- by a person, and by the budget -------------------------------------------------------

    def start(self, user: str = BY_HAND, agent: str = "") -> None:
        """Start the pod; does nothing if it runs or is on its way.

        Raises:
            ShuttingDown: the gateway ends.
            BudgetExceeded: the month's budget, or this user's share of it, is spent.
            WakeDenied: a wake rule forbids it.
        """
        self._manual_start_user = user
        asks = WakeRequest(user=user, path=START_PATH, agent=agent)
        denied = self.wake_policy(asks) if self.wake_policy is not None else ""
        try:
            self._request_manually(ManualStartRequested(user, denied))
        except WakeDenied as error:
            self._events.publish(WakeRefused(user=user, message=error.message))
            raise

    def start_by_schedule(self, keep_s: float, model: str | None) -> None:
        """Start the pod and keep it for so long, from READY on; raises what `start` raises."""
        asks = WakeRequest(user=BY_SCHEDULE, model=model or "")
        denied = self.wake_policy(asks) if self.wake_policy is not None else ""
        try:
            self._request_manually(ManualStartRequested(BY_SCHEDULE, denied, keep_s, model))
        except WakeDenied as error:
            self._events.publish(WakeRefused(user=BY_SCHEDULE, message=error.message))
            raise

    def stop(self, *, force: bool = False) -> None:
        """Stop the pod; the stop goes on in the background until an inspection has confirmed it.

        Raises:
            PodBusy: requests wait or are being answered, and it is not forced.
            ShuttingDown: the gateway ends.
        """
        self._request_manually(ManualStopRequested(force))

    def _request_manually(self, event: Event) -> None:
        self._runner.manual_error = None
        self._process_event(event)
        if self.failure is not None:
            raise ShuttingDown(retry_after_s=5)
        if self._runner.manual_error is not None:
            raise self._runner.manual_error

    def set_policy(self, policy: Policy) -> None:
        """Decide by other numbers from now on; the providers and `health_interval` must be the same."""
        self._policy = policy
        self._machine.set_policy(policy)
        self._process_event(DeadlineReached())

    def set_gpu_need(self, need: GpuNeed) -> None:
        """Have the GPU chosen by what the models need; to be called before `open`."""
        self._runner.set_gpu_need(need)

    def _wake_refusal(self, ticket: int | None) -> str:
        policy = self.wake_policy
        if policy is None:
            return ""
        if ticket is None:
            return policy(WakeRequest(user="prewarm"))
        lease = self._leases.get(ticket)
        return "" if lease is None else lease.wake_refusal(policy)

    def set_budget_verdict(self, verdict: BudgetVerdict) -> None:
        """Set for whom the budget allows a start from now on."""
        self._process_event(BudgetUpdated(verdict))

    # --- status -------------------------------------------------------------------------------

    @property
    def current_status(self) -> Status | None:
        """The pod's status in one word; None while it is not known what runs."""
        return self._last.status

    async def status(self, patience_s: float = 5.0) -> PodStatus:
        """Return the pod's status; after the gateway's start wait until every provider was inspected.

        Raises:
            ProviderUnavailable: that took longer than `patience_s`, or an inspection failed.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._status_known.wait()
        status = self.status_now()
        if status is None:
            message = self._runner.slow_call() or self._last.last_error or ""
            raise ProviderUnavailable(message, retry_after_s=5)
        return status

    def status_now(self) -> PodStatus | None:
        """Return the pod's status without waiting; None while it is not known what runs."""
        now, slow_call = self._loop.time(), self._runner.slow_call()
        pulling = self._runner.pod_calls.pulling
        return self._status.build(self._machine.snapshot(), now, self._model_to_load, slow_call, pulling)

    def ready_in_s(self) -> float | None:
        """Return how long the start that is under way will probably take; None: none is, or it is unknown."""
        ready_in = self._status.ready_in(self._machine.snapshot(), self._loop.time(), self._model_to_load)
        return None if ready_in is None else ready_in.p50_s

    @property
    def _model_to_load(self) -> str:
        wanted = model_to_preload(self._machine)
        return NO_MODEL if wanted is None else wanted[0]

    def progress_of(self, lease: Lease) -> WaitProgress:
        """Return what a request that is held waits for."""
        machine = self._machine.snapshot()
        ready_in = self._status.ready_in(machine, self._loop.time(), self._model_to_load)
        return WaitProgress(
            state=machine.state,
            provider=self._names[machine.shown_provider],
            place=self._machine.queue.place_of(lease.number),
            ready_in_s=None if ready_in is None else ready_in.p50_s,
            pulling=self._runner.pod_calls.pulling,
        )

    def last_use(self) -> tuple[int, str, str] | None:
        """Return run, user and purpose of the request that ended last."""
        return self._leases.last_use

    def open_requests(self) -> list[OpenRequest]:
        """Return the requests that wait or are in flight, in order of arrival."""
        return self._leases.open_requests(self._loop.time())

    @property
    def waiting(self) -> int:
        """How many requests wait for the pod."""
        return self._last.waiting

    @property
    def unconfirmed_stops(self) -> int:
        """At how many providers a stop was sent that no inspection has confirmed yet."""
        return len(self._last.stopping_providers)

    def start_rate(self) -> Decimal | None:
        """Return the price per hour of the pod that would be started; None if it is not known."""
        return self._status.start_rate()

    # --- the dispatch loop --------------------------------------------------------------------

    def _process_event(self, event: Event) -> None:
        """Bring one event into the machine; an error in here is the end of the lifecycle."""
        if self.failure is not None:
            return
        try:
            self._dispatch(event, self._loop.time())
        except Exception as error:
            self._fail(error)

    # One event. The order of the steps matters:
    #
    # 1. An inspection's report goes into the status and the ledger's row first: step 3 may end that session.
    # 2. The machine takes the event: one synchronous step. `serving` and the other things that follow from
    # the    state alone are set before a command is executed, because `Admit` hands out `serving`.
    # 3. The commands, in the machine's order. A command that fails does not keep the next from being
    # executed:    it may be the stop. Executing one can bring in another event (a lease that is aborted ends
    # at once), so    from here on a fresh snapshot is needed.
    # 4. The state's change is published after the sessions' starts and ends, which are commands: whoever
    #    listens finds the session open when the pod is READY, and closed when it is STOPPED.
    # 5. The ledger learns which stops are pending: a row whose stop was sent may end while nobody sees it.
    # 6. The timer.
    # 7. The length of the queue is published, if it has changed.
    # 8. Who waits for the first status is released.
    # 9. Pending diagnoses see the new state.
    def _dispatch(self, event: Event, now: float) -> None:
        if isinstance(event, PodInspected):  # 1
            self._recorder.on_report(self._names[event.provider], event.report)
            self._runner.on_inspected(event)
        # Requests that took the short way are not in `_last`, and a deadline is about when they ended.
        was = self._machine.snapshot() if isinstance(event, DeadlineReached) else self._last
        commands = self._machine.handle(event, now)  # 2
        snapshot = self._last = self._machine.snapshot()
        if snapshot.state is not was.state:
            self._on_state_changed(was, snapshot)
        self._runner.execute(commands, now)  # 3
        is_handed_over = isinstance(snapshot.state, Ready) and snapshot.run_id != was.run_id
        if type(snapshot.state) is not type(was.state) or snapshot.status is not was.status or is_handed_over:
            self._status.on_state_changed(was, snapshot, now)
            self._publish_state(was, snapshot, event)
        latest = self._last = self._machine.snapshot()
        if latest.stopping_providers != self._stopping_providers:  # 5
            self._stopping_providers = latest.stopping_providers
            self._recorder.on_stops_changed(
                frozenset(self._names[index] for index in latest.stopping_providers)
            )
        self._timer.bring_forward(latest.next_deadline_at)  # 6
        if latest.waiting != self._published_queue[0]:  # 7
            self._publish_queue(latest)
        elif self._machine.needs_every_event and latest.in_flight != self._published_queue[1]:
            self._publish_in_flight_soon()
        if latest.all_inspected:  # 8
            self._status_known.set()
        if self._diagnoses:  # 9
            self._update_diagnoses(event, latest)

    def _on_timer(self) -> None:
        self._process_event(DeadlineReached())
        if self._timer.at == inf and self.failure is None:
            self._timer.set(self._machine.next_deadline_at)

    def _on_state_changed(self, was: MachineSnapshot, snapshot: MachineSnapshot) -> None:
        """Set what follows from the state alone."""
        state = snapshot.state
        if isinstance(state, Ready):
            self._set_serving(state)
            if self._machine.hand_over is not None:
                usual = self._status.usual_start_s(state.provider)
                self._machine.hand_over.usual_start_s = usual or self._machine.hand_over.usual_start_s
        else:
            self.serving = None
            if isinstance(was.state, Ready):
                self._save_idle_history()
        if snapshot.shutting_down and not isinstance(state, Draining):
            self._drained.set()
        if isinstance(state, ShutDown):
            self._shut_down.set()
        if type(state) is not type(was.state) and isinstance(state, _PROBES_END):
            self._runner.pod_calls.cancel()

    def _set_serving(self, state: Ready) -> None:
        """Replace `serving` only if the pod is another, or has moved: pools compare it by identity."""
        serving = self.serving
        if serving is None or serving.endpoints != state.endpoints or serving.run_id != state.run_id:
            configured = self._providers[state.provider]
            limit_s = configured.provider.capabilities.first_byte_limit_s
            self.serving = ServingPod(state.run_id, configured.name, state.endpoints, limit_s)
            self._leases.move(self.serving)

    def _save_idle_history(self) -> None:
        history = self._machine.idle_history(self._loop.time())
        if history is not None:
            self._idle_history.save(history)

    def _update_diagnoses(self, event: Event, snapshot: MachineSnapshot) -> None:
        """Tell the pending diagnoses the state, and whether this inspection of the pod is the newest."""
        inspected = isinstance(event, PodInspected | InspectFailed) and event.provider == snapshot.provider
        looked = inspected and not snapshot.inspection_is_out
        for diagnosis in self._diagnoses:
            if diagnosis.update(snapshot.state, looked=looked) and diagnosis.lease is not None:
                self._process_event(UpstreamFailed(diagnosis.run_id, diagnosis.lease.number))

    def _fail(self, error: BaseException) -> None:
        """Decide nothing any more: end all requests, and the gateway by `on_failure`."""
        self.failure = error
        self.serving = None
        self._timer.close()
        self._leases.end_all(lambda: ShuttingDown(retry_after_s=5))
        self._drained.set()
        self._shut_down.set()
        self._status_known.set()
        report_crash("lifecycle", error, self._on_crash)
        self._on_failure()

    def _start_origin(self) -> StartOrigin:
        """Return who causes a start: a person, the prewarming, or the first request that is allowed one."""
        reason = self._machine.start_cause
        if reason is StartCause.MANUAL:
            return StartOrigin(user=self._manual_start_user, reason=reason)
        if reason is StartCause.SCHEDULE:
            return StartOrigin(user=BY_SCHEDULE, reason=reason)
        lease = self._leases.get(self._machine.starting_ticket)
        if lease is None or reason is not StartCause.REQUEST:
            return StartOrigin(reason=reason)
        return StartOrigin(user=lease.user, reason=reason, request_id=lease.request_id)

    # --- publishing ---------------------------------------------------------------------------

    def _publish_state(self, was: MachineSnapshot, now: MachineSnapshot, event: Event) -> None:
        self._events.publish(
            StateChanged(
                was=name_of(was.state),
                now=name_of(now.state),
                was_status=was.status,
                status=now.status,
                cause=cause_of(event),
                run_id=now.run_id,
                provider=self._names[now.shown_provider],
                at=self._wall(),
                stop_cause=now.stop_cause,
                idle_s=None if was.idle_since is None else max(0.0, self._loop.time() - was.idle_since),
            )
        )

    def _publish_queue(self, snapshot: MachineSnapshot) -> None:
        counts = snapshot.waiting, snapshot.in_flight
        if counts != self._published_queue:
            self._published_queue = counts
            self._events.publish(QueueChanged(waiting=snapshot.waiting, in_flight=snapshot.in_flight))

    def _publish_in_flight_soon(self) -> None:
        """Requests come and go too fast on a warm pod to publish each: gather the changes."""
        if self._in_flight_timer is None:
            self._in_flight_timer = self._loop.call_later(IN_FLIGHT_INTERVAL_S, self._publish_in_flight)

    def _publish_in_flight(self) -> None:
        self._in_flight_timer = None
        self._publish_queue(self._machine.snapshot())
