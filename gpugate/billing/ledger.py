"""The ledger interface, and the ledger that keeps simulated sessions apart from real ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from datetime import datetime
from pathlib import Path
from typing import Protocol

import attrs

from gpugate.billing.cost_math import CostBreakdown, CostQuery
from gpugate.billing.model import PodUsage, Session
from gpugate.billing.sqlite_ledger import SqliteLedger

LEDGER = "ledger.sqlite3"


class SessionStore(Protocol):
    """Stores sessions and usage. A write returns when it is on disk; no call blocks the event loop.

    All calls raise `LedgerError`.
    """

    async def put(self, session: Session) -> None:
        """Insert or replace this session's row."""

    async def put_usage(self, usage: Sequence[PodUsage]) -> None:
        """Insert or replace these rows; the key is session and id."""

    async def open_sessions(self) -> list[Session]:
        """Return the sessions without an end, oldest first."""

    async def last_ended(self) -> list[Session]:
        """Return the billed session that ended last, of each pod and provider."""


class Ledger(SessionStore, Protocol):
    """The store with all that is asked about costs and budgets."""

    async def sessions(
        self, since: datetime, until: datetime, *, before: Session | None = None, limit: int = -1
    ) -> list[Session]:
        """Return the billed sessions that began in this span, `until` excluded, oldest first.

        Args:
            before: only those that stand before this one.
            limit: only as many of the newest; negative: all.
        """

    async def starts(self, limit: int, *, request_id: str = "", pod: str = "") -> list[Session]:
        """Return so many of the newest sessions, failed starts too, the newest first.

        Args:
            request_id: only those that this request has caused.
            pod: only those of the pod with this name.
        """

    async def session(self, session_id: str) -> Session | None:
        """Return the session with this id."""

    async def usage(self, session_id: str) -> list[PodUsage]:
        """Return the usage of a session, in order."""

    async def pods(self) -> Mapping[str, Set[str]]:
        """Return the pods of all billed sessions, by provider."""

    async def cost_breakdown(self, query: CostQuery) -> CostBreakdown:
        """Return the costs of a span."""

    async def last_notified_threshold(self, month: str) -> int:
        """Return the highest threshold (50, 80, 100) that was notified in this month ("2026-11"), 0 for
        none.
        """

    async def mark_threshold_notified(self, month: str, percent: int) -> None:
        """Store that this threshold was notified."""

    async def aclose(self) -> None:
        """Finish the calls that run, and close the file."""


class SplitLedger:
    """Combines two ledgers, so that simulated sessions are in no real one.

    Args:
        real: has the sessions that cost money, and the budget thresholds.
        simulated: has the sessions of `names`.
        names: the simulated providers.
    """

    def __init__(self, real: Ledger, simulated: Ledger, names: Collection[str]) -> None:
        self._real = real
        self._simulated = simulated
        self._names = frozenset(names)
        self._simulated_ids: set[str] = set()  # usage rows name their session only

    async def put(self, session: Session) -> None:
        """Insert or replace this session's row."""
        if session.provider in self._names:
            self._simulated_ids.add(session.id)
            await self._simulated.put(session)
        else:
            await self._real.put(session)

    async def put_usage(self, usage: Sequence[PodUsage]) -> None:
        """Insert or replace these rows, the real ones first."""
        simulated = [use for use in usage if use.session_id in self._simulated_ids]
        if real := [use for use in usage if use.session_id not in self._simulated_ids]:
            await self._real.put_usage(real)
        if simulated:
            await self._simulated.put_usage(simulated)

    async def open_sessions(self) -> list[Session]:
        """Return the sessions without an end; end simulated ones that an older gpugate wrote to `real`."""
        rows = []
        for row in await self._real.open_sessions():
            if row.provider in self._names:
                end = attrs.evolve(row, ended_at=row.last_known_at, end_reason="simulated")
                await self._real.put(end)
            else:
                rows.append(row)
        simulated = await self._simulated.open_sessions()
        self._simulated_ids.update(row.id for row in simulated)
        return sorted([*rows, *simulated], key=lambda row: (row.asked_at, row.id))

    async def last_ended(self) -> list[Session]:
        """Return the billed session that ended last, of each pod and provider."""
        real = [row for row in await self._real.last_ended() if row.provider not in self._names]
        return [*real, *await self._simulated.last_ended()]

    async def sessions(
        self, since: datetime, until: datetime, *, before: Session | None = None, limit: int = -1
    ) -> list[Session]:
        """Return the billed sessions of both that began in this span; see `Ledger`."""
        rows = [
            *await self._real.sessions(since, until, before=before, limit=limit),
            *await self._simulated.sessions(since, until, before=before, limit=limit),
        ]
        rows.sort(key=lambda row: (row.began_at, row.id))
        return rows if limit < 0 else rows[max(0, len(rows) - limit) :]

    async def starts(self, limit: int, *, request_id: str = "", pod: str = "") -> list[Session]:
        """Return so many of the newest sessions of both, the newest first; see `Ledger`."""
        rows = [
            *await self._real.starts(limit, request_id=request_id, pod=pod),
            *await self._simulated.starts(limit, request_id=request_id, pod=pod),
        ]
        return sorted(rows, key=lambda row: row.id, reverse=True)[:limit]

    async def session(self, session_id: str) -> Session | None:
        """Return the session with this id."""
        return await self._real.session(session_id) or await self._simulated.session(session_id)

    async def usage(self, session_id: str) -> list[PodUsage]:
        """Return the usage of a session, in order."""
        return await self._real.usage(session_id) or await self._simulated.usage(session_id)

    async def pods(self) -> Mapping[str, Set[str]]:
        """Return the pods of all billed sessions, by provider."""
        return {**await self._real.pods(), **await self._simulated.pods()}

    async def cost_breakdown(self, query: CostQuery) -> CostBreakdown:
        """Return the costs of a span; of the simulated sessions only how many there are."""
        real = await self._real.cost_breakdown(query)
        simulated = await self._simulated.cost_breakdown(query)
        return attrs.evolve(
            real,
            simulated=real.simulated + simulated.simulated,
            damaged=real.damaged + simulated.damaged,
        )

    async def last_notified_threshold(self, month: str) -> int:
        """Return the highest threshold that was notified in this month ("2026-11"), 0 for none."""
        return await self._real.last_notified_threshold(month)

    async def mark_threshold_notified(self, month: str, percent: int) -> None:
        """Store that this threshold was notified."""
        await self._real.mark_threshold_notified(month, percent)

    async def aclose(self) -> None:
        """Close both."""
        await self._real.aclose()
        await self._simulated.aclose()


def open_ledger(
    state: Path, providers: Collection[str], simulated: Collection[str], warn: Callable[[str], None]
) -> Ledger:
    """Return the ledger in the state folder; simulated providers have one of their own, in a folder below it.

    While it cannot be opened every call raises LedgerError: no pod is started, and all are stopped.

    Args:
        warn: called with one line that names damaged rows.
    """
    if not simulated:
        return SqliteLedger(state / LEDGER, warn)
    simulated_ledger = SqliteLedger(state / "simulated" / LEDGER, warn)
    if set(simulated) == set(providers):
        return simulated_ledger
    return SplitLedger(SqliteLedger(state / LEDGER, warn), simulated_ledger, simulated)
