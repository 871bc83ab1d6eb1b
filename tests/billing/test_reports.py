"""What the gateway, the budget and the bot ask about money: over any ledger, at any time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from gpugate_testing.fakes import MemoryLedger

from gpugate.billing.model import PodUsage, Session
from gpugate.billing.reports import PAGE, CostQueries
from gpugate.errors import LedgerError

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def session(began_at: datetime, hours: float | None = 1, **more: object) -> Session:
    """An hour at 0.60, or one that is open."""
    given = {
        "id": f"{began_at:%m%dT%H}",
        "provider": "runpod",
        "asked_at": began_at,
        "started_at": began_at,
        "ready_at": began_at + HOUR / 10,
        "ended_at": None if hours is None else began_at + hours * HOUR,
        "hourly_rate": Decimal("0.60"),
    }
    return Session(**{**given, **more})  # type: ignore[arg-type]


def costs_of(*rows: Session, used: tuple[PodUsage, ...] = (), now: datetime = NOW) -> CostQueries:
    ledger = MemoryLedger({row.id: row for row in rows}, {(use.session_id, use.id): use for use in used})
    return CostQueries(ledger, lambda: (), "USD", lambda: now)


async def test_what_was_spent() -> None:
    """An open session counts until now: today, in the month, and in any span."""
    costs = costs_of(session(NOW - 2 * HOUR, None), session(NOW - 24 * HOUR, 2))

    assert Decimal("1.2") == await costs.today()
    assert Decimal("2.4") == await costs.spent_in_month()
    assert Decimal("1.2") == await costs.spent(NOW - 24 * HOUR, NOW - 12 * HOUR)
    assert Decimal(0) == await costs.spent_in_month("2026-10")


async def test_the_months_turn() -> None:
    """A session that goes on belongs to the new month only with what comes after midnight, UTC."""
    midnight = datetime(2026, 12, 1, tzinfo=UTC)
    costs = costs_of(session(midnight - HOUR, None), now=midnight + HOUR / 2)

    assert Decimal("0.3") == await costs.spent_in_month()
    assert Decimal("0.6") == await costs.spent_in_month("2026-11")
    assert Decimal("0.3") == await costs.today()
    assert "2026-12" == (await costs.summary()).month


async def test_another_zone() -> None:
    """The default month, its days and "today" are the zone's."""
    now = datetime(2026, 11, 30, 23, 30, tzinfo=UTC)  # half past midnight in Berlin
    ledger = MemoryLedger({row.id: row for row in [session(now - HOUR, None)]})
    costs = CostQueries(ledger, lambda: (), "USD", lambda: now, zone=ZoneInfo("Europe/Berlin"))

    summary = await costs.summary()
    assert ("2026-12", ["2026-12-01"]) == (summary.month, [line.name for line in summary.by_day])
    assert ["2026-11-30"] == [line.name for line in (await costs.summary("2026-11")).by_day]
    assert "2026-12-01" == costs.today_date()
    assert Decimal("0.3") == await costs.today() == await costs.spent_in_month() == summary.estimated_total


async def test_whose_it_was() -> None:
    """Users alone: what nobody asked for is in nobody's name."""
    row = session(NOW - 2 * HOUR)
    use = PodUsage(
        session_id=row.id,
        id="1",
        request_id="r",
        user="ann",
        began_at=row.began_at + HOUR / 2,
        ended_at=row.began_at + HOUR * 3 / 4,
        seconds=Decimal(900),
    )
    costs = costs_of(row, used=(use,))

    assert {"ann": Decimal("0.15")} == await costs.spent_by_user()
    assert {"ann", "(warm-up)", "(idle)"} == {line.name for line in (await costs.summary()).by_user}


async def test_warnings() -> None:
    """What a sum leaves out is said beside it."""
    told = await costs_of(
        session(NOW - 5 * HOUR),
        session(NOW - 3 * HOUR, hourly_rate=None),
        session(NOW - HOUR, currency="EUR"),
    ).summary()

    assert (2, Decimal("0.6")) == (told.session_count, told.estimated_total)
    assert ["1 session without a price:", "sessions paid in EUR"] == [
        " ".join(warning.split()[: len(start.split())])
        for warning, start in zip(
            told.warnings, ("1 session without a price:", "sessions paid in EUR"), strict=True
        )
    ]


async def test_simulated_sessions() -> None:
    """They are listed at no cost, are in no sum of any kind, and that is said."""
    play = session(NOW - 3 * HOUR, provider="demo", stopped_rate=Decimal(1), cost=Decimal("0.6"))
    rows = (play, session(NOW - 5 * HOUR, 0.5, provider="demo"), session(NOW - 2 * HOUR))
    ledger = MemoryLedger({row.id: row for row in rows})
    costs = CostQueries(ledger, lambda: (), "USD", lambda: NOW, simulated={"demo"})

    summary = await costs.summary()
    assert (1, Decimal("0.6"), Decimal(1)) == (
        summary.session_count,
        summary.estimated_total,
        summary.total_hours,
    )
    assert ["runpod"] == [line.name for line in summary.by_provider]
    assert 0 == summary.stopped_disk.cost
    assert ["2 sessions of simulated pods are left out: no money was spent"] == summary.warnings
    assert Decimal("0.6") == await costs.today() == await costs.spent_in_month()
    assert [0, 0, Decimal("0.6")] == [row.cost for row in await costs.sessions(None, None)]
    found = await costs.receipt(play.id)
    assert found is not None
    assert 0 == sum(line.amount.cost for line in found[1])


async def test_the_newest_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit reaches the ledger, which is never asked for more than a page at once."""
    asked: list[int] = []
    every = MemoryLedger.sessions

    async def sessions(ledger: MemoryLedger, *span: datetime, limit: int, **more: object) -> list[Session]:
        asked.append(limit)
        return await every(ledger, *span, limit=limit, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryLedger, "sessions", sessions)
    rows = [session(NOW - number * HOUR, 1, id=f"{number:03}") for number in range(2 * PAGE + 7)]
    same_time = [session(NOW - HOUR, 1, id=name) for name in ("a", "b")]
    costs = costs_of(*rows, *same_time)

    newest = [page async for page in costs.pages(None, None, PAGE + 4)]
    assert [PAGE, 4] == asked == [len(page) for page in newest]
    listed = [row.session.id for page in reversed(newest) for row in page]
    ordered = sorted([*rows, *same_time], key=lambda row: (row.began_at, row.id))
    assert [row.id for row in ordered[-PAGE - 4 :]] == listed
    assert [row.id for row in ordered] == [row.session.id for row in await costs.sessions(None, None)]
    assert [PAGE, 4, PAGE, PAGE, PAGE] == asked
    assert [] == [page async for page in costs.pages(NOW + HOUR, None, 5)]


async def test_a_ledger_that_is_brought_up_to_date() -> None:
    """Before it is read, so that what was served a moment ago is in it."""
    ledger = MemoryLedger()

    async def settle() -> None:
        await ledger.put(session(NOW - HOUR))

    assert Decimal("0.6") == await CostQueries(ledger, lambda: (), "USD", lambda: NOW, settle).today()


async def test_a_ledger_that_cannot_be_read() -> None:
    """Is an error, never a sum of nothing."""
    costs = CostQueries(MemoryLedger(broken=True), lambda: (), "USD", lambda: NOW)

    for ask in (costs.today, costs.summary, costs.spent_in_month, costs.spent_by_user):
        with pytest.raises(LedgerError):
            await ask()
    assert await costs.session() is None
