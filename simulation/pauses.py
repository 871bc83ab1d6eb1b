"""Idle policies on the pauses of a month alone: no lifecycle and no faults, some hundred times as fast."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from attrs import frozen

from gpugate.core.idle_policy import MIN_GAP_S, IdlePolicy

from .hindsight import START_S, WORTH_S
from .month import FIRST_BYTE_S
from .spans import Span, union
from .traffic import Traffic


@frozen
class Outcome:
    """What a policy came to.

    Attributes:
        idle_s: paid without use: the pod waits, or starts.
        cold: starts for which a request waited; one that waited for half a start counts as half.
        unasked: starts before a request came.
    """

    idle_s: float
    cold: float
    unasked: float = 0.0

    @property
    def price_s(self) -> float:
        """What policies are compared by: the idle time, and the worth of the cold starts."""
        return self.idle_s + self.cold * (WORTH_S - START_S)


def mean(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the mean outcome of several months."""
    some = list(outcomes)
    sums = (sum(o.idle_s for o in some), sum(o.cold for o in some), sum(o.unasked for o in some))
    return Outcome(*(total / len(some) for total in sums))


def use(traffic: Traffic) -> list[Span]:
    """Return when the pod is used, if every request finds it warm."""
    return union((r.at, r.at + FIRST_BYTE_S + r.takes_s) for r in traffic)


def pauses(traffic: Traffic) -> list[Span]:
    """Return the time between the uses."""
    return [(before[1], after[0]) for before, after in pairwise(use(traffic))]


def live(policy: IdlePolicy, month: Sequence[Span]) -> Outcome:
    """Live through these pauses under a policy that learns as it goes; every start takes `START_S`."""
    idle_s, cold, unasked = START_S, 1.0, 0
    policy.on_start_finished(START_S)
    for began, ended in month:
        gap_s, keep_s, window = ended - began, policy.effective_timeout_s, policy.window
        idle_s += min(gap_s, keep_s)
        if gap_s > keep_s:
            if window is not None and gap_s >= window.opens_s:
                unasked += 1
                idle_s += max(START_S, min(gap_s, window.closes_s) - window.opens_s)
                share = min(1.0, max(0.0, (window.opens_s + START_S - gap_s) / START_S))
            if window is None or gap_s < window.opens_s or gap_s > window.closes_s:
                share, idle_s = 1.0, idle_s + START_S
            cold += share
        if gap_s > MIN_GAP_S:
            policy.on_gap_ended(gap_s)
    return Outcome(idle_s, cold, unasked)
