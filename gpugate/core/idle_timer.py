"""The current idle gap: when its pod is stopped, and when one is prewarmed in it, by the idle policy."""

from __future__ import annotations

from math import inf, isfinite

from attrs import define, evolve, field

from gpugate.core.idle_policy import MIN_GAP_S, IdleHistory, IdlePolicy
from gpugate.core.request_queue import RequestQueue


@define
class IdleTimer:
    """A gap begins when the pod was last needed (`queue.last_demand_at`) and ends with the next demand.

    Attributes:
        prewarmed_run_id: the run that was started without a demand; 0 for none.
    """

    policy: IdlePolicy
    queue: RequestQueue
    idle_timeout_s: float
    prewarmed_run_id: int = 0
    _window_used_for: float = field(init=False, default=-inf)  # the gap, by its beginning

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
