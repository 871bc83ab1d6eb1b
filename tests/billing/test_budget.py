"""The month's budget in virtual time: when it is told of, when it bars a start, and when that ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from attrs import define, evolve, field, frozen
from gpugate_testing import virtual_time

from gpugate.billing.budget import BudgetLimits, BudgetMonitor, evaluate
from gpugate.billing.cost_math import month_of, month_span
from gpugate.core.request_queue import BudgetVerdict
from gpugate.errors import LedgerError
from gpugate.lifecycle.status import BudgetThresholdCrossed, LifecycleEvent, SessionEnded, SessionStarted
from gpugate.provider_api import Phase, PodReport

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
TWENTY = BudgetLimits(monthly=Decimal(20))


@frozen
class Stretch:
    """What somebody used: from when to when (None: still), at which rate."""

    began: datetime
    ended: datetime | None
    rate: Decimal | None = Decimal(1)
    user: str = "anne"


@define
class Book:
    """A ledger and its sums, on a clock that the test may set."""

    base: datetime = NOON
    stretches: list[Stretch] = field(factory=list)
    told: dict[str, int] = field(factory=dict)
    broken: bool = False
    locked: bool = False
    reads: list[float] = field(factory=list)

    def wall(self) -> datetime:
        return self.base + timedelta(seconds=asyncio.get_running_loop().time())

    def of_month(self, stretch: Stretch, month: str) -> Decimal:
        since = datetime.fromisoformat(f"{month}-01T00:00:00+00:00")
        began, ended = (
            max(stretch.began, since),
            min(stretch.ended or self.wall(), month_span(month_of(since)).until),
        )
        hours = Decimal(str(max(0.0, (ended - began).total_seconds()))) / 3600
        return hours * (stretch.rate or 0)

    async def session(self) -> OpenSession | None:
        return next((OpenSession(s.rate) for s in self.stretches if s.ended is None), None)

    async def spent_in_month(self, month: str | None = None) -> Decimal:
        self.reads.append(asyncio.get_running_loop().time())
        if self.broken:
            raise LedgerError("ledger.sqlite3 cannot be read: disk I/O error")
        return sum((self.of_month(stretch, month or "") for stretch in self.stretches), Decimal(0))

    async def spent_by_user(self, month: str | None = None) -> Mapping[str, Decimal]:
        users: dict[str, Decimal] = {}
        for stretch in self.stretches:
            users[stretch.user] = users.get(stretch.user, Decimal(0)) + self.of_month(stretch, month or "")
        return users

    async def last_notified_threshold(self, month: str) -> int:
        return self.told.get(month, 0)

    async def mark_threshold_notified(self, month: str, percent: int) -> None:
        if self.locked:
            raise LedgerError("ledger.sqlite3 cannot be written: disk full")
        self.told[month] = percent


@frozen
class OpenSession:
    """The one that is open."""

    hourly_rate: Decimal | None


@define
class Stage:
    """A budget over a book, and what it said when."""

    book: Book = field(factory=Book)
    limits: BudgetLimits = TWENTY
    judged: list[tuple[float, BudgetVerdict]] = field(factory=list)
    news: list[tuple[float, BudgetThresholdCrossed]] = field(factory=list)
    lines: list[tuple[str, bool]] = field(factory=list)
    crashes: list[str] = field(factory=list)
    budget: BudgetMonitor = field(init=False)

    async def __aenter__(self) -> Stage:
        clock = asyncio.get_running_loop().time
        self.budget = BudgetMonitor(
            self.limits,
            self.book,
            self.book,
            on_verdict=lambda judged: self.judged.append((clock(), judged)),
            publish=self.on_event,
            warn=lambda line, alarm: self.lines.append((line, alarm)),
            wall=self.book.wall,
            on_crash=lambda name, error: self.crashes.append(f"{name}: {error!r}"),
        )
        await self.budget.prepare()
        await self.budget.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.budget.aclose()
        assert self.crashes == []

    def on_event(self, news: LifecycleEvent) -> None:
        assert isinstance(news, BudgetThresholdCrossed)
        assert self.book.told[news.month] >= news.percent, "told before it was on disk"
        self.news.append((asyncio.get_running_loop().time(), news))

    @property
    def told(self) -> list[tuple[float, int]]:
        """When which threshold was told, to the second."""
        return [(round(at), news.percent) for at, news in self.news]

    @property
    def barred(self) -> list[tuple[float, bool]]:
        """When everybody was barred from a start, or not any more."""
        return [(round(at), bool(judged.exhausted_reason)) for at, judged in self.judged]


def play(story) -> None:
    """Run a story in virtual time."""
    virtual_time.run(story())


def began(book: Book) -> SessionStarted:
    return SessionStarted(
        run_id=1, provider="alpha", cause="request", report=PodReport(Phase.RUNNING), at=book.wall()
    )


def test_a_pod_that_runs_through_the_budget() -> None:
    """Each threshold is told at the very second it is crossed; at 100 % starts are barred."""

    async def story() -> None:
        book = Book(stretches=[Stretch(NOON, None)])
        async with Stage(book) as stage:
            await asyncio.sleep(25 * 3600)

            hour = 3600
            assert [(10 * hour, 50), (16 * hour, 80), (20 * hour, 100)] == stage.told
            assert [(0, False), (20 * hour, True)] == stage.barred
            assert book.told == {"2026-11": 100}
            first = stage.news[0][1]
            assert (Decimal(10), Decimal(20), "2026-11") == (round(first.spent), first.budget, first.month)

    play(story)


def test_a_jump_over_two_thresholds() -> None:
    """Both are told, in their order."""

    async def story() -> None:
        book = Book(stretches=[Stretch(NOON - timedelta(hours=17), NOON)])
        async with Stage(book) as stage:
            await asyncio.sleep(1)
            assert [(0, 50), (0, 80)] == stage.told

    play(story)


def test_a_restart() -> None:
    """What was told is not told again; what was barred is barred from the first moment."""

    async def story() -> None:
        book = Book(stretches=[Stretch(NOON - timedelta(hours=30), NOON)], told={"2026-11": 80})
        async with Stage(book) as stage:
            assert [(0, True)] == stage.barred
            await asyncio.sleep(1)
        async with Stage(book) as again:
            await asyncio.sleep(7200)

        assert [(0, 100)] == stage.told
        assert [] == again.told
        assert [True] == [barred for _, barred in again.barred]

    play(story)


def test_the_month_turns_under_an_open_session() -> None:
    """Each month pays its part: starts are allowed from its first second, and thresholds are told anew."""

    async def story() -> None:
        late = datetime(2026, 11, 30, 20, tzinfo=UTC)
        book = Book(late, [Stretch(late - timedelta(hours=17), None)])
        async with Stage(book) as stage:
            await asyncio.sleep(15 * 3600)

            hour = 3600
            assert [(0, 50), (0, 80), (3 * hour, 100), (14 * hour, 50)] == stage.told
            assert ["2026-11"] * 3 + ["2026-12"] == [news.month for _, news in stage.news]
            assert [(0, False), (3 * hour, True), (4 * hour, False)] == stage.barred

    play(story)


def test_the_month_turns_while_nothing_runs() -> None:
    """The start is allowed in that second, not at the next look that happens to come."""

    async def story() -> None:
        late = datetime(2026, 12, 31, 23, 59, 30, tzinfo=UTC)
        book = Book(late, [Stretch(late - timedelta(hours=30), late)])
        async with Stage(book) as stage:
            await asyncio.sleep(60)
            assert [(0, True), (30, False)] == stage.barred

    play(story)


def test_the_clock_is_set_back_over_the_turn() -> None:
    """The old month's sum counts again, nothing is told twice."""

    async def story() -> None:
        late = datetime(2026, 12, 1, 0, 10, tzinfo=UTC)
        book = Book(late, [Stretch(late - timedelta(hours=30), late)], {"2026-11": 100})
        async with Stage(book) as stage:
            book.base -= timedelta(hours=1)
            await asyncio.sleep(3600 + 60)

            assert [(0, False), (0, True), (3000, False)] == stage.barred
            assert [] == stage.told

    play(story)


@pytest.mark.parametrize(("budget", "expected"), [(10, [80, 100]), (40, [])])
def test_another_budget_after_a_restart(budget: int, expected: list[int]) -> None:
    """A lower one tells what it crosses on the spot; a higher one tells nothing that was told."""

    async def story() -> None:
        book = Book(stretches=[Stretch(NOON - timedelta(hours=12), NOON)], told={"2026-11": 50})
        async with Stage(book, BudgetLimits(monthly=Decimal(budget))) as stage:
            await asyncio.sleep(1)
            assert expected == [percent for _, percent in stage.told]
            assert [budget == 10] == [barred for _, barred in stage.barred]

    play(story)


def test_a_session_begins_and_ends() -> None:
    """It is looked at once then; nothing else happens for an hour without one."""

    async def story() -> None:
        book = Book()
        async with Stage(book) as stage:
            await asyncio.sleep(100)
            reads = len(book.reads)
            book.stretches.append(Stretch(book.wall(), None, Decimal(7200)))
            stage.budget.on_event(began(book))
            await asyncio.sleep(11)

            assert reads == 2
            assert [(105, 50), (108, 80), (110, 100)] == stage.told
            book.stretches[0] = Stretch(book.stretches[0].began, book.wall(), Decimal(7200))
            stage.budget.on_event(
                SessionEnded(
                    run_id=1, provider="alpha", cause="idle", began_at=NOON, cost=Decimal(22), at=book.wall()
                )
            )
            await asyncio.sleep(1)
            reads = len(book.reads)
            await asyncio.sleep(3590)
            assert reads == len(book.reads)

    play(story)


def test_a_rate_that_nobody_tells() -> None:
    """Looked at every minute: it may become known."""

    async def story() -> None:
        book = Book(stretches=[Stretch(NOON, None, None)])
        async with Stage(book) as stage:
            await asyncio.sleep(600)
            assert 11 <= len(book.reads) <= 13
            assert [] == stage.told

    play(story)


def test_a_ledger_that_cannot_be_read() -> None:
    """An alarm, once; nothing is barred that was not barred before."""

    async def story() -> None:
        book = Book(stretches=[Stretch(NOON - timedelta(hours=30), NOON)], broken=True)
        async with Stage(book) as stage:
            await asyncio.sleep(200)
            assert [(0, False)] == stage.barred
            assert [True] == [alarm for _, alarm in stage.lines]
            assert "ledger.sqlite3" in stage.lines[0][0]
            book.broken = False
            await asyncio.sleep(60)
            assert [True, False] == [alarm for _, alarm in stage.lines]
            assert stage.barred[-1][1]
            book.broken = True
            stage.budget.on_event(began(book))
            await asyncio.sleep(200)
            assert stage.barred[-1][1], "within the month what is known stays in force"
            book.base = datetime(2026, 12, 1, tzinfo=UTC)
            await asyncio.sleep(60)
            assert not stage.barred[-1][1]

    play(story)


def test_a_ledger_that_cannot_be_written() -> None:
    """The bar holds; the threshold is told when it is on disk, and only then."""

    async def story() -> None:
        book = Book(stretches=[Stretch(NOON - timedelta(hours=30), NOON)], locked=True)
        async with Stage(book) as stage:
            await asyncio.sleep(130)
            assert (True, []) == (stage.barred[-1][1], stage.told)
            assert [True] == [alarm for _, alarm in stage.lines]
            book.locked = False
            await asyncio.sleep(60)
            assert [50, 80, 100] == [percent for _, percent in stage.told]

    play(story)


def test_shares() -> None:
    """Who has spent his part can start nothing, and is told until when; everybody else can."""
    limits = BudgetLimits(monthly=Decimal(20), user_share=Decimal("0.25"), currency="EUR")
    users = {"anne": Decimal(5), "ben": Decimal("4.99")}

    judged = evaluate(limits, NOON, Decimal(19), users)

    assert ("", ["anne"]) == (judged.exhausted_reason, list(judged.users_over_share))
    assert judged.users_over_share["anne"] == (
        "your share of the budget for 2026-11, 5 of 20 EUR, is spent: a running pod stays in use, "
        "and no pod is started before 2026-12-01 (UTC) for you"
    )


def test_a_share_is_spent_while_the_pod_runs() -> None:
    """Known within a minute."""

    async def story() -> None:
        book = Book(stretches=[Stretch(NOON, None)])
        async with Stage(book, BudgetLimits(monthly=Decimal(20), user_share=Decimal("0.1"))) as stage:
            await asyncio.sleep(7200 + 60)
            (at, judged) = stage.judged[-1]
            assert 7200 <= at <= 7260
            assert ["anne"] == list(judged.users_over_share)

    play(story)


def test_what_is_told_of_a_spent_budget() -> None:
    """The month, the budget, and when it ends."""
    judged = evaluate(BudgetLimits(monthly=Decimal("20.50")), NOON, Decimal("20.5"), {})

    assert judged.exhausted_reason == (
        "the budget of 20.5 USD for 2026-11 is spent: a running pod stays in use, "
        "and no pod is started before 2026-12-01 (UTC)"
    )


@pytest.mark.parametrize(
    ("zone", "month", "turn"),
    [
        ("UTC", "2026-11", "2026-12-01T00:00:00+00:00"),
        ("Europe/Berlin", "2026-11", "2026-11-30T23:00:00+00:00"),
        ("Europe/Kyiv", "2026-12", "2026-12-31T22:00:00+00:00"),
        ("America/New_York", "2026-11", "2026-12-01T05:00:00+00:00"),
        ("Asia/Kathmandu", "2026-12", "2026-12-31T18:15:00+00:00"),
    ],
)
def test_the_months_of_a_zone(zone: str, month: str, turn: str) -> None:
    """Wherever the clock stands, and in the refusal as well."""
    now = datetime.fromisoformat("2026-12-01T00:30:00+02:00")
    limits = evolve(TWENTY, zone=ZoneInfo(zone))

    assert month == month_of(now, limits.zone)
    assert datetime.fromisoformat(turn) == month_span(month, limits.zone).until
    following = "2026-12-01" if month == "2026-11" else "2027-01-01"
    reason = evaluate(limits, now, Decimal(20), {}).exhausted_reason
    assert reason.startswith(f"the budget of 20 USD for {month} is spent")
    assert reason.endswith(f"before {following} ({zone})")


def test_a_budgets_months_in_another_zone() -> None:
    """What was spent before midnight in Berlin bars no start after it, an hour before UTC's month ends."""

    async def story() -> None:
        began = datetime(2026, 11, 30, 20, tzinfo=UTC)
        book = Book(base=datetime(2026, 11, 30, 22, 30, tzinfo=UTC))
        book.stretches = [Stretch(began, began + timedelta(hours=1), rate=Decimal(20))]
        async with Stage(book, evolve(TWENTY, zone=ZoneInfo("Europe/Berlin"))) as stage:
            await asyncio.sleep(3600)
        assert [(0, True), (1800, False)] == stage.barred
        assert [(0, 50), (0, 80), (0, 100)] == stage.told

    play(story)
