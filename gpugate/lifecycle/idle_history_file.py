"""What the idle policy has learnt, on disk, in `<state dir>/habits.json`; knows nothing of pods."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from math import inf, isfinite
from pathlib import Path

from attrs import define

from gpugate.core.idle_policy import IdleHistory

VERSION = 1
MOST_BYTES = 65_536
"""Ours has some 3 KB; what is larger is not ours."""


@define
class IdleHistoryFile:
    """Implements `core.idle_history.IdleHistoryStore`; a disk that fails is told, and never stops a stop."""

    path: Path
    warn: Callable[[str], None]
    wall: Callable[[], float] = time.time

    def load(self) -> IdleHistory:
        """What the last gateway learnt; a damaged file is told and counts as empty."""
        try:
            with self.path.open("rb") as file:
                return self._habits(json.loads(file.read(MOST_BYTES)))
        except FileNotFoundError:
            return IdleHistory()
        except (OSError, ValueError, RecursionError) as error:
            said = getattr(error, "strerror", None) or "it is damaged"
            self.warn(f"cannot read {self.path}: {said}; the idle policy learns anew")
            return IdleHistory()

    def save(self, habits: IdleHistory) -> None:
        """Replace the file in one step; it is its owner's alone, as all in this folder."""
        fresh = self.path.with_suffix(".new")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)  # of a gateway that was killed: its mode would stay
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(self._content(habits), file)
            os.replace(fresh, self.path)
        except OSError as error:
            self.warn(f"cannot write {self.path}: {error.strerror}")

    def _content(self, habits: IdleHistory) -> dict[str, object]:
        known = isfinite(habits.last_demand_ago_s)
        return {
            "version": VERSION,
            "pauses": [round(pause_s, 1) for pause_s in habits.gaps_s],
            "starts": [round(start_s, 1) for start_s in habits.starts_s],
            "credit": habits.regret_budget,
            "wanted_at": round(self.wall() - habits.last_demand_ago_s, 1) if known else None,
        }

    def _habits(self, content: object) -> IdleHistory:
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise ValueError("not ours")
        credit, wanted_at = content.get("credit"), content.get("wanted_at")
        return IdleHistory(
            gaps_s=_seconds(content.get("pauses")),
            starts_s=_seconds(content.get("starts")),
            regret_budget=None if credit is None else _number(credit),
            last_demand_ago_s=inf if wanted_at is None else max(0.0, self.wall() - _number(wanted_at)),
        )


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ValueError("not a number")
    return float(value)


def _seconds(values: object) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise ValueError("no list")
    numbers = tuple(map(_number, values))
    if any(number < 0 for number in numbers):
        raise ValueError("a time that is negative")
    return numbers
