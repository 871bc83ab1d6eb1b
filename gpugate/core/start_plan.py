"""The run in progress: which provider is asked next, what has failed so far, and how long to back off.

A run goes from the decision to start a pod to the end of that pod. It asks the providers in their configured
order, each up to `pod.start_attempts` times.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen

from gpugate.core.commands import StartCause
from gpugate.core.pending_stops import PendingStops
from gpugate.core.policy import Policy
from gpugate.errors import GateError, PodStartFailed, ProviderError, RateLimited, WarmupTimeout


class WarmupTimedOut(ProviderError):
    """The pod ran for `pod.warmup_timeout`, and its Ollama never answered."""

    reason = "timeout"


class PullFailed(ProviderError):
    """The pod could not pull the model that the first waiting request wants."""

    reason = "model"


@frozen
class StartCall:
    """The latest call of `start()`, and why it was made."""

    op: int
    provider: int
    run_id: int
    cause: StartCause


@define
class StartPlan:
    """State of the run in progress, and of the latest one while none is.

    Attributes:
        random_fraction: returns a number in [0, 1), for the jitter of a backoff.
        run_id: the latest run; 0 before the first.
        start_requested: a pod is wanted although no request waits: a manual start, or a prewarm.
        resume_at_provider: where the run goes on once a stop there is confirmed; None if it does not wait.
        leaving_provider: where the pod still answers that was handed over; it is asked for no start.
        last_call: the latest call of `start()`.
        failures: the providers that were left in this run, each with its error.
    """

    policy: Policy
    pending_stops: PendingStops
    random_fraction: Callable[[], float]
    run_id: int = 0
    start_requested: bool = False
    resume_at_provider: int | None = None
    leaving_provider: int | None = None
    last_call: StartCall | None = None
    failures: list[tuple[int, ProviderError]] = field(factory=list)
    _call_is_out: bool = False
    _rate_limited: int = 0  # 429 answers in a row

    def new_run(self) -> int:
        """Begin a run; return its id."""
        self.run_id += 1
        self._rate_limited = 0
        self.failures = []
        return self.run_id

    # --- calls of start() ---------------------------------------------------------------------

    def called(self, call: StartCall) -> None:
        """Note that `start()` is called."""
        self.last_call, self._call_is_out = call, True

    def take_result(self, op: int) -> StartCall | None:
        """Return, once, the latest call if this is its result."""
        call = self.last_call
        if call is None or call.op != op or not self._call_is_out:
            return None
        self._call_is_out = False
        return call

    # --- which provider -----------------------------------------------------------------------

    def next_free_provider(self, first: int) -> int | None:
        """Return the next provider from `first` on that can be asked to start now.

        A provider whose pod is being stopped cannot be asked: the search ends there, because that stop may be
        confirmed at any moment, unless the stop is stuck. None if no provider is left.
        """
        for provider in range(first, self.policy.first_slots):
            stop = self.pending_stops.by_provider.get(provider)
            if provider == self.leaving_provider:
                return None
            if stop is None or stop.may_start_again:
                return provider
            if not self.is_stop_stuck(provider):
                return None
        return None

    def is_stop_stuck(self, provider: int) -> bool:
        """Return whether its stop was sent twice unconfirmed, and other providers are configured."""
        stop = self.pending_stops.by_provider.get(provider)
        return stop is not None and stop.sent_count >= 2 and len(self.policy.providers) > 1

    def all_stuck_from(self, first: int) -> bool:
        """Return whether every provider from `first` on has a stuck stop; True if none is left."""
        return all(map(self.is_stop_stuck, range(first, self.policy.first_slots)))

    # --- failures -----------------------------------------------------------------------------

    def backoff_s(self, attempt: int) -> float:
        """Return the pause after failed attempt `attempt`, with jitter."""
        return self.policy.backoff_s(attempt, self.random_fraction())

    def rate_limit_delay_s(self, error: RateLimited) -> float:
        """Count a 429 and return the pause: what the provider asks for, else a backoff; bounded."""
        self._rate_limited += 1
        pause = error.retry_after or self.backoff_s(self._rate_limited)
        return min(pause, self.policy.max_rate_limit_s)

    def not_rate_limited(self) -> None:
        """Note a result that is no 429."""
        self._rate_limited = 0

    def error(self) -> GateError:
        """Return the error for requests whose start failed at every provider."""
        last = self.failures[-1][1]
        if isinstance(last, WarmupTimedOut) and len(self.policy.providers) == 1:
            return WarmupTimeout(last.message, retry_after_s=self.policy.retry_after)
        reasons = "; ".join(
            f"{self.policy.providers[provider].name}: {error.message}" for provider, error in self.failures
        )
        return PodStartFailed(
            f"pod could not be started: {reasons}",
            retry_after_s=self.policy.retry_after,
            reason=last.reason,
        )
