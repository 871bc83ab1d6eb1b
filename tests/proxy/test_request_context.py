"""Bodies read whole: bounded in size and in silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from gpugate.errors import GateError
from gpugate.proxy import request_context
from gpugate.proxy.request_context import read_body

LIMIT = 1000
Send = Callable[..., object]


@pytest.fixture
async def server() -> AsyncIterator[RawTestServer]:
    """Answers with a body's length, or with the error's code and message."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return web.Response(text=str(len(await read_body(request, LIMIT))))
        except GateError as error:
            return web.Response(status=400, text=f"{error.code} {error.message}")

    async with RawTestServer(handle, handler_cancellation=True) as server:
        yield server


async def chunks(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b"x" * size


@pytest.mark.parametrize("size", [0, 1, LIMIT])
async def test_fits(server, size):
    """Told or chunked, up to the limit."""
    async with aiohttp.ClientSession() as http:
        for data in (b"x" * size, chunks(size // 2, size - size // 2)):
            async with http.post(server.make_url("/"), data=data) as response:
                assert str(size) == await response.text()


async def test_too_large(server):
    """Told or chunked, the setting is named."""
    async with aiohttp.ClientSession() as http:
        for data in (b"x" * (LIMIT + 1), chunks(LIMIT, 1)):
            async with http.post(server.make_url("/"), data=data) as response:
                said = await response.text()
                assert said.startswith("PAYLOAD_TOO_LARGE")
                assert "server.max_body" in said


async def test_silence(server, monkeypatch):
    """Who stops sending is told so."""
    monkeypatch.setattr(request_context, "BODY_STALL_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
    assert b"stopped coming" in await asyncio.wait_for(reader.readuntil(b"coming"), 5)
    writer.close()


async def test_slow_but_steady(server, monkeypatch):
    """The limit is on silence, not on the whole."""
    monkeypatch.setattr(request_context, "BODY_STALL_S", 0.15)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\n")
    for _ in range(5):
        await asyncio.sleep(0.05)
        writer.write(b"x")
    assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"\r\n\r\n5")
    writer.close()
