"""When a pod that nobody uses is stopped, and when one is started before it is asked for; knows pauses only.

A *pause* is the time from the end of the last use to the next demand. Whoever sets `pod.idle_timeout` says
what a cold start is worth to him: the fixed timeout is the ski-rental rule, keep what you rent until that
has cost as much as a new start. It never costs more than twice what hindsight would have. Both policies
count in that currency: a second of an idle pod costs 1, a cold start costs `idle_timeout`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import ceil, isfinite
from statistics import median
from typing import Protocol

from attrs import define, field, frozen

from gpugate.core.idle_history import IdleHistory

MIN_GAP_S = 60.0
"""Pauses up to this are no question: nobody stops a pod between two sentences. They are not counted."""

MAX_SAMPLES = 256
"""How many are remembered; a habit that changed is forgotten with the last of them."""

MIN_SAMPLES = 24
"""With fewer the past says nothing of the future (as for a histogram that is not representative)."""

MIN_SAVING = 0.03
"""A plan, or a window in it, has to save this share of what is paid without it; else it is left out."""

MIN_HITS = 3
"""A window must have been right for so many of the pauses."""

MAX_REGRET = 4.0
"""How many cold starts' worth the learning policy may be behind the fixed one before it stops learning."""

REGRET_RECOVERY = 0.02
"""The share of what the fixed timeout costs that comes back as credit."""

DEFAULT_START_S = 60.0
MAX_START_SAMPLES = 9


@frozen
class PrewarmWindow:
    """A pre-warmed pod, in seconds since the last use: started at `opens`, stopped at `closes` if unused."""

    opens_s: float
    closes_s: float


class IdlePolicy(Protocol):
    """Decides on a pod that nobody uses.

    Attributes:
        effective_timeout_s: a pod that was used is stopped after so many idle seconds; a plain attribute.
        window: when a pod is started unasked; None for never.
    """

    @property
    def effective_timeout_s(self) -> float:
        """Read at the end of every request: must cost nothing."""

    @property
    def window(self) -> PrewarmWindow | None:
        """Of the pause that runs; changes only when somebody wants the pod."""

    def on_gap_ended(self, pause_s: float) -> None:
        """Somebody wants the pod after a pause longer than `MIN_GAP_S`; the plan for the next one is made."""

    def on_start_finished(self, took_s: float) -> None:
        """A start took so long, from the first ask to READY."""

    def restore(self, habits: IdleHistory) -> None:
        """Go on from what was learnt before."""

    @property
    def history(self) -> IdleHistory | None:
        """What is worth keeping; None for nothing."""


@frozen
class FixedIdlePolicy:
    """Stop after `pod.idle_timeout`, always; start nothing unasked; learn nothing."""

    effective_timeout_s: float
    window: PrewarmWindow | None = None
    history: IdleHistory | None = None

    def on_gap_ended(self, pause_s: float) -> None:
        """Nothing is learnt."""

    def on_start_finished(self, took_s: float) -> None:
        """Nothing is learnt."""

    def restore(self, habits: IdleHistory) -> None:
        """Nothing is learnt."""


@frozen
class IdlePlan:
    """What is done in an idle gap: keep the pod for `keep_s`, and perhaps start it again in a window."""

    keep_s: float
    window: PrewarmWindow | None = None

    def cost_of(self, pause_s: float, cold_start_cost_s: float, start_s: float) -> float:
        """What a pause costs, in seconds of the pod: kept in vain, pre-warmed in vain, or started cold."""
        if pause_s <= self.keep_s:
            return pause_s
        window = self.window
        if window is None or pause_s < window.opens_s:
            return self.keep_s + cold_start_cost_s
        if pause_s > window.closes_s:
            return self.keep_s + window.closes_s - window.opens_s + cold_start_cost_s
        late_s = max(0.0, window.opens_s + start_s - pause_s)
        return self.keep_s + pause_s - window.opens_s + cold_start_cost_s * late_s / start_s


class _GapStats:
    """Sorted pauses, whose parts are counted and summed in no time."""

    def __init__(self, pauses: Iterable[float]) -> None:
        self.sorted = sorted(pauses)
        self._sums = [0.0, *accumulate(self.sorted)]

    def between(self, low: int, high: int) -> tuple[int, float]:
        """How many, and their sum, of the places from `low` up to `high`."""
        return high - low, self._sums[high] - self._sums[low]

    def keeping(self, keep_s: float, cold_start_cost_s: float) -> float:
        """What all of them cost without a window."""
        place = bisect_right(self.sorted, keep_s)
        return self._sums[place] + (len(self.sorted) - place) * (keep_s + cold_start_cost_s)

    def served(self, window: PrewarmWindow) -> int:
        """How many of them ended in the window."""
        return bisect_right(self.sorted, window.closes_s) - bisect_left(self.sorted, window.opens_s)

    def windowed(
        self, keep_s: float, window: PrewarmWindow, cold_start_cost_s: float, start_s: float
    ) -> float:
        """What all of them cost with one: `IdlePlan.cost_of`, summed."""
        first = bisect_left(self.sorted, window.opens_s)
        last = bisect_right(self.sorted, window.closes_s)
        warm = min(max(first, bisect_left(self.sorted, window.opens_s + start_s)), last)
        many, total = self.between(first, last)
        late, late_total = self.between(first, warm)
        gone = len(self.sorted) - last
        cost = self.keeping(keep_s, cold_start_cost_s) - many * cold_start_cost_s
        cost += total - many * window.opens_s + gone * (window.closes_s - window.opens_s)
        return cost + cold_start_cost_s / start_s * (late * (window.opens_s + start_s) - late_total)


def cheapest_plan(pauses: Iterable[float], cold_start_cost_s: float, start_s: float) -> IdlePlan:
    """The cheapest plan for these gaps; its idle seconds in one gap are at most `cold_start_cost_s`.

    A window that would have served some of them only by chance is none.
    """
    sums = _GapStats(pauses)
    steps = range(1, ceil(cold_start_cost_s / MIN_GAP_S) + 1)
    keep_s = min(
        (min(step * MIN_GAP_S, cold_start_cost_s) for step in steps),
        key=lambda s: sums.keeping(s, cold_start_cost_s),
    )
    best, least = IdlePlan(keep_s), (1 - MIN_SAVING) * sums.keeping(keep_s, cold_start_cost_s)
    for kept in {keep_s, min(MIN_GAP_S, cold_start_cost_s)}:
        for window in _windows(sums.sorted, kept, cold_start_cost_s, start_s):
            cost = sums.windowed(kept, window, cold_start_cost_s, start_s)
            if cost < least and sums.served(window) >= MIN_HITS:
                best, least = IdlePlan(kept, window), cost
    return best


def _windows(
    pauses: Sequence[float], keep_s: float, cold_start_cost_s: float, start_s: float
) -> Iterable[PrewarmWindow]:
    """Windows that are warm in time for one of the pauses, as long as the idle time left allows."""
    longest = cold_start_cost_s - keep_s
    ready_s = start_s + MIN_GAP_S / 2
    lengths = {min(longest, ready_s + more * MIN_GAP_S) for more in (1, 3, 6)} | {longest}
    opens = {MIN_GAP_S * int((pause - ready_s) // MIN_GAP_S) for pause in pauses}
    for opens_s in sorted(opens):
        if opens_s > keep_s + start_s:
            for length in sorted(lengths):
                if length > start_s:
                    yield PrewarmWindow(opens_s, opens_s + length)


def cost_of(plan: IdlePlan, pauses: Iterable[float], cold_start_cost_s: float, start_s: float) -> float:
    """What a plan costs over these pauses."""
    return sum(plan.cost_of(pause, cold_start_cost_s, start_s) for pause in pauses)


@define
class LearnedIdlePolicy:
    """Learns from the pauses so far how long to keep a pod, and when to start one before it is asked for.

    In the manner of the histogram policy of Shahrad et al. (Serverless in the Wild, ATC 2020): the past
    pauses are taken for the distribution of the next one; the pod is kept for its head, released, and
    warmed again shortly before a part of it where demand is dense. Where they take percentiles we take the
    cheapest plan, in the currency above. With few pauses, or where no plan saves enough, it is the fixed
    timeout. It keeps a pod idle in one pause for `idle_timeout_s` at the most, the window included.

    What it costs more than the fixed timeout is counted, by what both would have paid for each pause that
    has ended. Once it is `MAX_REGRET` cold starts behind it is the fixed timeout until
    `REGRET_RECOVERY` has brought some back: over any gaps whatever it costs at most
    `1 + REGRET_RECOVERY` times as much, and a constant.
    """

    idle_timeout_s: float
    effective_timeout_s: float = field(init=False)
    window: PrewarmWindow | None = field(init=False, default=None)
    _gaps_s: deque[float] = field(init=False, factory=lambda: deque(maxlen=MAX_SAMPLES))
    _starts_s: deque[float] = field(init=False, factory=lambda: deque(maxlen=MAX_START_SAMPLES))
    _regret_budget_s: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.effective_timeout_s = self.idle_timeout_s
        self._regret_budget_s = self._max_regret_budget_s

    @property
    def _max_regret_budget_s(self) -> float:
        return MAX_REGRET * self.idle_timeout_s

    @property
    def start_s(self) -> float:
        """How long a start takes: the median of the last ones."""
        return median(self._starts_s) if self._starts_s else DEFAULT_START_S

    def on_gap_ended(self, pause_s: float) -> None:
        """Settle what the plan has cost, note the pause, and plan for the next one."""
        if not isfinite(pause_s):
            return
        self._account_gap(pause_s)
        self._gaps_s.append(pause_s)
        self._plan()

    def on_start_finished(self, took_s: float) -> None:
        """Note how long a start takes."""
        self._starts_s.append(max(1.0, took_s))

    def restore(self, habits: IdleHistory) -> None:
        """Go on from what was learnt before; the credit is never more than a fresh one."""
        self._gaps_s.extend(habits.gaps_s)
        self._starts_s.extend(habits.starts_s)
        if habits.regret_budget is not None:
            self._regret_budget_s = min(habits.regret_budget * self.idle_timeout_s, self._max_regret_budget_s)
        self._plan()

    @property
    def history(self) -> IdleHistory:
        """What is worth keeping; when the pod was last wanted is not known here."""
        return IdleHistory(
            tuple(self._gaps_s), tuple(self._starts_s), self._regret_budget_s / self.idle_timeout_s
        )

    def _account_gap(self, pause_s: float) -> None:
        worth_s = self.idle_timeout_s
        fixed = IdlePlan(worth_s).cost_of(pause_s, worth_s, self.start_s)
        planned = IdlePlan(self.effective_timeout_s, self.window).cost_of(pause_s, worth_s, self.start_s)
        self._regret_budget_s = min(
            self._regret_budget_s + (1 + REGRET_RECOVERY) * fixed - planned, self._max_regret_budget_s
        )

    def _plan(self) -> None:
        fixed = IdlePlan(self.idle_timeout_s)
        plan = self._best(fixed) if len(self._gaps_s) >= MIN_SAMPLES and self._regret_budget_s > 0 else fixed
        self.effective_timeout_s, self.window = plan.keep_s, plan.window

    def _best(self, fixed: IdlePlan) -> IdlePlan:
        worth_s, start_s = self.idle_timeout_s, self.start_s
        plan = cheapest_plan(self._gaps_s, worth_s, start_s)
        usual = cost_of(fixed, self._gaps_s, worth_s, start_s)
        better = cost_of(plan, self._gaps_s, worth_s, start_s) <= (1 - MIN_SAVING) * usual
        return plan if better else fixed
