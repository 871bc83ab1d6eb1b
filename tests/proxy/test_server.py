"""Clients' connections: silent ones, what is no HTTP, bodies that break, and the end."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from gpugate.errors import GateError
from gpugate.proxy import server
from gpugate.proxy.listening import listen
from gpugate.proxy.server import ClientConnection, GatewayServer, Listener, RequestHandlerFunction
from gpugate.tasks import CrashHandler

GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"


async def greet(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="hello")


def refuse(request: web.BaseRequest, error: GateError) -> web.Response:
    return web.Response(status=400, text=error.message)


def no_crash(name: str, error: BaseException) -> None:
    raise AssertionError(name) from error


class Served(GatewayServer):
    """A server that listens, if asked where."""

    listener: Listener | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        self.listener = self.listener or listen(self, ("127.0.0.1",), 0, print)
        return self.listener.port

    async def aclose(self, patience_s: float = 0.1) -> None:
        if self.listener is not None:
            self.listener.close()
        await super().aclose(patience_s)


def serving(handler: RequestHandlerFunction, on_crash: CrashHandler = no_crash) -> Served:
    return Served(handler, refuse, on_crash)


@pytest.fixture
async def gateway() -> AsyncIterator[Served]:
    gateway = serving(greet)
    yield gateway
    await gateway.aclose()


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
async def held() -> AsyncIterator[tuple[Held, Served, int]]:
    held = Held()
    gateway = serving(held.answer)
    yield held, gateway, gateway.port
    await gateway.aclose()


async def exchange(port: int, sent: bytes) -> bytes:
    """All that comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


async def test_what_is_no_http(gateway, caplog):
    """The given answer, the end of the connection, and nothing in the log."""
    port = gateway.port
    answer = await exchange(port, b"my secret prompt\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"\r\n\r\nthe request is malformed")
    assert [] == caplog.messages


async def test_silent_connection(gateway, monkeypatch):
    """Closed after `FIRST_HEAD_TIMEOUT_S`, with or without half a head."""
    monkeypatch.setattr(server, "FIRST_HEAD_TIMEOUT_S", 0.05)
    port = gateway.port
    assert [b"", b""] == [await exchange(port, sent) for sent in (b"", b"GET / HTTP/1.1\r\nX: ")]


async def test_connection_with_a_request_stays(gateway, monkeypatch):
    """The limit is for the first head alone."""
    monkeypatch.setattr(server, "FIRST_HEAD_TIMEOUT_S", 0.5)
    port = gateway.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for pause in (0.6, 0.0):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"hello" in await asyncio.wait_for(reader.readuntil(b"hello"), 5)
        await asyncio.sleep(pause)
    writer.close()


async def test_who_answers(gateway):
    """A name, and no version that a stranger could look up the holes of; of malformed requests as well."""
    port = gateway.port
    for sent in (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"nonsense\r\n\r\n"):
        head = (await exchange(port, sent)).partition(b"\r\n\r\n")[0].split(b"\r\n")
        assert [b"Server: gpugate"] == [line for line in head if line.startswith(b"Server:")]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
async def test_upgrade(gateway, protocol):
    """Is not followed: an answer in HTTP/1.1, then the end, as what stands behind it would not be read."""
    port = gateway.port
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
    assert await asyncio.wait_for(house.cancelled.wait(), 5)


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
    gateway = serving(greet, lambda name, error: crashes.append(f"{name}: {error}"))
    port = gateway.port
    monkeypatch.setattr(web.RequestHandler, "start", die)
    assert b"" == await exchange(port, b"")
    assert ["client connection: no such name any more"] == crashes
    await gateway.aclose()


async def test_connection_that_dies_at_its_second_request():
    """The first answer stays given; then the client finds a closed socket, not silence."""
    crashes: list[str] = []
    gateway = serving(greet, lambda name, error: crashes.append(f"{name}: {error}"))
    make, made = gateway.request_factory, 0

    def make_one(*parts: Any) -> web.BaseRequest:
        nonlocal made
        made += 1
        if made > 1:
            raise TypeError("an argument too many")
        return make(*parts)

    gateway.request_factory = make_one
    port = gateway.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET % 1)
    await asyncio.wait_for(reader.readuntil(b"hello"), 5)
    writer.write(GET % 2)
    assert b"" == await asyncio.wait_for(reader.read(), 5)
    assert ["client connection: an argument too many"] == crashes
    writer.close()
    await gateway.aclose()


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
    house, gateway, port = held
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(house.begun.wait(), 5)
    await gateway.aclose()
    assert house.cancelled.is_set()
    writer.close()


async def test_clients_that_vanish(gateway):
    """The kernel asks after a silent client, and gives up on one that acknowledges nothing."""
    port = gateway.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b"hello"), 5)
    (connection,) = gateway.connections
    sock = connection.transport.get_extra_info("socket")
    options = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    assert 1 == sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert [30, 10, 3, 120_000] == [
        sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, option)) for option in options
    ]
    writer.close()


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.mark.parametrize("first", [PREFACE + SETTINGS, PREFACE[:16], PREFACE[:1]])
async def test_http2_with_prior_knowledge(gateway, first):
    """An answer in HTTP/1.1 that says so, which frames that come behind it do not cut."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(first)
    await asyncio.sleep(0.01)
    writer.write((PREFACE + SETTINGS).removeprefix(first))
    await asyncio.sleep(0.01)
    writer.write(SETTINGS * 100)
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert b"use HTTP/1.1" in answer
    writer.close()


POST = b"POST /%d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"


@pytest.mark.parametrize("reads", [True, False])
async def test_body_whose_framing_breaks(reads, caplog):
    """Its reader is told at once; one answer, then the end, and nothing in the log."""

    async def read(request: web.BaseRequest) -> web.StreamResponse:
        if not reads:
            return web.Response(text="unread")
        try:
            while await request.content.readany():
                pass
        except web.RequestPayloadError:
            return web.Response(status=400, text="broken")
        return web.Response(text="read")

    gateway = serving(read)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(POST % 1)
    await asyncio.sleep(0.02)
    writer.write(b"zz\r\n")
    await asyncio.sleep(0.02)
    writer.write(b"x" * 1_000_000)
    answer = await asyncio.wait_for(reader.read(), 2)
    assert 1 == answer.count(b"HTTP/1.1 ")
    assert answer.endswith(b"broken" if reads else b"unread")
    assert [] == caplog.messages
    writer.close()
    await gateway.aclose()


async def test_garbage_behind_a_whole_body(held):
    """Breaks the next request, not the one whose body was whole."""
    _, _, port = held
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(POST % 1 + b"0\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n/1"), 5)
    writer.write(b"garbage\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 400 ")
    writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET % 1, b"nonsense\r\n\r\n"])
async def test_nothing_keeps_what_is_gone(gateway, sent):
    """No timer holds a connection in memory that is closed."""
    port = gateway.port
    for _ in range(3):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
    await asyncio.sleep(0.05)
    gc.collect()
    assert [] == [thing for thing in gc.get_objects() if isinstance(thing, ClientConnection)]


async def test_idle_connections():
    """Are kept for `server.keepalive`, and closed then."""
    gateway = Served(greet, refuse, no_crash, keepalive_s=0.05)
    assert (await exchange(gateway.port, GET % 1)).endswith(b"hello")
    await gateway.aclose()
