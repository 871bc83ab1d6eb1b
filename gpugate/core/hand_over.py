"""Replaces a pod that serves by another one before its session's time limit: no request waits for a start.

Theory of operation. A provider that can run two pods has two slots, each a provider of its own for the
machine (`ProviderLimits.twin`). The machine's state is about one pod, as ever. What goes beyond that is here:

    Successor  The pod in the other slot, from the call of `start()` until it is healthy. The state does not
               know of it. If it fails it is stopped, and asked for again later; the other goes on serving.
    Leaving    The pod that served before: it gets no new request, and is stopped once its answers have ended,
               at the latest at its limit.

The successor is asked for when the end of the admission (`pod.drain_grace` before the limit) is as near as a
usual start takes. Healthy, it becomes the state's pod in one step, and the old one leaves. Where it is not
healthy by the end of the admission, requests wait: for the successor if its start was accepted (the state
becomes Provisioning), else for a new start. In any case the old pod is stopped by its limit, and that is a
pending stop like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from attrs import define, field

from gpugate.core.commands import (
    Command,
    Probe,
    PublishProviderProblem,
    StartCause,
    StartPod,
    StopCause,
)
from gpugate.core.events import (
    Event,
    PodInspected,
    ProbeFinished,
    StartAccepted,
    StartCallFailed,
    UpstreamFailed,
)
from gpugate.core.pending_stops import (
    ACTIVE_PHASES,
    STOPPED_PHASES,
    InspectSchedule,
    OpenSessions,
    PendingStops,
)
from gpugate.core.policy import Policy
from gpugate.core.request_queue import RequestQueue
from gpugate.core.start_plan import StartCall, StartPlan
from gpugate.core.states import Provisioning, Ready, StartAttempt, State, Warming
from gpugate.errors import PodStopped, ProviderError
from gpugate.provider_api import Endpoint, Phase, PodReport

LEAST_START_S = 20.0
"""A start is expected to take at least so long, whatever is known of earlier ones (docs/api.md#hand-over)."""


@define(kw_only=True)
class Successor:
    """The pod that is to replace the one of run `of_run`.

    Attributes:
        op: the call of `start()`, while it is out.
        endpoints: None until it runs.
        probe_op, probe_at: the health probe that is out, and when the next one is due.
    """

    run_id: int
    provider: int
    of_run: int
    since: float
    op: int | None
    endpoints: dict[str, Endpoint] | None = None
    probe_op: int | None = None
    probe_at: float = inf


@define(kw_only=True)
class Leaving:
    """The pod that served before, until its answers have ended, or `until`."""

    run_id: int
    provider: int
    until: float


@define
class HandOver:
    """The second pod of a pod whose provider can run two.

    Attributes:
        usual_start_s: how long nine of ten starts took at most; kept up to date by the owner.
        next_op: returns the number of the next command.
        commands: what the machine has to hand on, in order.
    """

    policy: Policy
    plan: StartPlan
    pending_stops: PendingStops
    inspect_schedule: InspectSchedule
    open_sessions: OpenSessions
    queue: RequestQueue
    next_op: Callable[[], int]
    usual_start_s: float = LEAST_START_S
    successor: Successor | None = None
    leaving: Leaving | None = None
    commands: list[Command] = field(factory=list)
    _retry_at: float = -inf

    # --- when ---------------------------------------------------------------------------------

    def limit_at(self, provider: int) -> float:
        """Return when the session of this provider has to be over; `inf` without a limit."""
        limit_s = self.policy.session_limit_s(provider)
        return self.open_sessions.began_at(provider) + limit_s if limit_s else inf

    def _begins_at(self, state: Ready, idle_at: float) -> float:
        """Return when the successor has to be asked for; `inf` if none is wanted, as it looks now."""
        twin = self.policy.providers[state.provider].twin
        if twin is None or self.leaving or self.successor or state.provider not in self.open_sessions:
            return inf
        start_s = max(LEAST_START_S, self.usual_start_s)
        admitted_s = self.policy.admission_limit_s(state.provider)
        if not admitted_s or start_s > admitted_s / 2:  # two pods would run nearly all the time
            return inf
        ends_at = self.open_sessions.began_at(state.provider) + admitted_s
        begins_at = max(ends_at - start_s, self._retry_at)
        is_used = idle_at >= self.limit_at(state.provider)  # otherwise it will have been stopped by then
        return begins_at if is_used and begins_at < ends_at else inf

    def next_due(self, state: State, idle_at: float) -> float:
        """Return when `due` has something to do; `inf` while only an event can change that."""
        due = self._begins_at(state, idle_at) if type(state) is Ready else inf
        if self.successor is not None:
            due = min(due, self.successor.probe_at)
        if self.leaving is not None:
            due = min(due, self.leaving.until)
        return due

    # --- what is due --------------------------------------------------------------------------

    # 1. The old pod's answers have ended, or it has to: stop it.
    # 2. The pod that the successor was for is not the state's any more: it was stopped or lost.
    # 3. A health probe.
    # 4. It is time for a successor, and a start is allowed.
    def due(self, state: State, idle_at: float, may_start: Callable[[], bool], now: float) -> None:
        """Do what the clock or the last step made due."""
        leaving, successor = self.leaving, self.successor
        if leaving is not None and now >= leaving.until:  # 1
            self._end_leaving(leaving, now)
        self.end_unused(now)
        if successor is not None and getattr(state, "run_id", 0) != successor.of_run:  # 2
            self._drop(successor, StopCause.EXTRA_POD, now)
        elif successor is not None and now >= successor.probe_at and successor.endpoints:  # 3
            successor.probe_op = self.next_op()
            waited_s = now - successor.since
            successor.probe_at = now + max(
                self.policy.probe_interval_s(successor.provider, waited_s), 2 * self.policy.health_interval
            )
            self.commands.append(Probe(successor.probe_op, successor.endpoints["ollama"]))
        if type(state) is Ready and now >= self._begins_at(state, idle_at):  # 4
            self._begin(state, now) if may_start() else self._put_off(now)

    def _begin(self, state: Ready, now: float) -> None:
        twin = self.policy.providers[state.provider].twin
        assert twin is not None
        stop = self.pending_stops.by_provider.get(twin)
        if stop is not None and not stop.may_start_again:
            self._put_off(now)
            return
        self.pending_stops.abandon(twin)
        self.inspect_schedule.cancel(twin)
        run_id, op = self.plan.new_run(), self.next_op()
        self.successor = Successor(run_id=run_id, provider=twin, of_run=state.run_id, since=now, op=op)
        self.plan.called(StartCall(op, twin, run_id, StartCause.REQUEST))
        self.commands.append(StartPod(op, twin))

    def _put_off(self, now: float, pause_s: float = 0.0) -> None:
        self._retry_at = now + max(self.policy.capacity_retry_s, pause_s)

    def end_unused(self, now: float) -> None:
        """Stop the pod that leaves, once no request uses it."""
        if self.leaving is not None and not self.queue.has_leases_of(self.leaving.run_id):
            self._end_leaving(self.leaving, now)

    def shut_down(self, now: float) -> None:
        """The gateway goes down: no successor is wanted, and the pod that leaves has `shutdown_grace`."""
        if self.successor is not None:
            self._drop(self.successor, StopCause.SHUTDOWN, now)
        if self.leaving is not None:
            self.leaving.until = min(self.leaving.until, now + self.policy.shutdown_grace)
        self.end_unused(now)

    def _end_leaving(self, leaving: Leaving, now: float) -> None:
        self.leaving = self.plan.leaving_provider = None
        error = "the pod's session is over (pod.max_session)"
        self.commands += self.queue.abort_leases(lambda _: PodStopped(error), now, leaving.run_id)
        self._order_stop(leaving.provider, StopCause.MAX_SESSION, now)

    def _order_stop(self, provider: int, cause: StopCause, now: float, must_be_seen: bool = True) -> None:
        self.pending_stops.add(provider, cause, must_be_seen, now)
        self.inspect_schedule.cancel(provider)

    def _drop(self, successor: Successor, cause: StopCause, now: float, must_be_seen: bool = True) -> None:
        self.successor = None
        self._order_stop(successor.provider, cause, now, must_be_seen)

    # --- events -------------------------------------------------------------------------------

    def take(self, event: Event, state: State, now: float) -> State | None:
        """Take an event that is about the second pod; return the state that follows, None if it is not."""
        successor, leaving = self.successor, self.leaving
        match event:
            case StartAccepted(op, report, up_s) if successor is not None and op == successor.op:
                successor.op = None
                self.plan.take_result(op)
                return self._successor_seen(successor, report, up_s, state, now)
            case StartCallFailed(op, error) if successor is not None and op == successor.op:
                self.plan.take_result(op)
                self._start_failed(successor, error, now)
                return state
            case PodInspected(_, provider, report, up_s):
                if successor is not None and provider == successor.provider and successor.op is None:
                    return self._successor_seen(successor, report, up_s, state, now)
                if leaving is not None and provider == leaving.provider:
                    self._leaving_seen(leaving, report, now)
                    return state
            case ProbeFinished(op, healthy) if successor is not None and op == successor.probe_op:
                successor.probe_op, successor.probe_at = None, now + self.policy.min_probe_interval_s
                waited_s = now - successor.since
                successor.probe_at = now + self.policy.probe_interval_s(successor.provider, waited_s)
                if healthy and isinstance(state, Ready | Warming):
                    return self._switch(successor, state, now)
                return state
            case UpstreamFailed(run_id, ticket) if leaving is not None and run_id == leaving.run_id:
                self.commands += self.queue.requeue_lease(ticket, now)
                self.inspect_schedule.schedule(leaving.provider, now)
                return state
        return None

    def concerns(self, provider: int) -> bool:
        """Whether the second pod is this provider's."""
        others = (self.successor, self.leaving)
        return any(one is not None and one.provider == provider for one in others)

    def _successor_seen(
        self, successor: Successor, report: PodReport, up_s: float, state: State, now: float
    ) -> State:
        """Take a report on the successor: it is billed, it runs, or it has failed."""
        provider = successor.provider
        if report.is_billed and report.phase in ACTIVE_PHASES:
            self.commands += self.open_sessions.open(
                provider, successor.run_id, StartCause.REQUEST, report, up_s, now
            )
        lags = report.phase is Phase.STOPPED and now - successor.since < self.policy.health_interval
        if report.phase not in ACTIVE_PHASES and not lags:
            self._complain(provider, report.detail or f"the pod is {report.phase}", "transient")
            self._drop(successor, StopCause.START_FAILED, now)
            self._put_off(now)
            return state
        waited_s = now - successor.since
        next_at = now + self.policy.inspect_interval_s(provider, waited_s)
        self.inspect_schedule.schedule_no_later_than(provider, next_at)
        if report.phase is Phase.RUNNING and "ollama" in report.endpoints:
            if successor.endpoints is None:
                successor.probe_at = now
            successor.endpoints = dict(report.endpoints)
        return state

    def _start_failed(self, successor: Successor, error: ProviderError, now: float) -> None:
        """No GPU, or another trouble: try again later. What the call may have left is stopped."""
        self._complain(successor.provider, error.in_full, error.reason)
        self._drop(successor, StopCause.START_FAILED, now)
        self._put_off(now, getattr(error, "retry_after", None) or 0.0)

    def _complain(self, provider: int, why: str, reason: str) -> None:
        message = f"no second pod to hand over to before the time limit: {why}"
        self.commands.append(PublishProviderProblem(provider=provider, message=message, reason=reason))

    def _leaving_seen(self, leaving: Leaving, report: PodReport, now: float) -> None:
        """Take a report on the old pod: one that is gone takes no answer to its end."""
        if report.phase not in STOPPED_PHASES | {Phase.FAILED}:
            return
        self.leaving = self.plan.leaving_provider = None
        self.commands += self.queue.requeue_leases(now, None, leaving.run_id)
        if report.phase in STOPPED_PHASES:
            self.commands += self.open_sessions.close(leaving.provider, StopCause.LOST)
        else:
            self._order_stop(leaving.provider, StopCause.LOST, now)

    # --- the step from one pod to the other -----------------------------------------------------

    def _switch(self, successor: Successor, was: Ready | Warming, now: float) -> State:
        """The successor is healthy: new requests go to it. With `pod.pull` its models come first."""
        assert successor.endpoints is not None
        self._leave(was, now)
        if self.policy.pull:
            return self._come_up(successor, now)
        self.successor = None
        reconcile_at = now + self.policy.reconcile_interval_s(successor.provider)
        self.inspect_schedule.schedule(successor.provider, reconcile_at)
        return Ready(run_id=successor.run_id, provider=successor.provider, endpoints=successor.endpoints)

    def _leave(self, was: Ready | Warming, now: float) -> None:
        until = self.limit_at(was.provider)
        self.queue.free_admit_slots(was.run_id)
        self.plan.leaving_provider = was.provider
        self.leaving = Leaving(run_id=was.run_id, provider=was.provider, until=max(until, now))

    def _come_up(self, successor: Successor, now: float) -> Provisioning:
        """Return the state of a start that was accepted, for this pod."""
        self.successor = None
        self.inspect_schedule.schedule(successor.provider, now)
        attempt = StartAttempt(
            run_id=successor.run_id,
            provider=successor.provider,
            number=1,
            since=successor.since,
            capacity_deadline=now,
        )
        return Provisioning(attempt=attempt, accepted_at=now)

    def at_admission_end(self, was: Ready, now: float) -> Provisioning | None:
        """The old pod has to admit no request any more; return the state if a successor is coming up."""
        successor = self.successor
        if successor is None or successor.op is not None or successor.provider not in self.open_sessions:
            return None
        self._leave(was, now)
        return self._come_up(successor, now)
