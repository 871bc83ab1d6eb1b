"""What of a provider's report can be so: the times and prices that money is counted with. Nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from attrs import define, evolve, field

from gpugate.billing.model import StartTimeBound
from gpugate.core.pending_stops import STOPPED_PHASES
from gpugate.provider_api import Phase, PodReport, Price

DEAREST_PER_HOUR = Decimal(1_000_000)
"""No pod costs more in any currency; what a plugin tells above it is a mistake."""

OLDEST = timedelta(days=366)
"""A run that is said to be older is taken for one whose beginning nobody knows, such as second 0 of 1970."""

CLOCK_SKEW = timedelta(seconds=2)
"""A start time that is too early by no more is set right without a word: clocks differ by so much, and a
provider may round to whole seconds."""

StartBoundOf = Callable[[PodReport], StartTimeBound]
_ALIVE = frozenset({Phase.PROVISIONING, Phase.STARTING, Phase.RUNNING, Phase.STOPPING})


def no_bound(_: PodReport) -> StartTimeBound:
    """Where there is no ledger."""
    return StartTimeBound()


@define
class Plausible:
    """One provider's reports, with what cannot be so taken out and told once.

    Attributes:
        wall, steady: the calendar, and the seconds of a clock that nobody sets.
        warn: tells people, in one line.
        bound: what the ledger knows of the beginning of the run in a report.
    """

    wall: Callable[[], datetime]
    steady: Callable[[], float]
    warn: Callable[[str], None]
    bound: StartBoundOf = no_bound
    _off: float | None = None
    _told: set[str] = field(factory=set)
    _doubted: datetime | None = None

    def seen(self, report: PodReport) -> PodReport:
        """What a look showed; a pod that is off did not begin its next run before."""
        if report.phase in STOPPED_PHASES:
            self._off = self.steady()
        return self.said(report)

    def said(self, report: PodReport) -> PodReport:
        """What came back from any call."""
        price, started_at = self._price(report.price), self._started_at(report)
        if price is report.price and started_at is report.started_at:
            return report
        return evolve(report, price=price, started_at=started_at)

    def _started_at(self, report: PodReport) -> datetime | None:
        """Never in the future, and never before the last run's end: seen by us, or in the ledger."""
        said = report.started_at
        if said is None:
            return None
        now, bound = self.wall(), self.bound(report)
        if bound.earliest is None and now - said > OLDEST:
            self._warn("started_at", f"it says that its pod runs since {said:%Y-%m-%d}: not believed")
            return None
        if said > now:  # its clock is ahead: the run is new, and counts from when it was seen
            return None
        earliest, what = bound.earliest, bound.source
        seen_off = self._seen_off(now)
        if seen_off is not None and (earliest is None or seen_off > earliest):
            earliest, what = seen_off, f"it was seen stopped at {_in_utc(seen_off)}"
        if earliest is None or said >= earliest:
            return said
        # An instant of the ledger may lie ahead where the calendar was set back since.
        since = min(max(earliest, bound.fallback or earliest), now)
        if report.phase in _ALIVE and earliest - said > CLOCK_SKEW and said != self._doubted:
            self._doubted = said
            self.warn(
                f"it says that its pod runs since {_in_utc(said)}, but {what}:"
                f" not believed, billed from {_in_utc(since)}"
            )
        return since

    def _seen_off(self, now: datetime) -> datetime | None:
        """When the last look that showed the pod off was, by the calendar of now."""
        if self._off is None:
            return None
        return now - timedelta(seconds=max(0.0, self.steady() - self._off))

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


def _in_utc(at: datetime) -> str:
    return f"{at.astimezone(UTC):%F %T} UTC"
