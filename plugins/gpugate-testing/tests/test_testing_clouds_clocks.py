"""The clocks of the simulated clouds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from gpugate_testing.clouds import LoopClock, ManualClock
from gpugate_testing.clouds.clocks import EPOCH


async def test_the_calendar_of_a_clock() -> None:
    """It begins when the clock is made, or where a test says."""
    for clock in (LoopClock(), ManualClock()):
        assert abs(clock.wall() - datetime.now(UTC)) < timedelta(seconds=5)
    assert ManualClock(EPOCH).wall() == LoopClock(epoch=EPOCH).wall() == EPOCH
