"""What an idle policy has learnt, and where that is kept across restarts; knows no file and no policy."""

from __future__ import annotations

from math import inf
from typing import Protocol

from attrs import frozen


@frozen
class IdleHistory:
    """What a learning idle policy goes on from; small. Times in seconds.

    Attributes:
        gaps_s: the last times from the end of a use to the next demand, oldest first.
        starts_s: how long the last starts took.
        regret_budget: how many cold starts it may cost more than the fixed timeout; None for the maximum.
        last_demand_ago_s: how long ago somebody wanted the pod; `inf` if never.
    """

    gaps_s: tuple[float, ...] = ()
    starts_s: tuple[float, ...] = ()
    regret_budget: float | None = None
    last_demand_ago_s: float = inf


class IdleHistoryStore(Protocol):
    """Where habits are kept."""

    def load(self) -> IdleHistory:
        """What was saved last; empty where there is nothing, or nothing that can be read."""

    def save(self, habits: IdleHistory) -> None:
        """Write it down; never raises (a full disk must not stop a stop)."""
