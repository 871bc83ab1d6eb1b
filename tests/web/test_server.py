"""The listening side: silent connections, what is no HTTP, and the port."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from gpugate.web import server
from gpugate.web.server import GuardedServer, listen, raise_file_limit


async def greet(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="hello")


def refuse(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=400, text="no")


@pytest.fixture
async def runner() -> AsyncIterator[web.ServerRunner]:
    runner = web.ServerRunner(GuardedServer(greet, refuse), shutdown_timeout=0.1)
    await runner.setup()
    yield runner
    await runner.cleanup()


async def exchange(port: int, sent: bytes) -> bytes:
    """All that comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


async def test_free_port(runner):
    """Port 0 becomes a real one."""
    assert await listen(runner, "127.0.0.1", 0) > 1023


async def test_taken_port(runner):
    """Is told, and not shared."""
    port = await listen(runner, "127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        await listen(runner, "127.0.0.1", port)


async def test_what_is_no_http(runner, caplog):
    """The given answer, the end of the connection, and nothing in the log."""
    port = await listen(runner, "127.0.0.1", 0)
    answer = await exchange(port, b"my secret prompt\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nno")
    assert [] == caplog.messages


async def test_silent_connection(runner, monkeypatch):
    """Closed after `HEAD_LIMIT_S`, with or without half a head."""
    monkeypatch.setattr(server, "HEAD_LIMIT_S", 0.05)
    port = await listen(runner, "127.0.0.1", 0)
    assert [b"", b""] == [await exchange(port, sent) for sent in (b"", b"GET / HTTP/1.1\r\nX: ")]


async def test_connection_with_a_request_stays(runner, monkeypatch):
    """The limit is for the first head alone."""
    monkeypatch.setattr(server, "HEAD_LIMIT_S", 0.05)
    port = await listen(runner, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for pause in (0.1, 0.0):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"hello" in await asyncio.wait_for(reader.readuntil(b"hello"), 5)
        await asyncio.sleep(pause)
    writer.close()


def test_file_limit():
    """As many descriptors as the system lets us have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
