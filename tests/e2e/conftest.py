"""Fixtures: a simulated Ollama, a fake cloud, and gateways in front of them."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import uvloop
from attrs import define
from gpugate_demo.ollama import SimulatedOllama
from gpugate_testing.fakes import FakeCloud

from tests.e2e.support import House, open_house, words


@define
class Log:
    """What gateways that were opened by fixtures after it have logged."""

    stream: io.BytesIO
    stderr: io.TextIOWrapper  # whose end would close the stream

    @property
    def text(self) -> str:
        """All lines."""
        return self.stream.getvalue().decode()

    def lines(self, event: str) -> list[dict[str, object]]:
        """The lines of one event."""
        found = [json.loads(line) for line in self.text.splitlines()]
        return [line for line in found if line["event"] == event]


Opener = Callable[..., Awaitable[House]]


def pytest_asyncio_loop_factories(config, item):
    """asyncio's own loop; uvloop as well where the test is marked so."""
    loops = {"asyncio": asyncio.new_event_loop}
    if "house_on_both" in getattr(item, "fixturenames", ()):
        loops["uvloop"] = uvloop.new_event_loop
    return loops


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """The log of gateways opened from here on: name it before them."""
    stream = io.BytesIO()
    log = Log(stream, io.TextIOWrapper(stream))
    monkeypatch.setattr(sys, "stderr", log.stderr)
    return log


@pytest.fixture
async def ollama() -> AsyncIterator[SimulatedOllama]:
    """The pod's Ollama; it says five words."""
    async with SimulatedOllama(reply=words()) as ollama:
        yield ollama


@pytest.fixture
def cloud() -> FakeCloud:
    """A cloud whose pod runs 50 ms after it was started."""
    return FakeCloud(boot_s=0.05)


@pytest.fixture
async def opened(tmp_path: Path, ollama: SimulatedOllama, cloud: FakeCloud) -> AsyncIterator[Opener]:
    """Opens a gateway with settings of the test's choice: `await opened(queue__max_waiting=1)`."""
    async with AsyncExitStack() as stack:

        async def opener(**overrides: object) -> House:
            return await stack.enter_async_context(open_house(tmp_path, ollama, cloud, **overrides))

        yield opener


@pytest.fixture
async def house(opened: Opener) -> House:
    """A gateway with quick settings; its pod is off."""
    house = await opened()
    await house.off()
    return house


@pytest.fixture
async def house_on_both(opened: Opener) -> House:
    """The same, on asyncio's loop and on uvloop."""
    house = await opened()
    await house.off()
    return house
