"""The time a simulated cloud lives in: the loop's, faster or not, or one that a test moves by hand."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from gpugate.tasks import spawn

Result = TypeVar("Result")
EPOCH = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
"""A fixed instant, for tests that need days and months to be known."""


class Clock(ABC):
    """Seconds of a cloud.

    Attributes:
        epoch: the calendar's instant at second 0; by default when the clock is made, so that a real
            gateway, whose calendar is the machine's, believes the start times.
    """

    def __init__(self, epoch: datetime | None = None) -> None:
        self.epoch = epoch or datetime.now(UTC)

    @abstractmethod
    def now(self) -> float:
        """Seconds since the clock was made."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait so many of this clock's seconds."""

    def wall(self) -> datetime:
        """The calendar's instant now; give it to a `Lifecycle` as `wall`."""
        return self.at(self.now())

    def at(self, second: float) -> datetime:
        """The calendar's instant at this second."""
        return self.epoch + timedelta(seconds=second)

    async def within(self, seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`; TimeoutError if it takes longer than `seconds` of this clock."""
        working = spawn(work, "cloud:work", on_crash=_unheard)
        alarm = spawn(self.sleep(seconds), "cloud:alarm")
        try:
            await asyncio.wait([working, alarm], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                result: Result = working.result()
                return result
            raise TimeoutError
        finally:
            for task in (working, alarm):
                task.cancel()
            await asyncio.gather(working, alarm, return_exceptions=True)


def _unheard(_: str, __: BaseException) -> None:
    """A crash is raised by `working.result()`."""


class LoopClock(Clock):
    """The running loop's time, `scale` times as fast; exact under `gpugate_testing.clouds.loopback_time`."""

    def __init__(self, scale: float = 1.0, epoch: datetime | None = None) -> None:
        super().__init__(epoch)
        self.scale = scale
        self._began: float | None = None

    def now(self) -> float:
        at = asyncio.get_running_loop().time()
        if self._began is None:
            self._began = at
        return (at - self._began) * self.scale

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self.scale)


class ManualClock(Clock):
    """Stands still until `advance` moves it."""

    def __init__(self, epoch: datetime | None = None) -> None:
        super().__init__(epoch)
        self._now = 0.0
        self._moved = asyncio.Event()

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let so much time pass, and wake who slept until then."""
        self._now += seconds
        self._moved.set()
        self._moved = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        until = self._now + seconds
        while self._now < until:
            await self._moved.wait()
