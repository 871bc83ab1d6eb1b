"""The ledger in an SQLite file. All calls run in one thread, since SQLite would block the event loop.

The file's schema version is `PRAGMA user_version`; `MIGRATIONS` brings an older file up to date.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import attrs

from gpugate.billing.model import PodUsage, Session
from gpugate.errors import LedgerError

T = TypeVar("T")
LOCK_WAIT_S = 5.0
"""How long a call waits for another program (a backup, a shell) that has locked the file."""
_NUMBERED_USES = """
    ALTER TABLE uses RENAME TO old_uses;
    CREATE TABLE uses (
        session_id TEXT NOT NULL, id TEXT NOT NULL, request_id TEXT NOT NULL, user TEXT NOT NULL,
        began_at TEXT NOT NULL, ended_at TEXT NOT NULL, seconds TEXT NOT NULL, requests INTEGER NOT NULL,
        PRIMARY KEY (session_id, id)
    ) WITHOUT ROWID;
    INSERT INTO uses
        SELECT session_id,
            'v1-' || row_number() OVER (PARTITION BY session_id ORDER BY began_at, request_id, user),
            request_id, user, began_at, ended_at, seconds, requests
        FROM old_uses;
    DROP TABLE old_uses;
    CREATE INDEX uses_ended ON uses (ended_at);
    """


def _number_uses(database: sqlite3.Connection) -> None:
    """Give each usage row an id. Some files of version 1 have that column already."""
    if "id" not in _columns(database, "uses"):
        _execute_all(database, _NUMBERED_USES)


def _columns(database: sqlite3.Connection, table: str) -> frozenset[str]:
    return frozenset(row["name"] for row in database.execute(f"PRAGMA table_info({table})"))


def _execute_all(database: sqlite3.Connection, script: str) -> None:
    """Execute each statement within the open transaction, which `executescript` would commit.

    The script is split at every semicolon.
    """
    for statement in script.split(";"):
        database.execute(statement)


MIGRATIONS: tuple[str | Callable[[sqlite3.Connection], None], ...] = (
    """
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY, provider TEXT NOT NULL, asked_at TEXT NOT NULL, pod_id TEXT, gpu TEXT,
        started_at TEXT, running_at TEXT, ready_at TEXT, last_used_at TEXT, stop_asked_at TEXT, ended_at TEXT,
        hourly_rate TEXT, stopped_rate TEXT, rate_source TEXT NOT NULL, currency TEXT NOT NULL,
        started_by TEXT NOT NULL, start_reason TEXT NOT NULL, request_id TEXT NOT NULL,
        end_reason TEXT NOT NULL, cost TEXT, seen_at TEXT, anchor TEXT NOT NULL
    );
    CREATE INDEX sessions_ended ON sessions (ended_at);
    CREATE TABLE uses (
        session_id TEXT NOT NULL, request_id TEXT NOT NULL, user TEXT NOT NULL,
        began_at TEXT NOT NULL, ended_at TEXT NOT NULL, seconds TEXT NOT NULL, requests INTEGER NOT NULL,
        PRIMARY KEY (session_id, request_id, user)
    ) WITHOUT ROWID;
    CREATE INDEX uses_ended ON uses (ended_at);
    CREATE TABLE budgets (month TEXT PRIMARY KEY, percent INTEGER NOT NULL) WITHOUT ROWID;
    """,
    _number_uses,
)
"""Item N brings a file from schema version N to N + 1. Released items never change."""
_COLUMNS = {"clock_anchor": "anchor"}
"""The columns whose name is not the attribute's."""
_ATTRIBUTES = {column: attribute for attribute, column in _COLUMNS.items()}
_SESSION = tuple(_COLUMNS.get(field.name, field.name) for field in attrs.fields(Session))
_USAGE = tuple(field.name for field in attrs.fields(PodUsage))
_TABLES = {
    "sessions": frozenset(_SESSION),
    "uses": frozenset(_USAGE),
    "budgets": frozenset({"month", "percent"}),
}
"""The columns that are read and written here."""
_INSTANTS = frozenset(name for name in (*_SESSION, *_USAGE) if name.endswith("_at"))
_AMOUNTS = frozenset({"hourly_rate", "stopped_rate", "cost", "seconds"})


class SqliteLedger:
    """An open ledger file; made by `open`."""

    def __init__(self, path: Path, thread: ThreadPoolExecutor, database: sqlite3.Connection) -> None:
        self._path = path
        self._thread = thread
        self._database = database

    @classmethod
    async def open(cls, path: Path) -> SqliteLedger:
        """Create the file or bring it up to date, and check that it can be written.

        Raises:
            LedgerError: the file cannot be used; the message says why, and what to do.
        """
        thread = ThreadPoolExecutor(1, "ledger")  # a connection belongs to one thread
        try:
            database = await asyncio.get_running_loop().run_in_executor(thread, _connect, path)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(path, thread, database)

    async def aclose(self) -> None:
        """Finish the calls that run, and close the file."""
        with suppress(LedgerError):
            await self._run(self._database.close)
        self._thread.shutdown(wait=False)

    async def put(self, session: Session) -> None:
        """Insert or replace this session's row."""
        await self._write(_upsert("sessions", _SESSION), [_row(session)])

    async def put_usage(self, usage: Sequence[PodUsage]) -> None:
        """Insert or replace these rows; the key is session and id."""
        await self._write(_upsert("uses", _USAGE), [_row(row) for row in usage])

    async def open_sessions(self) -> list[Session]:
        """Return the sessions without an end, oldest first."""
        rows = await self._read("SELECT * FROM sessions WHERE ended_at IS NULL ORDER BY asked_at, id")
        return [Session(**_values(row)) for row in rows]

    async def last_ends(self) -> Mapping[str, datetime]:
        """Return the latest `ended_at` of the billed sessions, by provider; providers may be missing."""
        rows = await self._read(
            "SELECT provider, max(ended_at) AS ended_at FROM sessions"
            " WHERE ended_at IS NOT NULL AND started_at IS NOT NULL GROUP BY provider"
        )
        return {row["provider"]: datetime.fromisoformat(row["ended_at"]) for row in rows}

    async def sessions(self, since: datetime, until: datetime) -> list[Session]:
        """Return the sessions that overlap this time span, oldest first; open ones last until now."""
        rows = await self._read(
            "SELECT * FROM sessions"
            " WHERE coalesce(started_at, asked_at) < ? AND (ended_at IS NULL OR ended_at >= ?)"
            " ORDER BY coalesce(started_at, asked_at), id",
            _text(until),
            _text(since),
        )
        return [Session(**_values(row)) for row in rows]

    async def usage(self, since: datetime, until: datetime) -> list[PodUsage]:
        """Return the usage that overlaps this time span."""
        rows = await self._read(
            "SELECT * FROM uses WHERE began_at < ? AND ended_at >= ? ORDER BY began_at, id",
            _text(until),
            _text(since),
        )
        return [PodUsage(**_values(row)) for row in rows]

    async def last_notified_threshold(self, month: str) -> int:
        """Return the highest threshold that was notified in this month ("2026-11"), 0 for none."""
        rows = await self._read("SELECT percent FROM budgets WHERE month = ?", month)
        return int(rows[0]["percent"]) if rows else 0

    async def mark_threshold_notified(self, month: str, percent: int) -> None:
        """Store that this threshold was notified."""
        await self._write(_upsert("budgets", ("month", "percent")), [(month, percent)])

    async def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        await self._run(_write_rows, self._database, statement, rows)

    async def _read(self, query: str, *values: str) -> list[sqlite3.Row]:
        return await self._run(lambda: self._database.execute(query, values).fetchall())

    async def _run(self, work: Callable[..., T], *given: object) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *given))
        except (sqlite3.Error, RuntimeError) as error:  # RuntimeError: the thread has ended
            raise _ledger_error(self._path, error) from error


def _connect(path: Path) -> sqlite3.Connection:
    database: sqlite3.Connection | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)
        database.row_factory = sqlite3.Row
        _prepare(database, path)
    except (sqlite3.Error, OSError, LedgerError) as error:
        if database is not None:
            database.close()
        raise error if isinstance(error, LedgerError) else _ledger_error(path, error) from error
    return database


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version < 0 or (version == 0 and database.execute("SELECT 1 FROM sqlite_master").fetchone()):
        raise _not_a_ledger(path, "it is an SQLite file of another program")
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"{path}: written by a newer gpugate (schema {version}, this one knows {len(MIGRATIONS)});"
            " use that version, or move the file away"
        )
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(str(verdict))
    _migrate(database, path, version)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")  # a start intent has to survive a power failure
    _write_rows(database, "UPDATE budgets SET percent = ? WHERE month = ?", [(0, "")])  # can it be written?


def _migrate(database: sqlite3.Connection, path: Path, version: int) -> None:
    """Apply all missing migrations in one transaction, and check that all columns exist."""
    database.execute("BEGIN IMMEDIATE")
    try:
        for number, step in enumerate(MIGRATIONS[version:], version + 1):
            if isinstance(step, str):
                _execute_all(database, step)
            else:
                step(database)
            database.execute(f"PRAGMA user_version = {number}")
        for table, columns in _TABLES.items():
            if missing := sorted(columns - _columns(database, table)):
                raise _not_a_ledger(path, f"its table {table} has no column {missing[0]}")
        database.execute("COMMIT")
    except BaseException as error:
        if database.in_transaction:
            database.execute("ROLLBACK")
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
            raise _not_a_ledger(path, "its tables are not those of any version") from error
        raise


def _write_rows(database: sqlite3.Connection, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Write all rows in one transaction."""
    database.execute("BEGIN IMMEDIATE")
    try:
        database.executemany(statement, rows)
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _not_a_ledger(path: Path, why: str) -> LedgerError:
    return LedgerError(f"{path}: not a ledger of this gpugate ({why}); move the file away: a new one is made")


def _ledger_error(path: Path, error: Exception) -> LedgerError:
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, sqlite3.OperationalError | OSError | RuntimeError | sqlite3.ProgrammingError):
        return LedgerError(f"{path}: the ledger cannot be used ({said}); check the disk and its permissions")
    return LedgerError(f"{path}: the ledger is damaged ({said}); move the file away, or restore a backup")


def _upsert(table: str, columns: Sequence[str]) -> str:
    return f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


def _row(value: Session | PodUsage) -> tuple[object, ...]:
    return tuple(_stored(getattr(value, field.name)) for field in attrs.fields(type(value)))


def _stored(value: object) -> object:
    if isinstance(value, datetime):
        return _text(value)
    return str(value) if isinstance(value, Decimal) else value


def _text(at: datetime) -> str:
    """Return the time as text that sorts by time."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _values(row: sqlite3.Row) -> dict[str, Any]:
    names = row.keys()  # a Row itself iterates its values
    return {_ATTRIBUTES.get(name, name): _loaded(name, row[name]) for name in names}


def _loaded(name: str, stored: Any) -> object:
    if stored is None:
        return None
    if name in _INSTANTS:
        return datetime.fromisoformat(stored)
    return Decimal(stored) if name in _AMOUNTS else stored


class UnavailableLedger:
    """Takes the place of a ledger that cannot be opened, so that no pod is started off the record.

    Every call but `aclose` raises `LedgerError` with the reason.
    """

    def __init__(self, error: LedgerError) -> None:
        self._reason = str(error)

    async def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise LedgerError(self._reason)

    put = put_usage = open_sessions = last_ends = sessions = usage = _refuse
    last_notified_threshold = mark_threshold_notified = _refuse

    async def aclose(self) -> None:
        """Do nothing."""
