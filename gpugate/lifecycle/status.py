"""What there is to know of the pod, put together for people; decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal

from attrs import define, field, frozen

from gpugate.billing.cost_math import SECONDS_PER_HOUR
from gpugate.core.states import Status
from gpugate.provider_api import PodReport, Price


@frozen(kw_only=True)
class PodStatus:
    """`GET /api/v1/gpu/status` (docs/api.md#pod-status); None is unknown."""

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
    last_error: str | None


@define
class PaidStretch:
    """A session that is open: since when, at which provider, and what was last said of its pod.

    Attributes:
        began_at, began: by the calendar, and by the steady clock, which nobody sets.
    """

    run: int
    provider: str
    began_at: datetime
    began: float
    report: PodReport


@define
class Record:
    """What the lifecycle remembers of what it saw, for status and news.

    Attributes:
        since: when the present status began.
        stretches: the open sessions by provider.
        last_start_s: how long the last start took from the first ask to READY.
        rates: the newest price per hour of each provider's pod, running or not.
    """

    wall: Callable[[], datetime]
    steady: Callable[[], float]
    fallback: Price
    since: datetime = field(init=False)
    stretches: dict[str, PaidStretch] = field(factory=dict)
    last_start_s: float | None = None
    rates: dict[str, Decimal] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.since = self.wall()

    def age_s(self, report: PodReport) -> float:
        """How long the provider has billed this pod already, by its own word; 0 where it does not say."""
        if report.started_at is None or report.started_at.tzinfo is None:
            return 0.0
        return max(0.0, (self.wall() - report.started_at).total_seconds())

    def open(self, run: int, provider: str, report: PodReport, up_s: float) -> PaidStretch:
        """A session began `up_s` ago."""
        began_at = self.wall() - timedelta(seconds=up_s)
        stretch = PaidStretch(run, provider, began_at, self.steady() - up_s, report)
        self.stretches[provider] = stretch
        return stretch

    def observe(self, provider: str, report: PodReport) -> None:
        """Keep the newest word on a pod; what it leaves out stays as it was known."""
        if report.price is not None and report.price.running_per_hour is not None:
            self.rates[provider] = report.price.running_per_hour
        stretch = self.stretches.get(provider)
        if stretch is not None:
            known = stretch.report
            stretch.report = PodReport(
                phase=report.phase,
                pod_id=report.pod_id or known.pod_id,
                endpoints=report.endpoints or known.endpoints,
                price=report.price or known.price,
                gpu=report.gpu or known.gpu,
                started_at=report.started_at or known.started_at,
                detail=report.detail,
            )

    def rate(self, stretch: PaidStretch) -> Decimal | None:
        """What this session costs per hour: the provider's word, else the configured rate."""
        price = stretch.report.price
        if price is not None and price.running_per_hour is not None:
            return price.running_per_hour
        return self.fallback.running_per_hour

    def uptime(self, stretch: PaidStretch) -> timedelta:
        """How long this session has been billed, whatever is done to the calendar."""
        return timedelta(seconds=max(0.0, self.steady() - stretch.began))

    def cost(self, stretch: PaidStretch) -> Decimal | None:
        """What this session has cost so far, unrounded."""
        rate = self.rate(stretch)
        if rate is None:
            return None
        return rate * Decimal(str(self.uptime(stretch).total_seconds())) / SECONDS_PER_HOUR
