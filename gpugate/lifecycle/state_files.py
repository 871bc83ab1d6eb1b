"""What the lifecycle keeps across restarts: pending stops, and what the idle policy has learned.

The base classes keep it in memory only; they are the defaults of a lifecycle without a state folder. The file
classes warn of a disk that fails and go on: a full disk must not keep a pod from being stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from math import inf, isfinite
from pathlib import Path

from gpugate.core.idle_policy import IdleHistory
from gpugate.json_file import JsonFile

Warn = Callable[[str], None]


class PendingStopStore:
    """The names of the providers that have a stop which no inspection has confirmed; in memory."""

    def __init__(self) -> None:
        self._names: frozenset[str] = frozenset()

    def load(self) -> frozenset[str]:
        """Return the names that were saved last; called once, when the lifecycle is made."""
        return self._names

    def save(self, names: Iterable[str]) -> None:
        """Replace the names; called before a stop is sent and after it is confirmed. Never raises."""
        self._names = frozenset(names)


class PendingStopFile(PendingStopStore):
    """The same in `<state dir>/unproved-stops.json`, on the disk before the call returns.

    After a crash the next gateway goes on with these stops, so that no pod is forgotten while it is billed.
    """

    def __init__(self, path: Path, warn: Warn) -> None:
        super().__init__()
        self._file = JsonFile(path)
        self._warn = warn

    def load(self) -> frozenset[str]:
        """Return what the last gateway left; a damaged file counts as empty."""
        return self._file.load(_names, frozenset(), self._warn)

    def save(self, names: Iterable[str]) -> None:
        """Replace the file."""
        self._file.save(sorted(names), self._warn)


class IdleHistoryStore:
    """What a learning idle policy goes on from; in memory."""

    def __init__(self) -> None:
        self._history = IdleHistory()

    def load(self) -> IdleHistory:
        """Return what was saved last; empty if there is nothing. Called once, at the start."""
        return self._history

    def save(self, history: IdleHistory) -> None:
        """Replace it; called when a pod has stopped serving. Never raises."""
        self._history = history


class IdleHistoryFile(IdleHistoryStore):
    """The same in `<state dir>/habits.json`, some 3 KB.

    Args:
        wall: seconds since 1970; the file holds the instant of the last demand, not its age.
    """

    VERSION = 1
    MAX_BYTES = 65_536

    def __init__(self, path: Path, warn: Warn, wall: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._file = JsonFile(path, self.MAX_BYTES)
        self._warn = warn
        self._wall = wall

    def load(self) -> IdleHistory:
        """Return what the last gateway learned; a damaged file counts as empty."""
        return self._file.load(
            self._parse, IdleHistory(), lambda text: self._warn(f"{text}; the idle policy learns anew")
        )

    def save(self, history: IdleHistory) -> None:
        """Replace the file."""
        known = isfinite(history.last_demand_ago_s)
        content = {
            "version": self.VERSION,
            "pauses": [round(gap_s, 1) for gap_s in history.gaps_s],
            "starts": [round(start_s, 1) for start_s in history.starts_s],
            "credit": history.regret_budget,
            "wanted_at": round(self._wall() - history.last_demand_ago_s, 1) if known else None,
        }
        self._file.save(content, self._warn)

    def _parse(self, content: object) -> IdleHistory:
        if not isinstance(content, dict) or content.get("version") != self.VERSION:
            raise ValueError("another version")
        credit, wanted_at = content.get("credit"), content.get("wanted_at")
        return IdleHistory(
            gaps_s=_seconds(content.get("pauses")),
            starts_s=_seconds(content.get("starts")),
            regret_budget=None if credit is None else _number(credit),
            last_demand_ago_s=inf if wanted_at is None else max(0.0, self._wall() - _number(wanted_at)),
        )


def _names(content: object) -> frozenset[str]:
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError("not a list of names")
    return frozenset(content)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ValueError("not a number")
    return float(value)


def _seconds(values: object) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise ValueError("not a list")
    numbers = tuple(map(_number, values))
    if any(number < 0 for number in numbers):
        raise ValueError("a negative time")
    return numbers
