"""A ledger that cannot be opened: every call says why, so that nothing is paid for that is not on record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NoReturn

from gpugate.billing.model import PodUsage, Session
from gpugate.errors import LedgerError


class UnavailableLedger:
    """Stands in for a ledger file that is damaged, of a newer gpugate, or not to be written."""

    def __init__(self, error: LedgerError) -> None:
        self._said = str(error)

    def _refuse(self) -> NoReturn:
        raise LedgerError(self._said)

    async def put(self, session: Session) -> None:
        """Raises LedgerError."""
        self._refuse()

    async def put_usage(self, uses: Sequence[PodUsage]) -> None:
        """Raises LedgerError."""
        self._refuse()

    async def open_sessions(self) -> list[Session]:
        """Raises LedgerError."""
        self._refuse()

    async def last_ends(self) -> Mapping[str, datetime]:
        """Raises LedgerError."""
        self._refuse()

    async def sessions(self, since: datetime, until: datetime) -> list[Session]:
        """Raises LedgerError."""
        self._refuse()

    async def usage(self, since: datetime, until: datetime) -> list[PodUsage]:
        """Raises LedgerError."""
        self._refuse()

    async def last_notified_threshold(self, month: str) -> int:
        """Raises LedgerError."""
        self._refuse()

    async def mark_threshold_notified(self, month: str, percent: int) -> None:
        """Raises LedgerError."""
        self._refuse()

    async def aclose(self) -> None:
        """Nothing is held."""
