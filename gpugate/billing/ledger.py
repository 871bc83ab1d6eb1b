"""The ledger interface, and a ledger out of two."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import attrs

from gpugate.billing.model import PodUsage, Session


class Ledger(Protocol):
    """The book. Every call returns when the disk has it; none blocks the loop; all raise `LedgerError`."""

    async def put(self, session: Session) -> None:
        """Write this session's row whole, new or not."""

    async def put_usage(self, uses: Sequence[PodUsage]) -> None:
        """Write these uses; one with the same session and id replaces the older."""

    async def open_sessions(self) -> list[Session]:
        """Those without an end, oldest first."""

    async def last_ends(self) -> Mapping[str, datetime]:
        """By provider the latest `ended_at` of its billed sessions; without those that have none."""

    async def sessions(self, since: datetime, until: datetime) -> list[Session]:
        """Those of which some part lies between, oldest first; open ones last until now."""

    async def usage(self, since: datetime, until: datetime) -> list[PodUsage]:
        """The uses of which some part lies between."""

    async def last_notified_threshold(self, month: str) -> int:
        """The highest threshold (0, 50, 80, 100) that was told of this month ("2026-11")."""

    async def mark_threshold_notified(self, month: str, percent: int) -> None:
        """Remember that this threshold was told."""

    async def aclose(self) -> None:
        """Finish what is under way, and let the file go."""


class SplitLedger:
    """Two ledgers as one; all calls raise `LedgerError` as theirs do.

    Args:
        real: of sessions that cost money, and of what was told of budgets.
        simulated: of the sessions at `names`.
        names: the simulated providers.
    """

    def __init__(self, real: Ledger, simulated: Ledger, names: Collection[str]) -> None:
        self._real = real
        self._simulated = simulated
        self._names = frozenset(names)
        self._simulated_ids: set[str] = set()  # a use names its session alone

    async def put(self, session: Session) -> None:
        """Write this session's row whole, new or not."""
        if session.provider in self._names:
            self._simulated_ids.add(session.id)
            await self._simulated.put(session)
        else:
            await self._real.put(session)

    async def put_usage(self, uses: Sequence[PodUsage]) -> None:
        """Write these uses, the real ones first; one with the same session and id replaces the older."""
        simulated = [use for use in uses if use.session_id in self._simulated_ids]
        if real := [use for use in uses if use.session_id not in self._simulated_ids]:
            await self._real.put_usage(real)
        if simulated:
            await self._simulated.put_usage(simulated)

    async def open_sessions(self) -> list[Session]:
        """Those without an end, oldest first; simulated ones of an older gpugate in `real` are ended."""
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

    async def last_ends(self) -> Mapping[str, datetime]:
        """By provider the latest `ended_at` of its billed sessions; without those that have none."""
        return {**await self._real.last_ends(), **await self._simulated.last_ends()}

    async def sessions(self, since: datetime, until: datetime) -> list[Session]:
        """Those of which some part lies between, oldest first; open ones last until now."""
        rows = [
            *await self._real.sessions(since, until),
            *await self._simulated.sessions(since, until),
        ]
        return sorted(rows, key=lambda row: (row.began_at, row.id))

    async def usage(self, since: datetime, until: datetime) -> list[PodUsage]:
        """The uses of which some part lies between."""
        uses = [*await self._real.usage(since, until), *await self._simulated.usage(since, until)]
        return sorted(uses, key=lambda use: (use.began_at, use.id))

    async def last_notified_threshold(self, month: str) -> int:
        """The highest threshold that was told of this month, 0 for none."""
        return await self._real.last_notified_threshold(month)

    async def mark_threshold_notified(self, month: str, percent: int) -> None:
        """Remember that this threshold was told."""
        await self._real.mark_threshold_notified(month, percent)

    async def aclose(self) -> None:
        """Nothing: the two ledgers are closed by the code that opened them."""
