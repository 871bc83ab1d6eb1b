"""Damaged cells in a sound SQLite file: the row is left out and told of, everything else goes on."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import attrs
import pytest

from gpugate.billing.cost_math import CostQuery, month_span
from gpugate.billing.recorder import SessionRecorder
from gpugate.billing.reports import CostQueries
from gpugate.billing.sqlite_ledger import SqliteLedger
from gpugate.provider_api import Price
from tests.billing.test_sqlite_ledger import NOON, USE, WHOLE

NOW = NOON + timedelta(hours=1)
SOUND = attrs.evolve(WHOLE, id="sound", currency="USD", pod_id="p2", hourly_rate=Decimal(3600))
SOUND_USE = attrs.evolve(USE, session_id="sound", began_at=SOUND.ready_at, ended_at=SOUND.ended_at)
QUERY = CostQuery(span=month_span("2026-11"), now=NOW, currency="USD")
KINDS = [
    ("sessions", "hourly_rate", "a lot"),
    ("sessions", "hourly_rate", ""),
    ("sessions", "hourly_rate", "NaN"),
    ("sessions", "hourly_rate", "-Infinity"),
    ("sessions", "hourly_rate", "-0.44"),
    ("sessions", "hourly_rate", "1e999999"),
    ("sessions", "hourly_rate", "9" * 40),
    ("sessions", "hourly_rate", "0.4.4"),
    ("sessions", "stopped_rate", "0,01"),
    ("sessions", "cost", "free"),
    ("sessions", "cost", b"\x00\xff"),
    ("sessions", "asked_at", "yesterday"),
    ("sessions", "asked_at", ""),
    ("sessions", "started_at", "2026-02-30T12:00:00.000000+00:00"),
    ("sessions", "started_at", "2026-13-01T12:00:00.000000+00:00"),
    ("sessions", "started_at", "2026-11-21T25:00:00.000000+00:00"),
    ("sessions", "started_at", 1763726400),
    ("sessions", "running_at", "2026-11-21T12:00:02"),
    ("sessions", "ready_at", b"\x01"),
    ("sessions", "last_used_at", "0000-00-00T00:00:00.000000+00:00"),
    ("sessions", "stop_asked_at", "2026-11-21T14:00:05.000000+02:00"),
    ("sessions", "ended_at", "never"),
    ("sessions", "seen_at", "12345-11-21T12:00:00.000000+00:00"),
    ("sessions", "provider", b"\xff\xfe"),
    ("sessions", "pod_id", b"\x00"),
    ("sessions", "id", b"\xff"),
    ("sessions", "pod", b"\xff"),
    ("uses", "seconds", "many"),
    ("uses", "seconds", "nan"),
    ("uses", "began_at", "2026-11-31T12:00:00.000000+00:00"),
    ("uses", "ended_at", ""),
    ("uses", "requests", "some"),
    ("uses", "user", b"\xff"),
]


async def spoiled(path: Path, table: str, column: str, value: object, *, ended: bool = True) -> None:
    """A ledger with a sound session and one that is damaged."""
    ledger = await SqliteLedger.open(path)
    await ledger.put(SOUND)
    await ledger.put(WHOLE if ended else attrs.evolve(WHOLE, ended_at=None))
    await ledger.put_usage([SOUND_USE, USE])
    await ledger.aclose()
    execute(path, f"UPDATE {table} SET {column} = ? WHERE {column} IS NOT NULL AND rowid_of", table, value)


def execute(path: Path, statement: str, table: str, value: object) -> None:
    which = f"{'id' if table == 'sessions' else 'session_id'} != 'sound'"
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute(statement.replace("rowid_of", which), (value,))


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "open"])
@pytest.mark.parametrize(("table", "column", "value"), KINDS)
async def test_a_damaged_cell(tmp_path: Path, table: str, column: str, value: object, ended: bool) -> None:
    """A gateway starts; the sound rows are listed and summed; the log says it once, the summary each time."""
    path, warned = tmp_path / "ledger.sqlite3", list[str]()
    await spoiled(path, table, column, value, ended=ended or column == "ended_at")
    ledger = await SqliteLedger.open(path, warned.append)
    alarms: list[str] = []
    recorder = SessionRecorder(
        ledger,
        pod=WHOLE.pod,
        pods=(WHOLE.pod, SOUND.pod),
        fallback=Price(),
        wall=lambda: NOW,
        boottime=lambda: 0.0,
        boot_id="boot",
        alarm=alarms.append,
    )
    try:
        await recorder.open(["runpod"])
        costs = CostQueries(ledger, lambda: (), "USD", lambda: NOW)
        summary = await costs.summary()
        rows = await costs.sessions(None, None)
        assert (1, Decimal(5)) == (summary.session_count, summary.estimated_total)
        assert {"(warm-up)": 2, "ann": Decimal("1.5"), "(idle)": Decimal("1.5")} == {
            line.name: line.cost for line in summary.by_user
        }
        assert ["1 row of the ledger is damaged and left out; the log names the damaged rows"] == [
            warning for warning in summary.warnings if "damaged" in warning
        ]
        assert "sound" in {row.session.id for row in rows}
        assert (table == "uses") == (len(rows) == 2)
        assert await costs.receipt("sound") is not None
        await costs.pods()
        await ledger.last_ended()
        await costs.summary()
    finally:
        await recorder.aclose()
        await ledger.aclose()
    assert [] == alarms
    (line,) = warned
    assert table in line
    assert f"({column})" in line
    assert 1 == len(line.splitlines())


@pytest.mark.parametrize("percent", ["half", b"\x00", None])
async def test_a_damaged_threshold(tmp_path: Path, percent: object) -> None:
    """It counts as not told: the warning is repeated rather than lost."""
    path = tmp_path / "ledger.sqlite3"
    ledger = await SqliteLedger.open(path)
    await ledger.mark_threshold_notified("2026-11", 80)
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("UPDATE OR IGNORE budgets SET percent = ?", (percent,))
    assert (80 if percent is None else 0) == await ledger.last_notified_threshold("2026-11")
    await ledger.aclose()


async def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are shown as such; the session counts."""
    path = tmp_path / "ledger.sqlite3"
    await spoiled(path, "sessions", "gpu", "x")
    execute(path, "UPDATE sessions SET anchor = ? WHERE rowid_of", "sessions", "boot:soon")
    execute(path, "UPDATE sessions SET gpu = CAST(? AS TEXT) WHERE rowid_of", "sessions", b"RTX\xff")
    ledger = await SqliteLedger.open(path)
    rows = await ledger.sessions(NOON, NOW)
    assert {"RTX\ufffd", "RTX 4090"} == {row.gpu for row in rows}
    await ledger.aclose()


async def test_damaged_and_mended_meanwhile(tmp_path: Path) -> None:
    """What another program writes to the file is noticed at the next look."""
    path, warned = tmp_path / "ledger.sqlite3", list[str]()
    await spoiled(path, "sessions", "gpu", "x")
    ledger = await SqliteLedger.open(path, warned.append)
    try:
        assert 0 == (await ledger.cost_breakdown(QUERY)).damaged
        execute(path, "UPDATE sessions SET hourly_rate = ? WHERE rowid_of", "sessions", "a lot")
        assert 1 == (await ledger.cost_breakdown(QUERY)).damaged
        assert ["sound"] == [row.id for row in await ledger.sessions(NOON, NOW)]
        execute(path, "UPDATE sessions SET hourly_rate = ? WHERE rowid_of", "sessions", "0.5")
        assert 0 == (await ledger.cost_breakdown(QUERY)).damaged
        assert 2 == len(await ledger.sessions(NOON, NOW))
    finally:
        await ledger.aclose()
    assert 1 == len(warned)


async def test_a_row_that_is_written_again(tmp_path: Path) -> None:
    """The gateway that has the row in memory replaces the damaged one, and it counts again."""
    path = tmp_path / "ledger.sqlite3"
    await spoiled(path, "sessions", "cost", "free")
    ledger = await SqliteLedger.open(path)
    try:
        assert 1 == (await ledger.cost_breakdown(QUERY)).damaged
        await ledger.put(WHOLE)
        assert 0 == (await ledger.cost_breakdown(QUERY)).damaged
        assert 2 == len(await ledger.sessions(NOON, NOW))
    finally:
        await ledger.aclose()


async def test_amounts_of_any_form(tmp_path: Path) -> None:
    """An exponent, no fraction, a zero: all that `Decimal` writes is sound."""
    ledger = await SqliteLedger.open(tmp_path / "ledger.sqlite3")
    rates = [Decimal(text) for text in ("0", "1E-7", "0E-8", "12", "0.30296296296296294", "1E+3")]
    for number, rate in enumerate(rates):
        await ledger.put(
            attrs.evolve(WHOLE, id=str(number), hourly_rate=rate, started_at=NOON, currency="USD")
        )
    told = await ledger.cost_breakdown(attrs.evolve(QUERY, now=datetime(2027, 1, 1, tzinfo=UTC)))
    await ledger.aclose()
    assert (0, 6) == (told.damaged, told.sessions)
    assert sum(rates) * 6 / 3600 == +told.total.cost
