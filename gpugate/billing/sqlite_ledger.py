"""The ledger in an SQLite file. All calls run in one thread, since SQLite would block the event loop.

The file's schema version is `PRAGMA user_version`; `MIGRATIONS` brings an older file up to date.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import attrs

from gpugate.billing import cost_math, ledger_sums
from gpugate.billing.cost_math import CostBreakdown, CostQuery, ReceiptLine
from gpugate.billing.ledger_damage import DamagedRow, create_views, hide_damaged_rows
from gpugate.billing.model import PodUsage, Session, instant_text
from gpugate.errors import LedgerError

T = TypeVar("T")
REOPEN_S = 3.0
"""Shortest pause between two tries to open a file that could not be opened."""
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
    "CREATE INDEX sessions_started ON sessions (started_at, id)",
    "ALTER TABLE sessions ADD COLUMN pod TEXT NOT NULL DEFAULT 'main'",
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
    """The ledger in one file. The first call opens it; while that fails, later calls try again, so that a
    disk that has room again is noticed.

    Args:
        path: the file, which is made if it is missing.
        warn: called with one line that names the damaged rows, when others are found than before.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] = lambda _: None) -> None:
        self._path = path
        self._warn = warn
        self._thread = ThreadPoolExecutor(1, "ledger")  # a connection belongs to one thread
        self._database: sqlite3.Connection | None = None
        self._failure = -inf, ""  # when it could not be opened, and why
        self._damaged: Sequence[DamagedRow] = ()
        self._warned_of: frozenset[DamagedRow] = frozenset()
        self._inspected = -1  # the version of the file's content that was searched for damaged rows

    @classmethod
    async def open(cls, path: Path, warn: Callable[[str], None] = lambda _: None) -> SqliteLedger:
        """Create the file or bring it up to date, and check that it can be written.

        Raises:
            LedgerError: the file cannot be used; the message says why, and what to do.
        """
        ledger = cls(path, warn)
        try:
            await ledger._run(lambda _: None)
        except BaseException:
            await ledger.aclose()
            raise
        return ledger

    async def aclose(self) -> None:
        """Finish the calls that run, and close the file."""
        with suppress(sqlite3.Error, RuntimeError):
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    async def put(self, session: Session) -> None:
        """Insert or replace this session's row."""
        await self._run(lambda database: put_rows(database, [session]))
        self._inspect_if_damaged({(session.id,)})

    async def put_usage(self, usage: Sequence[PodUsage]) -> None:
        """Insert or replace these rows; the key is session and id."""
        await self._run(lambda database: put_rows(database, usage))
        self._inspect_if_damaged({(use.session_id, use.id) for use in usage})

    async def open_sessions(self) -> list[Session]:
        """Return the sessions without an end, oldest first."""
        return await self._sessions("WHERE ended_at IS NULL ORDER BY asked_at, id")

    async def last_ended(self) -> list[Session]:
        """Return the billed session that ended last, of each pod and provider."""
        return await self._sessions(
            "WHERE id IN (SELECT id FROM (SELECT id, max(ended_at) FROM sound_sessions"
            " WHERE ended_at IS NOT NULL AND started_at IS NOT NULL GROUP BY pod, provider))"
        )

    async def sessions(
        self,
        since: datetime,
        until: datetime,
        *,
        before: Session | None = None,
        limit: int = -1,
    ) -> list[Session]:
        """Return the billed sessions that began in this span, `until` excluded, oldest first.

        Args:
            before: only those that stand before this one.
            limit: only as many of the newest; negative: all.
        """
        end = ("9", "") if before is None else (instant_text(before.began_at), before.id)
        found = await self._sessions(
            "WHERE started_at >= ? AND started_at < ? AND (started_at, id) < (?, ?)"
            " ORDER BY started_at DESC, id DESC LIMIT ?",
            instant_text(since),
            instant_text(until),
            *end,
            limit,
        )
        return found[::-1]

    async def starts(self, limit: int, *, request_id: str = "", pod: str = "") -> list[Session]:
        """Return so many of the newest sessions, failed starts too, the newest first.

        Args:
            request_id: only those that this request has caused.
            pod: only those of the pod with this name.
        """
        return await self._sessions(
            "WHERE ? IN ('', request_id) AND ? IN ('', pod) ORDER BY id DESC LIMIT ?", request_id, pod, limit
        )

    async def session(self, session_id: str) -> Session | None:
        """Return the session with this id."""
        return next(iter(await self._sessions("WHERE id = ?", session_id)), None)

    async def usage(self, session_id: str) -> list[PodUsage]:
        """Return the usage of a session, in order."""
        return await self._run_read(lambda database: _usage(database, session_id))

    async def pods(self) -> Mapping[str, Set[str]]:
        """Return the pods of all billed sessions, by provider."""
        pods: dict[str, set[str]] = defaultdict(set)
        for row in await self._read(
            "SELECT DISTINCT provider, pod_id FROM sound_sessions"
            " WHERE started_at IS NOT NULL AND pod_id IS NOT NULL"
        ):
            pods[row["provider"]].add(row["pod_id"])
        return pods

    async def cost_breakdown(self, query: CostQuery) -> CostBreakdown:
        """Return the costs of a span."""
        told = await self._run_read(lambda database: cost_breakdown(database, query))
        return attrs.evolve(told, damaged=len(self._damaged))

    async def last_notified_threshold(self, month: str) -> int:
        """Return the highest threshold that was notified in this month ("2026-11"), 0 for none."""
        rows = await self._read("SELECT percent FROM budgets WHERE month = ?", month)
        return next((row["percent"] for row in rows if isinstance(row["percent"], int)), 0)

    async def mark_threshold_notified(self, month: str, percent: int) -> None:
        """Store that this threshold was notified."""
        statement = "INSERT OR REPLACE INTO budgets (month, percent) VALUES (?, ?)"
        await self._run(lambda database: _write_rows(database, statement, [(month, percent)]))

    async def _sessions(self, which: str, *values: object) -> list[Session]:
        return await self._run_read(lambda database: _sessions(database, which, *values))

    async def _read(self, query: str, *values: object) -> list[sqlite3.Row]:
        return await self._run_read(lambda database: database.execute(query, values).fetchall())

    async def _run_read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def read(database: sqlite3.Connection) -> T:
            (version,) = database.execute("PRAGMA data_version").fetchone()
            if version != self._inspected:  # another program has written to the file
                self._damaged, self._inspected = hide_damaged_rows(database), version
            return work(database)

        try:
            return await self._run(read)
        finally:
            self._warn_of_damage()

    def _inspect_if_damaged(self, keys: Set[tuple[str, ...]]) -> None:
        """Inspect the rows again if one of these was damaged: it has been replaced."""
        if any(row.key in keys for row in self._damaged):
            self._inspected = -1

    def _warn_of_damage(self) -> None:
        damaged = self._damaged
        if set(damaged) - self._warned_of:
            some = "1 damaged row is" if len(damaged) == 1 else f"{len(damaged)} damaged rows are"
            told = ", ".join(str(row) for row in damaged[:10])
            self._warn(f"{self._path}: {some} left out of all lists and sums: {told}")
        self._warned_of = frozenset(damaged)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(self._open()))
        except (sqlite3.Error, RuntimeError, ValueError, ArithmeticError) as error:  # RuntimeError: has ended
            raise _ledger_error(self._path, error) from error

    def _open(self) -> sqlite3.Connection:
        """Return the connection, in the ledger's thread; opening is tried every `REOPEN_S` at most."""
        if self._database is None:
            at, why = self._failure
            if time.monotonic() - at < REOPEN_S:
                raise LedgerError(why, self._path)
            try:
                self._database = connect(self._path)
            except LedgerError as error:
                self._failure = time.monotonic(), str(error)
                raise
        return self._database

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()


def put_rows(database: sqlite3.Connection, rows: Sequence[Session] | Sequence[PodUsage]) -> None:
    """Insert or replace rows of one kind; called in the ledger's thread."""
    if rows:
        table, columns = ("sessions", _SESSION) if isinstance(rows[0], Session) else ("uses", _USAGE)
        names = [_ATTRIBUTES.get(column, column) for column in columns]
        marks = ", ".join("?" * len(columns))
        values = [tuple(_stored(getattr(row, name)) for name in names) for row in rows]
        statement = f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
        _write_rows(database, statement, values)


def cost_breakdown(database: sqlite3.Connection, query: CostQuery) -> CostBreakdown:
    """Return the costs of a span; called in the ledger's thread."""

    def receipt_of(session_id: str) -> list[ReceiptLine]:
        (session,) = _sessions(database, "WHERE id = ?", session_id)
        return cost_math.receipt(session, _usage(database, session_id), query.now, query.span)

    return ledger_sums.cost_breakdown(database, query, receipt_of)


def _sessions(database: sqlite3.Connection, which: str, *values: object) -> list[Session]:
    rows = database.execute(f"SELECT * FROM sound_sessions {which}", values)
    return [Session(**_values(row)) for row in rows]


def _usage(database: sqlite3.Connection, session_id: str) -> list[PodUsage]:
    rows = database.execute(
        "SELECT * FROM sound_uses WHERE session_id = ? ORDER BY began_at, id", (session_id,)
    )
    return [PodUsage(**_values(row)) for row in rows]


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, or ":memory:", for the calls of this thread. Raises LedgerError."""
    database: sqlite3.Connection | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)
        database.row_factory = sqlite3.Row
        database.text_factory = lambda raw: raw.decode("utf-8", "replace")  # a damaged name is still a name
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
            f"the ledger was written by a newer gpugate (schema {version}, this one knows {len(MIGRATIONS)});"
            " use that version, or move the file away",
            path,
        )
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(str(verdict))
    _migrate(database, path, version)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")  # a start intent has to survive a power failure
    create_views(database)
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
    return LedgerError(f"not a ledger of this gpugate ({why}); move the file away: a new one is made", path)


def _ledger_error(path: Path, error: Exception) -> LedgerError:
    said = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, sqlite3.OperationalError | OSError | RuntimeError | sqlite3.ProgrammingError):
        return LedgerError(f"the ledger cannot be used ({said}); check the disk and its permissions", path)
    return LedgerError(f"the ledger is damaged ({said}); move the file away, or restore a backup", path)


def _stored(value: object) -> object:
    if isinstance(value, datetime):
        return instant_text(value)
    return str(value) if isinstance(value, Decimal) else value


def _values(row: sqlite3.Row) -> dict[str, Any]:
    names = row.keys()  # a Row itself iterates its values
    return {_ATTRIBUTES.get(name, name): _loaded(name, row[name]) for name in names}


def _loaded(name: str, stored: Any) -> object:
    if stored is None:
        return None
    if name in _INSTANTS:
        return datetime.fromisoformat(stored)
    return Decimal(stored) if name in _AMOUNTS else stored
