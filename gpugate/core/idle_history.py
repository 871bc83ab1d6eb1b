"""What an idle policy has learnt, and where that is kept across restarts; knows no file and no policy."""

from __future__ import annotations

from math import inf
from typing import Protocol

from attrs import frozen


@frozen
class Habits:
    """What a learning idle policy goes on from; small. Times in seconds.

    Attributes:
        pauses_s: the last times from the end of a use to the next demand, oldest first.
        starts_s: how long the last starts took.
        credit: how many cold starts dearer than the fixed timeout it may still become; None for a fresh one.
        wanted_ago_s: how long ago somebody wanted the pod; `inf` if never.
    """

    pauses_s: tuple[float, ...] = ()
    starts_s: tuple[float, ...] = ()
    credit: float | None = None
    wanted_ago_s: float = inf


class HabitsStore(Protocol):
    """Where habits are kept."""

    def load(self) -> Habits:
        """What was saved last; empty where there is nothing, or nothing that can be read."""

    def save(self, habits: Habits) -> None:
        """Write it down; never raises (a full disk must not stop a stop)."""
