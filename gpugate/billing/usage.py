"""Counts which requests use the pod, and for how many of its seconds. It is on the hot path.

Requests that run at the same time share each second equally. One running total makes that cheap: it grows by
dt / n while n requests run, and a request's seconds are the total's growth between its start and its end. So
the seconds of all requests sum to the time in which at least one ran.
"""

from __future__ import annotations

from attrs import define, field

SHORT_REQUEST_S = 0.1
"""Shorter requests are added up by user and minute: a row for each would be most of the ledger."""
MINUTE_S = 60.0


@define
class FairShareMeter:
    """Splits time among the requests that run, in seconds.

    Attributes:
        running: how many requests run now.
        busy_s: how long at least one has run so far.
    """

    running: int = 0
    busy_s: float = 0.0
    _share_total_s: float = 0.0
    _advanced_at: float = 0.0

    def start(self, now: float) -> float:
        """Count one more request; return the mark that `share_so_far` and `finish` need."""
        self._advance_to(now)
        self.running += 1
        return self._share_total_s

    def finish(self, mark: float, now: float) -> float:
        """Count one request less; return the seconds of the request that was started at `mark`."""
        self._advance_to(now)
        self.running -= 1
        return self._share_total_s - mark

    def share_so_far(self, mark: float, now: float) -> float:
        """Return the seconds so far of a running request that was started at `mark`."""
        self._advance_to(now)
        return self._share_total_s - mark

    def _advance_to(self, now: float) -> None:
        passed = now - self._advanced_at
        if passed > 0.0:
            self._advanced_at = now
            if self.running:
                self._share_total_s += passed / self.running
                self.busy_s += passed


@define
class UsageSlice:
    """The seconds of one request, or of a user's short requests in one minute. Times are the event loop's.

    `number` is unique in this process; `request_id` need not be, for a client may send the same with all.
    """

    number: int
    user: str
    request_id: str
    started_at: float
    finished_at: float
    seconds: float
    requests: int = 1


@define
class UsageTracker:
    """Tracks the requests that use the pod of the current run.

    Attributes:
        last_finished_at: when the last request ended, in the event loop's time; None: none yet.
    """

    last_finished_at: float | None = None
    _meter: FairShareMeter = field(factory=FairShareMeter)
    _sequence: int = 0
    _running: dict[int, tuple[float, float, str, str, int]] = field(factory=dict)
    _long: list[UsageSlice] = field(factory=list)
    _short: dict[tuple[str, int], UsageSlice] = field(factory=dict)
    _touched: set[tuple[str, int]] = field(factory=set)

    def start(self, number: int, user: str, request_id: str, now: float) -> None:
        """A request was admitted; called with its lease's number."""
        self._sequence += 1  # a request that is requeued comes again with the same number
        self._running[number] = self._meter.start(now), now, user, request_id, self._sequence

    def finish(self, number: int, now: float) -> None:
        """A request has ended or lost its pod; a second call does nothing."""
        entry = self._running.pop(number, None)
        if entry is None:
            return
        mark, began, user, request_id, sequence = entry
        seconds = self._meter.finish(mark, now)
        self.last_finished_at = now
        if seconds >= SHORT_REQUEST_S:
            self._long.append(UsageSlice(sequence, user, request_id, began, now, seconds))
            return
        key = user, int(now // MINUTE_S)
        self._touched.add(key)
        if (total := self._short.get(key)) is None:
            self._short[key] = UsageSlice(sequence, user, request_id, began, now, seconds)
            return
        total.finished_at = now
        total.seconds += seconds
        total.requests += 1

    def collect(self, now: float, *, run_ended: bool = False) -> list[UsageSlice]:
        """Return what has changed since the last call: requests that ended, and those that run, so far.

        Args:
            run_ended: forget the sums of this minute; the next run has a session of its own.
        """
        changed = self._long + [self._short[key] for key in self._touched]
        changed += [
            UsageSlice(sequence, user, request_id, began, now, self._meter.share_so_far(mark, now))
            for mark, began, user, request_id, sequence in self._running.values()
        ]
        self._long = []
        self._touched.clear()
        minute = int(now // MINUTE_S)
        self._short = {} if run_ended else {k: v for k, v in self._short.items() if k[1] >= minute}
        return changed


class NoUsage(UsageTracker):
    """Tracks nothing; used without a ledger."""

    def start(self, number: int, user: str, request_id: str, now: float) -> None:
        """Do nothing."""

    def finish(self, number: int, now: float) -> None:
        """Do nothing."""
