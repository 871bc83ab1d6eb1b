"""Computes what sessions cost, by provider, user and day, from the ledger's rows. Pure.

Days and months are UTC's. All sums are exact `Decimal`; `round_to_total` rounds at the very end, so that the
parts that are shown sum to the total that is shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_FLOOR, Decimal

from attrs import field, frozen

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

    def days(self) -> Iterator[tuple[date, TimeSpan]]:
        """Yield each UTC day with the part of the span that lies in it."""
        day = self.since.astimezone(UTC).date()
        while (begin := midnight(day)) < self.until:
            yield day, self.within(TimeSpan(begin, begin + DAY))
            day += DAY


@frozen
class TimeAndCost:
    """Seconds of a pod and their cost."""

    seconds: Decimal = ZERO
    cost: Decimal = ZERO

    def __add__(self, other: TimeAndCost) -> TimeAndCost:
        return TimeAndCost(self.seconds + other.seconds, self.cost + other.cost)


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
        by_provider, by_day, by_user: the total, split; each sums to it.
        failed_starts: sessions that never became READY, a part of the total; refused starts are counted, too.
        stopped_disk: an estimate of the disks of stopped pods, not in the total; needs the provider's rate.
        unpriced: how many sessions have no known rate; they are counted at 0.
        other_currencies: of sessions that are left out of all sums.
    """

    sessions: int
    total: TimeAndCost
    by_provider: Sequence[CostGroup]
    by_day: Sequence[CostGroup]
    by_user: Sequence[CostGroup]
    failed_starts: CostGroup
    stopped_disk: TimeAndCost
    unpriced: int = 0
    other_currencies: Sequence[str] = field(factory=tuple)


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


def midnight(day: date) -> datetime:
    """Return the beginning of a day in UTC."""
    return datetime.combine(day, time(), UTC)


def month_of(at: datetime) -> str:
    """Return the UTC month, such as "2026-11"."""
    return f"{at.astimezone(UTC):%Y-%m}"


def month_span(month: str) -> TimeSpan:
    """Return the span of a month ("2026-11") in UTC. Raises ValueError for anything else."""
    first = date.fromisoformat(f"{month}-01")
    following = date(first.year + first.month // 12, first.month % 12 + 1, 1)
    return TimeSpan(midnight(first), midnight(following))


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


def cost_breakdown(
    sessions: Iterable[Session], usage: Iterable[PodUsage], span: TimeSpan, now: datetime, currency: str
) -> CostBreakdown:
    """Compute the costs of a span.

    Args:
        sessions: all that overlap the span, and older ones for the disks of stopped pods.
        usage: of the span.
    """
    rows = list(sessions)
    used: dict[str, list[PodUsage]] = defaultdict(list)
    for use in usage:
        used[use.session_id].append(use)
    providers, days, users = GroupedTotals(), GroupedTotals(), GroupedTotals()
    total, failed, count, unpriced = TimeAndCost(), TimeAndCost(), 0, 0
    failures = sum(row.started_at is None and span.since <= row.asked_at < span.until for row in rows)
    for row in rows:
        stretch = lifetime(row, now).within(span)
        if row.started_at is None or row.currency != currency or not stretch.seconds:
            continue
        part = cost_of(row, stretch)
        total, count, unpriced = total + part, count + 1, unpriced + (row.hourly_rate is None)
        if row.ready_at is None and row.ended_at is not None:
            failed, failures = failed + part, failures + 1
        providers.add(row.provider, part)
        for day, piece in stretch.days():
            days.add(day.isoformat(), cost_of(row, piece))
        by_user = GroupedTotals()
        for line in receipt(row, used[row.id], now, span):
            by_user.add(line.user, line.amount)
        for group in by_user.groups():
            users.add(group.name, group.amount)
    others = {row.currency for row in rows if row.started_at and row.currency != currency}
    return CostBreakdown(
        sessions=count,
        total=total,
        by_provider=providers.groups(),
        by_day=days.groups(),
        by_user=users.groups(),
        failed_starts=CostGroup(name="", amount=failed, sessions=failures),
        stopped_disk=_disks([row for row in rows if row.currency == currency], span, now),
        unpriced=unpriced,
        other_currencies=sorted(others),
    )


class GroupedTotals:
    """Adds up time and cost by name."""

    def __init__(self) -> None:
        self._parts: dict[str, TimeAndCost] = {}
        self._sessions: dict[str, int] = defaultdict(int)

    def add(self, name: str, part: TimeAndCost) -> None:
        """Add one session's part to a name."""
        self._parts[name] = self._parts.get(name, TimeAndCost()) + part
        self._sessions[name] += 1

    def groups(self) -> list[CostGroup]:
        """Return the totals, sorted by name."""
        return [
            CostGroup(name=name, amount=self._parts[name], sessions=self._sessions[name])
            for name in sorted(self._parts)
        ]


def _disks(rows: Sequence[Session], span: TimeSpan, now: datetime) -> TimeAndCost:
    """Return what stopped pods' disks cost: from each session to the same pod's next, at its last rate."""
    total = TimeAndCost()
    lasting: dict[tuple[str, str | None], Session] = {}
    for row in sorted((row for row in rows if row.started_at), key=lambda row: row.began_at):
        pod = row.provider, row.pod_id
        if (before := lasting.get(pod)) is not None:
            total += _disk(before, TimeSpan(before.ended_at or row.began_at, row.began_at).within(span))
        lasting[pod] = row
    for row in lasting.values():
        if row.ended_at is not None:
            total += _disk(row, TimeSpan(row.ended_at, now).within(span))
    return total


def _disk(row: Session, stretch: TimeSpan) -> TimeAndCost:
    if not row.stopped_rate:
        return TimeAndCost()
    return TimeAndCost(stretch.seconds, row.stopped_rate * stretch.seconds / SECONDS_PER_HOUR)


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
