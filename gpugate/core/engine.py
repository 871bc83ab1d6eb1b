"""What carries the pod's life: dispatch over the table, tickets, stop orders, looks; no decision of its own.

One `handle(event, now)` is one synchronous step. Its order is: the event itself, then what follows
from it by the clock (late tickets, due stops, due looks), then the backlog if the pod is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Any, ClassVar

from gpugate.core.budget_gate import BudgetGate
from gpugate.core.commands import (
    AbortResponse,
    Admit,
    CleanUpOrphans,
    Command,
    InspectPod,
    PersistPendingStops,
    PublishProviderProblem,
    RecordSessionEnd,
    RecordSessionStart,
    Reject,
    Requeue,
    StopPod,
)
from gpugate.core.events import (
    AllStopsConfirmed,
    BudgetUpdated,
    DeadlineReached,
    DemandRaised,
    Event,
    InspectFailed,
    LastLeaseReleased,
    PodInspected,
    RequestArrived,
    RequestFinished,
    ResponseStarted,
    StartAccepted,
    StopAccepted,
    StopCallFailed,
)
from gpugate.core.idle_policy import MIN_GAP_S, FixedIdlePolicy, IdlePolicy
from gpugate.core.idle_timer import IdleTimer
from gpugate.core.inspect_schedule import InspectSchedule
from gpugate.core.pending_stops import ACTIVE_PHASES, PendingStop, PendingStops
from gpugate.core.policy import Policy
from gpugate.core.request_queue import RequestQueue
from gpugate.core.states import (
    AfterStop,
    BackingOff,
    Draining,
    Ready,
    ShutDown,
    State,
    Status,
    Stopped,
    Stopping,
    Unknown,
    status_of,
)
from gpugate.core.transition_table import TransitionEntry, TransitionKey
from gpugate.errors import (
    BudgetExceeded,
    GateError,
    PodStopped,
    ProviderError,
    QueueFull,
    QueueTimeout,
    RateLimited,
    ShuttingDown,
)
from gpugate.provider_api import Phase, PodReport

NEEDS_NEW_START = (Stopped, Stopping, Draining, BackingOff)
"""Where who waits can be served by a new start only."""


class MachineBase:
    """The machinery under `PodMachine`; its rows are in `core/starting.py`, `warming.py`, `serving.py`.

    Attributes:
        state: where the pod's life is.
        last_problem: the last thing that went wrong, for people; None when a pod serves again.
        inspect_errors: by provider, why the last look failed; emptied by the next good one.
        open_sessions: billed stretches that are open, by provider: the run, and since when.
        idle_timer: how long a pod is kept that nobody uses, and when one is started unasked.
        budget_gate: whose wish is a start worth.
    """

    TABLE: ClassVar[Mapping[TransitionKey, TransitionEntry]] = {}
    IGNORED: ClassVar[Mapping[type[Any], frozenset[type[Any]]]] = {}

    def __init__(
        self,
        policy: Policy,
        chance: Callable[[], float],
        owed: frozenset[int] = frozenset(),
        idle: IdlePolicy | None = None,
    ) -> None:
        self.policy = policy
        self.state: State = Unknown()
        self.queue = RequestQueue(
            max_waiting=policy.max_waiting,
            max_wait_s=policy.max_wait,
            drain_concurrency=policy.drain_concurrency,
        )
        self.idle_timer = IdleTimer(
            idle or FixedIdlePolicy(policy.idle_timeout), self.queue, policy.idle_timeout
        )
        self.pending_stops = PendingStops(policy)
        self.inspect_schedule = InspectSchedule(len(policy.providers))
        self.last_problem: str | None = None
        self.inspect_errors: dict[int, str] = {}
        self.open_sessions: dict[int, tuple[int, float]] = {}
        self.budget_gate = BudgetGate()
        self.start_requested = False
        self.shutting_down = False
        self.keep_pod = False
        self.shutdown_state = ShutDown()
        self.last_run_id = 0
        self.random_fraction = chance
        self.restored_stops = owed
        self.persisted_stops = owed
        self.resume_at_provider: int | None = None  # where a start waits for a fresh stop before it goes on
        self.rate_limited_starts = 0  # starts in a row that the provider refused with a 429
        self.alarms: dict[int, str] = {}
        self.start_failures: list[tuple[int, ProviderError]] = []
        self._last_op = 0
        self.last_start_op = 0
        self.last_start_call = (0, 0, "request")  # provider, run and cause of the start that was asked last
        self.commands: list[Command] = []

    # --- what the owner may ask ---------------------------------------------------------------

    @property
    def status(self) -> Status | None:
        """One of the five words; None while it is not known what the provider has."""
        return status_of(self.state)

    @property
    def last_error(self) -> str | None:
        """What is wrong, for people."""
        return self.last_problem or next(iter(self.inspect_errors.values()), None)

    @property
    def active_run_id(self) -> int:
        """The run of the pod that is starting or serving, 0 without one."""
        return getattr(self.state, "run_id", 0)

    @property
    def idle_deadline_at(self) -> float:
        """When the idle stop is due; never while a lease is out or somebody waits."""
        quiet = self.queue.idle_since
        if quiet is None or self.queue.busy or not isinstance(self.state, Ready):
            return inf
        return self.idle_timer.stop_deadline(quiet, self.state.run_id)

    @property
    def session_deadline_at(self) -> float:
        """When `pod.max_session` is over for the pod that serves or comes."""
        provider = getattr(self.state, "provider", None)
        if not self.policy.max_session or provider not in self.open_sessions:
            return inf
        _, began = self.open_sessions[provider]
        return began + self.policy.max_session

    @property
    def next_deadline_at(self) -> float:
        """The least deadline there is; `inf` when only an answer can bring news."""
        deadlines = [self.pending_stops.next_due, self.inspect_schedule.next_due, self.state_deadline()]
        if (waits := self.queue.next_deadline) is not None:
            deadlines.append(waits)
        return min(deadlines)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event; return the effects to carry out, in order."""
        effects: list[Command] = []
        self.commands = effects
        kind = type(event)
        if kind is ResponseStarted:
            self.queue.mark_response_started(event.ticket)  # type: ignore[union-attr]
            return effects
        if kind is RequestArrived:
            if self.request_arrived(event, now):  # type: ignore[arg-type]
                return effects  # a warm request needs no more: the clock comes by itself
        elif kind is RequestFinished:
            self.request_finished(event.ticket, now)  # type: ignore[union-attr]
        elif kind is not DeadlineReached:
            self.route_event(event, now)
        if kind is not RequestFinished or type(self.state) is not Ready or self.has_due_work:
            self.run_due_work(now)
        return effects

    # --- the warm path ------------------------------------------------------------------------
    # What `RequestArrived` and `RequestFinished` come to when the pod serves and no ticket waits.
    # The owner calls these directly for a warm request, because an event, its effects and the
    # deadlines cost 10 us more.

    def admit_fast(self, number: int, model: str | None, embeds: bool, user: str, now: float) -> bool:
        """Admit a newcomer if the pod serves and nobody waits before it; its run is the state's."""
        backlog = self.queue
        if type(self.state) is not Ready or backlog.waiting or self.shutting_down:
            return False
        if now - backlog.last_demand_at > MIN_GAP_S and not backlog.leases:
            self.idle_timer.end_gap_if_long(now)
        backlog.admit(number, self.state.run_id, model, embeds, user)
        return True

    def release_fast(self, number: int, now: float) -> bool:
        """Take a lease back if nobody waits for it; the idle clock may start now."""
        if type(self.state) is not Ready or self.queue.waiting:
            return False
        self.queue.remove(number, now)
        return True

    # --- tickets ------------------------------------------------------------------------------

    def request_arrived(self, event: RequestArrived, now: float) -> bool:
        """Place a newcomer; True if it was admitted at once."""
        if self.shutting_down:
            self.reject(event.ticket, ShuttingDown(retry_after_s=5))
        elif self.admit_fast(event.ticket, event.model, event.embeds, event.user, now):
            self.commands.append(Admit(event.ticket, self.active_run_id))
            return True
        elif self.queue.full:
            self.reject(event.ticket, QueueFull(retry_after_s=self.policy.retry_after))
        else:
            self.idle_timer.end_gap(now)
            self.queue.join(event.ticket, event.model, event.embeds, event.user, now)
            self.apply_transition(DemandRaised(), now)
        return False

    def request_finished(self, number: int, now: float) -> None:
        if not self.release_fast(number, now) and self.queue.remove(number, now):
            self.apply_transition(LastLeaseReleased(), now)

    def reject(self, number: int, error: GateError) -> None:
        self.commands.append(Reject(number, error))

    def reject_waiting(self, error: Callable[[], GateError]) -> None:
        for ticket in self.queue.clear_waiting():
            self.reject(ticket.number, error())

    def abort_leases(self, error: Callable[[], GateError], now: float) -> None:
        """Break off what runs: an answer that has begun is cut, another gets the error."""
        for ticket in self.queue.take_all_leases():
            self.queue.last_demand_at = now
            self.commands.append(
                AbortResponse(ticket.number) if ticket.response_started else Reject(ticket.number, error())
            )
        self.queue.idle_since = now

    def requeue_leases(self, now: float) -> None:
        """The pod is gone: answers that have begun break, others wait again, once (docs/api.md#retries)."""
        for ticket in self.queue.take_all_leases():
            self.queue.last_demand_at = now
            if ticket.response_started:
                self.commands.append(AbortResponse(ticket.number))
            elif self.shutting_down:
                self.reject(ticket.number, ShuttingDown(retry_after_s=5))
            elif ticket.requeued:
                self.reject(ticket.number, PodStopped("the pod was lost twice while this request waited"))
            else:
                self.queue.requeue(ticket, now)
                self.commands.append(Requeue(ticket.number))
        self.queue.idle_since = now

    def reject_unpayable(self) -> None:
        """No start is paid for anybody who wants one: who waits for it is told, and no wish is left over."""
        self.start_requested = False
        for ticket in self.queue.clear_waiting():
            self.reject(ticket.number, BudgetExceeded(self.budget_gate.refusal_reason(ticket.user)))

    # --- dispatch -----------------------------------------------------------------------------

    def route_event(self, event: Event, now: float) -> None:
        match event:
            case StopAccepted():
                self.stop_answered(event.op, None, now)
            case StopCallFailed():
                self.stop_answered(event.op, event.error, now)
            case StartAccepted() if event.op != getattr(self.state, "op", None):
                self.late_start_accepted(event, now)
            case PodInspected() | InspectFailed():
                self.inspect_answered(event, now)
            case BudgetUpdated():
                self.budget_gate.verdict = event
            case _:
                self.apply_transition(event, now)

    def apply_transition(self, event: Event, now: float) -> None:
        row = self.TABLE.get((type(self.state), type(event)))
        if row is not None:
            self.state = getattr(self, row.method)(self.state, event, now)

    @property
    def has_due_work(self) -> bool:
        """Ready, and yet something may be due that is not worth a timer."""
        return bool(self.queue.waiting or self.pending_stops.by_provider or self.persisted_stops)

    def late_start_accepted(self, event: StartAccepted, now: float) -> None:
        """A start that nobody wants any more was accepted: it is billed until its stop is proved."""
        provider, run, cause = self.last_start_call
        order = self.pending_stops.by_provider.get(provider)
        if event.op != self.last_start_op:
            return
        self.last_start_op = 0  # answered, once
        if order is not None and event.report.phase is not Phase.QUEUED:
            self.open_session(provider, run, cause, event.report, event.up_s, now)

    def inspect_answered(self, event: PodInspected | InspectFailed, now: float) -> None:
        op, provider = event.op, event.provider
        planned = self.inspect_schedule.is_answered_by(provider, op)
        if planned:
            self.update_inspect_errors(provider, event, now)
        if planned and (order := self.pending_stops.by_provider.get(provider)) is not None:
            self.judge_stop(order, event, now)
            return
        if planned:
            pause = max(self.inspect_delay_s(provider, now), self.requested_delay_s(event))
            self.inspect_schedule.schedule_no_later_than(provider, now + pause)
        if planned and isinstance(event, PodInspected) and self.is_extra_pod(event):
            self.stop_extra_pod(provider, now)
        elif planned or getattr(self.state, "op", None) == op:
            self.apply_transition(event, now)

    def is_extra_pod(self, event: PodInspected) -> bool:
        """A pod runs there although another provider's serves, or is being started."""
        provider = getattr(self.state, "provider", None)
        if provider is None or provider == event.provider or isinstance(self.state, ShutDown):
            return False
        return event.report.phase in ACTIVE_PHASES

    def stop_extra_pod(self, provider: int, now: float) -> None:
        """One pod is enough (docs/api.md#adoption): somebody started this one in a console, say."""
        meant = self.provider_name(getattr(self.state, "provider", 0))
        said = f"a pod runs there beside that of {meant}, and is stopped"
        self.commands.append(
            PublishProviderProblem(provider=provider, message=said, reason="conflict", alarm=True)
        )
        self.order_stop(provider, "stray", now)

    def requested_delay_s(self, event: PodInspected | InspectFailed) -> float:
        """How long a provider that looks were too many for wants to be left alone."""
        error = event.error if isinstance(event, InspectFailed) else None
        if not isinstance(error, RateLimited) or error.retry_after is None:
            return 0.0
        return min(error.retry_after, self.policy.max_rate_limit_s)

    def inspect_delay_s(self, provider: int, now: float) -> float:
        """How long until the next look at a provider without an open stop; overridden by the rows."""
        raise NotImplementedError

    def state_deadline(self) -> float:
        """The deadline of the present state; overridden by the rows."""
        raise NotImplementedError

    def run_due_work(self, now: float) -> None:
        """Whatever the clock or the last step made due."""
        for ticket in self.queue.expired(now):
            self.reject(ticket.number, QueueTimeout(retry_after_s=self.policy.retry_after))
        while self.state_deadline() <= now:
            self.apply_transition(DeadlineReached(), now)
        for order in self.pending_stops.take_due(now):
            self.send_stop(order, now)
        for provider in self.inspect_schedule.take_due(now):
            op = self.next_op()
            self.inspect_schedule.sent(provider, op)
            self.commands.append(InspectPod(op, provider))
        if type(self.state) is Ready and self.queue.waiting:
            self.admit_waiting(self.state.run_id)
        elif isinstance(self.state, NEEDS_NEW_START) and not self.has_payable_demand:
            self.reject_unpayable()
        if (
            self.pending_stops.by_provider or self.persisted_stops
        ) and self.pending_stops.unconfirmed_providers != self.persisted_stops:
            self.persisted_stops = self.pending_stops.unconfirmed_providers
            self.commands.append(PersistPendingStops(self.persisted_stops))

    def admit_waiting(self, run: int) -> None:
        while (ticket := self.queue.admit_next(run)) is not None:
            self.commands.append(Admit(ticket.number, run))

    # --- stops --------------------------------------------------------------------------------

    def order_stop(self, provider: int, cause: str, now: float, *, firm: bool = True) -> None:
        self.pending_stops.add(provider, cause, firm, now)
        self.inspect_schedule.cancel(provider)

    def inspect_idle_providers(self, cause: str, now: float, *, but: int | None = None) -> None:
        """Look once where nothing is known to run: a console may have started what nobody here asked for."""
        for provider in range(len(self.policy.providers)):
            if provider != but and self.pending_stops.add_inspect_only(provider, cause, now):
                self.inspect_schedule.cancel(provider)
                self.inspect_schedule.schedule(provider, now)

    def send_stop(self, order: PendingStop, now: float) -> None:
        op = self.next_op()
        self.pending_stops.sent(order, op)
        self.inspect_schedule.cancel(order.provider)
        self.commands.append(StopPod(op, order.provider))
        if order.sent_count > 1:
            said = f"the stop is not proved, sending it again (try {order.sent_count})"
            self.publish_problem(order.provider, said, alarm=True)

    def stop_answered(self, op: int, error: ProviderError | None, now: float) -> None:
        order = self.pending_stops.answered(op, error, now)
        if order is None:
            return
        if error is not None:
            self.publish_problem(order.provider, f"the stop failed: {error.message}", error)
        self.inspect_schedule.schedule(order.provider, now)

    def judge_stop(self, order: PendingStop, event: PodInspected | InspectFailed, now: float) -> None:
        seen: PodReport | ProviderError = event.report if isinstance(event, PodInspected) else event.error
        if self.pending_stops.on_inspected(order, seen, now):
            self.on_stop_confirmed(order, now)
            return
        pause = self.policy.inspect_interval_s(order.provider, now - order.since)
        self.inspect_schedule.schedule(order.provider, now + max(pause, self.requested_delay_s(event)))
        if order.failed:
            self.apply_transition(DemandRaised(), now)

    def on_stop_confirmed(self, order: PendingStop, now: float) -> None:
        """A stop is proved: its session ends, and when it was the last the pod's life goes on."""
        self.close_session(order.provider, order.cause)
        self.inspect_schedule.schedule(order.provider, now + self.policy.reconcile_interval_s(order.provider))
        if not self.pending_stops.by_provider:
            self.apply_transition(AllStopsConfirmed(), now)
        else:
            self.apply_transition(DemandRaised(), now)

    # --- small verbs --------------------------------------------------------------------------

    @property
    def has_payable_demand(self) -> bool:
        """Somebody wants the pod for whom a start is paid; those for whom none is wait for what runs only."""
        if self.budget_gate.verdict.exhausted_reason:
            return False
        return self.start_requested or self.budget_gate.allows_any(self.queue.waiting)

    def next_op(self) -> int:
        self._last_op += 1
        return self._last_op

    def open_session(
        self, provider: int, run: int, cause: str, report: PodReport, up_s: float, now: float
    ) -> None:
        if provider in self.open_sessions:  # its stop was never proved: the stretch goes on
            return
        self.open_sessions[provider] = (run, now - up_s)
        self.commands.append(
            RecordSessionStart(run_id=run, provider=provider, cause=cause, report=report, up_s=up_s)
        )

    def close_session(self, provider: int, cause: str) -> None:
        if (session := self.open_sessions.pop(provider, None)) is not None:
            self.commands.append(RecordSessionEnd(run_id=session[0], provider=provider, cause=cause))

    def publish_problem(
        self, provider: int, message: str, error: ProviderError | None = None, *, alarm: bool = False
    ) -> None:
        reason = error.reason if error is not None else "transient"
        self.last_problem = f"{self.provider_name(provider)}: {message}"
        self.commands.append(
            PublishProviderProblem(provider=provider, message=message, reason=reason, alarm=alarm)
        )

    def update_inspect_errors(self, provider: int, event: PodInspected | InspectFailed, now: float) -> None:
        """Whether we see the pod there; losing sight of it is told once."""
        known = self.inspect_errors.pop(provider, None)
        if isinstance(event, PodInspected):
            self.pending_stops.note_phase(provider, event.report.phase, now)
        if isinstance(event, InspectFailed):
            said = f"{self.provider_name(provider)}: could not look: {event.error.message}"
            self.inspect_errors[provider] = said
            if known is None:
                self.commands.append(
                    PublishProviderProblem(provider=provider, message=said, reason=event.error.reason)
                )
        elif event.report.phase is Phase.UNREACHABLE:
            self.inspect_errors[provider] = f"{self.provider_name(provider)}: the pod is unreachable"
        if isinstance(event, PodInspected) and event.report.alarm and self.is_serving(provider):
            self.commands.append(CleanUpOrphans(provider))  # at each look, until one shows nothing to sweep
        if isinstance(event, PodInspected) and event.report.alarm != self.alarms.get(provider, ""):
            self.alarms[provider] = event.report.alarm
            if event.report.alarm:
                self.publish_problem(provider, event.report.alarm, alarm=True)

    def is_serving(self, provider: int) -> bool:
        return type(self.state) is Ready and self.state.provider == provider

    def provider_name(self, provider: int) -> str:
        return self.policy.providers[provider].name

    def next_when_nothing_runs(self, now: float) -> AfterStop:
        """Nothing runs and nothing is to be started: what is left to do decides the state."""
        raise NotImplementedError
