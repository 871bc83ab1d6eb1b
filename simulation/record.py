"""The ledger in the simulation: rows in memory that outlive each gateway; knows no cloud."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal

from attrs import define, field
from gpugate_testing.fakes import last_ended

from gpugate.billing.model import PodUsage, Session


@define
class Record:
    """All that reached the disk, of all gateways."""

    rows: dict[str, Session] = field(factory=dict)
    still_open: dict[str, Session] = field(factory=dict)

    def cost(self, pod: str) -> Decimal:
        """What the sessions of this pod cost that have come to an end."""
        return sum((row.cost or Decimal(0) for row in self.rows.values() if row.pod == pod), Decimal(0))


@define
class RecordOf:
    """One gateway's hold on it: what a dead one writes does not arrive."""

    record: Record
    is_dead: Callable[[], bool]

    async def put(self, session: Session) -> None:
        """Write this session's row."""
        if self.is_dead():
            return
        self.record.rows[session.id] = session
        if session.ended_at is None:
            self.record.still_open[session.id] = session
        else:
            self.record.still_open.pop(session.id, None)

    async def open_sessions(self) -> list[Session]:
        """Those without an end, oldest first."""
        return sorted(self.record.still_open.values(), key=lambda row: (row.asked_at, row.id))

    async def last_ended(self) -> list[Session]:
        """The billed session that ended last, of each pod and provider."""
        return last_ended(self.record.rows.values())

    async def put_usage(self, uses: Sequence[PodUsage]) -> None:
        """Do nothing: the simulation has no costs by user."""

    async def last_notified_threshold(self, month: str) -> int:
        """No budget is set."""
        return 0

    async def mark_threshold_notified(self, month: str, percent: int) -> None:
        """No budget is set."""

    async def aclose(self) -> None:
        """Nothing to let go."""
