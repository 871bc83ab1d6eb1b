"""Cost queries: what the ledger and the pod's status say about costs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from decimal import Decimal

from attrs import evolve, field, frozen

from gpugate.billing import cost_math
from gpugate.billing.cost_math import (
    CostBreakdown,
    CostGroup,
    CostQuery,
    ReceiptLine,
    TimeAndCost,
    TimeSpan,
)
from gpugate.billing.ledger import Ledger
from gpugate.billing.model import Session
from gpugate.lifecycle.status import PodStatus
from gpugate.provider_api import MAIN_POD

BEGINNING = datetime(1970, 1, 2, tzinfo=UTC)
END = datetime(9000, 1, 1, tzinfo=UTC)
PAGE = 50
"""How many sessions are read and rendered at once: a page holds up the event loop for 1 to 2 ms."""


@frozen(kw_only=True)
class SessionCost:
    """A pod's open session, or the sum of those of several (`cost/session` of docs/api.md#costs).

    Attributes:
        estimated_cost: None: unknown.
        duration_s: of several sessions, for how long the longest has been open.
        provider: of several sessions, that of the first pod.
        hourly_rate: None: unknown.
        pod: of several sessions, the first pod.
    """

    estimated_cost: Decimal | None
    currency: str
    duration_s: float
    provider: str
    hourly_rate: Decimal | None
    pod: str = MAIN_POD


@frozen(kw_only=True)
class CostLine:
    """A provider's, pod's, day's or user's part of a month, rounded so that all lines sum to the total."""

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
    by_pod: Sequence[CostLine]
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
    """Answers queries about costs. Every call but `session` and `open_sessions` reads the ledger and may
    raise `LedgerError`.

    Args:
        statuses: returns the current status of every pod, in the file's order; None: not known yet.
        currency: of all sums; sessions in another currency are listed and left out of the sums.
        wall: the wall clock.
        flush: called before the ledger is read, to bring it up to date.
        simulated: the providers whose sessions cost nothing; they are listed and left out of the sums.
        zone: of days and months.
    """

    def __init__(
        self,
        ledger: Ledger,
        statuses: Callable[[], Sequence[PodStatus | None]],
        currency: str,
        wall: Callable[[], datetime],
        flush: Callable[[], Awaitable[None]] | None = None,
        simulated: Collection[str] = (),
        zone: tzinfo = UTC,
    ) -> None:
        self.zone = zone
        self._ledger = ledger
        self._statuses = statuses
        self._currency = currency
        self._wall = wall
        self._flush = flush
        self._simulated = frozenset(simulated)

    async def session(self) -> SessionCost | None:
        """Return the sum of the open sessions, None if there is none."""
        costs = self.open_sessions()
        return total_of(costs) if costs else None

    def open_sessions(self) -> list[SessionCost]:
        """Return the open session of each pod that has one, in the file's order."""
        return [
            SessionCost(
                estimated_cost=status.estimated_cost,
                currency=self._currency,
                duration_s=status.uptime_seconds,
                provider=status.provider or "",
                hourly_rate=status.hourly_rate,
                pod=status.pod,
            )
            for status in self._statuses()
            if status is not None and status.uptime_seconds is not None
        ]

    async def summary(self, month: str | None = None) -> CostSummary:
        """Return the costs of a month ("2026-11"), or of the current one. Raises ValueError: not a month."""
        month = month or self._this_month()
        bill = await self._breakdown(cost_math.month_span(month, self.zone))
        return CostSummary(
            month=month,
            session_count=bill.sessions,
            total_hours=(bill.total.seconds / cost_math.SECONDS_PER_HOUR).quantize(cost_math.QUANTUM),
            estimated_total=bill.total.cost.quantize(cost_math.QUANTUM),
            currency=self._currency,
            by_provider=_lines(bill.by_provider, bill.total),
            by_pod=_lines(bill.by_pod, bill.total),
            by_day=_lines(bill.by_day, bill.total),
            by_user=_lines(bill.by_user, bill.total),
            failed_starts=_line(bill.failed_starts),
            stopped_disk=_line(CostGroup(name="", amount=bill.stopped_disk)),
            warnings=_warnings(bill, self._currency),
        )

    async def pages(
        self, since: datetime | None, until: datetime | None, limit: int | None = None
    ) -> AsyncIterator[list[BilledSession]]:
        """Yield the billed sessions that began in this span, `until` excluded, in pages.

        The newest page comes first; each is in order, oldest first.

        Args:
            limit: only so many of the newest.
        """
        await self._update_ledger()
        now, before, left = self._wall(), None, limit
        while left is None or left > 0:
            count = PAGE if left is None else min(PAGE, left)
            rows = await self._ledger.sessions(since or BEGINNING, until or END, before=before, limit=count)
            if rows:
                yield [_row(self._costless(row), now) for row in rows]
            if len(rows) < count:
                return
            before, left = rows[0], None if left is None else left - count

    async def sessions(self, since: datetime | None, until: datetime | None) -> list[BilledSession]:
        """Return the billed sessions that began in this span, oldest first; `until` is excluded."""
        pages = [page async for page in self.pages(since, until)]
        return [row for page in reversed(pages) for row in page]

    async def pods(self) -> Mapping[str, Collection[str]]:
        """Return the pods of all billed sessions, by provider."""
        await self._update_ledger()
        return await self._ledger.pods()

    async def receipt(self, session_id: str) -> tuple[BilledSession, list[ReceiptLine]] | None:
        """Return a session and who used its seconds; None: no such session."""
        await self._update_ledger()
        session = await self._ledger.session(session_id)
        if session is None:
            return None
        session, now = self._costless(session), self._wall()
        usage = await self._ledger.usage(session_id)
        return _row(session, now), cost_math.receipt(session, usage, now)

    async def spent(self, since: datetime, until: datetime) -> Decimal:
        """Return the cost of this span, unrounded; open sessions count until now."""
        return (await self._breakdown(TimeSpan(since, until))).total.cost

    async def spent_in_month(self, month: str | None = None) -> Decimal:
        """Return the cost of a month ("2026-11"), or of the current one, unrounded."""
        return (await self._breakdown_of_month(month)).total.cost

    async def spent_by_user(self, month: str | None = None) -> Mapping[str, Decimal]:
        """Return the same by user, without warm-up and idle time."""
        bill = await self._breakdown_of_month(month)
        unassigned = (cost_math.WARM_UP, cost_math.IDLE)
        return {group.name: group.amount.cost for group in bill.by_user if group.name not in unassigned}

    def today_date(self) -> str:
        """Return today as in `CostSummary.by_day`."""
        return self._wall().astimezone(self.zone).date().isoformat()

    async def today(self) -> Decimal:
        """Return the cost since midnight."""
        now = self._wall()
        return await self.spent(cost_math.midnight(now.astimezone(self.zone).date(), self.zone), now)

    def _this_month(self) -> str:
        return cost_math.month_of(self._wall(), self.zone)

    async def _breakdown_of_month(self, month: str | None) -> CostBreakdown:
        return await self._breakdown(cost_math.month_span(month or self._this_month(), self.zone))

    async def _breakdown(self, span: TimeSpan) -> CostBreakdown:
        await self._update_ledger()
        return await self._ledger.cost_breakdown(
            CostQuery(
                span=span,
                now=self._wall(),
                currency=self._currency,
                zone=self.zone,
                simulated=self._simulated,
            )
        )

    async def _update_ledger(self) -> None:
        if self._flush is not None:
            await self._flush()

    def _costless(self, row: Session) -> Session:
        """Return the session without its cost if its pod is simulated: it was never paid."""
        if row.provider not in self._simulated:
            return row
        return evolve(row, hourly_rate=cost_math.ZERO, stopped_rate=None, cost=row.cost and cost_math.ZERO)


def total_of(costs: Sequence[SessionCost]) -> SessionCost:
    """Return the sum of at least one open session; see `SessionCost`."""
    return evolve(
        costs[0],
        estimated_cost=_sum(cost.estimated_cost for cost in costs),
        duration_s=max(cost.duration_s for cost in costs),
        hourly_rate=_sum(cost.hourly_rate for cost in costs),
    )


def _sum(amounts: Iterable[Decimal | None]) -> Decimal | None:
    """Return the sum of the known amounts; None if none is known."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known, cost_math.ZERO) if known else None


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
    if bill.simulated:
        some = "1 session of a simulated pod is"
        some = some if bill.simulated == 1 else f"{bill.simulated} sessions of simulated pods are"
        warnings.append(f"{some} left out: no money was spent")
    if bill.damaged:
        some = "1 row of the ledger is" if bill.damaged == 1 else f"{bill.damaged} rows of the ledger are"
        warnings.append(f"{some} damaged and left out; the log names the damaged rows")
    return warnings
