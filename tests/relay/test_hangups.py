"""Clients that hang up, read slowly or not at all: the upstream hears of it at once, memory stays flat."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import tracemalloc

import pytest

from gpugate.provider_api import Endpoint
from gpugate.relay.pool import ConnectionPool
from gpugate.relay.relay import Relay
from gpugate.relay.response_policy import RelayOutcome
from tests.relay.support import Wire, as_script, chunked, counted, fake_pod, gateway, get, post, streamed_head

LINE = b'{"response":"hello"}\n'
PIECE = bytes(range(256)) * 256


class Watched:
    """An upstream that does `part` of its work and then notes when it is left."""

    def __init__(self, part: bytes, *, body: int = 0, reads: bool = True) -> None:
        self.part, self.body, self.reads = part, body, reads
        self.begun = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, wire: Wire) -> None:
        await wire.head()
        if self.reads:
            await wire.exactly(self.body)
        if self.part:
            await wire.send(self.part)
        self.begun.set()
        if not self.reads:
            wire.writer.transport.pause_reading()
            await self.left.wait()
            return
        await wire.gone()
        self.left.set()


@pytest.mark.parametrize("how", ["hang_up", "reset"])
@pytest.mark.parametrize(
    ("part", "size"),
    [
        (b"", 0),
        (b"", 1_000_000),
        (b"HTTP/1.1 200 OK\r\nX-", 0),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil close", 0),
        (streamed_head() + chunked(LINE, last=False), 1_000_000),
    ],
    ids=["no answer yet", "no answer to 1 MB yet", "half a head", "until close", "streaming"],
)
async def test_client_hangs_up(part, size, how):
    """Whatever the answer is at, a client that is gone takes its upstream connection along."""
    watched = Watched(part, body=size)
    async with fake_pod(watched) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(post(b"x" * size) if size else get())
        await watched.begun.wait()
        await asyncio.sleep(0.01)
        getattr(client, how)()

        async with asyncio.timeout(1):
            await watched.left.wait()
        assert isinstance(await gate.outcome(), asyncio.CancelledError)
        assert (gate.pool.idle, gate.pool.in_use) == (0, 0)


async def test_clients_hang_up_while_the_upstream_talks(caplog):
    """Bytes that arrive for a client that has just gone make no noise and no error."""

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(streamed_head())
        while True:
            await wire.send(chunked(LINE, last=False))
            await asyncio.sleep(0)

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        for number in range(1, 31):
            client = await gate.client()
            await client.send(get())
            await client.head()
            client.reset() if number % 2 else client.hang_up()
            assert isinstance(await gate.outcome(number), asyncio.CancelledError)

        assert gate.pool.in_use == 0
    assert caplog.messages == []


async def test_client_hangs_up_while_its_body_is_sent():
    """An upstream that takes nothing does not keep a request whose client is gone."""
    watched = Watched(b"", reads=False)
    async with fake_pod(watched) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(post(b"x" * 20_000_000))
        await watched.begun.wait()
        assert gate.pool.in_use == 1
        client.hang_up()

        assert isinstance(await gate.outcome(), asyncio.CancelledError)
        assert gate.pool.in_use == 0
        watched.left.set()


async def test_client_hangs_up_while_we_connect():
    """A connection that is only being made is given up as well: here a TLS handshake nobody answers."""
    knocked, left = asyncio.Event(), asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.reader.read(1)
        knocked.set()
        await wire.gone()
        left.set()

    async with (
        fake_pod(script) as pod,
        gateway(Endpoint(f"https://127.0.0.1:{pod.port}")) as gate,
    ):
        client = await gate.client()
        await client.send(get())
        await knocked.wait()
        client.hang_up()

        async with asyncio.timeout(1):
            await left.wait()
        assert isinstance(await gate.outcome(), asyncio.CancelledError)


async def test_connecting_takes_too_long():
    """A connection that does not come about in time is told as such."""

    async def script(wire: Wire) -> None:
        await wire.gone()

    async with fake_pod(script) as pod:
        endpoint = Endpoint(f"https://127.0.0.1:{pod.port}")
        async with gateway(endpoint, pool=ConnectionPool(endpoint, connect_timeout_s=0.05)) as gate:
            client = await gate.client()
            await client.send(get())
            gone = await gate.outcome()

            assert (gone.kind, gone.connecting) == ("timeout", True)


async def flood(wire: Wire, pieces: int, sent: list[int]) -> None:
    """Answer with `pieces` chunks, as fast as they are taken."""
    await wire.head()
    await wire.send(streamed_head())
    for _ in range(pieces):
        await wire.send(chunked(PIECE, last=False))
        sent[0] += len(PIECE)
    await wire.send(b"0\r\n\r\n")


async def test_slow_reader():
    """A client that pauses holds up its upstream, not our memory, and misses nothing."""
    sent = [0]
    pieces = 640  # 40 MB

    async def script(wire: Wire) -> None:
        await flood(wire, pieces, sent)
        await wire.gone()

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        tracemalloc.start()
        await client.send(get())
        await client.head()
        client.writer.transport.pause_reading()
        held = -1
        while held != sent[0]:  # until nothing moves any more
            held = sent[0]
            await asyncio.sleep(0.05)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        client.writer.transport.resume_reading()
        digest, left = hashlib.sha256(), pieces * len(chunked(PIECE, last=False))
        while left:
            data = await client.reader.read(min(left, 1 << 20))
            digest.update(data)
            left -= len(data)

        assert held < pieces * len(PIECE) / 2
        assert peak < 16_000_000
        assert digest.digest() == hashlib.sha256(chunked(PIECE, last=False) * pieces).digest()
        assert await client.exactly(5) == b"0\r\n\r\n"
        assert (await gate.outcome()).complete
        assert gate.pool.idle == 1


@pytest.mark.parametrize("size", [40_000_000, 150_000], ids=["in mid-answer", "at its end"])
async def test_client_that_reads_nothing(size):
    """A client that takes no byte for too long is given up, and so is its upstream in mid-answer."""
    raw = counted(b"x" * size)
    async with (
        fake_pod(as_script(raw, "stay")) as pod,
        gateway(pod.endpoint, relay=Relay(stall_s=0.15), send_buffer=16_000) as gate,
    ):
        client = await gate.client(receive_buffer=16_000)
        client.writer.transport.pause_reading()
        await client.send(get())
        outcome = await gate.outcome()

        assert (outcome.outcome, outcome.keep_alive) == (RelayOutcome.CLIENT_LOST, False)
        assert gate.pool.in_use == 0
        client.writer.transport.resume_reading()
        assert len(await client.rest()) < len(raw)


async def test_client_that_reads_a_little():
    """As long as something is taken now and then, the client is borne."""
    raw = counted(b"x" * 20_000_000)
    async with (
        fake_pod(as_script(raw, "stay")) as pod,
        gateway(pod.endpoint, relay=Relay(stall_s=0.1)) as gate,
    ):
        loop = asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", gate.port)) as sock:
            sock.sendall(get())
            sock.setblocking(False)
            size, slow_until = 0, loop.time() + 0.4
            while size < len(raw):
                data = await loop.sock_recv(sock, 400_000)
                assert data, "given up"
                size += len(data)
                if loop.time() < slow_until:
                    await asyncio.sleep(0.04)

        assert (await gate.outcome()).complete


async def test_pod_lost_while_the_client_reads_nothing():
    """The loss of the pod does not wait for a slow client."""
    async with (
        fake_pod(as_script(streamed_head() + chunked(*[PIECE] * 300), "stay")) as pod,
        gateway(pod.endpoint) as gate,
    ):
        client = await gate.client()
        client.writer.transport.pause_reading()
        await client.send(get())
        while gate.pool.in_use == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        gate.pool.abort()

        assert (await gate.outcome()).outcome is RelayOutcome.UPSTREAM_LOST


async def test_pipelining_without_reading():
    """Who asks and asks but never reads is not answered into our memory."""
    raw = counted(b"x" * 60_000)
    served = 0

    async def script(wire: Wire) -> None:
        nonlocal served
        while True:
            await wire.head()
            await wire.send(raw)
            served += 1

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        client.writer.transport.pause_reading()
        client.writer.write(get() * 3000)
        before = -1
        while before != served or not served:
            before = served
            await asyncio.sleep(0.1)

        assert served < 300
