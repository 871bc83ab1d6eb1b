"""A pod whose model runs on the CPU only: what is told, who serves, and what it costs; in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from gpugate_testing.fakes import FakeCloud, FakePod

from gpugate.core.commands import LoadOptions
from gpugate.core.states import Status
from gpugate.lifecycle.status import ProviderProblem
from gpugate.provider_api import Endpoint
from tests.lifecycle.support import Stage, play

ON_CPU = "the model runs on the CPU only"
ALPHA, BETA = "http://127.0.0.1:1", "http://127.0.0.1:2"


class Healthy(FakePod):
    """Answers at both clouds; at alpha's its models run on the CPU."""

    async def check(self, endpoint: Endpoint) -> str | None:
        return None

    async def on_cpu(self, endpoint: Endpoint) -> bool:
        return endpoint.url == ALPHA


class Broken(Healthy):
    """It cannot be told what its models run on."""

    async def on_cpu(self, endpoint: Endpoint) -> bool:
        raise ValueError("a bug")


class Silent(Healthy):
    """It never says what its models run on."""

    async def on_cpu(self, endpoint: Endpoint) -> bool:
        await asyncio.sleep(1e9)
        return True


class Unloadable(Healthy):
    """Its model does not load."""

    async def preload(self, endpoint: Endpoint, model: str, options: LoadOptions) -> str | None:
        return "out of memory"


def troubles(stage: Stage) -> list[tuple[str, str, str]]:
    """What was told that went wrong."""
    heard = [news for news in stage.news if isinstance(news, ProviderProblem)]
    return [(news.provider, news.message, news.reason) for news in heard]


def test_the_next_provider_serves() -> None:
    """The held request is answered there; the first pod is stopped as soon as it is known."""

    async def story() -> None:
        alpha, beta = FakeCloud(boot_s=60, stop_s=20), FakeCloud(boot_s=30, url=BETA)
        async with Stage([alpha, beta], pod_class=Healthy, load_s=40) as stage:
            assert await stage.ask(10, model="llava") == 1
            assert [("alpha", ON_CPU, "capacity")] == troubles(stage)
            status = await stage.lifecycle.status()
            assert (Status.READY, "beta", None) == (status.status, status.provider, status.last_error)
            await asyncio.sleep(3600)
            assert [
                "alpha opens: request",
                "beta opens: request",
                "alpha closes: start_failed",
                "beta closes: idle",
            ] == stage.sessions()
            assert alpha.total_billed_s == pytest.approx(60 + 40 + 20, abs=3)
            assert beta.total_billed_s == pytest.approx(30 + 40 + 10 + 900, abs=3)
            assert (1, 1) == (alpha.starts, beta.starts)

    play(story())


@pytest.mark.parametrize("model", ["llava", None], ids=["preloaded", "loaded before"])
def test_there_is_no_other_provider(model: str | None) -> None:
    """It serves, and status and events say what is wrong, once."""

    async def story() -> None:
        async with Stage([FakeCloud()], pod_class=Healthy) as stage:
            assert await stage.ask(10, model=model) == 1
            assert await stage.ask(10, model=model) == 1
            status = await stage.lifecycle.status()
            assert f"alpha: {ON_CPU}" == status.last_error
            assert [("alpha", ON_CPU, "capacity")] == troubles(stage)

    play(story())


@pytest.mark.parametrize("kind", [Broken, Silent, Unloadable])
def test_it_cannot_be_told(kind: type[FakePod]) -> None:
    """Nobody waits for it longer than for a health check, and nothing is held against the pod."""

    async def story() -> None:
        async with Stage([FakeCloud(), FakeCloud(url=BETA)], pod_class=kind) as stage:
            assert await stage.ask(model="llava") == 1
            assert stage.cloud.now < 6
            assert [] == troubles(stage)
            assert 0 == stage.clouds[1].starts

    play(story())
