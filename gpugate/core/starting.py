"""The rows of the table from nothing to an accepted start: boot, attempts, errors, failover."""

from __future__ import annotations

from gpugate.core.commands import InspectPod, StartPod
from gpugate.core.engine import MachineBase
from gpugate.core.events import (
    DeadlineReached,
    DemandRaised,
    GatewayStarted,
    InspectFailed,
    PodInspected,
    StartAccepted,
    StartCallFailed,
)
from gpugate.core.pending_stops import ACTIVE_PHASES, STOPPED_PHASES
from gpugate.core.request_queue import Ticket
from gpugate.core.states import (
    AfterAccept,
    AfterFailure,
    AfterStop,
    BackingOff,
    CallingStart,
    Preloading,
    Provisioning,
    Stopped,
    Stopping,
    Unknown,
    VerifyingStart,
    Warming,
)
from gpugate.core.transition_table import transition
from gpugate.errors import (
    Ambiguous,
    Conflict,
    GateError,
    NoCapacity,
    PodStartFailed,
    ProviderError,
    RateLimited,
    Transient,
    WarmupTimeout,
)
from gpugate.provider_api import Phase, PodReport

AcceptedState = Provisioning | Warming | Preloading


class WarmupTimedOut(ProviderError):
    """The pod ran for `pod.warmup_timeout`, and its Ollama never answered."""

    reason = "timeout"


class StartTransitions(MachineBase):
    """Unknown, Stopped, CallingStart, Pausing, Settling; what comes of a failure in any later state."""

    # --- boot and rest ------------------------------------------------------------------------

    @transition
    def inspect_all(self, was: Unknown, event: GatewayStarted, now: float) -> Unknown | Stopping:
        """Look at every provider; where a stop was left unproved, go on stopping."""
        for provider in range(len(self.policy.providers)):
            if provider in self.restored_stops:
                self.order_stop(provider, "restart", now)
            else:
                self.inspect_schedule.schedule(provider, now)
        return Stopping() if self.restored_stops else was

    @transition
    def boot_inspected(
        self, was: Unknown, event: PodInspected | InspectFailed, now: float
    ) -> Unknown | AfterAccept:
        """Adopt what runs; with nothing found, rest; while a look fails, go on looking."""
        return self.judge_boot(Unknown({**was.inspections, event.provider: event}), now)

    @transition
    def demand_at_boot(self, was: Unknown, event: DemandRaised, now: float) -> Unknown | AfterAccept:
        """Somebody wants the pod: once every provider was asked, a start is as good as a look."""
        return self.judge_boot(was, now)

    def judge_boot(self, was: Unknown, now: float) -> Unknown | AfterAccept:
        if len(was.inspections) < len(self.policy.providers):
            return was
        found = {p: seen for p, seen in sorted(was.inspections.items()) if isinstance(seen, PodInspected)}
        if any(seen.report.phase not in STOPPED_PHASES for seen in found.values()):
            return self.adopt_first_active(found, now)
        if self.has_payable_demand or len(found) == len(was.inspections):
            return self.next_when_nothing_runs(now)
        return was

    def adopt_first_active(self, found: dict[int, PodInspected], now: float) -> AfterAccept:
        """The first pod on its way is adopted, every other one is stopped (docs/api.md#adoption)."""
        alive = [p for p, seen in found.items() if seen.report.phase in ACTIVE_PHASES]
        for provider, seen in found.items():
            if provider in alive[1:] or seen.report.phase in (Phase.STOPPING, Phase.FAILED):
                self.order_stop(provider, "stray", now)
        return self.adopt(found[alive[0]], now) if alive else self.next_when_nothing_runs(now)

    @transition
    def pod_found(self, was: Stopped | Stopping, event: PodInspected, now: float) -> AfterAccept:
        """A pod that runs although nobody here started it is adopted (docs/api.md#adoption)."""
        if event.report.phase in STOPPED_PHASES or event.report.phase is Phase.UNREACHABLE:
            return was
        if self.shutting_down:
            return self.leave_found_pod(was, event, now)
        return self.adopt_first_active({event.provider: event}, now)

    def leave_found_pod(self, was: Stopped | Stopping, event: PodInspected, now: float) -> Stopped | Stopping:
        """Going down: what runs is stopped with the rest, or left where it is."""
        if not self.keep_pod:
            self.order_stop(event.provider, "shutdown", now)
        return was

    def adopt(self, event: PodInspected, now: float) -> AfterAccept:
        self.new_run()
        if event.report.phase is not Phase.QUEUED:
            self.open_session(event.provider, self.last_run_id, "adopted", event.report, event.up_s, now)
        was = CallingStart(
            run_id=self.last_run_id,
            provider=event.provider,
            attempt=1,
            op=0,
            since=now,
            capacity_deadline=now + self.policy.capacity_wait,
        )
        return self.after_accept(was, event.report, event.up_s, now)

    def next_when_nothing_runs(self, now: float) -> AfterStop:
        if self.pending_stops.by_provider and not self.has_payable_demand:
            return Stopping()
        if self.shutting_down:
            return Stopping() if self.pending_stops.by_provider else self.shutdown_state
        if self.has_payable_demand:
            return self.begin_start(now)
        for provider in range(len(self.policy.providers)):
            self.inspect_schedule.schedule(provider, now + self.policy.reconcile_interval_s(provider))
        return Stopped()

    # --- asking -------------------------------------------------------------------------------

    @transition
    def demand_raised(self, was: Stopped, event: DemandRaised, now: float) -> AfterStop:
        """The first who wants the pod starts it."""
        if not self.has_payable_demand:
            return was
        self.resume_at_provider = None
        return self.begin_start(now)

    @transition
    def prewarm_due(self, was: Stopped, event: DeadlineReached, now: float) -> AfterStop:
        """A request is expected: start before it comes, unless the time for it or the budget is over."""
        if not self.idle_timer.consume_window(now) or self.budget_gate.verdict.exhausted_reason:
            return was
        self.resume_at_provider = None
        self.start_requested = True
        rest = self.begin_start(now)
        self.idle_timer.prewarmed_run_id = self.last_run_id
        return rest

    def begin_start(self, now: float) -> AfterStop:
        """Start with the first provider, or go on where a fresh stop made this start wait."""
        if self.resume_at_provider is not None and self.start_failures:
            return self.start_from(self.resume_at_provider, now)
        if self.next_free_provider(0) is None:
            return Stopping()
        self.new_run()
        return self.start_from(0, now)

    def new_run(self) -> None:
        self.last_run_id += 1
        self.rate_limited_starts = 0
        self.start_failures = []

    def start_from(self, first: int, now: float) -> AfterStop:
        """Ask the next provider whose pod is not being stopped; wait where such a stop is fresh."""
        provider = self.next_free_provider(first)
        self.resume_at_provider = None
        if provider is not None:
            self.pending_stops.abandon(provider)
            return self.call_start(provider, 1, now, now, now + self.policy.capacity_wait)
        rest = range(first, len(self.policy.providers))
        if self.start_failures and all(map(self.is_stop_stuck, rest)):
            return self.give_up_start(now)
        self.resume_at_provider = first
        return Stopping()

    def next_free_provider(self, first: int) -> int | None:
        """The next provider that can be asked; None if a fresh stop comes before, or none is left."""
        for provider in range(first, len(self.policy.providers)):
            order = self.pending_stops.by_provider.get(provider)
            if order is None or order.may_start_again:
                return provider
            if not self.is_stop_stuck(provider):
                return None
        return None

    def is_stop_stuck(self, provider: int) -> bool:
        """Its stop was sent twice without proof, and there are others to ask."""
        order = self.pending_stops.by_provider.get(provider)
        return order is not None and order.sent_count >= 2 and len(self.policy.providers) > 1

    def call_start(
        self, provider: int, attempt: int, now: float, since: float, capacity_until: float
    ) -> CallingStart:
        op = self.next_op()
        self.inspect_schedule.cancel(provider)
        self.commands.append(StartPod(op, provider))
        self.last_start_op, self.last_start_call = op, (provider, self.last_run_id, self.start_cause)
        return CallingStart(
            run_id=self.last_run_id,
            provider=provider,
            attempt=attempt,
            op=op,
            since=since,
            capacity_deadline=capacity_until,
        )

    @transition
    def start_accepted(self, was: CallingStart, event: StartAccepted, now: float) -> AfterAccept:
        """The provider took the start: from here on it costs money, unless it is queued there."""
        if event.op != was.op:
            return was
        self.last_start_op = 0  # answered, once
        if event.report.phase is not Phase.QUEUED:
            self.open_session(was.provider, was.run_id, self.start_cause, event.report, event.up_s, now)
        return self.after_accept(was, event.report, event.up_s, now)

    @transition
    def start_call_failed(self, was: CallingStart, event: StartCallFailed, now: float) -> AfterAccept:
        """The error decides: again, after a look, after a pause, or the next provider."""
        if event.op != was.op:
            return was
        error = event.error
        if self.has_payable_demand and isinstance(error, RateLimited):
            return self.back_off_rate_limit(was, error, now)
        self.rate_limited_starts = 0
        if self.has_payable_demand and isinstance(error, NoCapacity) and now < was.capacity_deadline:
            return self.wait_for_capacity(was, error, now)
        return self.attempt_failed(was, error, now)

    @transition
    def backoff_over(self, was: BackingOff, event: DeadlineReached, now: float) -> VerifyingStart | AfterStop:
        """The pause is over: again, after a look where the last outcome is unsure; if still wanted."""
        if not self.has_payable_demand:
            return self.abandon_start(was, now)
        if not was.must_inspect:
            return self.call_start(was.provider, was.attempt, now, was.since, was.capacity_deadline)
        op = self.next_op()
        self.commands.append(InspectPod(op, was.provider))
        return VerifyingStart(
            run_id=was.run_id,
            provider=was.provider,
            attempt=was.attempt,
            op=op,
            since=was.since,
            capacity_deadline=was.capacity_deadline,
        )

    @transition
    def start_verified(
        self, was: VerifyingStart, event: PodInspected | InspectFailed, now: float
    ) -> VerifyingStart | AfterAccept:
        """A start whose answer was lost has worked after all, or it is asked again."""
        if event.op != was.op:
            return was
        if isinstance(event, PodInspected) and event.report.phase in ACTIVE_PHASES:
            return self.after_accept(was, event.report, event.up_s, now)
        if not self.has_payable_demand:
            return self.abandon_start(was, now)
        return self.call_start(was.provider, was.attempt, now, was.since, was.capacity_deadline)

    def abandon_start(self, was: BackingOff | VerifyingStart, now: float) -> AfterStop:
        """Nobody wants it any more: no further attempt, and what the last one may have left is stopped."""
        unsure = (
            isinstance(was, VerifyingStart)
            or was.must_inspect
            or not self.cannot_have_left_a_pod(was.provider, was.attempt)
        )
        self.order_stop(was.provider, "start_failed", now, firm=unsure)
        return self.next_when_nothing_runs(now)

    def after_accept(
        self, was: CallingStart | VerifyingStart, report: PodReport, up_s: float, now: float
    ) -> AfterAccept:
        self.inspect_schedule.schedule(was.provider, now + self.policy.inspect_interval_s(was.provider, 0.0))
        state = Provisioning(
            run_id=was.run_id,
            provider=was.provider,
            attempt=was.attempt,
            accepted_at=now,
            since=was.since,
            capacity_deadline=was.capacity_deadline,
        )
        return self.provisioning_progress(state, report, up_s, now)

    @property
    def first_payable_ticket(self) -> Ticket | None:
        """The first of those who wait for whom a start is paid."""
        return next((ticket for ticket in self.queue.waiting if self.budget_gate.allows_any([ticket])), None)

    @property
    def start_cause(self) -> str:
        """Why a pod is started now: "request", "hand" or "prewarm"."""
        if self.queue.waiting or not self.start_requested:
            return "request"
        return "prewarm" if self.last_run_id == self.idle_timer.prewarmed_run_id else "hand"

    # --- failing ------------------------------------------------------------------------------

    def attempt_failed(
        self, was: CallingStart | AcceptedState, error: ProviderError, now: float
    ) -> AfterFailure:
        """One attempt failed; the error's kind says what follows (docs/api.md#which-provider)."""
        if not self.has_payable_demand:
            return self.leave_provider(was, error, now)
        again = isinstance(error, Transient | Ambiguous | Conflict) or type(error) is ProviderError
        if not again or was.attempt >= self.policy.start_attempts:
            return self.leave_provider(was, error, now)
        self.publish_problem(was.provider, error.in_full, error)
        self.requeue_leases(now)
        self.inspect_schedule.cancel(was.provider)
        return BackingOff(
            run_id=was.run_id,
            provider=was.provider,
            attempt=was.attempt + 1,
            retry_at=now + self.policy.backoff_s(was.attempt, self.random_fraction()),
            must_inspect=True,
            since=was.since,
            capacity_deadline=getattr(was, "capacity_deadline", now + self.policy.capacity_wait),
        )

    def back_off_rate_limit(self, was: CallingStart, error: RateLimited, now: float) -> AfterFailure:
        if now - was.since >= self.policy.start_timeout:
            return self.leave_provider(was, error, now)
        self.publish_problem(was.provider, error.in_full, error)
        self.rate_limited_starts += 1
        pause = error.retry_after or self.policy.backoff_s(self.rate_limited_starts, self.random_fraction())
        return self.back_off(was, now + min(pause, self.policy.max_rate_limit_s))

    def wait_for_capacity(self, was: CallingStart, error: NoCapacity, now: float) -> AfterAccept:
        self.publish_problem(was.provider, error.in_full, error)
        if error.queued:
            return self.after_accept(was, PodReport(Phase.QUEUED), 0.0, now)
        return self.back_off(was, min(now + self.policy.capacity_retry_s, was.capacity_deadline))

    @staticmethod
    def back_off(was: CallingStart, retry_at: float) -> BackingOff:
        return BackingOff(
            run_id=was.run_id,
            provider=was.provider,
            attempt=was.attempt,
            retry_at=retry_at,
            must_inspect=False,
            since=was.since,
            capacity_deadline=was.capacity_deadline,
        )

    def leave_provider(
        self, was: CallingStart | AcceptedState, error: ProviderError, now: float
    ) -> AfterStop:
        """This provider will not do: stop what may run there, go to the next (docs/api.md#which-provider)."""
        clean = self.cannot_have_left_a_pod(was.provider, was.attempt)
        refused = not isinstance(error, Transient | Ambiguous | Conflict) and type(error) is not ProviderError
        queued = isinstance(error, NoCapacity) and error.queued
        self.publish_problem(was.provider, error.in_full, error)
        self.start_failures.append((was.provider, error))
        self.requeue_leases(now)
        self.order_stop(was.provider, "start_failed", now, firm=queued or not (clean and refused))
        if not self.has_payable_demand:
            return self.next_when_nothing_runs(now)
        return self.start_from(was.provider + 1, now)

    def cannot_have_left_a_pod(self, provider: int, attempt: int) -> bool:
        """Nothing that we did can have left a pod running there."""
        return (
            attempt == 1
            and provider not in self.open_sessions
            and provider not in self.pending_stops.abandoned_providers
        )

    def give_up_start(self, now: float) -> AfterStop:
        self.start_requested = False
        self.reject_waiting(self.start_error)
        return self.next_when_nothing_runs(now)

    def start_error(self) -> GateError:
        last = self.start_failures[-1][1]
        if isinstance(last, WarmupTimedOut) and len(self.policy.providers) == 1:
            return WarmupTimeout(retry_after_s=self.policy.retry_after)
        told = "; ".join(
            f"{self.provider_name(provider)}: {error.message}" for provider, error in self.start_failures
        )
        return PodStartFailed(
            f"pod could not be started: {told}",
            retry_after_s=self.policy.retry_after,
            reason=last.reason,
        )

    def provisioning_progress(
        self, was: Provisioning, report: PodReport, up_s: float, now: float
    ) -> AfterAccept:
        """What an accepted start has come to; in `core/warming.py`."""
        raise NotImplementedError
