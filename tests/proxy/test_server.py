"""The listening side: silent connections, what is no HTTP, and the port."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from gpugate.proxy import server
from gpugate.proxy.server import (
    GatewayServer,
    RequestHandlerFunction,
    SelfCheckFailed,
    check_self,
    listen,
    raise_file_limit,
)
from gpugate.tasks import CrashHandler

GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"


async def greet(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="hello")


def refuse(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=400, text="no")


def no_crash(name: str, error: BaseException) -> None:
    raise AssertionError(name) from error


def serving(handler: RequestHandlerFunction, on_crash: CrashHandler = no_crash) -> web.ServerRunner:
    return web.ServerRunner(GatewayServer(handler, refuse, on_crash), shutdown_timeout=0.1)


@pytest.fixture
async def runner() -> AsyncIterator[web.ServerRunner]:
    runner = serving(greet)
    await runner.setup()
    yield runner
    await runner.cleanup()


class Held:
    """A handler that answers with the path; /crash raises, and /held waits until it is cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/crash":
            raise ValueError("no")
        if request.path == "/held":
            self.begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return web.Response(text=request.path)


@pytest.fixture
async def held() -> AsyncIterator[tuple[Held, web.ServerRunner, int]]:
    held = Held()
    runner = serving(held.answer)
    await runner.setup()
    yield held, runner, await listen(runner, "127.0.0.1", 0)
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


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1", "localhost"])
async def test_it_answers_itself(runner, host):
    """Also where what it listens on is no address to connect to."""
    await listen(runner, host, 0)
    await check_self(runner, "/")


async def hang(request: web.BaseRequest) -> web.StreamResponse:
    await asyncio.sleep(1e9)
    raise AssertionError


async def refused(request: web.BaseRequest) -> web.StreamResponse:
    return refuse(request)


@pytest.mark.parametrize(
    ("handler", "limit_s", "said"),
    [(hang, 0.1, "no answer within 0.1 s"), (refused, 20, "400 Bad Request")],
)
async def test_it_does_not_answer_itself(handler, limit_s, said, monkeypatch):
    """Silence and any other status are told, with the place."""
    monkeypatch.setattr(server, "SELF_CHECK_TIMEOUT_S", limit_s)
    runner = serving(handler)
    await runner.setup()
    try:
        port = await listen(runner, "127.0.0.1", 0)
        with pytest.raises(SelfCheckFailed, match=said) as caught:
            await check_self(runner, "/there")
        assert f"127.0.0.1 port {port}, and does not answer its own GET /there" in str(caught.value)
    finally:
        await runner.cleanup()


async def test_what_is_no_http(runner, caplog):
    """The given answer, the end of the connection, and nothing in the log."""
    port = await listen(runner, "127.0.0.1", 0)
    answer = await exchange(port, b"my secret prompt\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nno")
    assert [] == caplog.messages


async def test_silent_connection(runner, monkeypatch):
    """Closed after `FIRST_HEAD_TIMEOUT_S`, with or without half a head."""
    monkeypatch.setattr(server, "FIRST_HEAD_TIMEOUT_S", 0.05)
    port = await listen(runner, "127.0.0.1", 0)
    assert [b"", b""] == [await exchange(port, sent) for sent in (b"", b"GET / HTTP/1.1\r\nX: ")]


async def test_connection_with_a_request_stays(runner, monkeypatch):
    """The limit is for the first head alone."""
    monkeypatch.setattr(server, "FIRST_HEAD_TIMEOUT_S", 0.5)
    port = await listen(runner, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for pause in (0.6, 0.0):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"hello" in await asyncio.wait_for(reader.readuntil(b"hello"), 5)
        await asyncio.sleep(pause)
    writer.close()


async def test_who_answers(runner):
    """A name, and no version that a stranger could look up the holes of; of malformed requests as well."""
    port = await listen(runner, "127.0.0.1", 0)
    for sent in (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"nonsense\r\n\r\n"):
        head = (await exchange(port, sent)).partition(b"\r\n\r\n")[0].split(b"\r\n")
        assert [b"Server: gpugate"] == [line for line in head if line.startswith(b"Server:")]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
async def test_upgrade(runner, protocol):
    """Is not followed: an answer in HTTP/1.1, then the end, as what stands behind it would not be read."""
    port = await listen(runner, "127.0.0.1", 0)
    wish = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n"
    answer = await exchange(port, wish + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert 1 == answer.count(b"HTTP/1.1 200 OK")
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"hello")


async def test_requests_behind_each_other(held):
    """Are answered in order."""
    _, _, port = held
    last = b"GET /3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    said = await exchange(port, GET % 1 + GET % 2 + last)
    assert [b"/1", b"/2", b"/3"] == [
        part.partition(b"\r\n\r\n")[2][:2] for part in said.split(b"HTTP/1.1")[1:]
    ]


async def test_client_that_hangs_up(held):
    """Its handler is cancelled."""
    house, _, port = held
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(house.begun.wait(), 5)
    writer.close()
    await asyncio.wait_for(house.cancelled.wait(), 5)


async def test_handler_that_crashes(held, caplog):
    """Is answered with 500, and the connection is closed."""
    _, _, port = held
    said = await exchange(port, b"GET /crash HTTP/1.1\r\nHost: x\r\n\r\n" + GET % 1)
    assert said.startswith(b"HTTP/1.1 500 ")
    assert b"\r\nServer: gpugate\r\n" in said
    assert 1 == said.count(b"HTTP/1.1")
    assert ["Error handling request from %s"] == [record.msg for record in caplog.records]


async def test_connection_whose_task_dies(monkeypatch):
    """As under a release of aiohttp in which something fails: reported, and the socket closed at once."""

    async def die(connection: web.RequestHandler) -> None:
        raise AttributeError("no such name any more")

    crashes: list[str] = []
    runner = serving(greet, lambda name, error: crashes.append(f"{name}: {error}"))
    await runner.setup()
    port = await listen(runner, "127.0.0.1", 0)
    monkeypatch.setattr(web.RequestHandler, "start", die)
    assert b"" == await exchange(port, b"")
    assert ["client connection: no such name any more"] == crashes
    await runner.cleanup()


async def test_connection_that_dies_at_its_second_request():
    """The first answer stays given; then the client finds a closed socket, not silence."""
    crashes: list[str] = []
    runner = serving(greet, lambda name, error: crashes.append(f"{name}: {error}"))
    await runner.setup()
    assert runner.server is not None
    make, made = runner.server.request_factory, 0

    def make_one(*parts: Any) -> web.BaseRequest:
        nonlocal made
        made += 1
        if made > 1:
            raise TypeError("an argument too many")
        return make(*parts)

    runner.server.request_factory = make_one
    port = await listen(runner, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET % 1)
    await asyncio.wait_for(reader.readuntil(b"hello"), 5)
    writer.write(GET % 2)
    assert b"" == await asyncio.wait_for(reader.read(), 5)
    assert ["client connection: an argument too many"] == crashes
    writer.close()
    await runner.cleanup()


async def test_body_that_nobody_read(held):
    """Is read off, so that the next request is found behind it."""
    _, _, port = held
    post = b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
    said = await exchange(port, post + b"GET /2 HTTP/1.0\r\n\r\n")
    assert 2 == said.count(b" 200 OK")


async def test_body_that_does_not_come(held, monkeypatch):
    """Is waited for as long as aiohttp would, then the connection is closed."""
    monkeypatch.setitem(server.OPTIONS, "lingering_time", 0.05)
    _, _, port = held
    said = await exchange(port, b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
    assert said.endswith(b"/1")


async def test_shutdown_while_a_request_runs(held):
    """Its handler is given its patience, then cancelled."""
    house, runner, port = held
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(house.begun.wait(), 5)
    await runner.cleanup()
    assert house.cancelled.is_set()
    writer.close()


async def test_clients_that_vanish(runner):
    """The kernel asks after a silent client, and gives up on one that acknowledges nothing."""
    port = await listen(runner, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b"hello"), 5)
    (connection,) = runner.server.connections
    sock = connection.transport.get_extra_info("socket")
    options = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    assert 1 == sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert [30, 10, 3, 120_000] == [
        sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, option)) for option in options
    ]
    writer.close()


def test_file_limit():
    """As many descriptors as the system lets us have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
