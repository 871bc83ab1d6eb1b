"""The rows of the table from nothing to an accepted start: boot, attempts, errors, failover."""

from __future__ import annotations

from gpugate.core.engine import Engine
from gpugate.core.pending_stops import ON_ITS_WAY, PROOF
from gpugate.core.request_queue import Ticket
from gpugate.core.transition_table import transition
from gpugate.core.vocabulary import (
    Asking,
    Demanded,
    Failed,
    Look,
    Looked,
    LookFailed,
    OnItsWay,
    Opened,
    Pausing,
    Preloading,
    Provisioning,
    Rest,
    Settling,
    StartAccepted,
    StartPod,
    StartRefused,
    Stopped,
    Stopping,
    TimePassed,
    Unknown,
    Warming,
)
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

STARTED = Provisioning | Warming | Preloading


class NeverWarm(ProviderError):
    """The pod ran for `pod.warmup_timeout`, and its Ollama never answered."""

    reason = "timeout"


class StartingRows(Engine):
    """Unknown, Stopped, Asking, Pausing, Settling; what comes of a failure in any later state."""

    # --- boot and rest ------------------------------------------------------------------------

    @transition
    def _come_up(self, was: Unknown, event: Opened, now: float) -> Unknown | Stopping:
        """Look at every provider; where a stop was left unproved, go on stopping."""
        for provider in range(len(self.policy.providers)):
            if provider in self._inherited:
                self._order_stop(provider, "restart", now)
            else:
                self.looks.schedule(provider, now)
        return Stopping() if self._inherited else was

    @transition
    def _learn(self, was: Unknown, event: Looked | LookFailed, now: float) -> Unknown | OnItsWay:
        """Adopt what runs; with nothing found, rest; while a look fails, go on looking."""
        return self._judge_boot(Unknown({**was.seen, event.provider: event}), now)

    @transition
    def _want_unseen(self, was: Unknown, event: Demanded, now: float) -> Unknown | OnItsWay:
        """Somebody wants the pod: once every provider was asked, a start is as good as a look."""
        return self._judge_boot(was, now)

    def _judge_boot(self, was: Unknown, now: float) -> Unknown | OnItsWay:
        if len(was.seen) < len(self.policy.providers):
            return was
        found = {p: seen for p, seen in sorted(was.seen.items()) if isinstance(seen, Looked)}
        if any(seen.report.phase not in PROOF for seen in found.values()):
            return self._take_over(found, now)
        if self._demanded or len(found) == len(was.seen):
            return self._rest(now)
        return was

    def _take_over(self, found: dict[int, Looked], now: float) -> OnItsWay:
        """The first pod on its way is adopted, every other one is stopped (docs/api.md#adoption)."""
        alive = [p for p, seen in found.items() if seen.report.phase in ON_ITS_WAY]
        for provider, seen in found.items():
            if provider in alive[1:] or seen.report.phase in (Phase.STOPPING, Phase.FAILED):
                self._order_stop(provider, "stray", now)
        return self._adopt(found[alive[0]], now) if alive else self._rest(now)

    @transition
    def _find(self, was: Stopped | Stopping, event: Looked, now: float) -> OnItsWay:
        """A pod that runs although nobody here started it is adopted (docs/api.md#adoption)."""
        if event.report.phase in PROOF or event.report.phase is Phase.UNREACHABLE:
            return was
        if self.closing:
            return self._leave_found(was, event, now)
        return self._take_over({event.provider: event}, now)

    def _leave_found(self, was: Stopped | Stopping, event: Looked, now: float) -> Stopped | Stopping:
        """Going down: what runs is stopped with the rest, or left where it is."""
        if not self.keep:
            self._order_stop(event.provider, "shutdown", now)
        return was

    def _adopt(self, event: Looked, now: float) -> OnItsWay:
        self._new_run()
        if event.report.phase is not Phase.QUEUED:
            self._open_session(event.provider, self.run, "adopted", event.report, event.up_s, now)
        was = Asking(
            run=self.run,
            provider=event.provider,
            attempt=1,
            op=0,
            since=now,
            capacity_until=now + self.policy.capacity_wait_s,
        )
        return self._accepted(was, event.report, event.up_s, now)

    def _rest(self, now: float) -> Rest:
        if self.stops.orders and not self._demanded:
            return Stopping()
        if self.closing:
            return Stopping() if self.stops.orders else self.left
        if self._demanded:
            return self._begin(now)
        for provider in range(len(self.policy.providers)):
            self.looks.schedule(provider, now + self.policy.watch_pause_s(provider))
        return Stopped()

    # --- asking -------------------------------------------------------------------------------

    @transition
    def _want(self, was: Stopped, event: Demanded, now: float) -> Rest:
        """The first who wants the pod starts it."""
        if not self._demanded:
            return was
        self._pass_at = None
        return self._begin(now)

    @transition
    def _prewarm(self, was: Stopped, event: TimePassed, now: float) -> Rest:
        """A request is expected: start before it comes, unless the time for it or the budget is over."""
        if not self.pauses.take_window(now) or self.purse.judged.spent:
            return was
        self._pass_at = None
        self.start_wanted = True
        rest = self._begin(now)
        self.pauses.unasked_run = self.run
        return rest

    def _begin(self, now: float) -> Rest:
        """Start with the first provider, or go on where a fresh stop made this start wait."""
        if self._pass_at is not None and self._failures:
            return self._start_from(self._pass_at, now)
        if self._next_free(0) is None:
            return Stopping()
        self._new_run()
        return self._start_from(0, now)

    def _new_run(self) -> None:
        self.run += 1
        self._limited = 0
        self._failures = []

    def _start_from(self, first: int, now: float) -> Rest:
        """Ask the next provider whose pod is not being stopped; wait where such a stop is fresh."""
        provider = self._next_free(first)
        self._pass_at = None
        if provider is not None:
            self.stops.give_up(provider)
            return self._ask(provider, 1, now, now, now + self.policy.capacity_wait_s)
        rest = range(first, len(self.policy.providers))
        if self._failures and all(map(self._is_stuck, rest)):
            return self._give_up(now)
        self._pass_at = first
        return Stopping()

    def _next_free(self, first: int) -> int | None:
        """The next provider that can be asked; None if a fresh stop comes before, or none is left."""
        for provider in range(first, len(self.policy.providers)):
            order = self.stops.orders.get(provider)
            if order is None or order.may_start_again:
                return provider
            if not self._is_stuck(provider):
                return None
        return None

    def _is_stuck(self, provider: int) -> bool:
        """Its stop was sent twice without proof, and there are others to ask."""
        order = self.stops.orders.get(provider)
        return order is not None and order.sent >= 2 and len(self.policy.providers) > 1

    def _ask(self, provider: int, attempt: int, now: float, since: float, capacity_until: float) -> Asking:
        op = self._next_op()
        self.looks.forget(provider)
        self._effects.append(StartPod(op, provider))
        self._asked_op, self._asked = op, (provider, self.run, self.start_cause)
        return Asking(
            run=self.run,
            provider=provider,
            attempt=attempt,
            op=op,
            since=since,
            capacity_until=capacity_until,
        )

    @transition
    def _take_yes(self, was: Asking, event: StartAccepted, now: float) -> OnItsWay:
        """The provider took the start: from here on it costs money, unless it is queued there."""
        if event.op != was.op:
            return was
        self._asked_op = 0  # answered, once
        if event.report.phase is not Phase.QUEUED:
            self._open_session(was.provider, was.run, self.start_cause, event.report, event.up_s, now)
        return self._accepted(was, event.report, event.up_s, now)

    @transition
    def _take_no(self, was: Asking, event: StartRefused, now: float) -> OnItsWay:
        """The error decides: again, after a look, after a pause, or the next provider."""
        if event.op != was.op:
            return was
        error = event.error
        if self._demanded and isinstance(error, RateLimited):
            return self._keep_rate(was, error, now)
        self._limited = 0
        if self._demanded and isinstance(error, NoCapacity) and now < was.capacity_until:
            return self._wait_for_capacity(was, error, now)
        return self._failed(was, error, now)

    @transition
    def _try_again(self, was: Pausing, event: TimePassed, now: float) -> Settling | Rest:
        """The pause is over: again, after a look where the last outcome is unsure; if still wanted."""
        if not self._demanded:
            return self._abandon(was, now)
        if not was.unsure:
            return self._ask(was.provider, was.attempt, now, was.since, was.capacity_until)
        op = self._next_op()
        self._effects.append(Look(op, was.provider))
        return Settling(
            run=was.run,
            provider=was.provider,
            attempt=was.attempt,
            op=op,
            since=was.since,
            capacity_until=was.capacity_until,
        )

    @transition
    def _settle_doubt(self, was: Settling, event: Looked | LookFailed, now: float) -> Settling | OnItsWay:
        """A start whose answer was lost has worked after all, or it is asked again."""
        if event.op != was.op:
            return was
        if isinstance(event, Looked) and event.report.phase in ON_ITS_WAY:
            return self._accepted(was, event.report, event.up_s, now)
        if not self._demanded:
            return self._abandon(was, now)
        return self._ask(was.provider, was.attempt, now, was.since, was.capacity_until)

    def _abandon(self, was: Pausing | Settling, now: float) -> Rest:
        """Nobody wants it any more: no further attempt, and what the last one may have left is stopped."""
        unsure = isinstance(was, Settling) or was.unsure or not self._is_clean(was.provider, was.attempt)
        self._order_stop(was.provider, "start_failed", now, firm=unsure)
        return self._rest(now)

    def _accepted(self, was: Asking | Settling, report: PodReport, up_s: float, now: float) -> OnItsWay:
        self.looks.schedule(was.provider, now + self.policy.look_pause_s(was.provider, 0.0))
        state = Provisioning(
            run=was.run,
            provider=was.provider,
            attempt=was.attempt,
            accepted_at=now,
            since=was.since,
            capacity_until=was.capacity_until,
        )
        return self._progress(state, report, up_s, now)

    @property
    def first_payer(self) -> Ticket | None:
        """The first of those who wait for whom a start is paid."""
        return next((ticket for ticket in self.backlog.waiting if self.purse.pays_one_of([ticket])), None)

    @property
    def start_cause(self) -> str:
        """Why a pod is started now: "request", "hand" or "prewarm"."""
        if self.backlog.waiting or not self.start_wanted:
            return "request"
        return "prewarm" if self.run == self.pauses.unasked_run else "hand"

    # --- failing ------------------------------------------------------------------------------

    def _failed(self, was: Asking | STARTED, error: ProviderError, now: float) -> Failed:
        """One attempt failed; the error's kind says what follows (docs/api.md#which-provider)."""
        if not self._demanded:
            return self._leave_provider(was, error, now)
        again = isinstance(error, Transient | Ambiguous | Conflict) or type(error) is ProviderError
        if not again or was.attempt >= self.policy.start_attempts:
            return self._leave_provider(was, error, now)
        self._complain(was.provider, error.in_full, error)
        self._lose_leases(now)
        self.looks.forget(was.provider)
        return Pausing(
            run=was.run,
            provider=was.provider,
            attempt=was.attempt + 1,
            retry_at=now + self.policy.backoff_s(was.attempt, self._chance()),
            unsure=True,
            since=was.since,
            capacity_until=getattr(was, "capacity_until", now + self.policy.capacity_wait_s),
        )

    def _keep_rate(self, was: Asking, error: RateLimited, now: float) -> Failed:
        if now - was.since >= self.policy.start_timeout_s:
            return self._leave_provider(was, error, now)
        self._complain(was.provider, error.in_full, error)
        self._limited += 1
        pause = error.retry_after or self.policy.backoff_s(self._limited, self._chance())
        return self._pause(was, now + min(pause, self.policy.longest_rate_limit_s))

    def _wait_for_capacity(self, was: Asking, error: NoCapacity, now: float) -> OnItsWay:
        self._complain(was.provider, error.in_full, error)
        if error.queued:
            return self._accepted(was, PodReport(Phase.QUEUED), 0.0, now)
        return self._pause(was, min(now + self.policy.capacity_pause_s, was.capacity_until))

    @staticmethod
    def _pause(was: Asking, retry_at: float) -> Pausing:
        return Pausing(
            run=was.run,
            provider=was.provider,
            attempt=was.attempt,
            retry_at=retry_at,
            unsure=False,
            since=was.since,
            capacity_until=was.capacity_until,
        )

    def _leave_provider(self, was: Asking | STARTED, error: ProviderError, now: float) -> Rest:
        """This provider will not do: stop what may run there, go to the next (docs/api.md#which-provider)."""
        clean = self._is_clean(was.provider, was.attempt)
        refused = not isinstance(error, Transient | Ambiguous | Conflict) and type(error) is not ProviderError
        queued = isinstance(error, NoCapacity) and error.queued
        self._complain(was.provider, error.in_full, error)
        self._failures.append((was.provider, error))
        self._lose_leases(now)
        self._order_stop(was.provider, "start_failed", now, firm=queued or not (clean and refused))
        if not self._demanded:
            return self._rest(now)
        return self._start_from(was.provider + 1, now)

    def _is_clean(self, provider: int, attempt: int) -> bool:
        """Nothing that we did can have left a pod running there."""
        return attempt == 1 and provider not in self.sessions and provider not in self.stops.doubts

    def _give_up(self, now: float) -> Rest:
        self.start_wanted = False
        self._refuse_waiting(self._start_error)
        return self._rest(now)

    def _start_error(self) -> GateError:
        last = self._failures[-1][1]
        if isinstance(last, NeverWarm) and len(self.policy.providers) == 1:
            return WarmupTimeout(retry_after_s=self.policy.retry_after_s)
        told = "; ".join(f"{self._name(provider)}: {error.message}" for provider, error in self._failures)
        return PodStartFailed(
            f"pod could not be started: {told}",
            retry_after_s=self.policy.retry_after_s,
            reason=last.reason,
        )

    def _progress(self, was: Provisioning, report: PodReport, up_s: float, now: float) -> OnItsWay:
        """What an accepted start has come to; in `core/warming.py`."""
        raise NotImplementedError
