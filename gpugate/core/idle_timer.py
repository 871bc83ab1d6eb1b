"""The pause that runs: when its pod is let go, and when one is started in it unasked, by the idle policy.

It knows the backlog, for who wanted the pod and until when; it knows no states, no providers and no money.
"""

from __future__ import annotations

from math import inf, isfinite

from attrs import define, evolve, field

from gpugate.core.idle_history import Habits
from gpugate.core.idle_policy import SHORT_S, IdlePolicy
from gpugate.core.request_queue import Backlog


@define
class Pauses:
    """A pause begins when the pod was wanted last, and ends with the next who wants it.

    Attributes:
        idle: the policy.
        unasked_run: the run that was started before anybody asked; 0 for none.
    """

    idle: IdlePolicy
    backlog: Backlog
    idle_timeout_s: float
    unasked_run: int = 0
    _window_used: float = field(init=False, default=-inf)  # the pause, by its beginning

    def end(self, now: float) -> None:
        """Somebody wants a pod that does not serve: if nobody did before, a pause ends."""
        if self.backlog.busy:
            return
        self.end_warm(now)
        self.backlog.wanted_until = now

    def end_warm(self, now: float) -> None:
        """The same for a pod that serves and that nobody uses, with no more than is needed."""
        if now - self.backlog.wanted_until > SHORT_S:
            self.idle.demanded(now - self.backlog.wanted_until)

    def stop_at(self, quiet_since: float, run: int) -> float:
        """When a pod of this run is stopped that has been idle since then."""
        wanted, window = self.backlog.wanted_until, self.idle.window
        if quiet_since == wanted:
            return quiet_since + self.idle.keep_s
        if run == self.unasked_run and window is not None:
            return min(wanted + window.closes_s, quiet_since + self.idle_timeout_s)
        return quiet_since + self.idle_timeout_s

    @property
    def prewarm_at(self) -> float:
        """When a pod is to be started before anybody asks; once in a pause."""
        window, since = self.idle.window, self.backlog.wanted_until
        if window is None or since == self._window_used:
            return inf
        return since + window.opens_s

    def take_window(self, now: float) -> bool:
        """Use this pause's window; False if there is none, or none any more."""
        window, since = self.idle.window, self.backlog.wanted_until
        self._window_used = since
        return window is not None and now < since + window.closes_s

    def expect_nobody(self) -> None:
        """Whoever stops the pod by hand does not want it to come back by itself."""
        self._window_used = self.backlog.wanted_until

    def remember(self, habits: Habits, now: float) -> None:
        """Go on from what was learnt, before the first event."""
        self.idle.remember(habits)
        if isfinite(habits.wanted_ago_s):
            self.backlog.wanted_until = now - habits.wanted_ago_s

    def habits(self, now: float) -> Habits | None:
        """What was learnt so far; None where nothing is."""
        learnt = self.idle.habits
        return None if learnt is None else evolve(learnt, wanted_ago_s=abs(now - self.backlog.wanted_until))
