"""The numbers the machine decides with; where they are read from is not known here."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class Pace:
    """How often one provider may be asked.

    Attributes:
        name: the provider's name, for messages.
        min_poll_s: shortest pause between two looks at the provider.
        min_probe_s: shortest pause between two health checks of its pod.
    """

    name: str
    min_poll_s: float = 0.0
    min_probe_s: float = 0.0


@frozen(kw_only=True)
class Policy:
    """The settings `[pod]`, `[queue]` and `[server]`, in seconds; 0 is "none" where that is said."""

    providers: tuple[Pace, ...]
    idle_timeout_s: float = 900.0
    start_attempts: int = 3
    start_backoff_s: float = 1.0
    start_timeout_s: float = 600.0
    capacity_wait_s: float = 0.0
    warmup_timeout_s: float = 180.0
    health_interval_s: float = 5.0
    reconcile_interval_s: float = 30.0
    stop_retry_s: float = 5.0
    preload: str = "requested"
    max_session_s: float = 0.0  # 0 = none
    retry_after_s: float = 60.0
    max_waiting: int = 100
    max_wait_s: float = 600.0
    drain_concurrency: int = 1
    shutdown_grace_s: float = 5.0

    # Not settings: each has its source.
    jitter: float = 0.2  # contract, pod.start_attempts: at most ±20 %
    longest_backoff_s: float = 60.0
    longest_rate_limit_s: float = 60.0  # contract, pod.start_attempts: a Retry-After is kept up to this
    capacity_pause_s: float = 15.0  # docs/providers.md#errors-and-retries: the slow poll of a full host
    longest_stop_retry_s: float = 300.0  # contract, pod.stop_retry: doubles up to 5 minutes
    stopping_patience_s: float = 60.0  # a pod that says it is stopping is not told again for so long
    preload_limit_s: float = 300.0  # Ollama's own OLLAMA_LOAD_TIMEOUT
    soonest_look_s: float = 0.1
    soonest_probe_s: float = 0.05
    eagerness: float = 0.005  # the next look comes after this share of the time waited so far

    def backoff_s(self, attempt: int, chance: float) -> float:
        """The pause after failed attempt `attempt` (from 1), with `chance` in [0, 1) as the jitter's die."""
        pause: float = min(self.start_backoff_s * 2.0 ** (attempt - 1), self.longest_backoff_s)
        return pause * (1 + self.jitter * (2 * chance - 1))

    def stop_pause_s(self, sent: int) -> float:
        """The pause after the stop was sent `sent` times without proof."""
        return float(min(self.stop_retry_s * 2 ** min(sent - 1, 30), self.longest_stop_retry_s))

    def look_pause_s(self, provider: int, waited_s: float) -> float:
        """The pause until the next look at a provider that has been at it for `waited_s`.

        Readiness is seen soon after it comes, in proportion to the wait: a start of 6 s is looked at
        every 0.1 s near its end, one of 90 s every 0.45 s, and never slower than `health_interval`.
        """
        eager = max(self.soonest_look_s, self.eagerness * waited_s)
        return max(min(eager, self.health_interval_s), self.providers[provider].min_poll_s)

    def probe_pause_s(self, provider: int, waited_s: float) -> float:
        """The pause between two health checks of a pod that has been starting for `waited_s`."""
        eager = max(self.soonest_probe_s, self.eagerness * waited_s)
        return max(min(eager, self.health_interval_s), self.providers[provider].min_probe_s)

    def watch_pause_s(self, provider: int) -> float:
        """The pause between two looks at a provider where nothing is expected to happen."""
        return max(self.reconcile_interval_s, self.providers[provider].min_poll_s)
