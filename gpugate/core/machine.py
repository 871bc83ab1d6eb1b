"""The state machine of the pod: events in, commands out. No clock, no I/O, no task.

Theory of operation. `handle(event, now)` is one synchronous step, so nothing can happen between looking
and deciding: an idle stop and an arriving request cannot cross. A step has three parts: the event itself
(`route_event`), then whatever the event or the clock made due (`run_due_work`), then the admission of
waiting requests if the pod is ready. The commands it returns are carried out in order by the owner
(`lifecycle`), which brings their results back as events.

*State and parts.* `state` says where the pod is on its way from nothing to serving and back, and holds
only what that state needs. What outlasts a state lives in a part of its own: tickets in the
`RequestQueue`, stops in `PendingStops`, inspections in the `InspectSchedule`, billed sessions in
`OpenSessions`, the run in progress in the `StartPlan`, the idle gap in the `IdleTimer`, the budget in the
`BudgetGate`. A provider has at most one role: it is the state's provider, or it has a pending stop, or it
is at rest.

*Transitions.* What a state does on an event is a function in `core/transitions/`, found through the table
that is read from the signatures. It returns the next state and uses the methods of this class to change
the parts and to append commands. This module knows none of them: the table is passed to the constructor.

*Deadlines are never timers.* Each part and each state knows its own deadline, and `next_deadline_at` is
the least of them. The owner keeps one timer and feeds `DeadlineReached`; `run_due_work` asks each deadline
whether it has come. So a deadline cannot fire late for a state that is gone, and moving one is an
assignment. After every event, except the fast path's, `next_deadline_at` lies in the future.

*Numbered commands.* Each command to a provider or pod has a number, and only the result that is waited for
counts. A start or stop cancels the inspection that is out: what it reports is older than the command.

*A start* asks the providers in order. Whatever goes wrong, a provider that is left gets a pending stop,
which goes on beside the pod's state until an inspection confirms it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from gpugate.core.commands import (
    Admit,
    Command,
    InspectPod,
    LoadOptions,
    PersistPendingStops,
    PublishProviderProblem,
    Reject,
    StartCause,
    StopCause,
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
    ScaleAnswered,
    StartAccepted,
    StopAccepted,
    StopCallFailed,
)
from gpugate.core.hand_over import HandOver
from gpugate.core.idle_policy import MIN_GAP_S, FixedIdlePolicy, IdleHistory, IdlePolicy, IdleTimer
from gpugate.core.pending_stops import (
    ACTIVE_PHASES,
    InspectSchedule,
    OpenSessions,
    PendingStop,
    PendingStops,
    ProviderViews,
)
from gpugate.core.policy import Policy
from gpugate.core.replicas import replicas_of
from gpugate.core.request_queue import BodyBudget, BudgetGate, RequestQueue, Ticket
from gpugate.core.start_plan import StartPlan
from gpugate.core.states import (
    BackingOff,
    Draining,
    MachineSnapshot,
    Preloading,
    Provisioning,
    Pulling,
    Ready,
    ShutDown,
    Starting,
    State,
    Status,
    Stopped,
    Stopping,
    Unknown,
    Warming,
    WarmingUp,
    op_of,
    provider_of,
    run_id_of,
    status_of,
)
from gpugate.core.transition_table import TransitionTable
from gpugate.errors import (
    BudgetExceeded,
    GateError,
    NotFound,
    ProviderError,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
    WakeDenied,
)
from gpugate.provider_api import Phase, PodReport

NEEDS_NEW_START = (Stopped, Stopping, Draining, BackingOff)
"""States in which a waiting request can be served by a new start only."""

SHUTDOWN_RETRY_S = 5


class PodMachine:
    """The pod's state and the parts that outlast it.

    Attributes:
        last_problem: what went wrong last, for people; None again when a pod serves.
        shutting_down, keep_pod: the gateway goes down, and leaves the pod running.
        shutdown_state: what it ends in.
        restored_stops: the providers with a stop that an earlier gateway could not confirm.
        inherited_sessions: the providers where an earlier gateway left a session open in the ledger.
        wake_refusal: returns why a wake rule forbids a start for this ticket, or for a prewarm (None); empty
            if none does. Asked only where a start is needed; the owner sets it.
        commands: the commands of the current step.
    """

    def __init__(
        self,
        table: TransitionTable,
        policy: Policy,
        random_fraction: Callable[[], float],
        restored_stops: frozenset[int] = frozenset(),
        idle: IdlePolicy | None = None,
        inherited_sessions: frozenset[int] = frozenset(),
        bodies: BodyBudget | None = None,
    ) -> None:
        self.table = table
        self.policy = policy
        self.state: State = Unknown()
        bodies = bodies or BodyBudget(policy.max_bytes)
        self.queue = RequestQueue(policy.max_waiting, policy.max_wait, policy.drain_concurrency, bodies)
        self.idle_timer = IdleTimer(
            idle or FixedIdlePolicy(policy.idle_timeout), self.queue, policy.idle_timeout
        )
        self.pending_stops = PendingStops(policy)
        self.inspect_schedule = InspectSchedule(len(policy.providers))
        self.open_sessions = OpenSessions()
        self.views = ProviderViews(policy)
        self.budget_gate = BudgetGate()
        self.plan = StartPlan(policy, self.pending_stops, random_fraction)
        self.replicas = replicas_of(policy, self.queue, random_fraction)
        self.hand_over: HandOver | None = None
        if policy.first_slots < len(policy.providers):
            parts = self.plan, self.pending_stops, self.inspect_schedule, self.open_sessions, self.queue
            self.hand_over = HandOver(policy, *parts, self.next_op)
        self.last_problem: str | None = None
        self.shutting_down = False
        self.keep_pod = False
        self.shutdown_state = ShutDown()
        self.restored_stops = restored_stops
        self.inherited_sessions = inherited_sessions
        self.commands: list[Command] = []
        self.wake_refusal: Callable[[int | None], str] = lambda _: ""
        self._persisted_stops = restored_stops
        self._last_op = 0

    # --- what the owner may read --------------------------------------------------------------

    @property
    def status(self) -> Status | None:
        """One of the five words; None while it is not known what runs.

        A provider that has shown nothing since boot may have a pod, so STOPPED is not said until it has.
        """
        if isinstance(self.state, Stopped) and not self.all_seen:
            return None
        return status_of(self.state)

    @property
    def all_seen(self) -> bool:
        """Every provider has shown since boot what it has."""
        return len(self.views.seen) == len(self.policy.providers)

    @property
    def last_error(self) -> str | None:
        """What is wrong, for people; while the pod warms up, what its last health probe saw."""
        state = self.state
        if isinstance(state, Warming) and state.probe_detail:
            return f"{self.provider_name(state.provider)}: not healthy yet: {state.probe_detail}"
        scaling = self.replicas.problem if self.replicas is not None else None
        return self.last_problem or scaling or next(iter(self.views.errors.values()), None)

    @property
    def idle_timeout_s(self) -> float:
        """How long a pod that was used is kept; the least time from a release to its idle stop."""
        return self.idle_timer.policy.effective_timeout_s

    @property
    def needs_every_event(self) -> bool:
        """Whether each request is an event: it may change how many replicas there are, or end a hand-over."""
        return self.replicas is not None or self.hand_over is not None

    @property
    def started_here(self) -> bool:
        """Whether the latest run has called `start()`; the pod of any other was found."""
        return self.plan.last_call is not None and self.plan.last_call.run_id == self.plan.run_id

    @property
    def start_cause(self) -> StartCause:
        """Why a pod is started now."""
        if self.queue.waiting or not self.plan.start_requested:
            return StartCause.REQUEST
        if self.idle_timer.keep_s:
            return StartCause.SCHEDULE
        prewarmed = self.plan.run_id == self.idle_timer.prewarmed_run_id
        return StartCause.PREWARM if prewarmed else StartCause.MANUAL

    @property
    def starting_ticket(self) -> int | None:
        """The first waiting ticket that may start a pod."""
        return next((ticket.number for ticket in self.queue.waiting if self._may_start(ticket)), None)

    @property
    def next_deadline_at(self) -> float:
        """When `DeadlineReached` has to come; `inf` if only other events can change anything."""
        return min(
            self.pending_stops.next_due,
            self.inspect_schedule.next_due,
            self.state_deadline,
            self.queue.next_deadline,
            inf if self.replicas is None else self.replicas.next_due,
            inf if self.hand_over is None else self.hand_over.next_due(self.state, self.idle_deadline_at),
        )

    def snapshot(self) -> MachineSnapshot:
        """Return what the lifecycle and the status need to know, as of now."""
        state, provider = self.state, provider_of(self.state)
        pending = self.pending_stops.by_provider
        return MachineSnapshot(
            state=state,
            status=self.status,
            provider=provider,
            shown_provider=next(iter(pending), 0) if provider is None else provider,
            run_id=run_id_of(state) or self.plan.run_id,
            start_began_at=state.attempt.since if isinstance(state, Starting) else None,
            started_here=self.started_here,
            waiting=len(self.queue.waiting),
            in_flight=len(self.queue.leases),
            idle_since=self.queue.idle_since if isinstance(state, Ready) else None,
            stop_due_at=self.idle_deadline_at,
            next_deadline_at=self.next_deadline_at,
            stop_cause=self._stop_cause,
            stopping_providers=frozenset(pending),
            confirmed=self.pending_stops.are_inspect_only,
            inspection_is_out=provider is not None and self.inspect_schedule.is_out(provider),
            all_inspected=not isinstance(state, Unknown) or not self.unasked_providers(state),
            shutting_down=self.shutting_down,
            replicas=None if self.replicas is None else self.replicas.running,
            last_error=self.last_error,
        )

    @property
    def _stop_cause(self) -> StopCause | None:
        """Why the pod is being stopped; None if it is not, or is kept."""
        if isinstance(self.state, Draining):
            return None if self.state.kept else self.state.cause
        if not isinstance(self.state, Stopping):
            return None
        return next((stop.cause for stop in self.pending_stops.by_provider.values()), None)

    def set_policy(self, policy: Policy) -> None:
        """Decide by other numbers from now on; the providers are the same."""
        self.policy = self.plan.policy = self.pending_stops.policy = self.views.policy = policy
        self.queue.max_waiting, self.queue.max_wait_s = policy.max_waiting, policy.max_wait
        self.queue.drain_concurrency = policy.drain_concurrency
        self.replicas = replicas_of(policy, self.queue, self.plan.random_fraction, self.replicas)
        if self.hand_over is not None:
            self.hand_over.policy = policy
        self.queue.bodies.max_bytes = policy.max_bytes
        self.idle_timer.set_timeout(policy.idle_timeout)

    def restore_idle_history(self, history: IdleHistory, now: float) -> None:
        """Go on from what the idle policy learned before the restart; to be called before the first event."""
        self.idle_timer.restore(history, now)

    def idle_history(self, now: float) -> IdleHistory | None:
        """Return what the idle policy has learned; None for nothing."""
        return self.idle_timer.history(now)

    def set_model(self, ticket: int, model: str | None, load: LoadOptions) -> None:
        """Note the model of a requeued ticket, whose body was not parsed when it was admitted."""
        self.queue.set_model(ticket, model, load)

    # --- one step -----------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event; return the commands to carry out, in order."""
        commands: list[Command] = []
        self.commands = commands
        kind = type(event)
        if kind is ResponseStarted:
            self.queue.mark_response_started(event.ticket)  # type: ignore[union-attr]
            return commands
        if kind is RequestArrived:
            if self._request_arrived(event, now) and not self.needs_every_event:  # type: ignore[arg-type]
                return commands  # admitted: the pod serves, and nothing became due
        elif kind is RequestFinished:
            self._request_finished(event.ticket, now)  # type: ignore[union-attr]
        elif kind is not DeadlineReached:
            self.route_event(event, now)
        if kind is not RequestFinished or type(self.state) is not Ready or self._has_due_work:
            self.run_due_work(now)
        return commands

    # Where an event goes:
    #
    # 1. The result of a stop: to its pending stop, whatever the state is.
    # 2. An accepted start that no state waits for: the pod is billed until its stop is confirmed, so a
    #    session is opened for it.
    # 3. The result of an inspection: see `_inspect_answered`.
    # 4. A budget verdict: to the gate; `run_due_work` applies it.
    # 5. Anything else: to the state, by the table.
    def route_event(self, event: Event, now: float) -> None:
        """Hand an event to the part or the transition that it concerns."""
        is_look = isinstance(event, PodInspected)
        if self.hand_over and not is_look and (after := self.hand_over.take(event, self.state, now)):
            self.state = after
            return
        match event:
            case StopAccepted():  # 1
                self._stop_answered(event.op, None, now)
            case StopCallFailed():  # 1
                self._stop_answered(event.op, event.error, now)
            case StartAccepted() if event.op != op_of(self.state):  # 2
                self._late_start_accepted(event, now)
            case PodInspected() | InspectFailed():  # 3
                self._inspect_answered(event, now)
            case ScaleAnswered():
                self._scale_answered(event, now)
            case BudgetUpdated():  # 4
                self.budget_gate.verdict = event.verdict
            case _:  # 5
                self.apply_transition(event, now)

    def apply_transition(self, event: Event, now: float) -> None:
        """Let the state answer an event by the table; an event without an entry is ignored."""
        entry = self.table.get((type(self.state), type(event)))
        if entry is not None:
            self.state = entry.function(self, self.state, event, now)

    @property
    def _has_due_work(self) -> bool:
        """Although the pod is ready, something may be due that has no deadline."""
        owed = self.pending_stops.by_provider or self._persisted_stops
        return bool(self.queue.waiting or owed or self.needs_every_event)

    # What is due after an event, in this order:
    #
    # 1. Requests that have waited too long are rejected, before a deadline of the state could admit them.
    # 2. The state's deadline; the state that follows may have a deadline that has come, too.
    # 3. Stops are sent, those included that 2 has just decided.
    # 4. Inspections are sent, except where 3 has cancelled them.
    # 5. The queue: admitted if the pod is ready; rejected if it can be served by a new start only and budget
    #    and wake rules allow one for none of them. In any other state they keep waiting: the pod that is
    #    on its way will serve them, whoever pays for it.
    # 6. The set of unconfirmed stops is persisted if it has changed.
    # 7. More or fewer replicas are asked for, if the need has changed.
    def run_due_work(self, now: float) -> None:
        """Do what the clock or the last step made due."""
        for ticket in self.queue.expired(now):  # 1
            self.reject(ticket.number, QueueTimeout(retry_after_s=self.policy.retry_after))
        while self.state_deadline <= now:  # 2
            self.apply_transition(DeadlineReached(), now)
        if self.hand_over is not None:
            self._hand_over(self.hand_over, now)
        for stop in self.pending_stops.take_due(now):  # 3
            self._send_stop(stop, now)
        for provider in self.inspect_schedule.take_due(now):  # 4
            op = self.next_op()
            self.inspect_schedule.sent(provider, op)
            self.commands.append(InspectPod(op, provider))
        if type(self.state) is Ready and self.queue.waiting:  # 5
            self._admit_waiting(self.state.run_id)
        elif isinstance(self.state, NEEDS_NEW_START) and not self.has_payable_demand:
            self._reject_unpayable()
        if self.pending_stops.by_provider or self._persisted_stops:  # 6
            self._persist_stops()
        if self.replicas is not None:  # 7
            may_grow = not self.budget_gate.is_exhausted
            self.commands += self.replicas.due_commands(self.state, may_grow, self.next_op, now)

    def _hand_over(self, hand_over: HandOver, now: float) -> None:
        def may_start() -> bool:
            refused = self.shutting_down or self.budget_gate.is_exhausted or self.wake_refusal(None)
            return not refused

        hand_over.due(self.state, self.idle_deadline_at, may_start, now)
        self.commands += hand_over.commands
        hand_over.commands.clear()
        if isinstance(self.state, Stopping) and not (self.pending_stops.by_provider or hand_over.leaving):
            self.apply_transition(AllStopsConfirmed(), now)

    def _persist_stops(self) -> None:
        unconfirmed = self.pending_stops.unconfirmed_providers
        if unconfirmed != self._persisted_stops:
            self._persisted_stops = unconfirmed
            self.commands.append(PersistPendingStops(unconfirmed))

    # --- deadlines ----------------------------------------------------------------------------

    @property
    def idle_deadline_at(self) -> float:
        """When the idle stop is due; `inf` while the pod is used, and in any state but Ready."""
        idle_since = self.queue.idle_since
        if idle_since is None or self.queue.busy or not isinstance(self.state, Ready):
            return inf
        return max(self.idle_timer.stop_deadline(idle_since, self.state.run_id), self.idle_timer.kept_until)

    @property
    def session_deadline_at(self) -> float:
        """When the pod that starts or serves has to admit no request any more (`pod.max_session`)."""
        provider = provider_of(self.state)
        if provider is None or provider not in self.open_sessions:
            return inf
        limit_s = self.policy.admission_limit_s(provider)
        return self.open_sessions.began_at(provider) + limit_s if limit_s else inf

    @property
    def state_deadline(self) -> float:
        """The deadline of the current state; `inf` if it has none."""
        match self.state:
            case Ready():
                return min(self.idle_deadline_at, self.session_deadline_at)
            case Stopped():
                return self.idle_timer.prewarm_at
            case BackingOff(retry_at=at) | Draining(until=at):
                return at
            case Pulling(give_up_at=at) | Preloading(give_up_at=at):
                return min(at, self.session_deadline_at)
            case Provisioning(accepted_at=at):
                return min(at + self.policy.start_timeout, self.session_deadline_at)
            case Warming(began_at=began_at, probe_op=probe_op, probe_at=probe_at):
                probe_due = probe_at if probe_op is None else inf
                return min(probe_due, began_at + self.policy.warmup_timeout, self.session_deadline_at)
        return inf

    def unasked_providers(self, state: Unknown) -> list[int]:
        """Return the providers of which nothing is known after boot, not even that they do not answer."""
        known = state.inspections.keys() | self.pending_stops.by_provider.keys() | self.views.seen
        return [provider for provider in range(len(self.policy.providers)) if provider not in known]

    def _inspect_delay_s(self, provider: int, now: float) -> float:
        """Return how long until the next inspection of a provider without a pending stop."""
        state = self.state
        if isinstance(state, Provisioning | Warming) and state.provider == provider:
            return self.policy.inspect_interval_s(provider, now - state.attempt.since)
        if isinstance(state, Pulling | Preloading | Unknown) or provider not in self.views.seen:
            return self.policy.boot_interval_s(provider)
        if self.replicas is not None and (since := self.replicas.changing_since(provider)) is not None:
            return self.policy.inspect_interval_s(provider, now - since)
        return self.policy.reconcile_interval_s(provider)

    # --- requests -----------------------------------------------------------------------------

    def admit_fast(
        self, number: int, model: str | None, load: LoadOptions, user: str, now: float, body_bytes: int = 0
    ) -> bool:
        """Admit a new request if the pod serves and no request waits; return whether it was admitted.

        The owner calls this and `release_fast` directly instead of feeding `RequestArrived` and
        `RequestFinished`: for a warm request the event, its commands and the deadlines would cost 10 us more.
        """
        queue = self.queue
        if type(self.state) is not Ready or queue.waiting or self.shutting_down:
            return False
        if now - queue.last_demand_at > MIN_GAP_S and not queue.leases:
            self.idle_timer.end_gap_if_long(now)
        queue.admit(number, self.state.run_id, model, load, user, body_bytes)
        return True

    def check_room(self, body_bytes: int) -> None:
        """Raise QueueFull where a new request with so large a body would have to wait, and could not."""
        if type(self.state) is Ready and not self.queue.waiting:
            return
        if why_not := self.queue.refusal(body_bytes):
            raise QueueFull(why_not, retry_after_s=self.policy.retry_after)

    def release_fast(self, number: int, now: float) -> bool:
        """Release a lease if the pod serves and no request waits; return whether it was released."""
        if type(self.state) is not Ready or self.queue.waiting:
            return False
        self.queue.remove(number, now)
        return True

    def _request_arrived(self, event: RequestArrived, now: float) -> bool:
        """Admit, queue or reject a new request; return True if it was admitted."""
        if self.shutting_down:
            self.reject(event.ticket, ShuttingDown(retry_after_s=SHUTDOWN_RETRY_S))
        elif self.admit_fast(event.ticket, event.model, event.load, event.user, now, event.body_bytes):
            self.commands.append(Admit(event.ticket, run_id_of(self.state)))
            return True
        elif why_not := self.queue.refusal(event.body_bytes):
            self.reject(event.ticket, QueueFull(why_not, retry_after_s=self.policy.retry_after))
        else:
            self.idle_timer.end_gap(now)
            self.queue.join(event.ticket, event.model, event.load, event.user, now, event.body_bytes)
            self.apply_transition(DemandRaised(), now)
        return False

    def _request_finished(self, number: int, now: float) -> None:
        if not self.release_fast(number, now) and self.queue.remove(number, now):
            self.apply_transition(LastLeaseReleased(), now)

    def _admit_waiting(self, run_id: int) -> None:
        while (ticket := self.queue.admit_next(run_id)) is not None:
            self.commands.append(Admit(ticket.number, run_id))

    def reject(self, number: int, error: GateError) -> None:
        """End a request with an error."""
        self.commands.append(Reject(number, error))

    def reject_waiting(self, error: Callable[[], GateError]) -> None:
        """End all waiting requests, each with an error of its own."""
        self.commands += self.queue.reject_waiting(lambda _: error())

    def _reject_unpayable(self) -> None:
        """Reject all waiting requests, each by its rule or the budget, and forget a manual start."""
        self.plan.start_requested = False
        self.idle_timer.forget_schedule()
        self.commands += self.queue.reject_waiting(self._start_refusal)

    def _start_refusal(self, ticket: Ticket) -> GateError:
        if denied := self.wake_refusal(ticket.number):
            return WakeDenied(denied)
        return BudgetExceeded(self.budget_gate.refusal_reason(ticket.user))

    def _may_start(self, ticket: Ticket) -> bool:
        return self.budget_gate.allows_any([ticket]) and not self.wake_refusal(ticket.number)

    def abort_leases(self, error: Callable[[], GateError], now: float) -> None:
        """End all admitted requests: a response that has started is broken off, another gets the error."""
        self.commands += self.queue.abort_leases(lambda _: error(), now)
        if self.hand_over is not None:
            self.hand_over.end_unused(now)

    def requeue_leases(self, now: float) -> None:
        """Take the leases from all admitted requests because their pod is gone."""
        error = self.shutting_down_error if self.shutting_down else None
        self.commands += self.queue.requeue_leases(now, error, run_id_of(self.state) or None)

    @property
    def has_payable_demand(self) -> bool:
        """Whether a start is wanted, by hand or by a waiting request, that budget and wake rules allow."""
        if self.budget_gate.is_exhausted:
            return False
        return self.plan.start_requested or self.starting_ticket is not None

    # --- stops --------------------------------------------------------------------------------

    def order_stop(
        self, provider: int, cause: StopCause, now: float, *, until_seen_stopped: bool = True
    ) -> None:
        """Decide that the pod of this provider is stopped; `run_due_work` sends it."""
        self.pending_stops.add(provider, cause, until_seen_stopped, now)
        self.inspect_schedule.cancel(provider)

    def inspect_idle_providers(self, cause: StopCause, now: float, *, but: int | None = None) -> None:
        """Inspect the providers where nothing is known to run, and stop what was started elsewhere."""
        for provider in range(len(self.policy.providers)):
            second = self.hand_over is not None and self.hand_over.concerns(provider)
            if provider != but and not second and self.pending_stops.add_inspect_only(provider, cause, now):
                self.inspect_schedule.cancel(provider)
                self.inspect_schedule.schedule(provider, now)

    def _send_stop(self, stop: PendingStop, now: float) -> None:
        op = self.next_op()
        self.pending_stops.sent(stop, op)
        self.inspect_schedule.cancel(stop.provider)
        self.commands.append(StopPod(op, stop.provider))
        if stop.sent_count > 1:
            message = f"the stop is not proved, sending it again (try {stop.sent_count})"
            self.publish_problem(stop.provider, message, alarm=True)

    def _stop_answered(self, op: int, error: ProviderError | None, now: float) -> None:
        stop = self.pending_stops.on_answered(op, error, now)
        if stop is None:
            return
        if error is not None:
            self.publish_problem(stop.provider, f"the stop failed: {error.message}", error)
        self.inspect_schedule.schedule(stop.provider, now)

    def _stop_inspected(self, stop: PendingStop, event: PodInspected | InspectFailed, now: float) -> None:
        seen: PodReport | ProviderError = event.report if isinstance(event, PodInspected) else event.error
        if self.pending_stops.on_inspected(stop, seen, now):
            if isinstance(seen, NotFound):
                self.views.seen.add(stop.provider)
            self._stop_confirmed(stop, now)
            return
        delay = self.policy.inspect_interval_s(stop.provider, now - stop.since)
        self.inspect_schedule.schedule(stop.provider, now + max(delay, self.views.requested_delay_s(event)))
        if stop.failed:  # a start may overtake it now
            self.apply_transition(DemandRaised(), now)

    def _stop_confirmed(self, stop: PendingStop, now: float) -> None:
        self.close_session(stop.provider, stop.cause)
        self.inspect_schedule.schedule(stop.provider, now + self.policy.reconcile_interval_s(stop.provider))
        all_confirmed = not self.pending_stops.by_provider
        self.apply_transition(AllStopsConfirmed() if all_confirmed else DemandRaised(), now)

    # --- inspections and starts ---------------------------------------------------------------

    # What the result of an inspection means:
    #
    # 1. It is scheduled and waited for: note errors and alarms. Otherwise it may only concern a state that
    #    asked for it itself (5).
    # 2. A stop is pending there: the result is that stop's; no state sees it.
    #    A billed pod has a session; that of an earlier gateway's stop is open in the ledger.
    # 3. Schedule the next one, no later than one that was asked for while this one was out.
    # 4. It shows a pod although another provider's pod serves or starts: stop it. One pod is enough.
    # 5. Otherwise it is the state's.
    def _inspect_answered(self, event: PodInspected | InspectFailed, now: float) -> None:
        provider = event.provider
        scheduled = self.inspect_schedule.take_result(provider, event.op)
        if scheduled:  # 1
            self._update_view(event, now)
        if isinstance(event, PodInspected) and (scheduled or op_of(self.state) == event.op):
            self._match_session(event, now)
            if self.replicas is not None:
                self.replicas.on_report(provider, event.report, now)
        if scheduled and (stop := self.pending_stops.by_provider.get(provider)) is not None:  # 2
            if isinstance(event, PodInspected) and stop.cause is not StopCause.RESTART:
                self.open_found_session(event, now)
            self._stop_inspected(stop, event, now)
            return
        if scheduled:  # 3
            delay = max(self._inspect_delay_s(provider, now), self.views.requested_delay_s(event))
            self.inspect_schedule.schedule_no_later_than(provider, now + delay)
        if scheduled and self.hand_over is not None and self.hand_over.concerns(provider):
            self.state = self.hand_over.take(event, self.state, now) or self.state
        elif scheduled and isinstance(event, PodInspected) and self._is_extra_pod(event):  # 4
            self._stop_extra_pod(event, now)
        elif scheduled or op_of(self.state) == event.op:  # 5
            self.apply_transition(event, now)

    def _is_extra_pod(self, event: PodInspected) -> bool:
        """Return whether a pod runs there although another provider's serves or starts."""
        provider = provider_of(self.state)
        if provider is None or provider == event.provider or isinstance(self.state, ShutDown):
            return False
        return event.report.phase in ACTIVE_PHASES

    def _match_session(self, event: PodInspected, now: float) -> None:
        """End the session of a pod that is queued (again), or is not billed although nobody has stopped it.

        A pod that served all the time is in a session again once it is billed again.
        """
        provider, report, state = event.provider, event.report, self.state
        if report.phase is Phase.QUEUED:
            self.close_session(provider, StopCause.QUEUED)
        elif not report.billed:
            self.close_session(provider, StopCause.LOST)
        elif provider == provider_of(state) and isinstance(state, WarmingUp | Ready | Draining):
            self.open_session(provider, state.run_id, StartCause.ADOPTED, report, event.up_s, now)

    def _stop_extra_pod(self, event: PodInspected, now: float) -> None:
        used = self.provider_name(provider_of(self.state) or 0)
        message = f"a pod runs there beside that of {used}, and is stopped"
        self.commands.append(
            PublishProviderProblem(provider=event.provider, message=message, reason="conflict", alarm=True)
        )
        self.stop_found_pod(event, StopCause.EXTRA_POD, now)

    def _update_view(self, event: PodInspected | InspectFailed, now: float) -> None:
        """Note what an inspection shows, and publish what is new about it."""
        if isinstance(event, PodInspected):
            self.pending_stops.note_phase(event.provider, event.report.phase, now)
        serves = type(self.state) is Ready and self.state.provider == event.provider
        for command in self.views.update(event, serves=serves):
            self.commands.append(command)
            if isinstance(command, PublishProviderProblem) and command.alarm:
                self.last_problem = f"{self.provider_name(event.provider)}: {command.message}"

    def _scale_answered(self, event: ScaleAnswered, now: float) -> None:
        replicas, provider = self.replicas, provider_of(self.state)
        if replicas is not None and provider is not None and replicas.is_awaited(event.op):
            self.commands += replicas.on_answered(provider, event.answer, now)
            self.inspect_schedule.schedule(provider, now + self.policy.inspect_interval_s(provider, 0.0))

    def _late_start_accepted(self, event: StartAccepted, now: float) -> None:
        """Open a session for a start that was accepted after its stop was decided."""
        call = self.plan.take_result(event.op)
        if call is not None and call.provider in self.pending_stops.by_provider:
            self.open_session(call.provider, call.run_id, call.cause, event.report, event.up_s, now)

    # --- what transitions use -----------------------------------------------------------------

    def next_op(self) -> int:
        """Return the number of the next command."""
        self._last_op += 1
        return self._last_op

    def open_session(
        self, provider: int, run_id: int, cause: StartCause, report: PodReport, up_s: float, now: float
    ) -> None:
        """Open a billed session if the report shows a billed pod that has none."""
        if self.replicas is not None:
            self.replicas.on_report(provider, report, now)
        if report.is_billed:
            self.commands += self.open_sessions.open(provider, run_id, cause, report, up_s, now)

    def open_found_session(self, event: PodInspected, now: float) -> None:
        """Open a session for a billed pod that no run of this gateway has started."""
        run_id = self.plan.run_id
        self.open_session(event.provider, run_id, StartCause.ADOPTED, event.report, event.up_s, now)

    def stop_found_pod(self, event: PodInspected, cause: StopCause, now: float) -> None:
        """Decide to stop a pod that was found and is not used; what it is billed until then is a session."""
        self.open_found_session(event, now)
        self.order_stop(event.provider, cause, now)

    def close_session(self, provider: int, cause: StopCause) -> None:
        """Close the billed session of this provider, if one is open."""
        self.commands += self.open_sessions.close(provider, cause)

    def publish_problem(
        self, provider: int, message: str, error: ProviderError | None = None, *, alarm: bool = False
    ) -> None:
        """Publish a problem of this provider, and keep it as the last one."""
        reason = error.reason if error is not None else "transient"
        self.last_problem = f"{self.provider_name(provider)}: {message}"
        self.commands.append(
            PublishProviderProblem(provider=provider, message=message, reason=reason, alarm=alarm)
        )

    def provider_name(self, provider: int) -> str:
        """Return the configured name of a provider."""
        return self.policy.providers[provider].name

    def reconcile_all(self, now: float) -> None:
        """Schedule the inspections of a state in which no change is expected."""
        for provider in range(len(self.policy.providers)):
            if provider not in self.pending_stops.by_provider:
                self.inspect_schedule.schedule(provider, now + self.policy.reconcile_interval_s(provider))

    def shutting_down_error(self) -> ShuttingDown:
        """Return the error for what comes too late."""
        return ShuttingDown(retry_after_s=SHUTDOWN_RETRY_S)
