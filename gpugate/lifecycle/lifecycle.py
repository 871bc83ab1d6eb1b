"""Lifecycle: the one object that owns the pod's life, the queue and the idle timer.

It lives around the pure `PodMachine`: it brings events in, carries effects out, and keeps the one timer
that `next_deadline_at` asks for. Nobody else ever sees the machine. It must not know HTTP.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from math import inf, isfinite

from gpugate.billing.model import BY_HAND, StartOrigin
from gpugate.billing.recorder import NullRecorder
from gpugate.core.budget_gate import BudgetVerdict
from gpugate.core.commands import (
    AbortResponse,
    Admit,
    CheckDevice,
    CleanUpOrphans,
    Command,
    InspectPod,
    PersistPendingStops,
    PreloadModel,
    Probe,
    PublishProviderProblem,
    RecordSessionEnd,
    RecordSessionStart,
    Reject,
    Requeue,
    ResolveManualRequest,
    StartCause,
    StartPod,
    StopPod,
)
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
)
from gpugate.core.idle_policy import IdleHistoryStore, IdlePolicy
from gpugate.core.machine import PodMachine
from gpugate.core.policy import Policy
from gpugate.core.states import (
    BackingOff,
    CallingStart,
    Draining,
    Ready,
    ShutDown,
    State,
    Status,
    Stopped,
    Stopping,
    Unknown,
)
from gpugate.core.transitions import TABLE
from gpugate.errors import GateError, ProviderUnavailable, ShuttingDown
from gpugate.lifecycle.chronicle import Chronicle
from gpugate.lifecycle.debts import Debts
from gpugate.lifecycle.diagnosis import Diagnosis, PendingDiagnosis
from gpugate.lifecycle.event_bus import Listener, News
from gpugate.lifecycle.lease import Lease, ServingPod
from gpugate.lifecycle.pod_calls import Errands
from gpugate.lifecycle.pod_client import Pod
from gpugate.lifecycle.provider_worker import CommandLine, Intent, NamedProvider
from gpugate.lifecycle.status import PodStatus
from gpugate.provider_api import PodReport, Price
from gpugate.tasks import CrashListener, report_crash

FLIGHT_PAUSE_S = 0.25
"""How long changes of what is in flight are gathered before they are told."""


def _now() -> datetime:
    return datetime.now(UTC)


class Lifecycle:
    """Lifecycle, queue and idle timer of one pod behind one or more providers.

    Attributes:
        serving: the pod that serves, or None; a plain attribute, for the hot path.
        failure: the error after which nothing is decided any more, or None; all that is left is `close`.

    Args:
        on_failure: called once when `failure` is set; `close` has to follow.
    """

    def __init__(
        self,
        *,
        providers: Sequence[NamedProvider],
        pod: Pod,
        policy: Policy,
        debts: Debts,
        fallback_price: Price,
        listeners: Sequence[Listener] = (),
        on_crash: CrashListener | None = None,
        chance: Callable[[], float] = random.random,
        wall: Callable[[], datetime] = _now,
        idle: IdlePolicy | None = None,
        habits: IdleHistoryStore | None = None,
        books: NullRecorder | None = None,
        steady: Callable[[], float] | None = None,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        self.serving: ServingPod | None = None
        self.failure: BaseException | None = None
        self._on_failure = on_failure
        self._providers = tuple(providers)
        self._policy = policy
        self._debts = debts
        self._habits = habits
        self._books = books
        self._starts_by_hand = BY_HAND  # who asked last
        self._stopping: frozenset[int] = frozenset()
        self._on_crash = on_crash
        names = [named.name for named in self._providers]
        unproved = debts.load()
        owed = frozenset(names.index(name) for name in unproved if name in names)
        self._foreign_debts = unproved - frozenset(names)
        self._machine = PodMachine(TABLE, policy, chance, owed, idle)
        self._snapshot = self._machine.snapshot()  # after the latest event
        self._leases: dict[int, Lease] = {}
        self._last_ticket = 0
        self._timer: asyncio.TimerHandle | None = None
        self._armed = inf
        self._errands = Errands(pod, self._feed, policy.health_interval, on_crash)
        self._diagnoses: set[PendingDiagnosis] = set()
        self._closed = asyncio.Event()
        self._drained = asyncio.Event()
        self._reply: GateError | None = None
        self._flight_timer: asyncio.TimerHandle | None = None
        if books is not None:
            listeners = (books.on_event, *listeners)
        self._uses = books.usage if books is not None else None
        calendar = steady or (lambda: wall().timestamp())
        self._chronicle = Chronicle(names, fallback_price, listeners, wall, calendar)

    # --- life ---------------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin: look at the providers, adopt what runs, go on with stops that were left unproved."""
        self._loop = asyncio.get_running_loop()
        self._known: asyncio.Future[None] = self._loop.create_future()
        books = self._books
        self._lines = tuple(
            CommandLine(
                named,
                self._feed,
                partial(self._age_s, named.name),
                self._chronicle.plausible(
                    named.name, partial(books.start_time_bound, named.name) if books is not None else None
                ),
                self._on_crash,
            )
            for named in self._providers
        )
        for name in sorted(self._foreign_debts):
            self._chronicle.warn(name, "its pod was never seen stopped, and it is not configured any more")
        if self._habits is not None:
            self._machine.restore_idle_history(self._habits.load(), self._loop.time())
        self._feed(GatewayStarted())

    async def close(self, *, keep: bool, stop_wait_s: float) -> bool:
        """Go down: refuse who waits, let running answers have their grace, stop the pod or leave it.

        Returns True when nothing is left to prove; False when `stop_wait_s` was over before the proof.
        """
        self._feed(ShutdownRequested(keep))
        await self._drained.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(stop_wait_s):
                await self._closed.wait()
        if self.failure is not None:
            proved = keep or await self._stop_undecided(stop_wait_s)
        else:
            proved = self._closed.is_set() or self._snapshot.confirmed
        if self._flight_timer is not None:
            self._flight_timer.cancel()
        await self._errands.aclose()
        await asyncio.gather(*(line.aclose() for line in self._lines), return_exceptions=True)
        self._arm(inf)
        self._armed = -inf  # nothing is ever due again
        return proved

    async def _stop_undecided(self, stop_wait_s: float) -> bool:
        """Stop every provider's pod without the machine, which has failed; False: not proved in time.

        What is not proved stays in the debts, so that the next start of the gateway goes on with it.
        """
        names = {named.name for named in self._providers}
        self._debts.save(sorted(names | self._foreign_debts))
        if self._books is not None:
            self._books.on_stops_changed(frozenset(names))
        stopping = [line.stop_now(stop_wait_s, self._policy.health_interval) for line in self._lines]
        stopped = await asyncio.gather(*stopping, return_exceptions=True)
        owed = {
            named.name for named, proved in zip(self._providers, stopped, strict=True) if proved is not True
        }
        self._debts.save(sorted(owed | self._foreign_debts))
        return not owed

    def cut(self) -> None:
        """Break off what still runs: somebody asked a second time."""
        self._feed(ForcedShutdownRequested())

    # --- requests -----------------------------------------------------------------------------

    def acquire(
        self, *, model: str | None = None, embeds: bool = False, user: str = BY_HAND, request_id: str = ""
    ) -> Lease:
        """File a request; its lease is admitted at once when the pod serves and nobody waits."""
        self._last_ticket += 1
        number, now = self._last_ticket, self._loop.time()
        lease = self._leases[number] = Lease(self, number, now, user, request_id)
        if self.serving is not None and self._machine.admit_fast(number, model, embeds, user, now):
            lease.admit(self.serving, now)
            if self._uses is not None:
                self._uses.start(number, user, request_id, now)
            if self._flight_timer is None:
                self._tell_flight_soon()
        else:
            self._feed(RequestArrived(number, model, embeds, user))
            if self.failure is not None:
                lease.reject(ShuttingDown(retry_after_s=5))
        return lease

    def mark_response_started(self, lease: Lease) -> None:
        """The first byte of this lease's answer leaves."""
        self._machine.handle(ResponseStarted(lease.number), self._loop.time())

    def release(self, lease: Lease) -> None:
        """This lease is over."""
        if self._leases.pop(lease.number, None) is None:
            return
        now = self._loop.time()
        if self._uses is not None:
            self._uses.finish(lease.number, now)
        if not self._machine.release_fast(lease.number, now):
            self._feed(RequestFinished(lease.number))
            return
        if self._armed > now + self._machine.idle_timeout_s:
            self._arm(self._machine.next_deadline_at)
        if self._flight_timer is None:
            self._tell_flight_soon()

    async def diagnose(self, run: int) -> Diagnosis:
        """An exchange with this run's pod broke before its first byte: find out whether the pod lives.

        A lease that lost its pod has been requeued (or refused) by the time that this returns.
        """
        examination = PendingDiagnosis(run)
        self._diagnoses.add(examination)
        try:
            self._feed(UpstreamFailed(run))
            examination.update(self._snapshot.state, looked=False)
            return await examination.wait(self._policy.health_interval)
        finally:
            self._diagnoses.discard(examination)

    def _update_diagnoses(self, event: Event) -> None:
        snapshot = self._snapshot
        seen = isinstance(event, PodInspected | InspectFailed) and event.provider == snapshot.provider
        fresh = seen and not snapshot.inspection_is_out  # else a fresher result will come
        for examination in self._diagnoses:
            examination.update(snapshot.state, looked=fresh)

    # --- by hand ------------------------------------------------------------------------------

    def start(self, user: str = BY_HAND) -> None:
        """Start by hand; idempotent. Raises ShuttingDown, and BudgetExceeded where nothing is on its way."""
        self._starts_by_hand = user
        self._ask(ManualStartRequested(user))

    def stop(self, *, force: bool = False) -> None:
        """Stop by hand. Raises PodBusy while anybody waits or is answered, unless forced."""
        self._ask(ManualStopRequested(force))

    def _ask(self, event: Event) -> None:
        self._reply = None
        self._feed(event)
        if self.failure is not None:
            raise ShuttingDown(retry_after_s=5)
        if self._reply is not None:
            raise self._reply

    def tell(self, news: News) -> None:
        """News of somebody else, for the same listeners."""
        self._chronicle.tell(news)

    def judge(self, verdict: BudgetVerdict) -> None:
        """For whom a start is paid, from now on."""
        self._feed(BudgetUpdated(verdict))

    # --- what is told -------------------------------------------------------------------------

    @property
    def word(self) -> Status | None:
        """The pod's status in one word, None while it is not known."""
        return self._snapshot.status

    async def status(self, patience_s: float = 5.0) -> PodStatus:
        """What there is to know of the pod.

        Raises:
            ProviderUnavailable: it is not known what the provider has, and it cannot be asked.
        """
        await asyncio.wait([self._known], timeout=patience_s)
        status = self.snapshot()
        if status is None:
            raise ProviderUnavailable(self._snapshot.last_error or "", retry_after_s=5)
        return status

    def snapshot(self) -> PodStatus | None:
        """The same without waiting; None while it is not known what the provider has."""
        return self._chronicle.status(self._machine.snapshot(), self._loop.time())

    def rate_of_start(self) -> Decimal | None:
        """What the pod that is started next costs per hour; None where nobody tells."""
        return self._chronicle.rate_of_start()

    # --- events in ----------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        """Bring one event in, carry its effects out, set the alarm for the next deadline.

        An error in here leaves the pod's life in no known state: it ends the gateway, by `on_failure`.
        """
        if self.failure is not None:
            return
        try:
            self._take(event)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self.serving = None
        self._arm(inf)
        for lease in list(self._leases.values()):
            if lease.pod is None:
                lease.reject(ShuttingDown(retry_after_s=5))
            else:
                lease.abort()
        self._drained.set()
        self._closed.set()
        self._settle_known()
        report_crash("lifecycle", error, self._on_crash)
        if self._on_failure is not None:
            self._on_failure()

    def _take(self, event: Event) -> None:
        machine = self._machine
        before = self._snapshot
        now = self._loop.time()
        if self._books is not None and isinstance(event, PodInspected):
            self._books.on_report(self._providers[event.provider].name, event.report)
        effects = machine.handle(event, now)
        after = self._snapshot = machine.snapshot()
        if after.state is not before.state:
            self._moved(before.state, after.state)
        for effect in effects:
            try:
                self._carry_out(effect, now)
            except Exception as error:  # the next one may be the stop, or another request's wake-up
                report_crash(f"lifecycle: {type(effect).__name__}", error, self._on_crash)
        if type(after.state) is not type(before.state):
            self._chronicle.transition(before.state, after, event, now)
        after = self._snapshot  # a command may have brought on another event
        if self._books is not None and after.stopping_providers != self._stopping:
            self._stopping = after.stopping_providers
            self._books.on_stops_changed(frozenset(self._providers[index].name for index in self._stopping))
        if machine.next_deadline_at < self._armed:
            self._arm(machine.next_deadline_at)
        if after.waiting != self._chronicle.waiting_told:
            self._chronicle.queue(after)
        if isinstance(event, PodInspected | InspectFailed):
            self._seen(event)
        if self._diagnoses:
            self._update_diagnoses(event)

    def _tell_flight_soon(self) -> None:
        """Warm requests come and go too fast to tell of each: tell what is in flight a little later."""
        self._flight_timer = self._loop.call_later(FLIGHT_PAUSE_S, self._tell_flight)

    def _tell_flight(self) -> None:
        self._flight_timer = None
        self._chronicle.queue(self._machine.snapshot())

    def _arm(self, at: float) -> None:
        """One timer; an older, later one is replaced, an earlier one fires for nothing and rearms."""
        if self._timer is not None:
            self._timer.cancel()
        self._armed = at
        self._timer = self._loop.call_at(at, self._wake) if isfinite(at) else None

    def _wake(self) -> None:
        self._timer, self._armed = None, inf
        self._feed(DeadlineReached())
        if self._timer is None and self.failure is None:
            self._arm(self._machine.next_deadline_at)

    def _seen(self, event: PodInspected | InspectFailed) -> None:
        if isinstance(event, PodInspected):
            self._chronicle.look(event)
        if self._snapshot.all_inspected:
            self._settle_known()

    def _save_habits(self) -> None:
        """When a pod serves no more: what was learnt since, and when it was wanted last."""
        habits = self._machine.idle_history(self._loop.time())
        if self._habits is not None and habits is not None:
            self._habits.save(habits)

    def _settle_known(self) -> None:
        if not self._known.done():
            self._known.set_result(None)

    def _moved(self, was: State, state: State) -> None:
        """The pod's life took a step: everything that follows from the state alone."""
        if isinstance(state, Ready):
            if (
                self.serving is None
                or self.serving.endpoints != state.endpoints
                or self.serving.run_id != state.run_id
            ):
                named = self._providers[state.provider]
                limit_s = named.provider.capabilities.first_byte_limit_s
                self.serving = ServingPod(state.run_id, named.name, state.endpoints, limit_s)
        else:
            self.serving = None
            if isinstance(was, Ready):
                self._save_habits()
        if self._snapshot.shutting_down and not isinstance(state, Draining):
            self._drained.set()
        if isinstance(state, ShutDown):
            self._closed.set()
        if not isinstance(state, Unknown):
            self._settle_known()
        if type(state) is not type(was) and isinstance(
            state, Ready | Stopping | Stopped | CallingStart | BackingOff | ShutDown
        ):
            self._errands.drop()

    # --- effects out --------------------------------------------------------------------------

    def _carry_out(self, effect: Command, now: float) -> None:
        match effect:
            case Admit() | Reject() | Requeue() | AbortResponse():
                self._tell_lease(effect, now)
            case StartPod(_, provider):
                self._lines[provider].send(effect, self._intent(provider))
            case StopPod(_, provider):
                self._lines[provider].send(effect, self._books.flush if self._books is not None else None)
            case InspectPod() | CleanUpOrphans():
                self._lines[effect.provider].send(effect)
            case Probe():
                self._errands.probe(effect)
            case PreloadModel():
                self._errands.preload(effect)
            case CheckDevice():
                self._errands.weigh(effect)
            case ResolveManualRequest(error):
                self._reply = error
            case PersistPendingStops(providers):
                here = {self._providers[index].name for index in providers}
                self._debts.save(sorted(here | self._foreign_debts))
            case RecordSessionStart():
                self._chronicle.session_opened(effect)
            case RecordSessionEnd():
                self._chronicle.session_closed(effect)
            case PublishProviderProblem():
                self._chronicle.trouble(effect)

    def _tell_lease(self, effect: Admit | Reject | Requeue | AbortResponse, now: float) -> None:
        lease = self._leases.get(effect.ticket)
        if lease is None:
            return
        match effect:
            case Admit():
                assert self.serving is not None
                lease.admit(self.serving, now)
                if self._uses is not None:
                    self._uses.start(lease.number, lease.user, lease.request_id, now)
            case Reject(error=error):
                lease.reject(error)
            case Requeue():
                lease.requeue()
                if lease.model_hint is not None:
                    self._machine.set_model(lease.number, lease.asked_model())
            case AbortResponse():
                lease.abort()
        if self._uses is not None and not isinstance(effect, Admit):
            self._uses.finish(lease.number, now)

    def _intent(self, provider: int) -> Intent | None:
        """What has to be on disk before this provider is asked for a pod."""
        if self._books is None:
            return None
        return partial(self._books.record_start_intent, self._providers[provider].name, self._starter())

    def _starter(self) -> StartOrigin:
        """Who wants the pod: the first who waits and may have it started, else a hand or a habit."""
        reason = self._machine.start_cause
        if reason is StartCause.MANUAL:
            return StartOrigin(user=self._starts_by_hand, reason=reason)
        ticket = self._machine.starting_ticket
        lease = self._leases.get(ticket) if ticket is not None else None
        if lease is None or reason is not StartCause.REQUEST:
            return StartOrigin(reason=reason)
        return StartOrigin(user=lease.user, reason=reason, request_id=lease.request_id)

    def _age_s(self, provider: str, report: PodReport) -> float:
        """How long a pod that is found has been paid for: by the books or the provider's word, the longer."""
        known = self._books.age_s(provider, report) if self._books is not None else None
        return max(self._chronicle.record.age_s(report), known or 0.0)
