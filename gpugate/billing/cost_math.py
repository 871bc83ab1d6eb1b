"""What sessions cost, in whose name, and on which day: arithmetic on the ledger's rows; no disk, no clock.

Days and months are those of UTC, whatever the machine's own time zone is. Everything is exact `Decimal`
here; `round_to_total` rounds at the very end, so that the parts that are shown sum to the whole that is
shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_FLOOR, Decimal

from attrs import field, frozen

from gpugate.billing.model import PodUsage, Session

WARM_UP, IDLE = "(warm-up)", "(idle)"
"""Whose the seconds are that no request answers for; no token subject looks like this by chance."""
SECONDS_PER_HOUR = Decimal(3600)
ZERO = Decimal(0)
QUANTUM = Decimal("0.000001")
"""What is shown is rounded so; a cold start of the demo costs less than a cent."""
DAY = timedelta(days=1)


@frozen
class TimeSpan:
    """From an instant to another; empty if they are the wrong way round."""

    since: datetime
    until: datetime

    @property
    def seconds(self) -> Decimal:
        """Its length."""
        return seconds_of(max(timedelta(0), self.until - self.since))

    def within(self, other: TimeSpan) -> TimeSpan:
        """What both have in common."""
        return TimeSpan(max(self.since, other.since), min(self.until, other.until))

    def days(self) -> Iterator[tuple[date, TimeSpan]]:
        """Its parts between midnights."""
        day = self.since.astimezone(UTC).date()
        while (begin := midnight(day)) < self.until:
            yield day, self.within(TimeSpan(begin, begin + DAY))
            day += DAY


@frozen
class TimeAndCost:
    """Seconds of a pod, and what they cost."""

    seconds: Decimal = ZERO
    cost: Decimal = ZERO

    def __add__(self, other: TimeAndCost) -> TimeAndCost:
        return TimeAndCost(self.seconds + other.seconds, self.cost + other.cost)


@frozen(kw_only=True)
class CostGroup:
    """What belongs to one provider, day or user; `sessions` have some part in it."""

    name: str
    amount: TimeAndCost
    sessions: int = 0


@frozen(kw_only=True)
class CostBreakdown:
    """What a span of time cost.

    Attributes:
        sessions: billed sessions with some part in it, failed starts included.
        total: all that was billed while pods were on.
        by_provider, by_day, by_user: the whole, split; each sums to it.
        failed_starts: sessions that never became READY; a part of the whole, and starts that were refused.
        stopped_disk: an estimate of what stopped pods' disks cost beside the whole, where a provider tells.
        unpriced: sessions whose rate nobody told; they cost nothing here.
        other_currencies: of sessions that are left out of every sum.
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
    """Seconds of a session: of a request, of a user's short ones of a minute, of warm-up, or idle."""

    user: str
    request_id: str
    requests: int
    amount: TimeAndCost


def seconds_of(length: timedelta) -> Decimal:
    """Seconds, to the microsecond."""
    return Decimal(length.days * 86_400 + length.seconds) + Decimal(length.microseconds).scaleb(-6)


def midnight(day: date) -> datetime:
    """The beginning of a day in UTC."""
    return datetime.combine(day, time(), UTC)


def month_of(at: datetime) -> str:
    """Such as "2026-11", in UTC."""
    return f"{at.astimezone(UTC):%Y-%m}"


def month_span(month: str) -> TimeSpan:
    """A month ("2026-11") in UTC. Raises ValueError for anything else."""
    first = date.fromisoformat(f"{month}-01")
    following = date(first.year + first.month // 12, first.month % 12 + 1, 1)
    return TimeSpan(midnight(first), midnight(following))


def lifetime(session: Session, now: datetime) -> TimeSpan:
    """When it was billed; an open one until now, or its last sign of life: a clock may be set back."""
    return TimeSpan(
        session.began_at, max(session.began_at, session.ended_at or max(now, session.last_known_at))
    )


def cost_of(session: Session, span: TimeSpan) -> TimeAndCost:
    """What this stretch of a session costs."""
    seconds = span.seconds
    return TimeAndCost(seconds, (session.hourly_rate or ZERO) * seconds / SECONDS_PER_HOUR)


def receipt(
    session: Session, uses: Iterable[PodUsage], now: datetime, within: TimeSpan | None = None
) -> list[ReceiptLine]:
    """Whose every second of a session is; the parts sum to the whole.

    Args:
        uses: of this session.
        within: only what lies there; a use that begins or ends outside counts by the share that lies inside.
    """
    life = lifetime(session, now)
    here = life.within(within or life)
    warm = TimeSpan(life.since, session.ready_at or life.until).within(here)
    left = max(ZERO, here.seconds - warm.seconds)  # what was READY: no use can be more than that
    lines = [] if not warm.seconds else [_line(session, WARM_UP, "", 0, warm.seconds)]
    for use in uses:
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
    whole = TimeSpan(use.began_at, use.ended_at)
    inside = whole.within(span).seconds
    if not whole.seconds:
        return use.seconds if span.since <= use.began_at < span.until else ZERO
    return max(ZERO, use.seconds) * inside / whole.seconds


def cost_breakdown(
    sessions: Iterable[Session], uses: Iterable[PodUsage], span: TimeSpan, now: datetime, currency: str
) -> CostBreakdown:
    """What this span cost.

    Args:
        sessions: all that have some part in the span, and older ones for the disks of stopped pods.
        uses: of the span.
    """
    rows = list(sessions)
    used: dict[str, list[PodUsage]] = defaultdict(list)
    for use in uses:
        used[use.session_id].append(use)
    providers, days, users = GroupedTotals(), GroupedTotals(), GroupedTotals()
    whole, failed, count, unpriced = TimeAndCost(), TimeAndCost(), 0, 0
    failures = sum(row.started_at is None and span.since <= row.asked_at < span.until for row in rows)
    for row in rows:
        stretch = lifetime(row, now).within(span)
        if row.started_at is None or row.currency != currency or not stretch.seconds:
            continue
        part = cost_of(row, stretch)
        whole, count, unpriced = whole + part, count + 1, unpriced + (row.hourly_rate is None)
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
        total=whole,
        by_provider=providers.groups(),
        by_day=days.groups(),
        by_user=users.groups(),
        failed_starts=CostGroup(name="", amount=failed, sessions=failures),
        stopped_disk=_disks([row for row in rows if row.currency == currency], span, now),
        unpriced=unpriced,
        other_currencies=sorted(others),
    )


class GroupedTotals:
    """Sums by name."""

    def __init__(self) -> None:
        self._parts: dict[str, TimeAndCost] = {}
        self._sessions: dict[str, int] = defaultdict(int)

    def add(self, name: str, part: TimeAndCost) -> None:
        """One session's part in this name."""
        self._parts[name] = self._parts.get(name, TimeAndCost()) + part
        self._sessions[name] += 1

    def groups(self) -> list[CostGroup]:
        """By name, in order."""
        return [
            CostGroup(name=name, amount=self._parts[name], sessions=self._sessions[name])
            for name in sorted(self._parts)
        ]


def _disks(rows: Sequence[Session], span: TimeSpan, now: datetime) -> TimeAndCost:
    """From the end of a session to the beginning of the pod's next, at the last rate that was told for it."""
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


def round_to_total(whole: Decimal, parts: Sequence[Decimal], quantum: Decimal = QUANTUM) -> list[Decimal]:
    """The parts, rounded so that they sum to the whole as it is rounded (largest remainders go up)."""
    rounded = [part.quantize(quantum, ROUND_FLOOR) for part in parts]
    missing = int((whole.quantize(quantum) - sum(rounded, ZERO)) / quantum)
    by_remainder = sorted(range(len(parts)), key=lambda index: rounded[index] - parts[index])
    for index in by_remainder[:missing]:
        rounded[index] += quantum
    return rounded


@frozen
class RoundedGroup:
    """A group's hours and cost, rounded."""

    hours: Decimal
    cost: Decimal


def rounded_groups(groups: Sequence[CostGroup], whole: TimeAndCost) -> list[RoundedGroup]:
    """The groups' hours and costs, rounded; they sum to the whole as it is rounded."""
    costs = round_to_total(whole.cost, [group.amount.cost for group in groups])
    hours = round_to_total(
        whole.seconds / SECONDS_PER_HOUR, [group.amount.seconds / SECONDS_PER_HOUR for group in groups]
    )
    return [RoundedGroup(hour, cost) for hour, cost in zip(hours, costs, strict=True)]
