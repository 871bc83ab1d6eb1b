"""A client's connection: one request after the other in one task, and what it takes from aiohttp."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from hashlib import sha256

import pytest
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gpugate.web.server import GuardedServer, listen

GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"


class House:
    """A server whose one handler does what the path says."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None] | None] = []
        self.held = asyncio.Event()
        self.left = asyncio.Event()
        self.port = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.tasks.append(asyncio.current_task())
        if request.path == "/crash":
            raise ValueError("no")
        if request.path == "/held":
            self.held.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.left.set()
                raise
        return web.Response(text=request.path)

    async def exchange(self, sent: bytes) -> bytes:
        """All that comes back until the connection is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        try:
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    server = GuardedServer(house.answer, lambda request: web.Response(status=400))
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    house.port = await listen(runner, "127.0.0.1", 0)
    yield house
    await runner.cleanup()


def test_what_was_copied():
    """aiohttp's `start`, which ours stands for, is the one that was read; if not, compare the two again."""
    known = "2e565fd40c8e04fb"
    assert known == sha256(inspect.getsource(RequestHandler.start).encode()).hexdigest()[:16]


async def test_requests_behind_each_other(house):
    """Are answered in order, all in the connection's one task."""
    last = b"GET /3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    said = await house.exchange(GET % 1 + GET % 2 + last)
    assert [b"/1", b"/2", b"/3"] == [
        part.partition(b"\r\n\r\n")[2][:2] for part in said.split(b"HTTP/1.1")[1:]
    ]
    assert 1 == len(set(house.tasks))


async def test_client_that_hangs_up(house):
    """Its handler is cancelled."""
    _, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(house.held.wait(), 5)
    writer.close()
    await asyncio.wait_for(house.left.wait(), 5)


async def test_handler_that_crashes(house, caplog):
    """Is answered with 500, and the connection is closed."""
    said = await house.exchange(b"GET /crash HTTP/1.1\r\nHost: x\r\n\r\n" + GET % 1)
    assert said.startswith(b"HTTP/1.1 500 ")
    assert 1 == said.count(b"HTTP/1.1")
    assert ["Error handling request from %s"] == [record.msg for record in caplog.records]


async def test_body_that_nobody_read(house):
    """Is read off, so that the next request is found behind it."""
    post = b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
    said = await house.exchange(post + b"GET /2 HTTP/1.0\r\n\r\n")
    assert 2 == said.count(b" 200 OK")


async def test_body_that_does_not_come(house):
    """Is waited for as long as aiohttp would, then the connection is closed."""
    server = GuardedServer(house.answer, lambda request: web.Response(status=400))
    server._kwargs["lingering_time"] = 0.05
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    house.port = await listen(runner, "127.0.0.1", 0)
    said = await house.exchange(b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
    await runner.cleanup()
    assert said.endswith(b"/1")


async def test_shutdown_while_a_request_runs(house):
    """Its handler is given its patience, then cancelled."""
    server = GuardedServer(house.answer, lambda request: web.Response(status=400))
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    house.port = await listen(runner, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(house.held.wait(), 5)
    await runner.cleanup()
    assert house.left.is_set()
    writer.close()
