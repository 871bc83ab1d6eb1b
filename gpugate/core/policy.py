"""The numbers the machine decides with; where they are read from is not known here."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class ProviderLimits:
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

    providers: tuple[ProviderLimits, ...]
    idle_timeout: float = 900.0
    start_attempts: int = 3
    start_backoff: float = 1.0
    start_timeout: float = 600.0
    capacity_wait: float = 0.0
    warmup_timeout: float = 180.0
    health_interval: float = 5.0
    reconcile_interval: float = 30.0
    stop_retry: float = 5.0
    preload: str = "requested"
    max_session: float = 0.0  # 0 = none
    retry_after: float = 60.0
    max_waiting: int = 100
    max_wait: float = 600.0
    drain_concurrency: int = 1
    shutdown_grace: float = 5.0

    # Not settings: each has its source.
    jitter: float = 0.2  # contract, pod.start_attempts: at most ±20 %
    max_backoff_s: float = 60.0
    max_rate_limit_s: float = 60.0  # contract, pod.start_attempts: a Retry-After is kept up to this
    capacity_retry_s: float = 15.0  # docs/providers.md#errors-and-retries: the slow poll of a full host
    max_stop_retry_s: float = 300.0  # contract, pod.stop_retry: doubles up to 5 minutes
    stopping_grace_s: float = 60.0  # a pod that says it is stopping is not told again for so long
    preload_limit_s: float = 300.0  # Ollama's own OLLAMA_LOAD_TIMEOUT
    min_inspect_interval_s: float = 0.1
    min_probe_interval_s: float = 0.05
    poll_fraction: float = 0.005  # the next look comes after this share of the time waited so far

    def backoff_s(self, attempt: int, chance: float) -> float:
        """The pause after failed attempt `attempt` (from 1), with `chance` in [0, 1) as the jitter's die."""
        pause: float = min(self.start_backoff * 2.0 ** (attempt - 1), self.max_backoff_s)
        return pause * (1 + self.jitter * (2 * chance - 1))

    def stop_retry_delay_s(self, sent: int) -> float:
        """The pause after the stop was sent `sent` times without proof."""
        return float(min(self.stop_retry * 2 ** min(sent - 1, 30), self.max_stop_retry_s))

    def inspect_interval_s(self, provider: int, waited_s: float) -> float:
        """The pause until the next look at a provider that has been at it for `waited_s`.

        Readiness is seen soon after it comes, in proportion to the wait: a start of 6 s is looked at
        every 0.1 s near its end, one of 90 s every 0.45 s, and never slower than `health_interval`.
        """
        eager = max(self.min_inspect_interval_s, self.poll_fraction * waited_s)
        return max(min(eager, self.health_interval), self.providers[provider].min_poll_s)

    def probe_interval_s(self, provider: int, waited_s: float) -> float:
        """The pause between two health checks of a pod that has been starting for `waited_s`."""
        eager = max(self.min_probe_interval_s, self.poll_fraction * waited_s)
        return max(min(eager, self.health_interval), self.providers[provider].min_probe_s)

    def reconcile_interval_s(self, provider: int) -> float:
        """The pause between two looks at a provider where nothing is expected to happen."""
        return max(self.reconcile_interval, self.providers[provider].min_poll_s)
