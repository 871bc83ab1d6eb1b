"""The pause that runs: when its pod is let go, and when one is started in it unasked, by the idle policy.

It knows the backlog, for who wanted the pod and until when; it knows no states, no providers and no money.
"""

from __future__ import annotations

from math import inf, isfinite

from attrs import define, evolve, field

from gpugate.core.idle_history import IdleHistory
from gpugate.core.idle_policy import MIN_GAP_S, IdlePolicy
from gpugate.core.request_queue import RequestQueue


@define
class IdleTimer:
    """A pause begins when the pod was wanted last, and ends with the next who wants it.

    Attributes:
        policy: the policy.
        prewarmed_run_id: the run that was started before anybody asked; 0 for none.
    """

    policy: IdlePolicy
    backlog: RequestQueue
    idle_timeout_s: float
    prewarmed_run_id: int = 0
    _window_used_for: float = field(init=False, default=-inf)  # the pause, by its beginning

    def end_gap(self, now: float) -> None:
        """Somebody wants a pod that does not serve: if nobody did before, a pause ends."""
        if self.backlog.busy:
            return
        self.end_gap_if_long(now)
        self.backlog.last_demand_at = now

    def end_gap_if_long(self, now: float) -> None:
        """The same for a pod that serves and that nobody uses, with no more than is needed."""
        if now - self.backlog.last_demand_at > MIN_GAP_S:
            self.policy.on_gap_ended(now - self.backlog.last_demand_at)

    def stop_deadline(self, quiet_since: float, run: int) -> float:
        """When a pod of this run is stopped that has been idle since then."""
        wanted, window = self.backlog.last_demand_at, self.policy.window
        if quiet_since == wanted:
            return quiet_since + self.policy.effective_timeout_s
        if run == self.prewarmed_run_id and window is not None:
            return min(wanted + window.closes_s, quiet_since + self.idle_timeout_s)
        return quiet_since + self.idle_timeout_s

    @property
    def prewarm_at(self) -> float:
        """When a pod is to be started before anybody asks; once in a pause."""
        window, since = self.policy.window, self.backlog.last_demand_at
        if window is None or since == self._window_used_for:
            return inf
        return since + window.opens_s

    def consume_window(self, now: float) -> bool:
        """Use this pause's window; False if there is none, or none any more."""
        window, since = self.policy.window, self.backlog.last_demand_at
        self._window_used_for = since
        return window is not None and now < since + window.closes_s

    def suppress_prewarm(self) -> None:
        """Whoever stops the pod by hand does not want it to come back by itself."""
        self._window_used_for = self.backlog.last_demand_at

    def restore(self, habits: IdleHistory, now: float) -> None:
        """Go on from what was learnt, before the first event."""
        self.policy.restore(habits)
        if isfinite(habits.last_demand_ago_s):
            self.backlog.last_demand_at = now - habits.last_demand_ago_s

    def history(self, now: float) -> IdleHistory | None:
        """What was learnt so far; None where nothing is."""
        learnt = self.policy.history
        return (
            None
            if learnt is None
            else evolve(learnt, last_demand_ago_s=abs(now - self.backlog.last_demand_at))
        )
