"""Whose seconds a pod's seconds are: shares of time among those who use it at once; knows no clock.

Where several requests run at once each has an equal share of every second. One running total makes that
cheap: of a second's share for each, summed up (dt / n). A request's seconds are what that total grew by
while it ran, so all of them together are exactly the time in which anybody ran.
"""

from __future__ import annotations

from attrs import define


@define
class Meter:
    """Shares of time, in seconds.

    Attributes:
        running: how many run now.
        busy_s: how long anybody ran so far.
    """

    running: int = 0
    busy_s: float = 0.0
    _each: float = 0.0
    _at: float = 0.0

    def enter(self, now: float) -> float:
        """One more runs; returns the mark that `share` wants."""
        self._advance(now)
        self.running += 1
        return self._each

    def leave(self, mark: float, now: float) -> float:
        """One that entered at `mark` has ended; returns its seconds."""
        self._advance(now)
        self.running -= 1
        return self._each - mark

    def share(self, mark: float, now: float) -> float:
        """The seconds so far of one that entered at `mark` and still runs."""
        self._advance(now)
        return self._each - mark

    def _advance(self, now: float) -> None:
        passed = now - self._at
        if passed > 0.0:
            self._at = now
            if self.running:
                self._each += passed / self.running
                self.busy_s += passed
