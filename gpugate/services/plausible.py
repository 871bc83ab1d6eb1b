"""What of a provider's report can be so: the times and prices that money is counted with. Nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal

from attrs import define, evolve, field

from gpugate.core.stops import PROOF
from gpugate.ports.provider import PodReport, Price

DEAREST_PER_HOUR = Decimal(1_000_000)
"""No pod costs more in any currency; what a plugin tells above it is a mistake."""

OLDEST = timedelta(days=366)
"""A run that is said to be older is taken for one whose beginning nobody knows, such as second 0 of 1970."""


@define
class Plausible:
    """One provider's reports, with what cannot be so taken out and told once.

    Attributes:
        wall, steady: the calendar, and the seconds of a clock that nobody sets.
        warn: tells people, in one line.
    """

    wall: Callable[[], datetime]
    steady: Callable[[], float]
    warn: Callable[[str], None]
    _off: float | None = None
    _told: set[str] = field(factory=set)

    def seen(self, report: PodReport) -> PodReport:
        """What a look showed; a pod that is off did not begin its next run before."""
        if report.phase in PROOF:
            self._off = self.steady()
        return self.said(report)

    def said(self, report: PodReport) -> PodReport:
        """What came back from any call."""
        price, started_at = self._price(report.price), self._started_at(report.started_at)
        if price is report.price and started_at is report.started_at:
            return report
        return evolve(report, price=price, started_at=started_at)

    def _started_at(self, said: datetime | None) -> datetime | None:
        """Never in the future, and never before the look that proved the last run's end."""
        if said is None:
            return None
        now = self.wall()
        if now - said > OLDEST:
            self._warn("started_at", f"it says that its pod runs since {said:%Y-%m-%d}: not believed")
            return None
        if said > now:  # its clock is ahead: the run is new, and counts from when it was seen
            return None
        if self._off is None:
            return said
        return max(said, now - timedelta(seconds=max(0.0, self.steady() - self._off)))

    def _price(self, said: Price | None) -> Price | None:
        if said is None:
            return None
        running, stopped = self._amount(said.running_per_hour), self._amount(said.stopped_per_hour)
        if running is said.running_per_hour and stopped is said.stopped_per_hour:
            return said
        return None if running is None else evolve(said, running_per_hour=running, stopped_per_hour=stopped)

    def _amount(self, said: Decimal | None) -> Decimal | None:
        if said is None or (said.is_finite() and 0 <= said <= DEAREST_PER_HOUR):
            return said
        self._warn("price", f"it says that its pod costs {said} an hour: not believed")
        return None

    def _warn(self, what: str, line: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self.warn(line)
