"""Whose seconds a pod's seconds are: shares of time among those who use it at once; knows no clock.

Where several requests run at once each has an equal share of every second. One running total makes that
cheap: of a second's share for each, summed up (dt / n). A request's seconds are what that total grew by
while it ran, so all of them together are exactly the time in which anybody ran.
"""

from __future__ import annotations

from attrs import define


@define
class FairShareMeter:
    """Shares of time, in seconds.

    Attributes:
        running: how many run now.
        busy_s: how long anybody ran so far.
    """

    running: int = 0
    busy_s: float = 0.0
    _share_total_s: float = 0.0
    _advanced_at: float = 0.0

    def start(self, now: float) -> float:
        """One more runs; returns the mark that `share_so_far` wants."""
        self._advance_to(now)
        self.running += 1
        return self._share_total_s

    def finish(self, mark: float, now: float) -> float:
        """One that entered at `mark` has ended; returns its seconds."""
        self._advance_to(now)
        self.running -= 1
        return self._share_total_s - mark

    def share_so_far(self, mark: float, now: float) -> float:
        """The seconds so far of one that entered at `mark` and still runs."""
        self._advance_to(now)
        return self._share_total_s - mark

    def _advance_to(self, now: float) -> None:
        passed = now - self._advanced_at
        if passed > 0.0:
            self._advanced_at = now
            if self.running:
                self._share_total_s += passed / self.running
                self.busy_s += passed
