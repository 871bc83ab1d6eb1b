"""How long an unused pod is kept, and when one is started before a request comes.

An *idle gap* is the time from the end of the last use to the next demand. Keeping the pod through a gap costs
money, stopping it costs the next user a cold start. `pod.idle_timeout` says what a cold start is worth: as
much as so many seconds of an idle pod. The fixed timeout is the ski-rental rule: keep renting until that has
cost as much as a new start; it never costs more than twice the best choice in hindsight. Both policies count
in this currency: a second of an idle pod costs 1, a cold start costs `idle_timeout`.
`IdleTimer` applies a policy to the current gap.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import ceil, inf, isfinite
from statistics import median
from typing import Protocol

from attrs import define, evolve, field, frozen

from gpugate.core.request_queue import RequestQueue

MIN_GAP_S = 60.0
"""Shorter gaps are not counted: a pod is never stopped between two messages of a conversation."""

MAX_SAMPLES = 256
"""How many gaps are kept; a change of habits has its full effect when the older ones have dropped out."""

MIN_SAMPLES = 24
"""With fewer gaps the sample says too little about the next one."""

MIN_SAVING = 0.03
"""The share of the cost that a plan, or a window in it, has to save; otherwise it is not used."""

MIN_HITS = 3
"""How many of the gaps a window must have served."""

MAX_REGRET = 4.0
"""How many cold starts the learned policy may cost more than the fixed one before it stops learning."""

REGRET_RECOVERY = 0.02
"""The share of the fixed timeout's cost by which that excess is forgiven."""

DEFAULT_START_S = 60.0
MAX_START_SAMPLES = 9


@frozen
class IdleHistory:
    """What a learned policy keeps across restarts. Times in seconds.

    Attributes:
        gaps_s: the latest idle gaps, oldest first.
        starts_s: how long the latest starts took.
        regret_budget: how many cold starts it may still cost more than the fixed timeout;
            None for the maximum.
        last_demand_ago_s: how long ago the pod was last needed; `inf` if never.
    """

    gaps_s: tuple[float, ...] = ()
    starts_s: tuple[float, ...] = ()
    regret_budget: float | None = None
    last_demand_ago_s: float = inf


@frozen
class PrewarmWindow:
    """When a pod is prewarmed, in seconds since the last use: started at `opens_s`, kept until `closes_s`."""

    opens_s: float
    closes_s: float


class IdlePolicy(Protocol):
    """Decides about an unused pod.

    Attributes:
        effective_timeout_s: a pod that was used is stopped after this many idle seconds. A plain attribute,
            because it is read at the end of every request.
        window: when a pod is prewarmed in the current gap; None for never.
    """

    @property
    def effective_timeout_s(self) -> float:
        """See above."""

    @property
    def window(self) -> PrewarmWindow | None:
        """Changes only when a gap ends."""

    def on_gap_ended(self, gap_s: float) -> None:
        """Learn from a gap longer than `MIN_GAP_S`, and plan for the next one."""

    def on_start_finished(self, took_s: float) -> None:
        """Learn how long a start took, from its first call to READY."""

    def restore(self, history: IdleHistory) -> None:
        """Go on from what was learned before the restart."""

    @property
    def history(self) -> IdleHistory | None:
        """What is worth keeping across a restart; None for nothing."""

    def with_timeout(self, idle_timeout_s: float) -> IdlePolicy:
        """Return this policy for another `pod.idle_timeout`, with what it has learned."""


@frozen
class FixedIdlePolicy:
    """Stops after `pod.idle_timeout`, always. Prewarms nothing, learns nothing."""

    effective_timeout_s: float
    window: PrewarmWindow | None = None
    history: IdleHistory | None = None

    def on_gap_ended(self, gap_s: float) -> None:
        """Does nothing."""

    def on_start_finished(self, took_s: float) -> None:
        """Does nothing."""

    def restore(self, history: IdleHistory) -> None:
        """Does nothing."""

    def with_timeout(self, idle_timeout_s: float) -> FixedIdlePolicy:
        """Return one for another timeout."""
        return evolve(self, effective_timeout_s=idle_timeout_s)


@frozen
class IdlePlan:
    """What is done in an idle gap: keep the pod for `keep_s`, and perhaps start it again in a window."""

    keep_s: float
    window: PrewarmWindow | None = None

    def cost_of(self, gap_s: float, cold_start_cost_s: float, start_s: float) -> float:
        """Return the cost of a gap: its idle seconds, and the share of a cold start that a request waits."""
        if gap_s <= self.keep_s:
            return gap_s
        window = self.window
        if window is None or gap_s < window.opens_s:
            return self.keep_s + cold_start_cost_s
        if gap_s > window.closes_s:
            return self.keep_s + window.closes_s - window.opens_s + cold_start_cost_s
        late_s = max(0.0, window.opens_s + start_s - gap_s)
        return self.keep_s + gap_s - window.opens_s + cold_start_cost_s * late_s / start_s


class _GapStats:
    """Sorted gaps, with prefix sums: the count and the sum of a range take constant time."""

    def __init__(self, gaps: Iterable[float]) -> None:
        self.sorted = sorted(gaps)
        self._sums = [0.0, *accumulate(self.sorted)]

    def between(self, low: int, high: int) -> tuple[int, float]:
        """Return the count and the sum of the gaps with index `low` up to, not including, `high`."""
        return high - low, self._sums[high] - self._sums[low]

    def keeping(self, keep_s: float, cold_start_cost_s: float) -> float:
        """Return the cost of all gaps without a window."""
        place = bisect_right(self.sorted, keep_s)
        return self._sums[place] + (len(self.sorted) - place) * (keep_s + cold_start_cost_s)

    def served(self, window: PrewarmWindow) -> int:
        """Return how many gaps ended in the window."""
        return bisect_right(self.sorted, window.closes_s) - bisect_left(self.sorted, window.opens_s)

    def windowed(
        self, keep_s: float, window: PrewarmWindow, cold_start_cost_s: float, start_s: float
    ) -> float:
        """Return the cost of all gaps with a window: `IdlePlan.cost_of`, summed."""
        first = bisect_left(self.sorted, window.opens_s)
        last = bisect_right(self.sorted, window.closes_s)
        warm = min(max(first, bisect_left(self.sorted, window.opens_s + start_s)), last)
        served, served_sum = self.between(first, last)
        late, late_sum = self.between(first, warm)
        missed = len(self.sorted) - last
        cost = self.keeping(keep_s, cold_start_cost_s) - served * cold_start_cost_s
        cost += served_sum - served * window.opens_s + missed * (window.closes_s - window.opens_s)
        return cost + cold_start_cost_s / start_s * (late * (window.opens_s + start_s) - late_sum)


def cheapest_plan(gaps: Iterable[float], cold_start_cost_s: float, start_s: float) -> IdlePlan:
    """Return the cheapest plan for these gaps; its idle seconds in one gap are at most `cold_start_cost_s`.

    A window must save `MIN_SAVING` and have served `MIN_HITS` gaps, or the plan has none.
    """
    stats = _GapStats(gaps)
    steps = range(1, ceil(cold_start_cost_s / MIN_GAP_S) + 1)
    keep_s = min(
        (min(step * MIN_GAP_S, cold_start_cost_s) for step in steps),
        key=lambda s: stats.keeping(s, cold_start_cost_s),
    )
    best, least = IdlePlan(keep_s), (1 - MIN_SAVING) * stats.keeping(keep_s, cold_start_cost_s)
    for kept in {keep_s, min(MIN_GAP_S, cold_start_cost_s)}:
        for window in _windows(stats.sorted, kept, cold_start_cost_s, start_s):
            cost = stats.windowed(kept, window, cold_start_cost_s, start_s)
            if cost < least and stats.served(window) >= MIN_HITS:
                best, least = IdlePlan(kept, window), cost
    return best


def _windows(
    gaps: Sequence[float], keep_s: float, cold_start_cost_s: float, start_s: float
) -> Iterable[PrewarmWindow]:
    """Yield windows that are warm in time for one of the gaps, within the idle time that is left."""
    longest = cold_start_cost_s - keep_s
    ready_s = start_s + MIN_GAP_S / 2
    lengths = {min(longest, ready_s + more * MIN_GAP_S) for more in (1, 3, 6)} | {longest}
    opens = {MIN_GAP_S * int((gap - ready_s) // MIN_GAP_S) for gap in gaps}
    for opens_s in sorted(opens):
        if opens_s > keep_s + start_s:
            for length in sorted(lengths):
                if length > start_s:
                    yield PrewarmWindow(opens_s, opens_s + length)


def cost_of(plan: IdlePlan, gaps: Iterable[float], cold_start_cost_s: float, start_s: float) -> float:
    """Return the cost of a plan over these gaps."""
    return sum(plan.cost_of(gap, cold_start_cost_s, start_s) for gap in gaps)


@define
class LearnedIdlePolicy:
    """Learns from past gaps how long to keep a pod, and when to start one before it is needed.

    In the manner of the histogram policy of Shahrad et al. (Serverless in the Wild, ATC 2020): the past gaps
    are taken for the distribution of the next one; the pod is kept for the head of that distribution,
    released, and warmed again shortly before a part of it where demand is dense. Where they take percentiles,
    this takes the cheapest plan. With few gaps, or if no plan saves enough, it is the fixed timeout. It keeps
    a pod idle for at most `idle_timeout_s` in one gap, the window included.

    Its excess cost over the fixed timeout is counted for each gap that has ended. Once that reaches
    `MAX_REGRET` cold starts, it is the fixed timeout until `REGRET_RECOVERY` has made up for some of it. So
    over any gaps whatever it costs at most `1 + REGRET_RECOVERY` times as much as the fixed timeout, plus a
    constant.
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
        """How long a start takes: the median of the latest ones."""
        return median(self._starts_s) if self._starts_s else DEFAULT_START_S

    def on_gap_ended(self, gap_s: float) -> None:
        """Account for the plan's cost in this gap, add the gap to the sample, and plan for the next one."""
        if not isfinite(gap_s):
            return
        self._account_gap(gap_s)
        self._gaps_s.append(gap_s)
        self._plan()

    def on_start_finished(self, took_s: float) -> None:
        """Add the duration of a start to the sample."""
        self._starts_s.append(max(1.0, took_s))

    def restore(self, history: IdleHistory) -> None:
        """Go on from a saved history; its regret budget counts up to the maximum."""
        self._gaps_s.extend(history.gaps_s)
        self._starts_s.extend(history.starts_s)
        if history.regret_budget is not None:
            self._regret_budget_s = min(
                history.regret_budget * self.idle_timeout_s, self._max_regret_budget_s
            )
        self._plan()

    @property
    def history(self) -> IdleHistory:
        """What is worth keeping, without the time of the last demand, which the timer knows."""
        return IdleHistory(
            tuple(self._gaps_s), tuple(self._starts_s), self._regret_budget_s / self.idle_timeout_s
        )

    def with_timeout(self, idle_timeout_s: float) -> LearnedIdlePolicy:
        """Return one for another timeout that goes on from this one's history."""
        other = LearnedIdlePolicy(idle_timeout_s)
        other.restore(self.history)
        return other

    def _account_gap(self, gap_s: float) -> None:
        fixed, planned = IdlePlan(self.idle_timeout_s), IdlePlan(self.effective_timeout_s, self.window)
        fixed_cost = fixed.cost_of(gap_s, self.idle_timeout_s, self.start_s)
        planned_cost = planned.cost_of(gap_s, self.idle_timeout_s, self.start_s)
        budget_s = self._regret_budget_s + (1 + REGRET_RECOVERY) * fixed_cost - planned_cost
        self._regret_budget_s = min(budget_s, self._max_regret_budget_s)

    def _plan(self) -> None:
        fixed = IdlePlan(self.idle_timeout_s)
        may_learn = len(self._gaps_s) >= MIN_SAMPLES and self._regret_budget_s > 0
        plan = self._best(fixed) if may_learn else fixed
        self.effective_timeout_s, self.window = plan.keep_s, plan.window

    def _best(self, fixed: IdlePlan) -> IdlePlan:
        plan = cheapest_plan(self._gaps_s, self.idle_timeout_s, self.start_s)
        fixed_cost = cost_of(fixed, self._gaps_s, self.idle_timeout_s, self.start_s)
        plan_cost = cost_of(plan, self._gaps_s, self.idle_timeout_s, self.start_s)
        return plan if plan_cost <= (1 - MIN_SAVING) * fixed_cost else fixed


@define
class IdleTimer:
    """A gap begins when the pod was last needed (`queue.last_demand_at`) and ends with the next demand.

    Attributes:
        prewarmed_run_id: the run that was started without a demand; 0 for none.
        keep_s: how long a schedule wants the pod kept that is on its way, from READY on.
        kept_until: until when a schedule keeps a pod that serves, used or not.
        scheduled_model: the model that the schedule wants loaded first.
    """

    policy: IdlePolicy
    queue: RequestQueue
    idle_timeout_s: float
    prewarmed_run_id: int = 0
    keep_s: float = 0.0
    kept_until: float = -inf
    scheduled_model: str | None = None
    _window_used_for: float = field(init=False, default=-inf)  # the gap, by its beginning

    def keep_when_ready(self, keep_s: float, model: str | None) -> None:
        """A schedule has fired while the pod is off or on its way."""
        if keep_s:
            self.keep_s, self.scheduled_model = max(self.keep_s, keep_s), model

    def begin_keep(self, now: float) -> None:
        """The pod serves: what a schedule wants begins."""
        self.kept_until = max(self.kept_until, now + self.keep_s)
        self.forget_schedule()

    def forget_schedule(self) -> None:
        """The start that a schedule wanted has ended, well or not."""
        self.keep_s, self.scheduled_model = 0.0, None

    def cancel_keep(self) -> None:
        """Keep the pod no longer: it was stopped by hand."""
        self.kept_until = -inf
        self.forget_schedule()

    def set_timeout(self, idle_timeout_s: float) -> None:
        """Use another `pod.idle_timeout`; what was learned is kept."""
        if idle_timeout_s != self.idle_timeout_s:
            self.idle_timeout_s = idle_timeout_s
            self.policy = self.policy.with_timeout(idle_timeout_s)

    def end_gap(self, now: float) -> None:
        """A request needs a pod that does not serve. If it is the only one, a gap ends with it."""
        if self.queue.busy:
            return
        self.end_gap_if_long(now)
        self.queue.last_demand_at = now

    def end_gap_if_long(self, now: float) -> None:
        """A request comes to a pod that serves and holds no lease; called for each, so it does the least."""
        if now - self.queue.last_demand_at > MIN_GAP_S:
            self.policy.on_gap_ended(now - self.queue.last_demand_at)

    def stop_deadline(self, idle_since: float, run_id: int) -> float:
        """Return when a pod of this run is stopped that has been idle since then.

        A pod that was used: by the policy. A prewarmed one: when its window closes. One that was started by
        hand or adopted, and not used yet: after `pod.idle_timeout`.
        """
        last_demand_at, window = self.queue.last_demand_at, self.policy.window
        if idle_since == last_demand_at:
            return idle_since + self.policy.effective_timeout_s
        if run_id == self.prewarmed_run_id and window is not None:
            return min(last_demand_at + window.closes_s, idle_since + self.idle_timeout_s)
        return idle_since + self.idle_timeout_s

    @property
    def prewarm_at(self) -> float:
        """When a pod is started before a request comes; once in a gap, `inf` for never."""
        window, since = self.policy.window, self.queue.last_demand_at
        if window is None or since == self._window_used_for:
            return inf
        return since + window.opens_s

    def consume_window(self, now: float) -> bool:
        """Use up this gap's window; return False if there is none, or it has closed already."""
        window, since = self.policy.window, self.queue.last_demand_at
        self._window_used_for = since
        return window is not None and now < since + window.closes_s

    def suppress_prewarm(self) -> None:
        """Prewarm nothing in this gap: the pod was stopped by hand."""
        self._window_used_for = self.queue.last_demand_at

    def restore(self, history: IdleHistory, now: float) -> None:
        """Go on from a saved history; to be called before the first event."""
        self.policy.restore(history)
        if isfinite(history.last_demand_ago_s):
            self.queue.last_demand_at = now - history.last_demand_ago_s

    def history(self, now: float) -> IdleHistory | None:
        """Return what to save; None if the policy learns nothing."""
        learned = self.policy.history
        if learned is None:
            return None
        return evolve(learned, last_demand_ago_s=abs(now - self.queue.last_demand_at))
