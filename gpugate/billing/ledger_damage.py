"""Finds the rows of an SQLite ledger that cannot be read, and hides them from every query.

A file that is sound for SQLite may hold text where a number belongs, or a date that no calendar has: by an
editor, a failing disk, another program. Such a row is left where it is, so that it can be mended by hand.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from attrs import frozen

from gpugate.billing.model import instant_text

MAX_AMOUNT = 10**12
"""No rate per hour, cost or number of seconds is as large as this."""
_KEYS = {"sessions": ("id",), "uses": ("session_id", "id")}
_TEXTS = {
    "sessions": (
        *("id", "provider", "rate_source", "currency", "started_by", "start_reason", "request_id"),
        *("end_reason", "anchor", "pod"),
    ),
    "uses": ("session_id", "id", "request_id", "user"),
}
_OPTIONAL_TEXTS = {"sessions": ("pod_id", "gpu"), "uses": ()}
_INSTANTS = {
    "sessions": (
        *("asked_at", "started_at", "running_at", "ready_at", "last_used_at", "stop_asked_at", "ended_at"),
        "seen_at",
    ),
    "uses": ("began_at", "ended_at"),
}
_AMOUNTS = {"sessions": ("hourly_rate", "stopped_rate", "cost"), "uses": ("seconds",)}
_COUNTS = {"sessions": (), "uses": ("requests",)}
_PATTERN = "[12]ddd-dd-ddTdd:dd:dd.dddddd+00:00".replace("d", "[0-9]")


@frozen
class DamagedRow:
    """A row that is left out: its table, key, and the first column that cannot be read."""

    table: str
    key: tuple[Any, ...]
    column: str

    def __str__(self) -> str:
        return f"{self.table} {'/'.join(str(part)[:60] for part in self.key)!r} ({self.column})"


def create_views(database: sqlite3.Connection) -> None:
    """Make the views `sound_sessions` and `sound_uses` of this connection, which hide no row yet."""
    for table, key in _KEYS.items():
        columns = ", ".join(key)
        database.execute(f"CREATE TEMP TABLE damaged_{table} ({columns})")
        database.execute(
            f"CREATE TEMP VIEW sound_{table} AS SELECT * FROM {table}"
            f" WHERE id IS NOT NULL AND ({columns}) NOT IN (SELECT {columns} FROM damaged_{table})"
        )


def hide_damaged_rows(database: sqlite3.Connection) -> Sequence[DamagedRow]:
    """Hide the damaged rows from the views, and return them; called when the file's content has changed."""
    found = []
    for table, key in _KEYS.items():
        damaged = _damaged_rows(database, table)
        values = ", ".join("?" * len(key))
        database.execute(f"DELETE FROM damaged_{table}")
        database.executemany(f"INSERT INTO damaged_{table} VALUES ({values})", [row.key for row in damaged])
        found += damaged
    return found


def _damaged_rows(database: sqlite3.Connection, table: str) -> list[DamagedRow]:
    """Return the damaged rows. SQLite picks those that are not plainly sound, and these are parsed."""
    suspects = database.execute(f"SELECT * FROM {table} WHERE NOT ({_plainly_sound(table)})")
    damaged = []
    for row in suspects:
        if column := _unreadable_column(row, table):
            damaged.append(DamagedRow(table, tuple(row[name] for name in _KEYS[table]), column))
    return damaged


def _plainly_sound(table: str) -> str:
    instants = [
        f"({name} IS NULL OR typeof({name}) = 'text' AND {name} GLOB '{_PATTERN}' AND"
        f" strftime('%Y-%m-%dT%H:%M:%S', substr({name}, 1, 19), '+0 days') IS substr({name}, 1, 19))"
        for name in _INSTANTS[table]
    ]
    amounts = [
        f"({name} IS NULL OR typeof({name}) = 'text' AND {name} NOT GLOB '*[^0-9.]*'"
        f" AND {name} GLOB '[0-9]*' AND {name} NOT GLOB '*.*.*' AND CAST({name} AS REAL) < {MAX_AMOUNT})"
        for name in _AMOUNTS[table]
    ]
    texts = [f"typeof({name}) = 'text'" for name in _TEXTS[table]]
    texts += [f"typeof({name}) IN ('text', 'null')" for name in _OPTIONAL_TEXTS[table]]
    counts = [f"typeof({name}) = 'integer'" for name in _COUNTS[table]]
    return " AND ".join([*instants, *amounts, *texts, *counts])


def _unreadable_column(row: sqlite3.Row, table: str) -> str:
    """Return the first column that cannot be read; empty if all can."""
    sound: list[tuple[Sequence[str], Callable[[Any], bool]]] = [
        (_TEXTS[table], lambda value: isinstance(value, str)),
        (_OPTIONAL_TEXTS[table], lambda value: value is None or isinstance(value, str)),
        (_INSTANTS[table], lambda value: value is None or _is_instant(value)),
        (_AMOUNTS[table], lambda value: value is None or _is_amount(value)),
        (_COUNTS[table], lambda value: isinstance(value, int)),
    ]
    return next((name for names, is_sound in sound for name in names if not is_sound(row[name])), "")


def _is_instant(value: Any) -> bool:
    try:
        return bool(instant_text(datetime.fromisoformat(value)) == value)  # or it would not sort by time
    except (ValueError, TypeError, OverflowError):
        return False


def _is_amount(value: Any) -> bool:
    try:
        return isinstance(value, str) and 0 <= Decimal(value) < MAX_AMOUNT
    except ArithmeticError:
        return False
