"""A cloud with random faults that bills by the second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from math import log
from random import Random
from typing import Any

from attrs import define, evolve, field, frozen
from gpugate_testing.fakes import FakeCloud, FakeProvider, Fault, Hang, LostAnswer

from gpugate.errors import Ambiguous, NoCapacity, Transient
from gpugate.provider_api import Phase, PodReport
from gpugate.tasks import spawn

from .spans import Span

MONDAY = datetime(2026, 6, 1, tzinfo=UTC)
"""When the loop's clock shows 0."""


def wall() -> datetime:
    """The simulated time of day."""
    return MONDAY + timedelta(seconds=asyncio.get_running_loop().time())


USUAL_BOOT_S = 42.0
BOOT_SPREAD = 0.25
"""Log-normal: most boots take 30 to 60 s."""


@frozen
class Weather:
    """How often what goes wrong: shares of calls, and hours between events.

    Attributes:
        lost_answer: the provider does it, and the answer is lost.
        slow: a call hangs for half a minute and then works.
        slow_boot: a start takes five times as long.
        lives_h: how long a pod runs on average before it dies under us; 0 for ever.
        crashes: of the gateway, in the month.
    """

    no_capacity: float = 0.03
    refused: float = 0.03
    lost_answer: float = 0.03
    slow: float = 0.003
    blind: float = 0.005
    ignored_stop: float = 0.04
    slow_boot: float = 0.05
    lives_h: float = 48.0
    crashes: int = 10


FAIR = Weather(0, 0, 0, 0, 0, 0, 0, 0, 0)
"""No faults."""


@define
class StormyCloud(FakeCloud):
    """One pod, whose boot takes 30 to 60 s, and then and again far longer.

    Attributes:
        stretches: what was billed, in loop time; the last one may still be open (see `bill`).
        down: set while no pod serves: every exchange with it has broken.
    """

    dice: Random = field(factory=Random)
    weather: Weather = FAIR
    stop_s: float = 4.0
    stretches: list[Span] = field(factory=list)
    down: asyncio.Event = field(factory=asyncio.Event)
    _said: PodReport | None = None
    _said_since: float | None = None

    def turn_on(self) -> None:
        """Accept a start."""
        before = self.starts
        self.boot_s = self.dice.lognormvariate(log(USUAL_BOOT_S), BOOT_SPREAD)
        if self.dice.random() < self.weather.slow_boot:
            self.boot_s *= 5
        super().turn_on()
        if self.starts == before:
            return
        self.down = asyncio.Event()
        if self.weather.lives_h:
            life_s = self.boot_s + self.dice.expovariate(1 / (self.weather.lives_h * 3600))
            asyncio.get_running_loop().call_later(life_s, self._die, self.starts)

    def _die(self, start: int) -> None:
        if start == self.starts:
            self.turn_off(at_once=True)

    def turn_off(self, *, at_once: bool = False) -> None:
        """Accept a stop, or lose the pod."""
        self.down.set()
        super().turn_off(at_once=at_once)

    def report(self) -> PodReport:
        """What the API says, with the beginning of the bill; made anew only when it is new."""
        self._move()
        if self._said is None or (self._said.phase, self._said_since) != (self.phase, self._billed_since):
            since = self._said_since = self._billed_since
            started_at = None if since is None else MONDAY + timedelta(seconds=since)
            self._said = evolve(super().report(), started_at=started_at)
        return self._said

    def _move(self) -> None:
        since = self._billed_since
        super()._move()
        if since is not None and self._billed_since is None:
            self.stretches.append((since, max(self._changes_at, since)))

    def bill(self) -> list[Span]:
        """All that was billed up to now."""
        self._move()
        running = [(self._billed_since, self.now)] if self._billed_since is not None else []
        return [*self.stretches, *running]

    def fault(self, call: str) -> Fault | None:
        """What goes wrong with this call, if anything."""
        weather = self.weather
        chances: list[tuple[float, Fault]] = [(weather.slow, Hang(30.0))]
        if call == "start":
            chances += [(weather.no_capacity, NoCapacity()), (weather.refused, Transient())]
        if call != "inspect":
            chances.append((weather.lost_answer, LostAnswer(Ambiguous("the answer was lost"))))
        else:
            chances.append((weather.blind, Transient("could not look")))
        die = self.dice.random()
        for chance, fault in chances:
            die -= chance
            if die < 0:
                return fault
        return None


class Rented(FakeProvider):
    """One gateway's provider: dies with it, but what has left for the cloud still arrives there."""

    cloud: StormyCloud

    def __init__(self, cloud: StormyCloud) -> None:
        super().__init__(cloud)
        self.dead = False

    async def stop(self) -> PodReport:
        if self.cloud.dice.random() < self.cloud.weather.ignored_stop:
            self.cloud.ignore_stops = 1
        return await super().stop()

    async def _call(self, name: str, act: Callable[[], Any]) -> PodReport:
        if self.dead:
            await asyncio.Event().wait()
        if name == "inspect" and not self.cloud.weather.blind:
            return self.cloud.report()
        fault = self.cloud.fault(name)
        if fault is None and name == "inspect":
            return self.cloud.report()
        if fault is not None:
            self.cloud.fail(name, fault)
        return await asyncio.shield(spawn(super()._call(name, act), f"cloud:{name}", on_crash=_expected))


def _expected(name: str, error: BaseException) -> None:
    """A failed call is reported to its caller, if that gateway still runs."""


def serves(cloud: StormyCloud) -> bool:
    """Whether a request to the pod would be answered."""
    return cloud.report().phase is Phase.RUNNING
