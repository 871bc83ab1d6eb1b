"""Notes who uses the pod, and for how many of its seconds; on the hot path: it knows no disk, no calendar."""

from __future__ import annotations

from attrs import define, field

from gpugate.billing.fair_share import Meter

SHORT_S = 0.1
"""Requests with fewer seconds are gathered by user and minute: a row for each would be most of the ledger."""
MINUTE_S = 60.0


@define
class Spent:
    """Seconds of the pod that belong to a request, or to a user's short ones of a minute; in loop time.

    `number` is its own in this process: a client may give all its requests the same name.
    """

    number: int
    user: str
    request_id: str
    began: float
    ended: float
    seconds: float
    requests: int = 1


@define
class Uses:
    """Who uses the pod of the present run.

    Attributes:
        last_end: when the last use ended, in loop time.
    """

    last_end: float | None = None
    _meter: Meter = field(factory=Meter)
    _entered: int = 0
    _running: dict[int, tuple[float, float, str, str, int]] = field(factory=dict)
    _long: list[Spent] = field(factory=list)
    _short: dict[tuple[str, int], Spent] = field(factory=dict)
    _touched: set[tuple[str, int]] = field(factory=set)

    def enter(self, number: int, user: str, request_id: str, now: float) -> None:
        """This request may use the pod from now on."""
        self._entered += 1  # `number` comes again where a request is sent again
        self._running[number] = self._meter.enter(now), now, user, request_id, self._entered

    def leave(self, number: int, now: float) -> None:
        """It has ended, or has lost its pod; harmless when done twice."""
        entry = self._running.pop(number, None)
        if entry is None:
            return
        mark, began, user, request_id, entered = entry
        seconds = self._meter.leave(mark, now)
        self.last_end = now
        if seconds >= SHORT_S:
            self._long.append(Spent(entered, user, request_id, began, now, seconds))
            return
        key = user, int(now // MINUTE_S)
        self._touched.add(key)
        if (gathered := self._short.get(key)) is None:
            self._short[key] = Spent(entered, user, request_id, began, now, seconds)
            return
        gathered.ended = now
        gathered.seconds += seconds
        gathered.requests += 1

    def take(self, now: float, *, whole: bool = False) -> list[Spent]:
        """What is new since the last time, with what runs as it is so far; `whole`: the run is over."""
        news = self._long + [self._short[key] for key in self._touched]
        news += [
            Spent(entered, user, request_id, began, now, self._meter.share(mark, now))
            for mark, began, user, request_id, entered in self._running.values()
        ]
        self._long = []
        self._touched.clear()
        minute = int(now // MINUTE_S)
        self._short = {} if whole else {k: v for k, v in self._short.items() if k[1] >= minute}
        return news
