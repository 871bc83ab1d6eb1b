"""The ledger's file: what is put is there after any crash, and a file that cannot be used says so."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import attrs
import pytest

from gpugate.billing import sqlite_ledger
from gpugate.billing.model import PodUsage, Session
from gpugate.billing.sqlite_ledger import SqliteLedger
from gpugate.errors import LedgerError

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
WHOLE = Session(
    id="20261121T120000-1",
    provider="runpod",
    asked_at=NOON,
    pod_id="p1",
    gpu="RTX 4090",
    started_at=NOON + timedelta(seconds=1),
    running_at=NOON + timedelta(seconds=2),
    ready_at=NOON + timedelta(seconds=3),
    last_used_at=NOON + timedelta(seconds=4),
    stop_asked_at=NOON + timedelta(seconds=5),
    ended_at=NOON + timedelta(seconds=6),
    hourly_rate=Decimal("0.4400"),
    stopped_rate=Decimal("0.01"),
    rate_source="provider",
    currency="EUR",
    started_by="ann",
    start_reason="request",
    request_id="r-1",
    end_reason="idle",
    cost=Decimal("0.00061111111111111111"),
    seen_at=NOON,
    clock_anchor="boot:1.5",
    pod="code",
)
USE = PodUsage(
    session_id=WHOLE.id,
    id="1",
    request_id="r-1",
    user="ann",
    began_at=NOON,
    ended_at=NOON + timedelta(seconds=2),
    seconds=Decimal("1.5"),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite3"


@pytest.fixture
async def ledger(path: Path) -> AsyncIterator[SqliteLedger]:
    ledger = await SqliteLedger.open(path)
    yield ledger
    await ledger.aclose()


async def test_a_row_comes_back_whole(ledger: SqliteLedger) -> None:
    """Every field, to the last digit and microsecond."""
    await ledger.put(WHOLE)
    await ledger.put_usage([USE])

    assert [WHOLE] == await ledger.sessions(NOON, NOON + timedelta(days=1))
    assert [USE] == await ledger.usage(WHOLE.id)


async def test_each_session_once(ledger: SqliteLedger) -> None:
    """A row that is put again is replaced; so is a use."""
    await ledger.put(attrs.evolve(WHOLE, ended_at=None))
    assert [attrs.evolve(WHOLE, ended_at=None)] == await ledger.open_sessions()
    await ledger.put(WHOLE)
    await ledger.put_usage([USE, attrs.evolve(USE, seconds=Decimal(9))])

    assert [] == await ledger.open_sessions()
    assert [WHOLE] == await ledger.sessions(NOON, NOON + timedelta(days=1))
    assert [Decimal(9)] == [use.seconds for use in await ledger.usage(WHOLE.id)]


@pytest.mark.parametrize(
    ("since_s", "until_s", "expected"),
    [(-9, 1, 0), (-9, 1.5, 1), (1, 2, 1), (1.1, 9, 0)],
)
async def test_what_lies_between(ledger: SqliteLedger, since_s: float, until_s: float, expected: int) -> None:
    """When it began: the first instant counts, the last does not."""
    await ledger.put(WHOLE)
    found = await ledger.sessions(NOON + timedelta(seconds=since_s), NOON + timedelta(seconds=until_s))
    assert expected == len(found)


async def test_the_newest_starts(ledger: SqliteLedger) -> None:
    """So many; of all, of those that a request has caused, or of a pod's."""
    pods = ("main", "main", "main", "code")
    rows = [
        attrs.evolve(WHOLE, id=f"2026112{number}", request_id=f"r-{number % 2}", pod=pod)
        for number, pod in enumerate(pods)
    ]
    for row in rows:
        await ledger.put(row)

    assert rows[:1:-1] == await ledger.starts(2)
    assert [rows[2], rows[0]] == await ledger.starts(9, request_id="r-0")
    assert [] == await ledger.starts(9, request_id="' OR 1 --")
    assert rows[2:0:-1] == await ledger.starts(2, pod="main")
    assert [rows[3]] == await ledger.starts(9, pod="code")


async def test_one_name_for_many_requests(ledger: SqliteLedger) -> None:
    """A client's name for its requests is not what keeps them apart."""
    await ledger.put_usage([attrs.evolve(USE, id="1"), attrs.evolve(USE, id="2")])
    found = await ledger.usage(WHOLE.id)
    assert ["1", "2"] == sorted(use.id for use in found)


async def test_the_last_end_at_each_provider(ledger: SqliteLedger) -> None:
    """Of billed sessions alone: neither of one that is open, nor of a start that was refused."""
    assert [] == await ledger.last_ended()
    later = NOON + timedelta(hours=1)
    for number, more in enumerate(
        (
            {},
            {"ended_at": NOON},
            {"ended_at": None},
            {"started_at": None, "ended_at": later},
            {"provider": "vastai", "ended_at": later.astimezone(timezone(timedelta(hours=-5)))},
            {"provider": "local", "ended_at": None},
            {"pod": "main", "ended_at": NOON},
        )
    ):
        await ledger.put(attrs.evolve(WHOLE, id=str(number), **more))  # type: ignore[arg-type]

    found = {(row.pod, row.provider): row.ended_at for row in await ledger.last_ended()}
    assert {
        ("code", "runpod"): WHOLE.ended_at,
        ("code", "vastai"): later,
        ("main", "runpod"): NOON,
    } == found


async def test_another_time_zone(ledger: SqliteLedger) -> None:
    """Instants are kept in UTC, so they sort."""
    zone = datetime.fromisoformat("2026-11-21T14:00:01+02:00")
    await ledger.put(attrs.evolve(WHOLE, started_at=zone))
    (found,) = await ledger.sessions(NOON, NOON + timedelta(seconds=2))
    assert WHOLE.started_at == found.started_at


async def test_after_kill_9(path: Path, ledger: SqliteLedger) -> None:
    """What was put can be read by another process although nobody closed the file."""
    await ledger.put(attrs.evolve(WHOLE, ended_at=None))
    await ledger.mark_threshold_notified("2026-11", 80)
    second = await SqliteLedger.open(path)
    try:
        assert 1 == len(await second.open_sessions())
        assert 80 == await second.last_notified_threshold("2026-11")
        assert 0 == await second.last_notified_threshold("2026-12")
    finally:
        await second.aclose()


async def test_an_older_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is brought up to date, and keeps its rows."""
    first = await SqliteLedger.open(path)
    await first.mark_threshold_notified("2026-11", 50)
    await first.aclose()
    more = (*sqlite_ledger.MIGRATIONS, "ALTER TABLE budgets ADD COLUMN told_at TEXT;")
    monkeypatch.setattr(sqlite_ledger, "MIGRATIONS", more)
    second = await SqliteLedger.open(path)
    try:
        assert 50 == await second.last_notified_threshold("2026-11")
    finally:
        await second.aclose()
    with sqlite3.connect(path) as database:
        assert (len(more),) == database.execute("PRAGMA user_version").fetchone()
        assert [(None,)] == database.execute("SELECT told_at FROM budgets").fetchall()
    database.close()


async def test_a_step_that_fails_half_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it stays: the next try begins where this one began."""
    await (await SqliteLedger.open(path)).aclose()
    monkeypatch.setattr(
        sqlite_ledger, "MIGRATIONS", (*sqlite_ledger.MIGRATIONS, "CREATE TABLE a (b); nonsense;")
    )
    with pytest.raises(LedgerError):
        await SqliteLedger.open(path)
    database = sqlite3.connect(path)
    try:
        assert (len(sqlite_ledger.MIGRATIONS) - 1,) == database.execute("PRAGMA user_version").fetchone()
        assert [] == database.execute("SELECT name FROM sqlite_master WHERE name = 'a'").fetchall()
    finally:
        database.close()


_SESSIONS_1 = """
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY, provider TEXT NOT NULL, asked_at TEXT NOT NULL, pod_id TEXT, gpu TEXT,
        started_at TEXT, running_at TEXT, ready_at TEXT, last_used_at TEXT, stop_asked_at TEXT, ended_at TEXT,
        hourly_rate TEXT, stopped_rate TEXT, rate_source TEXT NOT NULL, currency TEXT NOT NULL,
        started_by TEXT NOT NULL, start_reason TEXT NOT NULL, request_id TEXT NOT NULL,
        end_reason TEXT NOT NULL, cost TEXT, seen_at TEXT, anchor TEXT NOT NULL
    );
    CREATE INDEX sessions_ended ON sessions (ended_at);
    CREATE INDEX uses_ended ON uses (ended_at);
    CREATE TABLE budgets (month TEXT PRIMARY KEY, percent INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO budgets VALUES ('2026-11', 50);
    INSERT INTO sessions VALUES ('s', 'runpod', '2026-11-21T12:00:00.000000+00:00', 'p1', NULL,
        '2026-11-21T12:00:01.000000+00:00', NULL, NULL, NULL, NULL, '2026-11-21T13:00:00.000000+00:00',
        '0.44', NULL, 'provider', 'USD', 'ann', 'request', 'r-1', 'idle', '0.4', NULL, '');
    PRAGMA user_version = 1;
"""
FIRST = f"""
    CREATE TABLE uses (
        session_id TEXT NOT NULL, request_id TEXT NOT NULL, user TEXT NOT NULL,
        began_at TEXT NOT NULL, ended_at TEXT NOT NULL, seconds TEXT NOT NULL, requests INTEGER NOT NULL,
        PRIMARY KEY (session_id, request_id, user)
    ) WITHOUT ROWID;
    INSERT INTO uses VALUES ('s', 'r-2', 'bob', '2026-11-21T12:20:00.000000+00:00',
        '2026-11-21T12:30:00.000000+00:00', '600', 2);
    INSERT INTO uses VALUES ('s', 'r-1', 'ann', '2026-11-21T12:10:00.000000+00:00',
        '2026-11-21T12:11:00.000000+00:00', '60.5', 1);
    INSERT INTO uses VALUES ('t', 'r-1', 'ann', '2026-11-21T12:10:00.000000+00:00',
        '2026-11-21T12:11:00.000000+00:00', '1', 1);
    {_SESSIONS_1}
"""
"""The first ledger, of version 1: a use is named by its request and user."""
SECOND = f"""
    CREATE TABLE uses (
        session_id TEXT NOT NULL, id TEXT NOT NULL, request_id TEXT NOT NULL, user TEXT NOT NULL,
        began_at TEXT NOT NULL, ended_at TEXT NOT NULL, seconds TEXT NOT NULL, requests INTEGER NOT NULL,
        PRIMARY KEY (session_id, id)
    ) WITHOUT ROWID;
    INSERT INTO uses VALUES ('s', 'a-1', 'r-1', 'ann', '2026-11-21T12:10:00.000000+00:00',
        '2026-11-21T12:11:00.000000+00:00', '60.5', 1);
    {_SESSIONS_1}
"""
"""The next one, which was of version 1 as well: a use has an id."""
THIRD = f"""
    {SECOND}
    CREATE INDEX sessions_started ON sessions (started_at, id);
    PRAGMA user_version = 3;
"""
"""The last one that knew of one pod only."""


def written(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path)
    database.executescript(script)
    database.close()


@pytest.mark.parametrize(
    ("script", "ids"),
    [
        (FIRST, {("s", "v1-1", "r-1", "60.5"), ("s", "v1-2", "r-2", "600"), ("t", "v1-1", "r-1", "1")}),
        (SECOND, {("s", "a-1", "r-1", "60.5")}),
        (THIRD, {("s", "a-1", "r-1", "60.5")}),
    ],
    ids=["the first", "the second", "the third"],
)
async def test_a_file_of_every_schema_so_far(path: Path, script: str, ids: set[tuple[str, ...]]) -> None:
    """It is brought up to date with all its rows, and once: a second opening changes nothing."""
    written(path, script)
    for _ in range(2):
        ledger = await SqliteLedger.open(path)
        try:
            (row,) = await ledger.sessions(NOON, NOON + timedelta(days=1))
            uses = [*await ledger.usage("s"), *await ledger.usage("t")]
            told = await ledger.last_notified_threshold("2026-11")
            await ledger.put_usage([attrs.evolve(USE, id="9", began_at=NOON + timedelta(days=2))])
        finally:
            await ledger.aclose()
        assert ("s", Decimal("0.4"), 50, "main") == (row.id, row.cost, told, row.pod)
        assert ids == {(use.session_id, use.id, use.request_id, str(use.seconds)) for use in uses}
    database = sqlite3.connect(path)
    (found,) = database.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'old%'").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    database.close()
    assert (0, len(sqlite_ledger.MIGRATIONS)) == (found, version)


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE sessions (cookie TEXT);",
        "CREATE TABLE photos (name TEXT); PRAGMA user_version = -3;",
        "CREATE TABLE photos (name TEXT); PRAGMA user_version = 1;",
        FIRST.replace("cost TEXT, ", "").replace("'0.4', ", ""),
        FIRST + "ALTER TABLE uses DROP COLUMN requests;",
        SECOND + "DROP TABLE budgets; PRAGMA user_version = 2;",
    ],
)
async def test_a_file_of_another_program(path: Path, script: str) -> None:
    """One line says so and what to do, in no words of SQL's; nothing in the file is changed."""
    written(path, script)
    with pytest.raises(LedgerError) as told:
        await SqliteLedger.open(path)
    said = told.value.detail
    assert said == f"{path}: {told.value}"
    assert str(told.value).startswith("not a ledger of this gpugate")
    assert "move the file away" in said
    assert "no such" not in said
    database = sqlite3.connect(path)
    dump = "\n".join(database.iterdump())
    (version,) = database.execute("PRAGMA user_version").fetchone()
    database.close()
    fresh = sqlite3.connect(":memory:")
    fresh.executescript(script)
    assert "\n".join(fresh.iterdump()) == dump
    assert (version,) == fresh.execute("PRAGMA user_version").fetchone()
    fresh.close()


async def test_a_newer_file(path: Path) -> None:
    """One plain line, and nothing in it is changed."""
    written(path, SECOND + "PRAGMA user_version = 5;")
    before = path.read_bytes()
    with pytest.raises(LedgerError) as told:
        await SqliteLedger.open(path)
    assert told.value.detail == (
        f"{path}: the ledger was written by a newer gpugate (schema 5, this one knows 4);"
        " use that version, or move the file away"
    )
    assert before == path.read_bytes()


def newer(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()


def damaged(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be taken for one " * 100)


def torn(path: Path) -> None:
    database = sqlite3.connect(path)
    for number in range(400):
        database.execute("INSERT INTO budgets VALUES (?, 1)", (f"{number:0200}",))
    database.commit()
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    raw = bytearray(path.read_bytes())
    raw[8192:16384] = b"\xff" * 8192
    path.write_bytes(raw)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(newer, "newer gpugate"), (damaged, "damaged"), (torn, "damaged"), (a_folder, "cannot be used")],
)
async def test_a_file_that_cannot_be_used(path: Path, spoil, said: str) -> None:
    """One line that names the file and what to do; the file is left as it was."""
    await (await SqliteLedger.open(path)).aclose()
    spoil(path)
    with pytest.raises(LedgerError, match=said) as told:
        await SqliteLedger.open(path)
    assert str(path) in told.value.detail
    assert str(path.parent) not in str(told.value)
    assert 1 == len(told.value.detail.splitlines())
    assert path.exists()


async def test_no_folder_can_be_made(tmp_path: Path) -> None:
    """The state directory is a file."""
    (tmp_path / "state").write_text("")
    with pytest.raises(LedgerError, match="cannot be used"):
        await SqliteLedger.open(tmp_path / "state" / "ledger.sqlite3")


async def test_a_file_that_somebody_else_holds(
    path: Path, ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that is not let go in time is an error, not a wait for ever."""
    monkeypatch.setattr(sqlite_ledger, "LOCK_WAIT_S", 0.05)
    holder = sqlite3.connect(path)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(LedgerError, match="locked"):
            await SqliteLedger.open(path)
    finally:
        holder.rollback()
        holder.close()


async def test_a_write_that_fails(path: Path, ledger: SqliteLedger) -> None:
    """It says so, leaves nothing behind, and the next one works."""
    with pytest.raises(LedgerError):
        await ledger.put(attrs.evolve(WHOLE, provider=None))  # type: ignore[arg-type]
    await ledger.put(WHOLE)
    assert 1 == len(await ledger.sessions(NOON, NOON + timedelta(days=1)))


async def test_after_its_end(path: Path) -> None:
    """A closed ledger is an error, not a hang."""
    ledger = await SqliteLedger.open(path)
    await ledger.aclose()
    with pytest.raises(LedgerError):
        await ledger.put(WHOLE)
    with pytest.raises(LedgerError):
        await ledger.open_sessions()


async def test_a_disk_that_has_room_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that could not be opened is tried again by later calls, at a measured pace."""
    tries: list[Path] = []
    open_file = sqlite_ledger.connect
    monkeypatch.setattr(sqlite_ledger, "connect", lambda name: (tries.append(name), open_file(name))[1])
    path.parent.write_text("in the way")
    ledger = SqliteLedger(path)
    try:
        for _ in range(3):
            with pytest.raises(LedgerError, match="cannot be used"):
                await ledger.put(WHOLE)
        path.parent.unlink()
        with pytest.raises(LedgerError, match="cannot be used"):
            await ledger.put(WHOLE)
        assert [path] == tries
        monkeypatch.setattr(sqlite_ledger, "REOPEN_S", 0.0)
        await ledger.put(WHOLE)
        assert WHOLE == await ledger.session(WHOLE.id)
        assert [path, path] == tries
    finally:
        await ledger.aclose()
