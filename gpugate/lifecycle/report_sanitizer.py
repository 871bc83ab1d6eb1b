"""Removes from a provider's reports the start times and prices that cannot be true."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from attrs import define, evolve, field

from gpugate.billing.model import StartTimeBound
from gpugate.core.pending_stops import STOPPED_PHASES
from gpugate.provider_api import Phase, PodReport, Price

MAX_RATE_PER_HOUR = Decimal(1_000_000)
"""In any currency; a higher price is a provider's mistake."""

MAX_AGE = timedelta(days=366)
"""A start time that is older counts as unknown, such as second 0 of 1970."""

CLOCK_SKEW = timedelta(seconds=2)
"""A start time that is too early by no more is corrected without a warning: clocks differ by so much, and a
provider may round to whole seconds."""

_BILLED_PHASES = frozenset({Phase.PROVISIONING, Phase.STARTING, Phase.RUNNING, Phase.STOPPING})


@define
class ReportSanitizer:
    """Sanitizes the reports of one provider, and warns once of each fault.

    Attributes:
        wall: the calendar.
        boottime: the clock that is never set, in seconds.
        warn: takes one line for people.
        start_bound: what the ledger knows of the beginning of the run in a report.
    """

    wall: Callable[[], datetime]
    boottime: Callable[[], float]
    warn: Callable[[str], None]
    start_bound: Callable[[PodReport], StartTimeBound] = lambda _: StartTimeBound()
    _seen_off_at: float | None = None
    _warned: set[str] = field(factory=set)
    _disbelieved: datetime | None = None

    def sanitize_inspection(self, report: PodReport) -> PodReport:
        """Sanitize the result of an inspection; a stopped pod's next run begins after it."""
        if report.phase in STOPPED_PHASES:
            self._seen_off_at = self.boottime()
        return self.sanitize(report)

    def sanitize(self, report: PodReport) -> PodReport:
        """Return the report of any call without what cannot be true."""
        price, started_at = self._price(report.price), self._started_at(report)
        if price is report.price and started_at is report.started_at:
            return report
        return evolve(report, price=price, started_at=started_at)

    # A reported start time, in this order:
    #
    # 1. None: unknown.
    # 2. Older than `MAX_AGE`, and the ledger has no bound: unknown.
    # 3. In the future: the provider's clock is ahead and the run is new, so it counts from now (None).
    # 4. Not before the last instant at which the pod is known to have been off (by an inspection or by the
    #    ledger, the later): it is believed.
    # 5. Otherwise it is replaced by the bound, with a warning if the pod is billed and the clocks' skew does
    #    not explain it. The ledger's instant may lie in the future where the calendar was set back.
    def _started_at(self, report: PodReport) -> datetime | None:
        said = report.started_at
        if said is None:  # 1
            return None
        now, bound = self.wall(), self.start_bound(report)
        if bound.earliest is None and now - said > MAX_AGE:  # 2
            self._warn_once("started_at", f"it says that its pod runs since {said:%Y-%m-%d}: not believed")
            return None
        if said > now:  # 3
            return None
        earliest, what = bound.earliest, bound.source
        seen_off = self._seen_off(now)
        if seen_off is not None and (earliest is None or seen_off > earliest):
            earliest, what = seen_off, f"it was seen stopped at {_in_utc(seen_off)}"
        if earliest is None or said >= earliest:  # 4
            return said
        since = min(max(earliest, bound.fallback or earliest), now)  # 5
        if report.phase in _BILLED_PHASES and earliest - said > CLOCK_SKEW and said != self._disbelieved:
            self._disbelieved = said
            self.warn(
                f"it says that its pod runs since {_in_utc(said)}, but {what}:"
                f" not believed, billed from {_in_utc(since)}"
            )
        return since

    def _seen_off(self, now: datetime) -> datetime | None:
        """Return when the last inspection showed the pod off, by today's calendar."""
        if self._seen_off_at is None:
            return None
        return now - timedelta(seconds=max(0.0, self.boottime() - self._seen_off_at))

    def _price(self, said: Price | None) -> Price | None:
        if said is None:
            return None
        running, stopped = self._amount(said.running_per_hour), self._amount(said.stopped_per_hour)
        if running is said.running_per_hour and stopped is said.stopped_per_hour:
            return said
        return None if running is None else evolve(said, running_per_hour=running, stopped_per_hour=stopped)

    def _amount(self, said: Decimal | None) -> Decimal | None:
        if said is None or (said.is_finite() and 0 <= said <= MAX_RATE_PER_HOUR):
            return said
        self._warn_once("price", f"it says that its pod costs {said} an hour: not believed")
        return None

    def _warn_once(self, what: str, line: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self.warn(line)


def _in_utc(at: datetime) -> str:
    return f"{at.astimezone(UTC):%F %T} UTC"
