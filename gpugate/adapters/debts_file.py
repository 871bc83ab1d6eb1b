"""Unproved stops on disk, in `<state dir>/unproved-stops.json`; knows nothing of pods."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from attrs import define


@define
class DebtsFile:
    """Implements `ports.debts.Debts`; a disk that cannot be written is told, and never stops a stop."""

    path: Path
    warn: Callable[[str], None]

    def load(self) -> frozenset[str]:
        """What the last gateway left; a damaged file is told and counts as empty."""
        try:
            names = json.loads(self.path.read_text())
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValueError) as error:
            self.warn(f"cannot read {self.path}: {type(error).__name__}")
            return frozenset()
        return (
            frozenset(name for name in names if isinstance(name, str))
            if isinstance(names, list)
            else frozenset()
        )

    def save(self, names: Iterable[str]) -> None:
        """Replace the file in one step."""
        fresh = self.path.with_suffix(".new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(sorted(names)))
            os.replace(fresh, self.path)
        except OSError as error:
            self.warn(f"cannot write {self.path}: {error.strerror}")
