"""The hand-over before a time limit, in virtual time: nobody waits, two rows, and never a third pod."""

from __future__ import annotations

import asyncio
from typing import Any

from gpugate_testing.fakes import FakeCloud

from gpugate.core.policy import ProviderLimits
from gpugate.core.states import Status
from gpugate.errors import NoCapacity
from tests.lifecycle.support import Stage, play

SECOND = ProviderLimits(name="alpha-2", twin=0, is_second=True)


def stage(**numbers: Any) -> Stage:
    """A provider that can run two pods, which boot in 15 s; a session ends after 1000 s."""
    second = FakeCloud(boot_s=15, stop_s=5, url="http://127.0.0.1:2")
    cloud = FakeCloud(boot_s=15, stop_s=5, second=second)
    return Stage([cloud], {"max_session": 1000.0, "idle_timeout": 600.0, **numbers}, second=(SECOND,))


async def chat(stage: Stage, until_s: float) -> tuple[list[int], float]:
    """One short request after the other; the runs that answered, and the longest wait but the first."""
    runs, longest = list[int](), 0.0
    while stage.cloud.now < until_s:
        with stage.lifecycle.acquire() as lease:
            pod = await lease.wait_admitted()
            lease.mark_response_started()
            longest = max(longest, lease.waited_s) if runs else 0.0
            runs.append(pod.run_id)
            await asyncio.sleep(4)
        await asyncio.sleep(1)
    return runs, longest


def test_nobody_waits() -> None:
    """Three sessions in three thousand seconds, in both slots in turn; each row ends within its limit."""

    async def story() -> None:
        async with stage(idle_timeout=100.0) as house:
            second = house.cloud.second
            assert second is not None
            runs, longest = await chat(house, 2700)
            assert sorted(set(runs)) == [1, 2, 3]
            assert longest < 0.5
            assert (house.cloud.starts, second.starts) == (2, 1)
            await asyncio.sleep(700)
            assert house.lifecycle.current_status is Status.STOPPED
            assert second.total_billed_s < 1000
            assert house.sessions() == [
                "alpha opens: request",
                "alpha-2 opens: request",
                "alpha closes: max_session",
                "alpha opens: request",
                "alpha-2 closes: max_session",
                "alpha closes: idle",
            ]

    play(story())


def test_a_long_answer_ends_at_the_old_pod() -> None:
    """It has the time until the limit, while new ones are answered by the other pod."""

    async def story() -> None:
        async with stage(idle_timeout=2000.0) as house:
            await house.ask()
            await asyncio.sleep(900)
            long = asyncio.create_task(house.ask(70))
            await asyncio.sleep(60)
            assert await house.ask() == 2
            assert await long == 1
            await asyncio.sleep(30)
            assert house.lifecycle.unconfirmed_stops == 0
            assert (await house.lifecycle.status()).provider == "alpha-2"

    play(story())


def test_no_gpu_for_the_second_pod() -> None:
    """Requests wait for a new start, and the old pod ends in time all the same."""

    async def story() -> None:
        async with stage() as house:
            second = house.cloud.second
            assert second is not None
            second.fail("start", *[NoCapacity("no GPU is free")] * 9)
            runs, longest = await chat(house, 1200)
            assert sorted(set(runs)) == [1, 4]
            assert 15 < longest < 90
            assert second.total_billed_s == 0
            assert house.sessions()[:2] == ["alpha opens: request", "alpha closes: max_session"]

    play(story())


def test_a_time_limit_of_the_provider() -> None:
    """The pod is stopped before the cloud ends it: no answer is cut short by that."""

    async def story() -> None:
        cloud = FakeCloud(boot_s=15, time_limit_s=500)
        limited = Stage([cloud], {"idle_timeout": 600.0})
        limited.limits = {"time_limit_s": 500.0}
        async with limited as house:
            runs, _ = await chat(house, 900)
            assert sorted(set(runs)) == [1, 2]
            assert house.sessions()[1] == "alpha closes: max_session"

    play(story())
