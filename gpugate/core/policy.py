"""The numbers that the state machine decides with, and the settings among them."""
# ruff: noqa: RUF009  (`_setting` declares a field, as attrs.field does)

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from attrs import Attribute, field, frozen

from gpugate.provider_api import Duration, Size


@frozen(kw_only=True)
class ProviderLimits:
    """How often one provider may be polled.

    Attributes:
        name: the provider's name, for messages.
        min_poll_s: shortest time between two inspections at the provider.
        min_probe_s: shortest time between two health probes of its pod.
        time_limit_s: after how long the provider itself ends a pod; 0: never.
        twin: the provider that is the other slot of this one; None: it cannot run two pods.
        is_second: this is the second slot, which is used for a hand-over alone.
    """

    name: str
    min_poll_s: float = 0.0
    min_probe_s: float = 0.0
    time_limit_s: float = 0.0
    twin: int | None = None
    is_second: bool = False


def _more_than_0(_: object, __: Attribute[float], value: float) -> None:
    if not value > 0:
        raise ValueError("must be more than 0")


def _not_negative(_: object, __: Attribute[float], value: float) -> None:
    if not value >= 0:
        raise ValueError("must be at least 0")


def _at_least_1(_: object, __: Attribute[int], value: int) -> None:
    if not value >= 1:
        raise ValueError("must be at least 1")


def _not_blank(_: object, __: Attribute[str], value: str) -> None:
    if not value.strip():
        raise ValueError("must not be empty")


def _model_names(_: object, __: Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    if not all(name.strip() for name in value):
        raise ValueError("must be names of models")


Replicas = Annotated[str, "replicas"]
"""A number or a range, such as "1..4"; the number may also be given as one."""


def replica_range(text: str) -> tuple[int, int]:
    """Return the least and the greatest number of `pod.replicas`. Raises ValueError: it is no range."""
    found = re.fullmatch(r"([1-9][0-9]{0,3})(?:\.\.([1-9][0-9]{0,3}))?", text.strip(), re.ASCII)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if low > high:
        raise ValueError('must be a number or a range, such as "2" or "1..4"')
    return low, high


def _is_replica_range(_: object, __: Attribute[str], value: str) -> None:
    replica_range(value)


def _setting(default: Any, validator: Any, help: str, **more: Any) -> Any:  # noqa: A002
    return field(default=default, validator=validator, metadata={"help": help, **more})


@frozen(kw_only=True, slots=False)
class PodPolicy:
    """The keys of `[pod]` that the state machine uses. Durations are seconds.

    Each field is a key of the configuration: `gpugate.config.schema.Pod` inherits it, with its default, its
    validator, and `help`, the comment in the configuration that `gpugate init` writes.
    """

    idle_timeout: Duration = _setting(
        900.0, _more_than_0, "stop the pod after this long without a running or waiting request"
    )
    start_attempts: int = _setting(
        3, _at_least_1, "per provider, for transient errors, with exponential backoff"
    )
    start_backoff: Duration = _setting(1.0, _more_than_0, "pause after the first failed attempt; doubles")
    start_timeout: Duration = _setting(
        600.0, _more_than_0, "accepted by the provider, but not running after this long: that provider failed"
    )
    capacity_wait: Duration = _setting(
        0.0, _not_negative, "how long to keep asking a provider without a free GPU before the next one"
    )
    warmup_timeout: Duration = _setting(
        180.0, _more_than_0, "the pod runs, but its Ollama is not healthy after this long: the start failed"
    )
    health_interval: Duration = _setting(
        5.0, _more_than_0, "longest time between two checks while the pod starts, warms up or stops"
    )
    reconcile_interval: Duration = _setting(
        30.0, _more_than_0, "time between two looks at the provider while the pod is stopped or ready"
    )
    stop_retry: Duration = _setting(
        5.0, _more_than_0, "pause before an unconfirmed stop is sent again; doubles up to 5 minutes, for ever"
    )
    preload: str = _setting(
        "requested",
        _not_blank,
        'load the model of the first waiting request before the pod is ready; or "none", or a model\'s name',
    )
    pull: tuple[str, ...] = _setting(
        (), _model_names, "models that the pod must have before it is ready; it pulls those that are missing"
    )
    pull_timeout: Duration = _setting(
        1800.0, _more_than_0, "of all pulls of one start together; beside warmup_timeout"
    )
    max_session: Duration = _setting(0.0, _not_negative, "hard limit of one paid session; 0 = none")
    drain_grace: Duration = _setting(
        30.0, _not_negative, "how long running answers get at the end of max_session, before the stop"
    )
    retry_after: Duration = _setting(60.0, _more_than_0, "Retry-After of the 503 after a failed start")
    replicas: Replicas = _setting(
        "1", _is_replica_range, 'copies of the engine, such as "1..4": as many as needed; for some providers'
    )
    target_in_flight: int = _setting(
        8, _at_least_1, "waiting and running requests for each replica; more: another one is asked for"
    )
    max_hourly_rate: Decimal = _setting(
        Decimal("0.0"), _not_negative, "most that all replicas may cost per hour together; 0 = no limit"
    )


@frozen(kw_only=True, slots=False)
class QueuePolicy:
    """The keys of `[queue]` that the state machine uses; see `PodPolicy`."""

    max_waiting: int = _setting(100, _at_least_1, "one more waiting request is refused: 503 QUEUE_FULL")
    max_bytes: Size = _setting(
        512 * 1024 * 1024,
        _at_least_1,
        "of the bodies of all requests that wait or are read in order to wait; one more: 503 QUEUE_FULL",
        text="512MiB",
    )
    max_wait: Duration = _setting(600.0, _more_than_0, "a request that waits longer gets 503 QUEUE_TIMEOUT")
    drain_concurrency: int = _setting(
        1, _at_least_1, "held requests forwarded at once when the pod is ready; more for engines that batch"
    )


@frozen(kw_only=True)
class Policy(PodPolicy, QueuePolicy):
    """Every number the state machine decides with: the settings, and constants that are no settings."""

    providers: tuple[ProviderLimits, ...]
    shutdown_grace: float = 5.0  # server.shutdown_grace
    fallback_hourly_rate: Decimal | None = None  # cost.hourly_rate: of one replica, where none is reported

    jitter: float = 0.2  # of a backoff, in both directions
    max_backoff_s: float = 60.0
    max_rate_limit_s: float = 60.0  # a longer Retry-After of a provider is cut to this
    capacity_retry_s: float = 15.0  # for a provider without a free GPU (docs/providers.md#errors-and-retries)
    max_stop_retry_s: float = 300.0
    stopping_grace_s: float = 60.0  # a pod that reports STOPPING gets no second stop for this long
    preload_limit_s: float = 300.0  # Ollama's own default of OLLAMA_LOAD_TIMEOUT
    min_inspect_interval_s: float = 0.1
    min_probe_interval_s: float = 0.05
    poll_fraction: float = 0.005  # the next poll comes after this share of the time waited so far

    def session_limit_s(self, provider: int) -> float:
        """Return how long a session may last there, by `pod.max_session` or the provider; 0: for ever."""
        limits = (self.max_session, self.providers[provider].time_limit_s)
        return min((limit for limit in limits if limit), default=0.0)

    def admission_limit_s(self, provider: int) -> float:
        """Return for how long of a session requests are admitted; 0: without a limit.

        Running answers get `drain_grace` then. Where the provider ends the pod itself, or another one takes
        over, that is before the limit.
        """
        limit, limits = self.session_limit_s(provider), self.providers[provider]
        ends_in_time = limits.time_limit_s or limits.twin is not None
        return max(limit / 2, limit - self.drain_grace) if ends_in_time else limit

    @property
    def first_slots(self) -> int:
        """How many providers a start may ask: the second slots are last in the list."""
        return sum(not limits.is_second for limits in self.providers)

    def backoff_s(self, attempt: int, random_fraction: float) -> float:
        """Return the pause after failed attempt `attempt`, from 1; `random_fraction` is in [0, 1)."""
        pause: float = min(self.start_backoff * 2.0 ** (attempt - 1), self.max_backoff_s)
        return pause * (1 + self.jitter * (2 * random_fraction - 1))

    def stop_retry_delay_s(self, sent_count: int) -> float:
        """Return the pause before a stop is sent again that was sent `sent_count` times unconfirmed."""
        return float(min(self.stop_retry * 2 ** min(sent_count - 1, 30), self.max_stop_retry_s))

    def inspect_interval_s(self, provider: int, waited_s: float) -> float:
        """Return the pause before the next inspection of a pod that has been changing for `waited_s`.

        It grows with the wait, so that a change is seen with little delay and few calls: a start of 6 s is
        polled every 0.1 s near its end, one of 90 s every 0.45 s; never less often than `health_interval`.
        """
        interval = max(self.min_inspect_interval_s, self.poll_fraction * waited_s)
        return max(min(interval, self.health_interval), self.providers[provider].min_poll_s)

    def probe_interval_s(self, provider: int, waited_s: float) -> float:
        """Return the pause before the next health probe of a pod that has been starting for `waited_s`."""
        interval = max(self.min_probe_interval_s, self.poll_fraction * waited_s)
        return max(min(interval, self.health_interval), self.providers[provider].min_probe_s)

    def boot_interval_s(self, provider: int) -> float:
        """Return the pause before the next inspection while the gateway does not know yet what runs."""
        return max(self.health_interval, self.providers[provider].min_poll_s)

    def reconcile_interval_s(self, provider: int) -> float:
        """Return the pause before the next inspection of a provider at which no change is expected."""
        return max(self.reconcile_interval, self.providers[provider].min_poll_s)
