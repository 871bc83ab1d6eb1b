"""Adds up what the sessions of an SQLite ledger cost, by provider, pod, user and day.

Theory of operation:

1. SQLite selects and adds, without Python's lock: ten thousand sessions hold up no request. It adds whole
   microseconds for each hourly rate; only these few sums are multiplied, as exact `Decimal`.
2. Instants are text that sorts by time, so spans are cut with `min` and `max` of text.
3. Usage that only partly lies in its session and span, that claims more than the session's READY time or that
   is finer than microseconds, has no whole number: such sessions are divided by `cost_math.receipt`.
4. What is being added up is in tables of the connection alone, in memory, which a rollback empties.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext

from gpugate.billing.cost_math import (
    IDLE,
    SECONDS_PER_HOUR,
    WARM_UP,
    CostBreakdown,
    CostGroup,
    CostQuery,
    ReceiptLine,
    TimeAndCost,
)
from gpugate.billing.model import instant_text

DIGITS = 60
"""Digits of intermediate results: a rate times microseconds has up to 35."""
US_PER_S = Decimal(1_000_000)
PAUSE_S = 0.0005
"""For which the ledger's thread leaves Python's lock to the event loop, after each millisecond or so."""


def _us(instant: str) -> str:
    """Return the SQL for an instant's microseconds since 1970."""
    return f"(strftime('%s', substr({instant}, 1, 19)) * 1000000 + substr({instant}, 21, 6))"


_TABLES = """
    CREATE TEMP TABLE IF NOT EXISTS days (name TEXT, since TEXT, until TEXT);
    CREATE TEMP TABLE IF NOT EXISTS parts (
        id TEXT PRIMARY KEY, provider TEXT, pod TEXT, rate TEXT, since TEXT, until TEXT, us INTEGER,
        warm INTEGER, failed INTEGER, used INTEGER, divided INTEGER
    );
"""
_SIMULATED = "provider IN (SELECT value FROM json_each(:simulated))"
_OVERLAPS = "started_at < :until AND (ended_at IS NULL OR ended_at >= :since)"
_PARTS = f"""
    INSERT INTO parts
    WITH life AS (
        SELECT *, max(started_at, coalesce(ended_at, max(:now, coalesce(seen_at, ''),
            coalesce(last_used_at, ''), coalesce(ready_at, ''), coalesce(running_at, '')))) AS over
        FROM sound_sessions
        WHERE {_OVERLAPS} AND currency = :currency AND NOT {_SIMULATED}
    ), inside AS (SELECT *, max(started_at, :since) AS begun, min(over, :until) AS done FROM life)
    SELECT id, provider, pod, hourly_rate, begun, done, {_us("done")} - {_us("begun")},
        max(0, {_us("min(coalesce(ready_at, over), done)")} - {_us("begun")}),
        ready_at IS NULL AND ended_at IS NOT NULL, 0, 0
    FROM inside WHERE begun < done
"""
_WITHIN = "(u.began_at >= p.since AND u.ended_at <= p.until AND u.began_at < p.until)"
_OUTSIDE = "(u.ended_at <= p.since OR u.began_at >= p.until)"
_FINER = "(u.seconds GLOB '*.???????*' OR u.seconds GLOB '*[eE]*')"
_USED_US = "max(0, CAST(round(u.seconds * 1000000) AS INTEGER))"
_USED = f"""
    UPDATE parts AS p SET (used, divided) = (
        SELECT coalesce(sum(CASE WHEN {_WITHIN} THEN {_USED_US} ELSE 0 END), 0),
            coalesce(max(CASE WHEN {_WITHIN} THEN {_FINER} ELSE NOT {_OUTSIDE} END), 0)
        FROM sound_uses AS u WHERE u.session_id = p.id
    )
"""
_DIVIDED = "UPDATE parts SET divided = 1 WHERE used > us - warm"
_SUMS = f"""
    SELECT 'provider' AS kind, provider AS name, rate, sum(us) AS us, count(*) AS sessions
        FROM parts GROUP BY provider, rate
    UNION ALL SELECT 'pod', pod, rate, sum(us), count(*) FROM parts GROUP BY pod, rate
    UNION ALL SELECT 'day', d.name, rate,
        sum({_us("min(p.until, d.until)")} - {_us("max(p.since, d.since)")}), count(*)
        FROM days AS d JOIN parts AS p ON p.since < d.until AND p.until > d.since GROUP BY d.name, rate
    UNION ALL SELECT 'failed', '', rate, sum(us), count(*) FROM parts WHERE failed GROUP BY rate
    UNION ALL SELECT 'user', :warm_up, rate, sum(warm), count(*)
        FROM parts WHERE NOT divided AND warm > 0 GROUP BY rate
    UNION ALL SELECT 'user', :idle, rate, sum(us - warm - used), count(*)
        FROM parts WHERE NOT divided AND us - warm - used > 0 GROUP BY rate
    UNION ALL SELECT 'user', u.user, rate, sum({_USED_US}), count(DISTINCT p.id)
        FROM parts AS p JOIN sound_uses AS u ON u.session_id = p.id
        WHERE NOT divided AND {_WITHIN} AND {_USED_US} > 0 GROUP BY u.user, rate
    UNION ALL SELECT 'disk', '', stopped_rate,
        sum({_us("min(next, :until)")} - {_us("max(ended_at, :since)")}), 0
        FROM (
            SELECT ended_at, stopped_rate, coalesce(
                lead(started_at) OVER (PARTITION BY provider, pod_id ORDER BY started_at, id), :now) AS next
            FROM sound_sessions
            WHERE started_at < :until AND currency = :currency AND NOT {_SIMULATED}
        )
        WHERE CAST(stopped_rate AS REAL) > 0 AND max(ended_at, :since) < min(next, :until)
        GROUP BY stopped_rate
"""
_COUNTS = f"""
    SELECT
        (SELECT count(*) FROM sound_sessions WHERE started_at IS NULL
            AND asked_at >= :since AND asked_at < :until AND NOT {_SIMULATED}) AS refused,
        (SELECT count(*) FROM sound_sessions WHERE {_OVERLAPS} AND {_SIMULATED}) AS simulated,
        (SELECT count(*) FROM parts WHERE rate IS NULL) AS unpriced,
        (SELECT json_group_array(DISTINCT currency) FROM sound_sessions
            WHERE {_OVERLAPS} AND currency != :currency AND NOT {_SIMULATED}) AS currencies
"""


def cost_breakdown(
    database: sqlite3.Connection, query: CostQuery, receipt_of: Callable[[str], Sequence[ReceiptLine]]
) -> CostBreakdown:
    """Compute the costs of a span; called in the ledger's thread.

    Args:
        database: has the views `sound_sessions` and `sound_uses`.
        receipt_of: returns how a session's part of the span is divided.
    """
    for statement in _TABLES.split(";"):
        database.execute(statement)
    values = {
        "since": instant_text(query.span.since),
        "until": instant_text(query.span.until),
        "now": instant_text(query.now),
        "currency": query.currency,
        "simulated": json.dumps(list(query.simulated)),
        "warm_up": WARM_UP,
        "idle": IDLE,
    }
    database.execute("BEGIN")
    try:
        _fill(database, query, values)
        with localcontext(prec=DIGITS):
            return _assemble(database, values, receipt_of)
    finally:
        database.execute("ROLLBACK")


def _fill(database: sqlite3.Connection, query: CostQuery, values: dict[str, str]) -> None:
    database.execute(_PARTS, values)
    (first, last) = database.execute("SELECT min(since), max(until) FROM parts").fetchone()
    days = query.span.days(query.zone) if first else ()
    database.executemany(
        "INSERT INTO days VALUES (?, ?, ?)",
        [
            (day.isoformat(), since, until)
            for day, part in days
            if (since := instant_text(part.since)) < last and (until := instant_text(part.until)) > first
        ],
    )
    database.execute(_USED)
    database.execute(_DIVIDED)


def _assemble(
    database: sqlite3.Connection, values: dict[str, str], receipt_of: Callable[[str], Sequence[ReceiptLine]]
) -> CostBreakdown:
    sums = _Sums()
    for number, (kind, name, rate, us, sessions) in enumerate(database.execute(_SUMS, values), 1):
        sums.add(kind, name, Decimal(us) / US_PER_S, Decimal(rate or 0), sessions)
        if number % 500 == 0:
            time.sleep(PAUSE_S)
    for (session_id,) in database.execute("SELECT id FROM parts WHERE divided").fetchall():
        for line in receipt_of(session_id):
            sums.add_amount("user", line.user, line.amount)
        time.sleep(PAUSE_S)
    counts = database.execute(_COUNTS, values).fetchone()
    providers, failed = sums.groups("provider"), sums.whole("failed")
    return CostBreakdown(
        sessions=sum(group.sessions for group in providers),
        total=sum((group.amount for group in providers), TimeAndCost()),
        by_provider=providers,
        by_pod=sums.groups("pod"),
        by_day=sums.groups("day"),
        by_user=sums.groups("user"),
        failed_starts=CostGroup(name="", amount=failed.amount, sessions=failed.sessions + counts["refused"]),
        stopped_disk=sums.whole("disk").amount,
        unpriced=counts["unpriced"],
        other_currencies=sorted(json.loads(counts["currencies"])),
        simulated=counts["simulated"],
    )


class _Sums:
    """Time, cost and sessions by kind and name."""

    def __init__(self) -> None:
        self._amounts: dict[tuple[str, str], TimeAndCost] = defaultdict(TimeAndCost)
        self._sessions: dict[tuple[str, str], int] = defaultdict(int)

    def add(self, kind: str, name: str, seconds: Decimal, rate: Decimal, sessions: int) -> None:
        self.add_amount(kind, name, TimeAndCost(seconds, rate * seconds / SECONDS_PER_HOUR), sessions)

    def add_amount(self, kind: str, name: str, amount: TimeAndCost, sessions: int = 1) -> None:
        self._amounts[kind, name] += amount
        self._sessions[kind, name] += sessions

    def groups(self, kind: str) -> list[CostGroup]:
        """Return the totals of a kind, sorted by name."""
        names = sorted(name for of, name in self._amounts if of == kind)
        return [self.whole(kind, name) for name in names]

    def whole(self, kind: str, name: str = "") -> CostGroup:
        key = kind, name
        return CostGroup(name=name, amount=self._amounts[key], sessions=self._sessions[key])
