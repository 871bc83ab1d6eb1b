"""Bodies read whole: bounded in size and in slowness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer, make_mocked_request
from multidict import CIMultiDict

from gpugate.errors import GateError, QueueFull, UnknownTransferCoding
from gpugate.proxy.listening import listen
from gpugate.proxy.request_context import BodyLimits, check_transfer_coding, read_body
from gpugate.proxy.server import GatewayServer

LIMIT = 1000
LIMITS = BodyLimits(LIMIT, 0.1)


async def answer_length(request: web.BaseRequest) -> web.StreamResponse:
    """Answer with a body's length, or with the error's code and message."""
    try:
        return web.Response(text=str(len(await read_body(request, LIMITS))))
    except GateError as error:
        return web.Response(status=400, text=f"{error.code} {error.message}")


@pytest.fixture
async def server() -> AsyncIterator[RawTestServer]:
    async with RawTestServer(answer_length, handler_cancellation=True) as server:
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


async def test_silence(server):
    """A client that stops sending is told so, with the setting."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
    said = await asyncio.wait_for(reader.readuntil(b"body_timeout"), 5)
    assert b"REQUEST_TIMEOUT" in said
    writer.close()


async def test_broken_framing():
    """Is told at once."""
    server = GatewayServer(answer_length, lambda *_: web.Response(), lambda *_: None)
    here = listen(server, ("127.0.0.1",), 0, print)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
        await asyncio.sleep(0.02)
        writer.write(b"zz\r\n")
        assert b"malformed" in await asyncio.wait_for(reader.read(), 5)
        writer.close()
    finally:
        here.close()
        await server.aclose(0.1)


@pytest.mark.parametrize(("version", "said"), [("1.1", b"HTTP/1.1 100 Continue"), ("1.0", b"")])
async def test_who_asks_first(server, version, said):
    """Is told to send, unless HTTP/1.0 has no word for it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST / HTTP/{version}\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    writer.write(head.encode())
    await asyncio.sleep(0.05)
    writer.write(b"ab")
    assert (await asyncio.wait_for(reader.readuntil(b" 200 OK"), 5)).startswith(said or b"HTTP/1.0 200")
    writer.close()


def coded(*codings: str) -> web.BaseRequest:
    headers = CIMultiDict([("Transfer-Encoding", coding) for coding in codings])
    return make_mocked_request("POST", "/", headers=headers)


@pytest.mark.parametrize(
    "codings", [("gzip, chunked",), ("gzip", "chunked"), ("identity",), ("chunked, chunked",)]
)
def test_other_transfer_codings(codings):
    """Are not taken for what they are not."""
    with pytest.raises(UnknownTransferCoding):
        check_transfer_coding(coded(*codings))


def test_chunks():
    """Are understood, in any case."""
    assert check_transfer_coding(coded("Chunked")) is None


class TestHold:
    """Bytes that are kept are announced first."""

    @pytest.fixture
    async def held(self) -> AsyncIterator[tuple[RawTestServer, list[int]]]:
        held: list[int] = []

        def hold(size: int) -> None:
            held.append(size)
            if sum(held) > 100:
                raise QueueFull

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            try:
                return web.Response(text=str(len(await read_body(request, LIMITS, hold))))
            except QueueFull as error:
                return web.Response(status=503, text=error.code)

        async with RawTestServer(handle, handler_cancellation=True) as server:
            yield server, held

    async def test_a_told_length(self, held):
        """Counts in whole, before a byte has come."""
        server, sizes = held
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n\r\n")
        assert b"QUEUE_FULL" in await asyncio.wait_for(reader.readuntil(b"FULL"), 5)
        assert [101] == sizes
        writer.close()

    async def test_chunks(self, held):
        """Count as they come."""
        server, sizes = held

        async def slowly() -> AsyncIterator[bytes]:
            for _ in range(3):
                await asyncio.sleep(0.02)
                yield b"x" * 40

        async with (
            aiohttp.ClientSession() as http,
            http.post(server.make_url("/"), data=slowly()) as response,
        ):
            assert "QUEUE_FULL" == await response.text()
        assert [0, 40, 40, 40] == sizes
