"""What must outlive the process: at which providers a stop was sent and is not proved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Debts(Protocol):
    """The names of providers whose pod may still be running although it was to be stopped."""

    def load(self) -> frozenset[str]:
        """What the last gateway left behind."""

    def save(self, names: Iterable[str]) -> None:
        """Write down what is unproved now; never raises (a full disk must not stop a stop)."""
