"""One simulated server per test, and a client."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from attrs import frozen
from gpugate_demo.comfyui import SimulatedComfyUI
from gpugate_demo.ollama import SimulatedOllama
from gpugate_demo.picture import draw


@frozen
class Got:
    """One whole answer."""

    status: int
    kind: str
    body: bytes
    headers: Any

    @property
    def text(self) -> str:
        return self.body.decode()


class Client:
    """Requests to one server, read to their end."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def __call__(self, method: str, path: str, json: Any = None, **more: Any) -> Got:
        more.setdefault("allow_redirects", False)
        async with self.session.request(method, self.url + path, json=json, **more) as response:
            kind = response.headers.get("Content-Type", "")
            return Got(response.status, kind, await response.read(), response.headers)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def ollama() -> AsyncIterator[SimulatedOllama]:
    async with SimulatedOllama() as server:
        yield server


@pytest.fixture
async def comfyui() -> AsyncIterator[SimulatedComfyUI]:
    async with SimulatedComfyUI() as server:
        yield server


@pytest.fixture
def ask(session: aiohttp.ClientSession, ollama: SimulatedOllama) -> Client:
    return Client(session, ollama.url)


@pytest.fixture
def comfy(session: aiohttp.ClientSession, comfyui: SimulatedComfyUI) -> Client:
    return Client(session, comfyui.url)


@pytest.fixture(scope="session")
def png() -> str:
    """A picture of 64 by 48, in Base64."""
    return base64.b64encode(draw("a test", 1, 64, 48)).decode()
