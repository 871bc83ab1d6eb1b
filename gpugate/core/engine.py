"""What carries the pod's life: dispatch over the table, tickets, stop orders, looks; no decision of its own.

One `handle(event, now)` is one synchronous step. Its order is: the event itself, then what follows
from it by the clock (late tickets, due stops, due looks), then the backlog if the pod is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Any, ClassVar

from gpugate.core.budget_gate import Purse
from gpugate.core.idle_policy import SHORT_S, Fixed, IdlePolicy
from gpugate.core.idle_timer import Pauses
from gpugate.core.inspect_schedule import Looks
from gpugate.core.pending_stops import ON_ITS_WAY, StopOrder, Stops
from gpugate.core.policy import Policy
from gpugate.core.request_queue import Backlog
from gpugate.core.transition_table import Cell, Row
from gpugate.core.vocabulary import (
    Admit,
    Arrived,
    Begun,
    BudgetJudged,
    Closed,
    Complain,
    Cut,
    Demanded,
    Draining,
    Effect,
    Emptied,
    Event,
    Left,
    Look,
    Looked,
    LookFailed,
    Owe,
    Pausing,
    Proved,
    Ready,
    Refuse,
    Requeue,
    Rest,
    SessionClosed,
    SessionOpened,
    StartAccepted,
    State,
    Status,
    StopAccepted,
    Stopped,
    Stopping,
    StopPod,
    StopRefused,
    Sweep,
    TimePassed,
    Unknown,
    status_of,
)
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

COLD = (Stopped, Stopping, Draining, Pausing)
"""Where who waits can be served by a new start only."""


class Engine:
    """The machinery under `PodMachine`; its rows are in `core/starting.py`, `warming.py`, `serving.py`.

    Attributes:
        state: where the pod's life is.
        trouble: the last thing that went wrong, for people; None when a pod serves again.
        blind: by provider, why the last look failed; emptied by the next good one.
        sessions: billed stretches that are open, by provider: the run, and since when.
        pauses: how long a pod is kept that nobody uses, and when one is started unasked.
        purse: whose wish is a start worth.
    """

    TABLE: ClassVar[Mapping[Cell, Row]] = {}
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
        self.backlog = Backlog(
            max_waiting=policy.max_waiting,
            max_wait_s=policy.max_wait_s,
            drain_concurrency=policy.drain_concurrency,
        )
        self.pauses = Pauses(idle or Fixed(policy.idle_timeout_s), self.backlog, policy.idle_timeout_s)
        self.stops = Stops(policy)
        self.looks = Looks(len(policy.providers))
        self.trouble: str | None = None
        self.blind: dict[int, str] = {}
        self.sessions: dict[int, tuple[int, float]] = {}
        self.purse = Purse()
        self.start_wanted = False
        self.closing = False
        self.keep = False
        self.left = Closed()
        self.run = 0
        self._chance = chance
        self._inherited = owed
        self._told_owed = owed
        self._pass_at: int | None = None  # where a start waits for a fresh stop before it goes on
        self._limited = 0  # starts in a row that the provider refused with a 429
        self._alarms: dict[int, str] = {}
        self._failures: list[tuple[int, ProviderError]] = []
        self._last_op = 0
        self._asked_op = 0
        self._asked = (0, 0, "request")  # provider, run and cause of the start that was asked last
        self._effects: list[Effect] = []

    # --- what the owner may ask ---------------------------------------------------------------

    @property
    def status(self) -> Status | None:
        """One of the five words; None while it is not known what the provider has."""
        return status_of(self.state)

    @property
    def last_error(self) -> str | None:
        """What is wrong, for people."""
        return self.trouble or next(iter(self.blind.values()), None)

    @property
    def run_of_state(self) -> int:
        """The run of the pod that is starting or serving, 0 without one."""
        return getattr(self.state, "run", 0)

    @property
    def idle_at(self) -> float:
        """When the idle stop is due; never while a lease is out or somebody waits."""
        quiet = self.backlog.quiet_since
        if quiet is None or self.backlog.busy or not isinstance(self.state, Ready):
            return inf
        return self.pauses.stop_at(quiet, self.state.run)

    @property
    def session_ends(self) -> float:
        """When `pod.max_session` is over for the pod that serves or comes."""
        provider = getattr(self.state, "provider", None)
        if not self.policy.max_session_s or provider not in self.sessions:
            return inf
        _, began = self.sessions[provider]
        return began + self.policy.max_session_s

    @property
    def wake_at(self) -> float:
        """The least deadline there is; `inf` when only an answer can bring news."""
        deadlines = [self.stops.next_due, self.looks.next_due, self._state_deadline()]
        if (waits := self.backlog.next_deadline) is not None:
            deadlines.append(waits)
        return min(deadlines)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; return the effects to carry out, in order."""
        effects: list[Effect] = []
        self._effects = effects
        kind = type(event)
        if kind is Begun:
            self.backlog.begin(event.ticket)  # type: ignore[union-attr]
            return effects
        if kind is Arrived:
            if self._arrive(event, now):  # type: ignore[arg-type]
                return effects  # a warm request needs no more: the clock comes by itself
        elif kind is Left:
            self._leave(event.ticket, now)  # type: ignore[union-attr]
        elif kind is not TimePassed:
            self._hear(event, now)
        if kind is not Left or type(self.state) is not Ready or self._urgent:
            self._keep_up(now)
        return effects

    # --- the warm path ------------------------------------------------------------------------
    # What `Arrived` and `Left` come to when the pod serves and nobody waits. The owner calls these
    # directly for a warm request, because an event, its effects and the deadlines cost 10 us more.

    def admit_at_once(self, number: int, model: str | None, embeds: bool, user: str, now: float) -> bool:
        """Admit a newcomer if the pod serves and nobody waits before it; its run is the state's."""
        backlog = self.backlog
        if type(self.state) is not Ready or backlog.waiting or self.closing:
            return False
        if now - backlog.wanted_until > SHORT_S and not backlog.leases:
            self.pauses.end_warm(now)
        backlog.admit(number, self.state.run, model, embeds, user)
        return True

    def give_back_at_once(self, number: int, now: float) -> bool:
        """Take a lease back if nobody waits for it; the idle clock may start now."""
        if type(self.state) is not Ready or self.backlog.waiting:
            return False
        self.backlog.leave(number, now)
        return True

    # --- tickets ------------------------------------------------------------------------------

    def _arrive(self, event: Arrived, now: float) -> bool:
        """Place a newcomer; True if it was admitted at once."""
        if self.closing:
            self._refuse(event.ticket, ShuttingDown(retry_after_s=5))
        elif self.admit_at_once(event.ticket, event.model, event.embeds, event.user, now):
            self._effects.append(Admit(event.ticket, self.run_of_state))
            return True
        elif self.backlog.full:
            self._refuse(event.ticket, QueueFull(retry_after_s=self.policy.retry_after_s))
        else:
            self.pauses.end(now)
            self.backlog.join(event.ticket, event.model, event.embeds, event.user, now)
            self._decide(Demanded(), now)
        return False

    def _leave(self, number: int, now: float) -> None:
        if not self.give_back_at_once(number, now) and self.backlog.leave(number, now):
            self._decide(Emptied(), now)

    def _refuse(self, number: int, error: GateError) -> None:
        self._effects.append(Refuse(number, error))

    def _refuse_waiting(self, error: Callable[[], GateError]) -> None:
        for ticket in self.backlog.clear_waiting():
            self._refuse(ticket.number, error())

    def _cut_leases(self, error: Callable[[], GateError], now: float) -> None:
        """Break off what runs: an answer that has begun is cut, another gets the error."""
        for ticket in self.backlog.take_leases():
            self.backlog.wanted_until = now
            self._effects.append(Cut(ticket.number) if ticket.begun else Refuse(ticket.number, error()))
        self.backlog.quiet_since = now

    def _lose_leases(self, now: float) -> None:
        """The pod is gone: answers that have begun break, others wait again, once (docs/api.md#retries)."""
        for ticket in self.backlog.take_leases():
            self.backlog.wanted_until = now
            if ticket.begun:
                self._effects.append(Cut(ticket.number))
            elif self.closing:
                self._refuse(ticket.number, ShuttingDown(retry_after_s=5))
            elif ticket.returned:
                self._refuse(ticket.number, PodStopped("the pod was lost twice while this request waited"))
            else:
                self.backlog.put_back(ticket, now)
                self._effects.append(Requeue(ticket.number))
        self.backlog.quiet_since = now

    def _refuse_unpaid(self) -> None:
        """No start is paid for anybody who wants one: who waits for it is told, and no wish is left over."""
        self.start_wanted = False
        for ticket in self.backlog.clear_waiting():
            self._refuse(ticket.number, BudgetExceeded(self.purse.told(ticket.user)))

    # --- dispatch -----------------------------------------------------------------------------

    def _hear(self, event: Event, now: float) -> None:
        match event:
            case StopAccepted():
                self._stop_answered(event.op, None, now)
            case StopRefused():
                self._stop_answered(event.op, event.error, now)
            case StartAccepted() if event.op != getattr(self.state, "op", None):
                self._start_answered_late(event, now)
            case Looked() | LookFailed():
                self._look_answered(event, now)
            case BudgetJudged():
                self.purse.judged = event
            case _:
                self._decide(event, now)

    def _decide(self, event: Event, now: float) -> None:
        row = self.TABLE.get((type(self.state), type(event)))
        if row is not None:
            self.state = getattr(self, row.method)(self.state, event, now)

    @property
    def _urgent(self) -> bool:
        """Ready, and yet something may be due that is not worth a timer."""
        return bool(self.backlog.waiting or self.stops.orders or self._told_owed)

    def _start_answered_late(self, event: StartAccepted, now: float) -> None:
        """A start that nobody wants any more was accepted: it is billed until its stop is proved."""
        provider, run, cause = self._asked
        order = self.stops.orders.get(provider)
        if event.op != self._asked_op:
            return
        self._asked_op = 0  # answered, once
        if order is not None and event.report.phase is not Phase.QUEUED:
            self._open_session(provider, run, cause, event.report, event.up_s, now)

    def _look_answered(self, event: Looked | LookFailed, now: float) -> None:
        op, provider = event.op, event.provider
        planned = self.looks.is_answered_by(provider, op)
        if planned:
            self._note_sight(provider, event, now)
        if planned and (order := self.stops.orders.get(provider)) is not None:
            self._judge_stop(order, event, now)
            return
        if planned:
            pause = max(self._look_pause(provider, now), self._asked_pause_s(event))
            self.looks.follow_up(provider, now + pause)
        if planned and isinstance(event, Looked) and self._is_stray(event):
            self._end_stray(provider, now)
        elif planned or getattr(self.state, "op", None) == op:
            self._decide(event, now)

    def _is_stray(self, event: Looked) -> bool:
        """A pod runs there although another provider's serves, or is being started."""
        provider = getattr(self.state, "provider", None)
        if provider is None or provider == event.provider or isinstance(self.state, Closed):
            return False
        return event.report.phase in ON_ITS_WAY

    def _end_stray(self, provider: int, now: float) -> None:
        """One pod is enough (docs/api.md#adoption): somebody started this one in a console, say."""
        meant = self._name(getattr(self.state, "provider", 0))
        said = f"a pod runs there beside that of {meant}, and is stopped"
        self._effects.append(Complain(provider=provider, message=said, reason="conflict", alarm=True))
        self._order_stop(provider, "stray", now)

    def _asked_pause_s(self, event: Looked | LookFailed) -> float:
        """How long a provider that looks were too many for wants to be left alone."""
        error = event.error if isinstance(event, LookFailed) else None
        if not isinstance(error, RateLimited) or error.retry_after is None:
            return 0.0
        return min(error.retry_after, self.policy.longest_rate_limit_s)

    def _look_pause(self, provider: int, now: float) -> float:
        """How long until the next look at a provider without an open stop; overridden by the rows."""
        raise NotImplementedError

    def _state_deadline(self) -> float:
        """The deadline of the present state; overridden by the rows."""
        raise NotImplementedError

    def _keep_up(self, now: float) -> None:
        """Whatever the clock or the last step made due."""
        for ticket in self.backlog.expired(now):
            self._refuse(ticket.number, QueueTimeout(retry_after_s=self.policy.retry_after_s))
        while self._state_deadline() <= now:
            self._decide(TimePassed(), now)
        for order in self.stops.take_due(now):
            self._send_stop(order, now)
        for provider in self.looks.take_due(now):
            op = self._next_op()
            self.looks.sent(provider, op)
            self._effects.append(Look(op, provider))
        if type(self.state) is Ready and self.backlog.waiting:
            self._drain(self.state.run)
        elif isinstance(self.state, COLD) and not self._demanded:
            self._refuse_unpaid()
        if (self.stops.orders or self._told_owed) and self.stops.owed != self._told_owed:
            self._told_owed = self.stops.owed
            self._effects.append(Owe(self._told_owed))

    def _drain(self, run: int) -> None:
        while (ticket := self.backlog.admit_next(run)) is not None:
            self._effects.append(Admit(ticket.number, run))

    # --- stops --------------------------------------------------------------------------------

    def _order_stop(self, provider: int, cause: str, now: float, *, firm: bool = True) -> None:
        self.stops.open(provider, cause, firm, now)
        self.looks.forget(provider)

    def _check_rest(self, cause: str, now: float, *, but: int | None = None) -> None:
        """Look once where nothing is known to run: a console may have started what nobody here asked for."""
        for provider in range(len(self.policy.providers)):
            if provider != but and self.stops.check(provider, cause, now):
                self.looks.forget(provider)
                self.looks.schedule(provider, now)

    def _send_stop(self, order: StopOrder, now: float) -> None:
        op = self._next_op()
        self.stops.sent(order, op)
        self.looks.forget(order.provider)
        self._effects.append(StopPod(op, order.provider))
        if order.sent > 1:
            said = f"the stop is not proved, sending it again (try {order.sent})"
            self._complain(order.provider, said, alarm=True)

    def _stop_answered(self, op: int, error: ProviderError | None, now: float) -> None:
        order = self.stops.answered(op, error, now)
        if order is None:
            return
        if error is not None:
            self._complain(order.provider, f"the stop failed: {error.message}", error)
        self.looks.schedule(order.provider, now)

    def _judge_stop(self, order: StopOrder, event: Looked | LookFailed, now: float) -> None:
        seen: PodReport | ProviderError = event.report if isinstance(event, Looked) else event.error
        if self.stops.looked(order, seen, now):
            self._settle(order, now)
            return
        pause = self.policy.look_pause_s(order.provider, now - order.since)
        self.looks.schedule(order.provider, now + max(pause, self._asked_pause_s(event)))
        if order.failed:
            self._decide(Demanded(), now)

    def _settle(self, order: StopOrder, now: float) -> None:
        """A stop is proved: its session ends, and when it was the last the pod's life goes on."""
        self._close_session(order.provider, order.cause)
        self.looks.schedule(order.provider, now + self.policy.watch_pause_s(order.provider))
        if not self.stops.orders:
            self._decide(Proved(), now)
        else:
            self._decide(Demanded(), now)

    # --- small verbs --------------------------------------------------------------------------

    @property
    def _demanded(self) -> bool:
        """Somebody wants the pod for whom a start is paid; those for whom none is wait for what runs only."""
        if self.purse.judged.spent:
            return False
        return self.start_wanted or self.purse.pays_one_of(self.backlog.waiting)

    def _next_op(self) -> int:
        self._last_op += 1
        return self._last_op

    def _open_session(
        self, provider: int, run: int, cause: str, report: PodReport, up_s: float, now: float
    ) -> None:
        if provider in self.sessions:  # its stop was never proved: the stretch goes on
            return
        self.sessions[provider] = (run, now - up_s)
        self._effects.append(SessionOpened(run=run, provider=provider, cause=cause, report=report, up_s=up_s))

    def _close_session(self, provider: int, cause: str) -> None:
        if (session := self.sessions.pop(provider, None)) is not None:
            self._effects.append(SessionClosed(run=session[0], provider=provider, cause=cause))

    def _complain(
        self, provider: int, message: str, error: ProviderError | None = None, *, alarm: bool = False
    ) -> None:
        reason = error.reason if error is not None else "transient"
        self.trouble = f"{self._name(provider)}: {message}"
        self._effects.append(Complain(provider=provider, message=message, reason=reason, alarm=alarm))

    def _note_sight(self, provider: int, event: Looked | LookFailed, now: float) -> None:
        """Whether we see the pod there; losing sight of it is told once."""
        known = self.blind.pop(provider, None)
        if isinstance(event, Looked):
            self.stops.saw(provider, event.report.phase, now)
        if isinstance(event, LookFailed):
            said = f"{self._name(provider)}: could not look: {event.error.message}"
            self.blind[provider] = said
            if known is None:
                self._effects.append(Complain(provider=provider, message=said, reason=event.error.reason))
        elif event.report.phase is Phase.UNREACHABLE:
            self.blind[provider] = f"{self._name(provider)}: the pod is unreachable"
        if isinstance(event, Looked) and event.report.alarm and self._serves(provider):
            self._effects.append(Sweep(provider))  # at each look, until one shows nothing to sweep
        if isinstance(event, Looked) and event.report.alarm != self._alarms.get(provider, ""):
            self._alarms[provider] = event.report.alarm
            if event.report.alarm:
                self._complain(provider, event.report.alarm, alarm=True)

    def _serves(self, provider: int) -> bool:
        return type(self.state) is Ready and self.state.provider == provider

    def _name(self, provider: int) -> str:
        return self.policy.providers[provider].name

    def _rest(self, now: float) -> Rest:
        """Nothing runs and nothing is to be started: what is left to do decides the state."""
        raise NotImplementedError
