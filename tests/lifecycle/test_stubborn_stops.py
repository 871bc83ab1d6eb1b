"""Stops that fail, are ignored or are answered with a 429 while somebody wants the pod, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from gpugate_testing.fakes import FakeCloud

from gpugate.core.states import Status
from gpugate.errors import NoCapacity, ProviderUnavailable, RateLimited, Transient
from gpugate.lifecycle.status import ProviderProblem
from gpugate.provider_api import Phase
from tests.lifecycle.support import Stage, play


def test_the_session_is_over_and_the_stop_fails() -> None:
    """Who waits gets a new start once the stop is proved; nobody is hammered meanwhile."""

    async def story() -> None:
        async with Stage([FakeCloud()], {"max_session": 60.0}) as stage:
            await stage.ask(1)
            await asyncio.sleep(58)
            stage.cloud.fail("stop", *(Transient("no route") for _ in range(3)))
            await asyncio.sleep(2)
            assert stage.lifecycle.current_status is Status.STOPPING
            before = stage.cloud.now
            assert await stage.ask() == 2
            assert stage.cloud.now - before == pytest.approx(5 + 10 + 20, abs=3)
            assert stage.cloud.calls.count("stop") == 4
            assert stage.cloud.starts == 2

    play(story())


def test_no_capacity_while_the_others_stop_is_fresh() -> None:
    """The first provider is asked once, not over and over; then the second, as soon as its stop is proved."""

    async def story() -> None:
        alpha, beta = FakeCloud(), FakeCloud(stop_s=50)
        alpha.fail("start", *(NoCapacity() for _ in range(1000)))
        async with Stage([alpha, beta], {"idle_timeout": 5.0}) as stage:
            stage.pod.cloud = beta
            await stage.ask()
            await asyncio.sleep(5.5)
            assert stage.lifecycle.current_status is Status.STOPPING
            asked = alpha.calls.count("start")
            assert await stage.ask() == 2
            assert alpha.calls.count("start") == asked + 1
            assert beta.starts == 2

    play(story())


def test_a_pod_that_ignores_its_stops() -> None:
    """After three stops it runs on: who waits is served by it instead of waiting beside it."""

    async def story() -> None:
        cloud = FakeCloud()
        async with Stage([cloud], {"idle_timeout": 10.0}) as stage:
            await stage.ask()
            cloud.ignore_stops = 1000
            await asyncio.sleep(11)
            assert stage.lifecycle.current_status is Status.STOPPING
            before = cloud.now
            await stage.ask()
            assert cloud.now - before == pytest.approx(5 + 10, abs=2)
            assert cloud.starts == 1
            assert cloud.phase is Phase.RUNNING

    play(story())


def test_a_stop_is_rate_limited() -> None:
    """The provider's Retry-After is kept."""

    async def story() -> None:
        async with Stage([FakeCloud()], {"idle_timeout": 5.0}) as stage:
            await stage.ask()
            stage.cloud.fail("stop", RateLimited(40))
            await asyncio.sleep(5 + 39)
            assert stage.cloud.calls.count("stop") == 1
            await asyncio.sleep(3)
            assert stage.cloud.calls.count("stop") == 2
            assert stage.lifecycle.current_status is Status.STOPPED

    play(story())


def test_a_pod_that_is_unreachable() -> None:
    """What it does is not known, and the error says why."""

    async def story() -> None:
        cloud = FakeCloud()
        cloud.phase = Phase.UNREACHABLE
        async with Stage([cloud]) as stage:
            with pytest.raises(ProviderUnavailable, match="alpha: the pod is unreachable"):
                await stage.lifecycle.status()
            assert [news for news in stage.news if isinstance(news, ProviderProblem)] == []

    play(story())
