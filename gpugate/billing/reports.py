"""Cost queries: reads the ledger and the pod's status, and adds up with `billing.cost_math`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from attrs import evolve, field, frozen

from gpugate.billing import cost_math
from gpugate.billing.cost_math import CostBreakdown, CostGroup, ReceiptLine, TimeAndCost, TimeSpan
from gpugate.billing.ledger import Ledger
from gpugate.billing.model import Session
from gpugate.lifecycle.status import PodStatus

BEGINNING = datetime(1970, 1, 2, tzinfo=UTC)
END = datetime(9000, 1, 1, tzinfo=UTC)


@frozen(kw_only=True)
class SessionCost:
    """The open session (`cost/session` of docs/api.md#costs); None: unknown."""

    estimated_cost: Decimal | None
    currency: str
    duration_s: float
    provider: str
    hourly_rate: Decimal | None


@frozen(kw_only=True)
class CostLine:
    """A provider's, day's or user's part of a month, rounded so that all lines sum to the total."""

    name: str
    session_count: int
    hours: Decimal
    cost: Decimal


@frozen(kw_only=True)
class CostSummary:
    """The costs of a month (`cost/summary` of docs/api.md#costs), rounded; see `cost_math.CostBreakdown`."""

    month: str
    session_count: int
    total_hours: Decimal
    estimated_total: Decimal
    currency: str
    by_provider: Sequence[CostLine]
    by_day: Sequence[CostLine]
    by_user: Sequence[CostLine]
    failed_starts: CostLine
    stopped_disk: CostLine
    warnings: Sequence[str] = field(factory=tuple)


@frozen(kw_only=True)
class BilledSession:
    """A billed session and its cost; of an open one the cost so far."""

    session: Session
    seconds: Decimal
    cost: Decimal | None


class CostQueries:
    """Answers queries about costs. Every call but `session` reads the ledger and may raise `LedgerError`.

    Args:
        status: returns the pod's current status.
        currency: of all sums; sessions in another currency are listed and left out of the sums.
        wall: the wall clock.
        flush: called before the ledger is read, to bring it up to date.
        simulated: the providers whose sessions cost nothing; they are listed and left out of the sums.
    """

    def __init__(
        self,
        ledger: Ledger,
        status: Callable[[], PodStatus | None],
        currency: str,
        wall: Callable[[], datetime],
        flush: Callable[[], Awaitable[None]] | None = None,
        simulated: Collection[str] = (),
    ) -> None:
        self._ledger = ledger
        self._status = status
        self._currency = currency
        self._wall = wall
        self._flush = flush
        self._simulated = frozenset(simulated)

    async def session(self) -> SessionCost | None:
        """Return the open session, None if there is none."""
        status = self._status()
        if status is None or status.uptime_seconds is None:
            return None
        return SessionCost(
            estimated_cost=status.estimated_cost,
            currency=self._currency,
            duration_s=status.uptime_seconds,
            provider=status.provider or "",
            hourly_rate=status.hourly_rate,
        )

    async def summary(self, month: str | None = None) -> CostSummary:
        """Return the costs of a month ("2026-11", UTC), or of the current one. Raises ValueError: not a
        month.
        """
        month = month or cost_math.month_of(self._wall())
        span = cost_math.month_span(month)
        bill, simulated = await self._breakdown(span), await self._count_simulated(span)
        return CostSummary(
            month=month,
            session_count=bill.sessions,
            total_hours=(bill.total.seconds / cost_math.SECONDS_PER_HOUR).quantize(cost_math.QUANTUM),
            estimated_total=bill.total.cost.quantize(cost_math.QUANTUM),
            currency=self._currency,
            by_provider=_lines(bill.by_provider, bill.total),
            by_day=_lines(bill.by_day, bill.total),
            by_user=_lines(bill.by_user, bill.total),
            failed_starts=_line(bill.failed_starts),
            stopped_disk=_line(CostGroup(name="", amount=bill.stopped_disk)),
            warnings=[*_warnings(bill, self._currency), *_simulated_warnings(simulated)],
        )

    async def sessions(self, since: datetime | None, until: datetime | None) -> list[BilledSession]:
        """Return the billed sessions that began in this span, oldest first; `until` is excluded."""
        first, last = since or BEGINNING, until or END
        now = self._wall()
        return [
            _row(session, now)
            for session in await self._between(first, last)
            if session.started_at is not None and first <= session.started_at < last
        ]

    async def receipt(self, session_id: str) -> tuple[BilledSession, list[ReceiptLine]] | None:
        """Return a session and who used its seconds; None: no such session."""
        now = self._wall()
        for session in await self._between(BEGINNING, END):
            if session.id == session_id:
                life = cost_math.lifetime(session, now)
                uses = await self._ledger.usage(life.since, life.until)
                own = [use for use in uses if use.session_id == session_id]
                return _row(session, now), cost_math.receipt(session, own, now)
        return None

    async def spent(self, since: datetime, until: datetime) -> Decimal:
        """Return the cost of this span, unrounded; open sessions count until now."""
        return (await self._breakdown(TimeSpan(since, until))).total.cost

    async def spent_in_month(self, month: str | None = None) -> Decimal:
        """Return the cost of a month ("2026-11"), or of the current one, unrounded."""
        return (
            await self._breakdown(cost_math.month_span(month or cost_math.month_of(self._wall())))
        ).total.cost

    async def spent_by_user(self, month: str | None = None) -> Mapping[str, Decimal]:
        """Return the same by user, without warm-up and idle time."""
        bill = await self._breakdown(cost_math.month_span(month or cost_math.month_of(self._wall())))
        unassigned = (cost_math.WARM_UP, cost_math.IDLE)
        return {group.name: group.amount.cost for group in bill.by_user if group.name not in unassigned}

    def today_date(self) -> str:
        """Return today as in `CostSummary.by_day`."""
        return self._wall().astimezone(UTC).date().isoformat()

    async def today(self) -> Decimal:
        """Return the cost since midnight UTC."""
        now = self._wall()
        return await self.spent(cost_math.midnight(now.astimezone(UTC).date()), now)

    async def _breakdown(self, span: TimeSpan) -> CostBreakdown:
        rows = await self._between(BEGINNING, span.until)  # older ones, too, for the disks of stopped pods
        sessions = [row for row in rows if row.provider not in self._simulated]
        uses = await self._ledger.usage(span.since, span.until)
        return cost_math.cost_breakdown(sessions, uses, span, self._wall(), self._currency)

    async def _count_simulated(self, span: TimeSpan) -> int:
        rows = await self._between(span.since, span.until)
        return sum(row.provider in self._simulated and row.started_at is not None for row in rows)

    async def _between(self, since: datetime, until: datetime) -> list[Session]:
        if self._flush is not None:
            await self._flush()
        rows = await self._ledger.sessions(since, until)
        return [_costless(row) if row.provider in self._simulated else row for row in rows]


def _costless(row: Session) -> Session:
    """Return the session of a simulated pod without its cost, which was never paid."""
    return evolve(row, hourly_rate=cost_math.ZERO, stopped_rate=None, cost=row.cost and cost_math.ZERO)


def _simulated_warnings(count: int) -> list[str]:
    if not count:
        return []
    some = "1 session of a simulated pod is" if count == 1 else f"{count} sessions of simulated pods are"
    return [f"{some} left out: no money was spent"]


def _lines(groups: Sequence[CostGroup], total: TimeAndCost) -> list[CostLine]:
    return [
        CostLine(name=group.name, session_count=group.sessions, hours=share.hours, cost=share.cost)
        for group, share in zip(groups, cost_math.rounded_groups(groups, total), strict=True)
    ]


def _line(group: CostGroup) -> CostLine:
    return CostLine(
        name=group.name,
        session_count=group.sessions,
        hours=(group.amount.seconds / cost_math.SECONDS_PER_HOUR).quantize(cost_math.QUANTUM),
        cost=group.amount.cost.quantize(cost_math.QUANTUM),
    )


def _row(session: Session, now: datetime) -> BilledSession:
    part = cost_math.cost_of(session, cost_math.lifetime(session, now))
    if session.started_at is None:
        part = TimeAndCost()
    return BilledSession(
        session=session, seconds=part.seconds, cost=None if session.hourly_rate is None else part.cost
    )


def _warnings(bill: CostBreakdown, currency: str) -> list[str]:
    warnings = []
    if bill.unpriced:
        some = "1 session" if bill.unpriced == 1 else f"{bill.unpriced} sessions"
        warnings.append(f"{some} without a price: counted as 0; set cost.hourly_rate")
    if bill.other_currencies:
        others = ", ".join(bill.other_currencies)
        warnings.append(f"sessions paid in {others} are left out: cost.currency is {currency}")
    return warnings
