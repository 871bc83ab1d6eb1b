"""`scale()` in virtual time: how many run, what fails, and that a stop never waits for it."""

from __future__ import annotations

import asyncio

from gpugate_testing.fakes import FakeCloud, Hang, LostAnswer

from gpugate.core.states import Status
from gpugate.errors import Ambiguous, NoCapacity
from gpugate.lifecycle.status import ProviderCalled, ReplicasAsked
from tests.lifecycle.support import Stage, play

NUMBERS = {"replicas": "1..4", "target_in_flight": 2, "drain_concurrency": 8, "idle_timeout": 300}


def test_replicas_come_and_go() -> None:
    """Eight requests bring four; after a while of one request three are given back."""

    async def story() -> None:
        async with Stage([FakeCloud(boot_s=30, stop_s=5)], NUMBERS) as stage:
            crowd = [asyncio.create_task(stage.ask(200)) for _ in range(8)]
            await asyncio.sleep(65)
            assert stage.cloud.running_replicas == 4
            assert (await stage.lifecycle.status()).replicas == 4
            await asyncio.gather(*crowd)
            await stage.ask(200)
            assert stage.cloud.running_replicas == 4
            await stage.ask(200)
            assert stage.cloud.running_replicas == 1
            await asyncio.sleep(400)
            assert stage.lifecycle.current_status is Status.STOPPED
        asked = [news.replicas for news in stage.news if isinstance(news, ReplicasAsked)]
        assert asked == [4, 1]
        called = [
            news.outcome for news in stage.news if isinstance(news, ProviderCalled) if news.call == "scale"
        ]
        assert called == ["ok", "ok"]

    play(story())


def test_a_stop_does_not_wait_for_a_scale_that_hangs() -> None:
    """It is given up at once; one that is queued behind is not made at all."""

    async def story() -> None:
        async with Stage([FakeCloud(stop_s=1)], NUMBERS) as stage:
            stage.cloud.fail("scale", Hang(1000))
            crowd = [asyncio.create_task(stage.ask(100)) for _ in range(5)]
            await asyncio.sleep(5)
            assert stage.cloud.calls[-1] == "scale 3"
            stage.lifecycle.stop(force=True)
            await asyncio.sleep(3)
            assert stage.lifecycle.current_status is Status.STOPPED
            assert stage.cloud.running_replicas == 1
            await asyncio.gather(*crowd, return_exceptions=True)

    play(story())


def test_no_gpu_for_another_one() -> None:
    """The pod serves with what it has, says so, and asks again."""

    async def story() -> None:
        async with Stage([FakeCloud()], NUMBERS) as stage:
            stage.cloud.fail("scale", NoCapacity("no GPU is free"), LostAnswer(Ambiguous("timeout")))
            crowd = [asyncio.create_task(stage.ask(100)) for _ in range(4)]
            await asyncio.sleep(0.5)
            status = await stage.lifecycle.status()
            assert status.last_error == "alpha: 2 replicas were asked for: no GPU is free"
            await asyncio.sleep(60)
            status = await stage.lifecycle.status()
            assert (status.replicas, status.last_error) == (2, None)
            await asyncio.gather(*crowd)

    play(story())
