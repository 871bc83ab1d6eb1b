"""Unproved stops on disk, in `<state dir>/unproved-stops.json`; knows nothing of pods."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from attrs import define


@define
class PendingStopStore:
    """Implements `lifecycle.debts.Debts`; a disk that cannot be written is told, and never stops a stop."""

    path: Path
    warn: Callable[[str], None]

    def load(self) -> frozenset[str]:
        """What the last gateway left; a damaged file is told and counts as empty."""
        try:
            return _names(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValueError, RecursionError) as error:
            self.warn(f"cannot read {self.path}: {getattr(error, 'strerror', None) or 'it is damaged'}")
            return frozenset()

    def save(self, names: Iterable[str]) -> None:
        """Replace the file in one step; it is its owner's alone, as all in this folder."""
        fresh = self.path.with_suffix(".new")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)  # of a gateway that was killed: its mode would stay
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(sorted(names), file)
            os.replace(fresh, self.path)
        except OSError as error:
            self.warn(f"cannot write {self.path}: {error.strerror}")


def _names(content: object) -> frozenset[str]:
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError("no list of names")
    return frozenset(content)
