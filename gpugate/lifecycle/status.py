"""What the lifecycle tells others of the pod: its status when asked, and its events by a bus.

`PodStatus` is built from the machine's snapshot and what was observed; the budget publishes by the bus, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from math import isfinite

from attrs import define, evolve, field, frozen

from gpugate.billing.cost_math import ReplicaCost
from gpugate.billing.start_times import NO_MODEL, ReadyIn, StartTimes
from gpugate.core.commands import StartCause, StopCause
from gpugate.core.events import Cause
from gpugate.core.states import MachineSnapshot, Preloading, State, StateName, Status, WarmingUp
from gpugate.errors import GateError
from gpugate.lifecycle.pod_calls import PullProgress
from gpugate.provider_api import MAIN_POD, Endpoint, PodReport, Price
from gpugate.tasks import CrashHandler, report_crash, report_to_loop


@frozen(kw_only=True)
class PodStatus:
    """`GET /api/v1/gpu/status` (docs/api.md#pod-status); None is unknown.

    `replicas` is None for a pod that has one for ever.
    """

    pod: str = MAIN_POD
    status: Status
    provider: str | None
    pod_id: str | None
    since: datetime
    uptime_seconds: float | None
    waiting: int
    in_flight: int
    idle_seconds: float | None
    stops_in_seconds: float | None
    hourly_rate: Decimal | None
    estimated_cost: Decimal | None
    ready_in_seconds: float | None
    ready_in_p90_seconds: float | None = None
    last_error: str | None
    pulling: PullProgress | None = None
    replicas: int | None = None


@frozen(kw_only=True)
class WaitProgress:
    """What a request that is held waits for.

    Attributes:
        state: of the pod.
        provider: of the pod; the one that is asked first if there is none.
        place: in the queue, from 1; 0 if it waits no longer.
        ready_in_s: how long the start will probably still take; None: none is under way, or it is unknown.
        pulling: which model is being pulled, if one is.
    """

    state: State
    provider: str
    place: int
    ready_in_s: float | None
    pulling: PullProgress | None = None


@define
class ObservedSession:
    """An open billed session, with the newest report on its pod.

    Attributes:
        began_at: by the calendar.
        began_boottime: by the clock that is never set; durations are measured with it.
    """

    run_id: int
    provider: str
    began_at: datetime
    began_boottime: float
    report: PodReport
    costs: ReplicaCost


@define
class PodObservations:
    """The open sessions and prices, as the providers reported them.

    Attributes:
        open_sessions: by provider.
        rates: the newest price per hour of each provider's pod, running or not.
    """

    wall: Callable[[], datetime]
    boottime: Callable[[], float]
    fallback_price: Price
    open_sessions: dict[str, ObservedSession] = field(factory=dict)
    rates: dict[str, Decimal] = field(factory=dict)

    def age_s(self, report: PodReport) -> float:
        """Return for how long the pod has been billed, by the provider's word; 0 where it tells nothing."""
        if report.started_at is None or report.started_at.tzinfo is None:
            return 0.0
        return max(0.0, (self.wall() - report.started_at).total_seconds())

    def start_session(self, run_id: int, provider: str, report: PodReport, up_s: float) -> ObservedSession:
        """Open a session that began `up_s` ago."""
        began_at = self.wall() - timedelta(seconds=up_s)
        costs = ReplicaCost(report.replicas, self._rate(report))
        session = ObservedSession(run_id, provider, began_at, self.boottime() - up_s, report, costs)
        self.open_sessions[provider] = session
        return session

    def end_session(self, provider: str) -> ObservedSession:
        """Close the open session of this provider, and return it."""
        return self.open_sessions.pop(provider)

    def observe(self, provider: str, report: PodReport) -> None:
        """Take over the newest report on a pod; what it leaves out stays as it was reported before."""
        if report.price is not None and report.price.running_per_hour is not None:
            self.rates[provider] = report.price.running_per_hour / max(1, report.replicas)
        session = self.open_sessions.get(provider)
        known = session.report if session is not None else report
        if session is not None and (None in (report.pod_id, known.pod_id) or report.pod_id == known.pod_id):
            session.report = PodReport(
                phase=report.phase,
                pod_id=report.pod_id or known.pod_id,
                endpoints=report.endpoints or known.endpoints,
                price=report.price or known.price,
                gpu=report.gpu or known.gpu,
                started_at=report.started_at or known.started_at,
                detail=report.detail,
                gpu_bytes=report.gpu_bytes or known.gpu_bytes,
                replicas=report.replicas,
                ended_at=report.ended_at,
            )
            age_s = self.uptime(session).total_seconds()
            session.costs.change(report.replicas, self._rate(session.report), age_s)

    def session_at(self, endpoint: Endpoint) -> ObservedSession | None:
        """Return the open session of the pod that has this endpoint; None if there is none."""
        sessions = self.open_sessions.values()
        return next((one for one in sessions if endpoint in one.report.endpoints.values()), None)

    def rate(self, session: ObservedSession) -> Decimal | None:
        """Return the price per hour: the reported one, else the configured one, else None."""
        return self._rate(session.report)

    def _rate(self, report: PodReport) -> Decimal | None:
        if report.price is not None and report.price.running_per_hour is not None:
            return report.price.running_per_hour
        each = self.fallback_price.running_per_hour
        return None if each is None else each * report.replicas

    def uptime(self, session: ObservedSession) -> timedelta:
        """Return for how long the session has been billed, whatever happens to the calendar.

        Where the provider tells when its bill ended, until then.
        """
        seconds = max(0.0, self.boottime() - session.began_boottime)
        if (ended_at := session.report.ended_at) is not None:
            over_s = (self.wall() - ended_at).total_seconds()
            seconds -= min(max(0.0, over_s), seconds)
        return timedelta(seconds=seconds)

    def cost(self, session: ObservedSession) -> Decimal | None:
        """Return the cost of the session so far, unrounded; None without a known price."""
        return session.costs.total(self.uptime(session).total_seconds())


class StatusBuilder:
    """Builds `PodStatus`; remembers since when the status has been the same, and how long starts take."""

    def __init__(
        self, pod: str, provider_names: Sequence[str], observations: PodObservations, start_times: StartTimes
    ) -> None:
        self._pod = pod
        self._names = tuple(provider_names)
        self._observations = observations
        self._start_times = start_times
        self._since = observations.wall()

    def on_state_changed(self, was: MachineSnapshot, now: MachineSnapshot, at: float) -> None:
        """Note a change of state at loop time `at`."""
        state = was.state
        started = now.started_here and now.status is Status.READY
        if started and isinstance(state, WarmingUp) and not state.served:
            model = state.model if isinstance(state, Preloading) else NO_MODEL
            self._start_times.add(self._names[state.provider], model, at - state.attempt.since)
        if was.status is not now.status:
            self._since = self._observations.wall()

    def build(
        self,
        machine: MachineSnapshot,
        now: float,
        model: str = NO_MODEL,
        slow_call: str | None = None,
        pulling: PullProgress | None = None,
    ) -> PodStatus | None:
        """Return the status at loop time `now`; None while it is not known what runs.

        Args:
            model: that a start would load.
            slow_call: which call to a provider has not returned for long, if one has not.
            pulling: which model is being pulled, if one is.
        """
        if machine.status is None:
            return None
        observations, session = self._observations, self._session(machine)
        ready_in = self.ready_in(machine, now, model)
        return PodStatus(
            pod=self._pod,
            status=machine.status,
            provider=self._names[machine.shown_provider],
            pod_id=session.report.pod_id if session else None,
            since=self._since,
            uptime_seconds=observations.uptime(session).total_seconds() if session else None,
            waiting=machine.waiting,
            in_flight=machine.in_flight,
            idle_seconds=None if machine.idle_since is None else now - machine.idle_since,
            stops_in_seconds=max(0.0, machine.stop_due_at - now) if isfinite(machine.stop_due_at) else None,
            hourly_rate=observations.rate(session) if session else None,
            estimated_cost=observations.cost(session) if session else None,
            ready_in_seconds=None if ready_in is None else ready_in.p50_s,
            ready_in_p90_seconds=None if ready_in is None else ready_in.p90_s,
            last_error=slow_call or machine.last_error,
            pulling=pulling,
            replicas=machine.replicas,
        )

    def usual_start_s(self, provider: int) -> float | None:
        """Return how long nine of ten starts at this provider took at most; None: it is not known."""
        ready_in = self._start_times.ready_in(self._names[provider], NO_MODEL, 0.0)
        return None if ready_in is None else ready_in.p90_s

    def start_rate(self) -> Decimal | None:
        """Return the price per hour of the first provider's pod: reported, else configured, else None."""
        return self._observations.rates.get(
            self._names[0], self._observations.fallback_price.running_per_hour
        )

    def _session(self, machine: MachineSnapshot) -> ObservedSession | None:
        """Return the session of the shown provider, else any that is open (a failover is being stopped)."""
        sessions = self._observations.open_sessions
        return sessions.get(self._names[machine.shown_provider]) or next(iter(sessions.values()), None)

    def ready_in(self, machine: MachineSnapshot, now: float, model: str) -> ReadyIn | None:
        """Return how long the start that is under way will still take; None: none is, or nothing is known.

        A pod that was found has been starting for as long as it has been billed. For one that has served and
        fell ill nothing is known.
        """
        state, began_at, provider = machine.state, machine.start_began_at, machine.provider
        if began_at is None or provider is None or (isinstance(state, WarmingUp) and state.served):
            return None
        elapsed, session = now - began_at, self._observations.open_sessions.get(self._names[provider])
        if session is not None and not machine.started_here:
            elapsed = self._observations.uptime(session).total_seconds()
        loaded = state.model if isinstance(state, Preloading) else model
        return self._start_times.ready_in(self._names[provider], loaded, elapsed)


@frozen(kw_only=True)
class StateChanged:
    """The machine is in another state.

    Attributes:
        was, now: the names of the states.
        was_status, status: the same as users see them; None while it is not known what runs.
        cause: the name of the machine's event.
        stop_cause: why the pod is being stopped; None if it is not.
        idle_s: for how long a pod that served had not been used; None if it was in use, or did not serve.
    """

    pod: str = MAIN_POD
    was: StateName
    now: StateName
    was_status: Status | None
    status: Status | None
    cause: Cause
    run_id: int
    provider: str | None
    at: datetime
    stop_cause: StopCause | None = None
    idle_s: float | None = None


@frozen(kw_only=True)
class QueueChanged:
    """The number of waiting or admitted requests has changed; four times a second at most for the latter."""

    pod: str = MAIN_POD
    waiting: int
    in_flight: int


@frozen(kw_only=True)
class SessionStarted:
    """A billed session began at `at`, which is in the past for a pod that was found running."""

    pod: str = MAIN_POD
    run_id: int
    provider: str
    cause: StartCause
    report: PodReport
    at: datetime


@frozen(kw_only=True)
class SessionEnded:
    """A billed session ended: an inspection has confirmed the stop. `cost` is None without a known price."""

    pod: str = MAIN_POD
    run_id: int
    provider: str
    cause: StopCause
    began_at: datetime
    cost: Decimal | None
    at: datetime
    billed: bool = True


@frozen(kw_only=True)
class ProviderProblem:
    """A call to a provider failed, or it reports what cannot be; `alarm`: a pod may be billed unnoticed."""

    pod: str = MAIN_POD
    provider: str
    message: str
    reason: str
    alarm: bool
    at: datetime


@frozen(kw_only=True)
class ModelPulling:
    """The pod pulls a model: told at the begin, at each per cent, and at the end, well or not."""

    pod: str = MAIN_POD
    provider: str
    progress: PullProgress
    goes_on: bool


@frozen(kw_only=True)
class ProviderCalled:
    """A call to a provider has returned.

    Attributes:
        call: "start", "stop", "inspect", "scale" or "sweep".
        outcome: "ok", or the reason of its error, such as "capacity".
    """

    pod: str = MAIN_POD
    provider: str
    call: str
    outcome: str
    seconds: float


@frozen(kw_only=True)
class ReplicasAsked:
    """A provider is asked for so many replicas of the pod that runs there."""

    pod: str = MAIN_POD
    provider: str
    replicas: int


@frozen(kw_only=True)
class RequestWaited:
    """A request waits no longer: it was admitted, refused, or its client has left.

    Attributes:
        purpose: the endpoint, such as "chat".
        error: why it was refused.
    """

    pod: str = MAIN_POD
    request_id: str
    user: str
    purpose: str
    waited_s: float
    error: GateError | None = None
    left: bool = False


@frozen(kw_only=True)
class BudgetThresholdCrossed:
    """So many per cent of the month's budget are spent; once for each of 50, 80 and 100 in a month."""

    percent: int
    spent: Decimal
    budget: Decimal
    month: str


@frozen(kw_only=True)
class WakeRefused:
    """A wake rule forbade a start that this user needed; `message` is what was answered."""

    pod: str = MAIN_POD
    user: str
    message: str


PodEvent = (
    StateChanged
    | QueueChanged
    | SessionStarted
    | SessionEnded
    | ProviderProblem
    | ModelPulling
    | ProviderCalled
    | ReplicasAsked
    | RequestWaited
    | WakeRefused
)
"""An event of one pod, named by its `pod`."""

LifecycleEvent = PodEvent | BudgetThresholdCrossed
EventListener = Callable[[LifecycleEvent], None]


class EventBus:
    """Calls every listener for every event, in the order of subscription, before `publish` returns.

    Listeners must not block. One that raises is reported, and the others are called all the same.
    """

    def __init__(
        self, listeners: Iterable[EventListener] = (), on_crash: CrashHandler = report_to_loop
    ) -> None:
        self._listeners = list(listeners)
        self._on_crash = on_crash

    def subscribe(self, listener: EventListener) -> None:
        """Call `listener` for every event from now on, after those that are subscribed already."""
        self._listeners.append(listener)

    def publish(self, event: LifecycleEvent) -> None:
        """Hand an event to all listeners. Never raises."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception as error:
                report_crash("an event listener", error, self._on_crash)


class PodEventBus(EventBus):
    """The events of one pod, for its own listeners and then for those of `all_pods`, which hear every pod.

    Each event gets the pod's name here.
    """

    def __init__(
        self,
        pod: str,
        all_pods: EventBus,
        listeners: Iterable[EventListener] = (),
        on_crash: CrashHandler = report_to_loop,
    ) -> None:
        super().__init__(listeners, on_crash)
        self._pod = pod
        self._all_pods = all_pods

    def publish(self, event: LifecycleEvent) -> None:
        """Hand an event of this pod to all listeners. Never raises."""
        if not isinstance(event, BudgetThresholdCrossed):
            event = evolve(event, pod=self._pod)
        super().publish(event)
        self._all_pods.publish(event)
