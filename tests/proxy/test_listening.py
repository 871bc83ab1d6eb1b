"""Accepting clients: where descriptors run out, and the gateway's request to itself."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from gpugate.errors import GateError
from gpugate.proxy import listening, server
from gpugate.proxy.listening import (
    SelfCheckFailed,
    check_self,
    listen,
    most_connections,
    raise_file_limit,
)
from gpugate.proxy.server import GatewayServer, Listener, RequestHandlerFunction

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def greet(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="hello")


def no_crash(name: str, error: BaseException) -> None:
    raise AssertionError(name) from error


def serving(handler: RequestHandlerFunction) -> GatewayServer:
    def refuse(request: web.BaseRequest, error: GateError) -> web.Response:
        return web.Response(status=400)

    return GatewayServer(handler, refuse, no_crash)


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayServer]:
    gateway = serving(greet)
    yield gateway
    await gateway.aclose(0.1)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1", "localhost"])
async def test_it_answers_itself(gateway, host):
    """Also where what it listens on is no address to connect to."""
    here = listen(gateway, (host,), 0, print)
    assert here.port > 1023
    for address in here.addresses:
        await check_self(address, "/")
    here.close()


async def hang(request: web.BaseRequest) -> web.StreamResponse:
    await asyncio.sleep(1e9)
    raise AssertionError


async def refused(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=400)


@pytest.mark.parametrize(
    ("handler", "limit_s", "said"),
    [(hang, 0.1, "no answer within 0.1 s"), (refused, 20, "400 Bad Request")],
)
async def test_it_does_not_answer_itself(handler, limit_s, said, monkeypatch):
    """Silence and any other status are told, with the place."""
    monkeypatch.setattr(listening, "SELF_CHECK_TIMEOUT_S", limit_s)
    gateway = serving(handler)
    here = listen(gateway, ("127.0.0.1",), 0, print)
    try:
        with pytest.raises(SelfCheckFailed, match=said) as caught:
            await check_self(here.addresses[0], "/there")
        assert f"127.0.0.1 port {here.port}, and does not answer its own GET /there" in str(caught.value)
    finally:
        here.close()
        await gateway.aclose(0.1)


class ShortOfDescriptors(socket.socket):
    """A socket that listens, and cannot accept while `is_short`."""

    is_short = True
    tried = 0

    def accept(self) -> Any:
        self.tried += 1
        if self.is_short:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def open_socket(kind: type[socket.socket]) -> Any:
    here = kind(socket.AF_INET, socket.SOCK_STREAM)
    here.bind(("127.0.0.1", 0))
    here.listen(100)
    here.setblocking(False)
    return here


async def hello(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask once, and return the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await ask(reader, writer)
    return reader, writer


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(GET)
    await asyncio.wait_for(reader.readuntil(b"hello"), 5)


async def test_no_descriptor_left(gateway, monkeypatch):
    """Open connections are answered, a new one is once there is room, and it is said once."""
    monkeypatch.setattr(server, "ACCEPT_RETRY_S", 0.02)
    said: list[str] = []
    place = open_socket(ShortOfDescriptors)
    place.is_short = False
    here = Listener(gateway, [place], 100, said.append)
    before = await hello(here.port)
    place.is_short = True
    later = asyncio.ensure_future(hello(here.port))
    await asyncio.sleep(0.1)
    assert 2 < place.tried < 20
    await ask(*before)
    assert not later.done()
    place.is_short = False
    _, writer = await later
    assert ["no connection can be accepted: Too many open files; new ones wait"] == said
    writer.close()
    before[1].close()
    here.close()


async def test_descriptor_that_becomes_free(gateway, monkeypatch):
    """A connection that ends makes room at once, not at the next retry."""
    monkeypatch.setattr(server, "ACCEPT_RETRY_S", 60)
    place = open_socket(ShortOfDescriptors)
    place.is_short = False
    here = Listener(gateway, [place], 100, print)
    _, first = await hello(here.port)
    place.is_short = True
    later = asyncio.ensure_future(hello(here.port))
    await asyncio.sleep(0.03)
    place.is_short = False
    first.close()
    _, writer = await asyncio.wait_for(later, 5)
    writer.close()
    here.close()


async def test_as_many_as_there_is_room_for(gateway):
    """One more waits until another is closed; those that are open are answered."""
    said: list[str] = []
    here = Listener(gateway, [open_socket(socket.socket)], 2, said.append)
    first, second = await hello(here.port), await hello(here.port)
    third = asyncio.ensure_future(hello(here.port))
    await asyncio.sleep(0.05)
    assert not third.done()
    await ask(*second)
    first[1].close()
    _, writer = await third
    assert ["2 connections are open, as many as the limit of descriptors allows; new ones wait"] == said
    for one in (writer, second[1]):
        one.close()
    here.close()


async def test_closed_while_it_waits(gateway, monkeypatch):
    """It accepts no more, whatever was due."""
    monkeypatch.setattr(server, "ACCEPT_RETRY_S", 0.01)
    place = open_socket(ShortOfDescriptors)
    here = Listener(gateway, [place], 100, print)
    waiting = asyncio.ensure_future(hello(here.port))
    await asyncio.sleep(0.03)
    here.close()
    here.close()
    tried = place.tried
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await waiting
    await asyncio.sleep(0.03)
    assert tried == place.tried


async def test_clients_that_leave_at_once(gateway):
    """Are counted out again."""
    here = Listener(gateway, [open_socket(socket.socket)], 2, print)
    for _ in range(6):
        _, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.transport.abort()
    _, writer = await hello(here.port)
    writer.close()
    here.close()


def test_file_limit():
    """As many descriptors as the system lets us have, half of them for clients, some kept for the stop."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        assert 480 == most_connections()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
