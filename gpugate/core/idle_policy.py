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

from gpugate.core.idle_history import Habits

SHORT_S = 60.0
"""Pauses up to this are no question: nobody stops a pod between two sentences. They are not counted."""

MOST_PAUSES = 256
"""How many are remembered; a habit that changed is forgotten with the last of them."""

FEW_PAUSES = 24
"""With fewer the past says nothing of the future (as for a histogram that is not representative)."""

WORTHWHILE = 0.03
"""A plan, or a window in it, has to save this share of what is paid without it; else it is left out."""

A_HABIT = 3
"""A window must have been right for so many of the pauses."""

CREDIT = 4.0
"""How many cold starts' worth the learning policy may be behind the fixed one before it stops learning."""

REFILL = 0.02
"""The share of what the fixed timeout costs that comes back as credit."""

USUAL_START_S = 60.0
MOST_STARTS = 9


@frozen
class Window:
    """A pre-warmed pod, in seconds since the last use: started at `opens`, stopped at `closes` if unused."""

    opens_s: float
    closes_s: float


class IdlePolicy(Protocol):
    """Decides on a pod that nobody uses.

    Attributes:
        keep_s: a pod that was used is stopped after so many seconds without use; a plain attribute.
        window: when a pod is started unasked; None for never.
    """

    @property
    def keep_s(self) -> float:
        """Read at the end of every request: must cost nothing."""

    @property
    def window(self) -> Window | None:
        """Of the pause that runs; changes only when somebody wants the pod."""

    def demanded(self, pause_s: float) -> None:
        """Somebody wants the pod after a pause longer than `SHORT_S`; the plan for the next one is made."""

    def started(self, took_s: float) -> None:
        """A start took so long, from the first ask to READY."""

    def remember(self, habits: Habits) -> None:
        """Go on from what was learnt before."""

    @property
    def habits(self) -> Habits | None:
        """What is worth keeping; None for nothing."""


@frozen
class Fixed:
    """Stop after `pod.idle_timeout`, always; start nothing unasked; learn nothing."""

    keep_s: float
    window: Window | None = None
    habits: Habits | None = None

    def demanded(self, pause_s: float) -> None:
        """Nothing is learnt."""

    def started(self, took_s: float) -> None:
        """Nothing is learnt."""

    def remember(self, habits: Habits) -> None:
        """Nothing is learnt."""


@frozen
class Plan:
    """What is done in a pause: keep the pod for `keep_s`, and perhaps start it again in a window."""

    keep_s: float
    window: Window | None = None

    def cost_of(self, pause_s: float, worth_s: float, start_s: float) -> float:
        """What a pause costs, in seconds of the pod: kept in vain, pre-warmed in vain, or started cold."""
        if pause_s <= self.keep_s:
            return pause_s
        window = self.window
        if window is None or pause_s < window.opens_s:
            return self.keep_s + worth_s
        if pause_s > window.closes_s:
            return self.keep_s + window.closes_s - window.opens_s + worth_s
        late_s = max(0.0, window.opens_s + start_s - pause_s)
        return self.keep_s + pause_s - window.opens_s + worth_s * late_s / start_s


class _Sums:
    """Sorted pauses, whose parts are counted and summed in no time."""

    def __init__(self, pauses: Iterable[float]) -> None:
        self.sorted = sorted(pauses)
        self._sums = [0.0, *accumulate(self.sorted)]

    def between(self, low: int, high: int) -> tuple[int, float]:
        """How many, and their sum, of the places from `low` up to `high`."""
        return high - low, self._sums[high] - self._sums[low]

    def keeping(self, keep_s: float, worth_s: float) -> float:
        """What all of them cost without a window."""
        place = bisect_right(self.sorted, keep_s)
        return self._sums[place] + (len(self.sorted) - place) * (keep_s + worth_s)

    def served(self, window: Window) -> int:
        """How many of them ended in the window."""
        return bisect_right(self.sorted, window.closes_s) - bisect_left(self.sorted, window.opens_s)

    def windowed(self, keep_s: float, window: Window, worth_s: float, start_s: float) -> float:
        """What all of them cost with one: `Plan.cost_of`, summed."""
        first = bisect_left(self.sorted, window.opens_s)
        last = bisect_right(self.sorted, window.closes_s)
        warm = min(max(first, bisect_left(self.sorted, window.opens_s + start_s)), last)
        many, total = self.between(first, last)
        late, late_total = self.between(first, warm)
        gone = len(self.sorted) - last
        cost = self.keeping(keep_s, worth_s) - many * worth_s
        cost += total - many * window.opens_s + gone * (window.closes_s - window.opens_s)
        return cost + worth_s / start_s * (late * (window.opens_s + start_s) - late_total)


def best_plan(pauses: Iterable[float], worth_s: float, start_s: float) -> Plan:
    """The cheapest plan for these pauses; its idle seconds in a pause never sum to more than `worth_s`.

    A window that would have served some of them only by chance is none.
    """
    sums = _Sums(pauses)
    steps = range(1, ceil(worth_s / SHORT_S) + 1)
    keep_s = min((min(step * SHORT_S, worth_s) for step in steps), key=lambda s: sums.keeping(s, worth_s))
    best, least = Plan(keep_s), (1 - WORTHWHILE) * sums.keeping(keep_s, worth_s)
    for kept in {keep_s, min(SHORT_S, worth_s)}:
        for window in _windows(sums.sorted, kept, worth_s, start_s):
            cost = sums.windowed(kept, window, worth_s, start_s)
            if cost < least and sums.served(window) >= A_HABIT:
                best, least = Plan(kept, window), cost
    return best


def _windows(pauses: Sequence[float], keep_s: float, worth_s: float, start_s: float) -> Iterable[Window]:
    """Windows that are warm in time for one of the pauses, as long as the idle time left allows."""
    longest = worth_s - keep_s
    ready_s = start_s + SHORT_S / 2
    lengths = {min(longest, ready_s + more * SHORT_S) for more in (1, 3, 6)} | {longest}
    opens = {SHORT_S * int((pause - ready_s) // SHORT_S) for pause in pauses}
    for opens_s in sorted(opens):
        if opens_s > keep_s + start_s:
            for length in sorted(lengths):
                if length > start_s:
                    yield Window(opens_s, opens_s + length)


def cost_of(plan: Plan, pauses: Iterable[float], worth_s: float, start_s: float) -> float:
    """What a plan costs over these pauses."""
    return sum(plan.cost_of(pause, worth_s, start_s) for pause in pauses)


@define
class Learned:
    """Learns from the pauses so far how long to keep a pod, and when to start one before it is asked for.

    In the manner of the histogram policy of Shahrad et al. (Serverless in the Wild, ATC 2020): the past
    pauses are taken for the distribution of the next one; the pod is kept for its head, released, and
    warmed again shortly before a part of it where demand is dense. Where they take percentiles we take the
    cheapest plan, in the currency above. With few pauses, or where no plan saves enough, it is the fixed
    timeout. It keeps a pod idle in one pause for `idle_timeout_s` at the most, the window included.

    What it costs more than the fixed timeout is counted, by what both would have paid for each pause that
    has ended. Once it is `CREDIT` cold starts behind it is the fixed timeout until `REFILL` has brought
    some back: over any pauses whatever it costs at most `1 + REFILL` times as much, and a constant.
    """

    idle_timeout_s: float
    keep_s: float = field(init=False)
    window: Window | None = field(init=False, default=None)
    _pauses: deque[float] = field(init=False, factory=lambda: deque(maxlen=MOST_PAUSES))
    _starts: deque[float] = field(init=False, factory=lambda: deque(maxlen=MOST_STARTS))
    _credit_s: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.keep_s = self.idle_timeout_s
        self._credit_s = self._most_credit_s

    @property
    def _most_credit_s(self) -> float:
        return CREDIT * self.idle_timeout_s

    @property
    def start_s(self) -> float:
        """How long a start takes: the median of the last ones."""
        return median(self._starts) if self._starts else USUAL_START_S

    def demanded(self, pause_s: float) -> None:
        """Settle what the plan has cost, note the pause, and plan for the next one."""
        if not isfinite(pause_s):
            return
        self._settle(pause_s)
        self._pauses.append(pause_s)
        self._plan()

    def started(self, took_s: float) -> None:
        """Note how long a start takes."""
        self._starts.append(max(1.0, took_s))

    def remember(self, habits: Habits) -> None:
        """Go on from what was learnt before; the credit is never more than a fresh one."""
        self._pauses.extend(habits.pauses_s)
        self._starts.extend(habits.starts_s)
        if habits.credit is not None:
            self._credit_s = min(habits.credit * self.idle_timeout_s, self._most_credit_s)
        self._plan()

    @property
    def habits(self) -> Habits:
        """What is worth keeping; when the pod was last wanted is not known here."""
        return Habits(tuple(self._pauses), tuple(self._starts), self._credit_s / self.idle_timeout_s)

    def _settle(self, pause_s: float) -> None:
        worth_s = self.idle_timeout_s
        fixed = Plan(worth_s).cost_of(pause_s, worth_s, self.start_s)
        planned = Plan(self.keep_s, self.window).cost_of(pause_s, worth_s, self.start_s)
        self._credit_s = min(self._credit_s + (1 + REFILL) * fixed - planned, self._most_credit_s)

    def _plan(self) -> None:
        fixed = Plan(self.idle_timeout_s)
        plan = self._best(fixed) if len(self._pauses) >= FEW_PAUSES and self._credit_s > 0 else fixed
        self.keep_s, self.window = plan.keep_s, plan.window

    def _best(self, fixed: Plan) -> Plan:
        worth_s, start_s = self.idle_timeout_s, self.start_s
        plan = best_plan(self._pauses, worth_s, start_s)
        usual = cost_of(fixed, self._pauses, worth_s, start_s)
        better = cost_of(plan, self._pauses, worth_s, start_s) <= (1 - WORTHWHILE) * usual
        return plan if better else fixed
