"""Notes who uses the pod, and for how many of its seconds; on the hot path: it knows no disk, no calendar."""

from __future__ import annotations

from attrs import define, field

SHORT_REQUEST_S = 0.1
"""Requests with fewer seconds are gathered by user and minute: a row for each would be most of the ledger."""
MINUTE_S = 60.0


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


@define
class UsageSlice:
    """Seconds of the pod that belong to a request, or to a user's short ones of a minute; in loop time.

    `number` is its own in this process: a client may give all its requests the same name.
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
    """Who uses the pod of the present run.

    Attributes:
        last_finished_at: when the last use ended, in loop time.
    """

    last_finished_at: float | None = None
    _meter: FairShareMeter = field(factory=FairShareMeter)
    _entered: int = 0
    _running: dict[int, tuple[float, float, str, str, int]] = field(factory=dict)
    _long: list[UsageSlice] = field(factory=list)
    _short: dict[tuple[str, int], UsageSlice] = field(factory=dict)
    _touched: set[tuple[str, int]] = field(factory=set)

    def start(self, number: int, user: str, request_id: str, now: float) -> None:
        """This request may use the pod from now on."""
        self._entered += 1  # `number` comes again where a request is sent again
        self._running[number] = self._meter.start(now), now, user, request_id, self._entered

    def finish(self, number: int, now: float) -> None:
        """It has ended, or has lost its pod; harmless when done twice."""
        entry = self._running.pop(number, None)
        if entry is None:
            return
        mark, began, user, request_id, entered = entry
        seconds = self._meter.finish(mark, now)
        self.last_finished_at = now
        if seconds >= SHORT_REQUEST_S:
            self._long.append(UsageSlice(entered, user, request_id, began, now, seconds))
            return
        key = user, int(now // MINUTE_S)
        self._touched.add(key)
        if (gathered := self._short.get(key)) is None:
            self._short[key] = UsageSlice(entered, user, request_id, began, now, seconds)
            return
        gathered.finished_at = now
        gathered.seconds += seconds
        gathered.requests += 1

    def collect(self, now: float, *, run_ended: bool = False) -> list[UsageSlice]:
        """What is new since the last time, with what runs as it is so far; `run_ended`: the run is over."""
        news = self._long + [self._short[key] for key in self._touched]
        news += [
            UsageSlice(entered, user, request_id, began, now, self._meter.share_so_far(mark, now))
            for mark, began, user, request_id, entered in self._running.values()
        ]
        self._long = []
        self._touched.clear()
        minute = int(now // MINUTE_S)
        self._short = {} if run_ended else {k: v for k, v in self._short.items() if k[1] >= minute}
        return news
