"""The arithmetic of costs: spans of time, days and months, receipts, rounding. Pure; sums over many sessions
are `billing.ledger_sums`.

Days and months are those of `cost.timezone`. All sums are exact `Decimal`; `round_to_total` rounds at the
very end, so that the parts that are shown sum to the total that is shown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import ROUND_FLOOR, Decimal

from attrs import define, field, frozen

from gpugate.billing.model import PodUsage, Session

WARM_UP, IDLE = "(warm-up)", "(idle)"
"""The users of seconds that belong to no request; a token subject is unlikely to look like this."""
SECONDS_PER_HOUR = Decimal(3600)
ZERO = Decimal(0)
QUANTUM = Decimal("0.000001")
"""Amounts are shown rounded to this; a short cold start costs less than a cent."""
DAY = timedelta(days=1)


@frozen
class TimeSpan:
    """A span of time; empty if `until` is not after `since`."""

    since: datetime
    until: datetime

    @property
    def seconds(self) -> Decimal:
        """Its length; 0 if it is empty."""
        return seconds_of(max(timedelta(0), self.until - self.since))

    def within(self, other: TimeSpan) -> TimeSpan:
        """Return the intersection of both."""
        return TimeSpan(max(self.since, other.since), min(self.until, other.until))

    def days(self, zone: tzinfo = UTC) -> Iterator[tuple[date, TimeSpan]]:
        """Yield each day of this time zone, 23 to 25 h long, with the part of the span that lies in it."""
        day = self.since.astimezone(zone).date()
        while (begin := midnight(day, zone)) < self.until:
            yield day, self.within(TimeSpan(begin, midnight(day + DAY, zone)))
            day += DAY


@frozen
class TimeAndCost:
    """Seconds of a pod and their cost."""

    seconds: Decimal = ZERO
    cost: Decimal = ZERO

    def __add__(self, other: TimeAndCost) -> TimeAndCost:
        return TimeAndCost(self.seconds + other.seconds, self.cost + other.cost)


@define
class ReplicaCost:
    """What a session costs whose replicas come and go: each price counts for as long as so many replicas ran.

    Attributes:
        replicas: how many run.
        rate: what they cost together per hour.
        spent: what was spent until the session was `until_s` old, when the number changed last.
    """

    replicas: int = 1
    rate: Decimal | None = None
    spent: Decimal = ZERO
    until_s: float = 0.0

    def change(self, replicas: int, rate: Decimal | None, age_s: float) -> None:
        """Take over what a report says of so old a session; a new price alone counts from its start."""
        if replicas != self.replicas:
            self.spent, self.until_s, self.replicas = self.total(age_s) or ZERO, age_s, replicas
        self.rate = rate

    def total(self, age_s: float) -> Decimal | None:
        """Return what the session has cost until it was so old; None if no price is known."""
        if self.rate is None:
            return self.spent or None
        return self.spent + self.rate * Decimal(str(max(0.0, age_s - self.until_s))) / SECONDS_PER_HOUR

    def mean_rate(self, age_s: float) -> Decimal | None:
        """Return the price per hour that comes to the same over the whole session."""
        if not self.until_s or age_s <= 0 or (total := self.total(age_s)) is None:
            return self.rate
        return round(total * SECONDS_PER_HOUR / Decimal(str(age_s)), 12)


@frozen(kw_only=True)
class CostGroup:
    """The total of one provider, day or user, and how many sessions it is from."""

    name: str
    amount: TimeAndCost
    sessions: int = 0


@frozen(kw_only=True)
class CostBreakdown:
    """The costs of a time span.

    Attributes:
        sessions: billed sessions that overlap the span, failed starts included.
        total: all that was billed while pods were on.
        by_provider, by_pod, by_day, by_user: the total, split; each sums to it.
        failed_starts: sessions that never became READY, a part of the total; refused starts are counted, too.
        stopped_disk: an estimate of the disks of stopped pods, not in the total; needs the provider's rate.
        unpriced: how many sessions have no known rate; they are counted at 0.
        other_currencies: of sessions that are left out of all sums.
        simulated: how many sessions of simulated pods are left out.
        damaged: how many rows of the ledger are left out because they cannot be read.
    """

    sessions: int
    total: TimeAndCost
    by_provider: Sequence[CostGroup]
    by_pod: Sequence[CostGroup]
    by_day: Sequence[CostGroup]
    by_user: Sequence[CostGroup]
    failed_starts: CostGroup
    stopped_disk: TimeAndCost
    unpriced: int = 0
    other_currencies: Sequence[str] = field(factory=tuple)
    simulated: int = 0
    damaged: int = 0


@frozen(kw_only=True)
class CostQuery:
    """What the ledger is asked to add up.

    Attributes:
        span: sessions and usage are counted with what lies in it.
        now: until when open sessions are counted.
        currency: sessions in another one are left out.
        zone: of the days.
        simulated: the providers whose sessions are left out.
    """

    span: TimeSpan
    now: datetime
    currency: str
    zone: tzinfo = UTC
    simulated: Collection[str] = ()


@frozen(kw_only=True)
class ReceiptLine:
    """Seconds of a session: of a request, of a user's short requests in a minute, of warm-up, or idle."""

    user: str
    request_id: str
    requests: int
    amount: TimeAndCost


def seconds_of(length: timedelta) -> Decimal:
    """Return the exact number of seconds."""
    return Decimal(length.days * 86_400 + length.seconds) + Decimal(length.microseconds).scaleb(-6)


def midnight(day: date, zone: tzinfo = UTC) -> datetime:
    """Return the beginning of a day in this time zone, in UTC."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


def month_of(at: datetime, zone: tzinfo = UTC) -> str:
    """Return the month in this time zone, such as "2026-11"."""
    return f"{at.astimezone(zone):%Y-%m}"


def month_span(month: str, zone: tzinfo = UTC) -> TimeSpan:
    """Return the span of a month ("2026-11") of this time zone. Raises ValueError for anything else."""
    first = date.fromisoformat(f"{month}-01")
    following = date(first.year + first.month // 12, first.month % 12 + 1, 1)
    return TimeSpan(midnight(first, zone), midnight(following, zone))


def lifetime(session: Session, now: datetime) -> TimeSpan:
    """Return when the session was billed; an open one until now, or until it was last seen if later."""
    return TimeSpan(
        session.began_at, max(session.began_at, session.ended_at or max(now, session.last_known_at))
    )


def cost_of(session: Session, span: TimeSpan) -> TimeAndCost:
    """Return what this part of a session costs."""
    seconds = span.seconds
    return TimeAndCost(seconds, (session.hourly_rate or ZERO) * seconds / SECONDS_PER_HOUR)


def receipt(
    session: Session, usage: Iterable[PodUsage], now: datetime, within: TimeSpan | None = None
) -> list[ReceiptLine]:
    """Assign each second of a session to a request, to warm-up or to idle time; the lines sum to the total.

    Args:
        usage: of this session.
        within: count only what lies in this span; of usage that extends beyond it, the proportion inside.
    """
    life = lifetime(session, now)
    here = life.within(within or life)
    warm = TimeSpan(life.since, session.ready_at or life.until).within(here)
    left = max(ZERO, here.seconds - warm.seconds)  # the READY time: usage cannot exceed it
    lines = [] if not warm.seconds else [_line(session, WARM_UP, "", 0, warm.seconds)]
    for use in usage:
        seconds = min(left, _seconds_within(use, here))
        left -= seconds
        if seconds:
            lines.append(_line(session, use.user, use.request_id, use.requests, seconds))
    if left:
        lines.append(_line(session, IDLE, "", 0, left))
    return lines


def _line(session: Session, user: str, request_id: str, requests: int, seconds: Decimal) -> ReceiptLine:
    part = TimeAndCost(seconds, (session.hourly_rate or ZERO) * seconds / SECONDS_PER_HOUR)
    return ReceiptLine(user=user, request_id=request_id, requests=requests, amount=part)


def _seconds_within(use: PodUsage, span: TimeSpan) -> Decimal:
    total = TimeSpan(use.began_at, use.ended_at)
    inside = total.within(span).seconds
    if not total.seconds:
        return use.seconds if span.since <= use.began_at < span.until else ZERO
    return max(ZERO, use.seconds) * inside / total.seconds


def round_to_total(total: Decimal, parts: Sequence[Decimal], quantum: Decimal = QUANTUM) -> list[Decimal]:
    """Round the parts so that they sum to the rounded total; the largest remainders are rounded up."""
    rounded = [part.quantize(quantum, ROUND_FLOOR) for part in parts]
    missing = int((total.quantize(quantum) - sum(rounded, ZERO)) / quantum)
    by_remainder = sorted(range(len(parts)), key=lambda index: rounded[index] - parts[index])
    for index in by_remainder[:missing]:
        rounded[index] += quantum
    return rounded


@frozen
class RoundedGroup:
    """The hours and cost of a group, rounded."""

    hours: Decimal
    cost: Decimal


def rounded_groups(groups: Sequence[CostGroup], total: TimeAndCost) -> list[RoundedGroup]:
    """Return the groups' hours and costs, rounded so that they sum to the rounded total."""
    costs = round_to_total(total.cost, [group.amount.cost for group in groups])
    hours = round_to_total(
        total.seconds / SECONDS_PER_HOUR, [group.amount.seconds / SECONDS_PER_HOUR for group in groups]
    )
    return [RoundedGroup(hour, cost) for hour, cost in zip(hours, costs, strict=True)]
