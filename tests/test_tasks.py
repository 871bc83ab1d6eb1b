"""Tasks that live as long as their owner: what ends them, and what follows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest

from gpugate.tasks import FIRST_PAUSE_S, LONGEST_PAUSE_S, Supervised, TaskDied
from tests.lifecycle.support import play


async def fail() -> None:
    raise ValueError("a bug")


async def leave() -> None:
    raise SystemExit(3)


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


@pytest.mark.parametrize(("act", "kind"), [(fail, ValueError), (leave, TaskDied), (cancel_itself, TaskDied)])
def test_one_that_dies(act: Callable[[], Coroutine[Any, Any, None]], kind: type[Exception]) -> None:
    """It is reported once for each death and started afresh, after pauses that double."""

    async def story() -> None:
        loop = asyncio.get_running_loop()
        runs: list[float] = []
        crashes: list[tuple[str, type[BaseException]]] = []

        async def work() -> None:
            runs.append(loop.time())
            if len(runs) < 4:
                await act()
            await asyncio.sleep(1e9)

        task = Supervised(work, "a part", on_crash=lambda name, error: crashes.append((name, type(error))))
        await asyncio.sleep(60)
        pauses = [later - earlier for earlier, later in pairwise(runs)]
        assert [FIRST_PAUSE_S * factor for factor in (1, 2, 4)] == pytest.approx(pauses)
        assert [("a part", kind)] * 3 == crashes
        await task.aclose()
        await asyncio.sleep(60)
        assert 4 == len(runs)

    play(story())


def test_pauses_are_bounded_and_forgotten() -> None:
    """Never longer than `LONGEST_PAUSE_S`; one that lived longer begins with the first again."""

    async def story() -> None:
        loop = asyncio.get_running_loop()
        runs: list[float] = []

        async def work() -> None:
            runs.append(loop.time())
            if len(runs) == 12:
                await asyncio.sleep(LONGEST_PAUSE_S + 1)
            if len(runs) == 13:
                await asyncio.sleep(1e9)
            await fail()

        task = Supervised(work, "a part", on_crash=lambda *_: None)
        await asyncio.sleep(600)
        assert pytest.approx(LONGEST_PAUSE_S) == runs[11] - runs[10]
        assert pytest.approx(LONGEST_PAUSE_S + 1 + FIRST_PAUSE_S) == runs[12] - runs[11]
        await task.aclose()

    play(story())


def test_one_that_returns_or_is_ended() -> None:
    """It has done its work: nothing is reported, and nothing begins again, in a pause either."""

    async def story() -> None:
        runs: list[str] = []
        crashes: list[str] = []

        async def work() -> None:
            runs.append("returned")

        async def die() -> None:
            runs.append("died")
            await fail()

        done = Supervised(work, "done", on_crash=lambda name, _: crashes.append(name))
        dying = Supervised(die, "dying", on_crash=lambda name, _: crashes.append(name))
        await asyncio.sleep(FIRST_PAUSE_S / 2)
        await dying.aclose()
        await asyncio.sleep(60)
        await done.aclose()
        assert (["returned", "died"], ["dying"]) == (runs, crashes)

    play(story())
