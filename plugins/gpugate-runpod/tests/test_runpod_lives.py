"""Random lives: requests, faults, slow lists, restarts, the console, in any order; money is the invariant."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import aiohttp
import pytest
from gpugate_testing.clouds import Stale
from runpod_matrix import OPERATIONS, SETTINGS
from runpod_support import House, play

from gpugate.core.states import Status
from gpugate.errors import GateError
from gpugate.provider_api import Phase

STEPS = 25
LIVES = 8


async def request(house: House, hold_s: float) -> None:
    """A request, whatever comes of it."""
    with suppress(GateError, OSError, aiohttp.ClientError, TimeoutError):  # refused, or lost in mid-answer
        await house.ask(hold_s=hold_s)


def go_wrong(house: House, mode: str, draw: random.Random) -> None:
    """Plan a fault for one call, a few times."""
    operation = draw.choice([name for name in OPERATIONS[mode] if "while" not in name])
    fault = draw.choice([*OPERATIONS[mode][operation].values()])
    if not isinstance(fault, Stale):  # seconds in a row of it are a cloud that lies: see FAULTS.md
        house.cloud.fail(operation, fault, draw.randint(1, 4))


async def restart(house: House, *, keep: bool) -> None:
    """The gateway goes down in good order, or is followed by one that knows nothing but its debts."""
    await house.lifecycle.close(keep=keep, stop_wait_s=30)
    house.build()
    await house.lifecycle.open()


def in_the_console(house: House, draw: random.Random) -> None:
    """Somebody else does something to a pod of ours."""
    pods = [pod for pod in house.cloud.pods.values() if pod.look() is not Phase.GONE]
    if pods:
        draw.choice(pods).become(draw.choice([Phase.STOPPED, Phase.FAILED]))


async def live(house: House, mode: str, draw: random.Random) -> None:
    """One life, and its end: with nothing wrong any more, everything comes to rest."""
    out: list[asyncio.Future[None]] = []
    for _ in range(STEPS):
        step = draw.choices(["ask", "fault", "wait", "console", "restart"], [6, 6, 6, 1, 1])[0]
        match step:
            case "ask":
                out.append(asyncio.ensure_future(request(house, draw.choice([0, 5, 60]))))
            case "fault":
                go_wrong(house, mode, draw)
            case "wait":
                await asyncio.sleep(draw.choice([0.1, 1, 5, 30, 150]))
            case "console":
                in_the_console(house, draw)
            case "restart":
                await restart(house, keep=draw.random() < 0.5)
        assert len(house.cloud.billing) <= 1, "two pods are billed"
    house.cloud.faults.heal()
    await asyncio.gather(*out)
    await asyncio.sleep(120)
    await house.off()
    assert [] == house.cloud.billing
    assert Status.STOPPED is house.lifecycle.current_status
    left = [pod for pod in house.cloud.pods.values() if pod.look() is not Phase.GONE]
    assert len(left) == (1 if mode == "fixed" else 0)


@pytest.mark.parametrize("mode", ["fixed", "ephemeral"])
@pytest.mark.parametrize("seed", range(LIVES))
def test_a_life(mode: str, seed: int) -> None:
    """Never two pods; in the end none."""
    draw = random.Random(f"{mode}{seed}")

    async def scenario(house: House) -> None:
        if mode == "ephemeral":
            house.cloud.list_lag_s = draw.choice([0, 0, 3, 8])
        await live(house, mode, draw)

    play(scenario, SETTINGS[mode])
