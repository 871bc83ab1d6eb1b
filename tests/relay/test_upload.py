"""Bodies on their way up: streamed with flat memory, exact in length, and early answers."""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc

import pytest

from gpugate.relay.pool import UpstreamExchangeError
from gpugate.relay.response_policy import RelayOutcome
from tests.relay.support import Wire, chunked, counted, fake_pod, gateway, get, post

PIECE = bytes(range(256)) * 1024  # 256 KiB
CREATED = counted(b"", status="201 Created")


async def read_chunks(wire: Wire) -> bytes:
    """Read a chunked body and return its payload."""
    body = b""
    while size := int(await wire.until(b"\r\n"), 16):
        body += await wire.exactly(size + 2)
        body = body[:-2]
    await wire.exactly(2)
    return body


async def test_blob_upload():
    """A large body passes with its Content-Length and without being kept."""
    pieces = 200  # 50 MB
    heads: list[bytes] = []
    digest = hashlib.sha256()

    async def script(wire: Wire) -> None:
        heads.append(await wire.head())
        left = pieces * len(PIECE)
        while left:
            data = await wire.reader.read(1 << 18)
            digest.update(data)
            left -= len(data)
        await wire.send(CREATED)

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        tracemalloc.start()
        await client.send(
            get(
                "/stream/blob",
                f"content-length: {pieces * len(PIECE)}",
                "Expect: 100-continue",
                method="POST",
            )
        )
        for _ in range(pieces):
            await client.send(PIECE)
        assert await client.exactly(len(CREATED)) == CREATED
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert b"\r\nContent-Length: 52428800\r\n" in heads[0]
        assert b"expect" not in heads[0].lower()
        assert digest.digest() == hashlib.sha256(PIECE * pieces).digest()
        assert peak < 16_000_000
        assert (await gate.outcome()).keep_alive


async def test_upload_in_chunks():
    """A body without a Content-Length goes up in chunks, with the same payload."""
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        assert b"\r\nTransfer-Encoding: chunked\r\n" in await wire.head()
        seen.append(await read_chunks(wire))
        await wire.send(CREATED)

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(
            get("/stream", "Transfer-Encoding: chunked", method="POST") + chunked(b"abc", PIECE)
        )

        assert await client.exactly(len(CREATED)) == CREATED
        assert seen == [b"abc" + PIECE]


async def test_slow_upstream():
    """An upstream that does not read holds up its client, not our memory."""
    go = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.head()
        wire.writer.transport.pause_reading()
        await go.wait()
        wire.writer.transport.resume_reading()
        await wire.exactly(100 * len(PIECE) - len(await wire.reader.read(1)))
        await wire.send(CREATED)

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        tracemalloc.start()
        await client.send(get("/stream", f"Content-Length: {100 * len(PIECE)}", method="POST"))
        client.writer.transport.set_write_buffer_limits(high=0)
        sent = 0
        try:
            async with asyncio.timeout(0.3):
                while sent < 100:
                    await client.send(PIECE)
                    sent += 1
        except TimeoutError:
            sent += 1  # the piece is in the transport all the same
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert sent < 80
        assert peak < 16_000_000
        go.set()
        for _ in range(100 - sent):
            await client.send(PIECE)
        assert await client.exactly(len(CREATED)) == CREATED


@pytest.mark.parametrize("keeps_reading", [True, False])
async def test_early_answer(keeps_reading):
    """An answer that comes before the upload has ended goes down at once, and both connections end."""
    refusal = counted(b"too big", status="413 Nope")

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.exactly(1000)
        await wire.send(refusal)
        if keeps_reading:
            await wire.gone()
        else:
            wire.writer.transport.pause_reading()
            await asyncio.sleep(0.1)

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get("/stream", "Content-Length: 100000000", method="POST"))
        await client.send(PIECE)

        expected = refusal.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        assert await client.exactly(len(expected)) == expected
        outcome = await gate.outcome()
        assert (outcome.status, outcome.outcome, outcome.keep_alive) == (413, RelayOutcome.COMPLETE, False)
        assert (gate.pool.idle, gate.pool.in_use) == (0, 0)


async def test_answer_that_runs_beside_the_upload():
    """An upstream may talk while it listens."""

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            await wire.send(chunked(await wire.exactly(5), last=False))
        await wire.send(b"0\r\n\r\n")

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get("/stream", "Content-Length: 15", method="POST"))
        await client.send(b"aaaaa")
        await client.head()
        for letter in (b"b", b"c", b"d"):
            await client.until(b"\r\n")
            await client.until(b"\r\n")
            if letter != b"d":
                await client.send(letter * 5)

        assert await client.rest() == b"0\r\n\r\n"
        assert (await gate.outcome()).complete


async def test_upload_always_gets_a_fresh_connection():
    """A body that cannot be sent twice is not risked on a connection that may be stale."""

    async def script(wire: Wire) -> None:
        while True:
            head = await wire.head()
            if b"Content-Length: 3" in head:
                await wire.exactly(3)
            await wire.send(CREATED)

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        for request in (get(), get("/stream", "Content-Length: 3", method="POST") + b"abc"):
            await client.send(request)
            assert await client.exactly(len(CREATED)) == CREATED

        assert pod.connections == 2


async def test_upstream_breaks_during_an_upload():
    """The loss is told at once, not when the upload has ended."""

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.exactly(1000)
        wire.reset()

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get("/stream", "Content-Length: 100000", method="POST") + PIECE[:2000])
        gone = await gate.outcome()

        assert (type(gone), gone.kind, gone.reused) == (UpstreamExchangeError, "closed", False)


async def test_client_hangs_up_during_an_upload():
    """The upstream never sees an end of what was not sent to its end."""
    got = asyncio.Event()
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        await wire.head()
        seen.append(await wire.until(b"abc\r\n"))
        got.set()
        seen.append(await wire.rest())

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get("/stream", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n")
        await got.wait()
        client.hang_up()

        assert isinstance(await gate.outcome(), asyncio.CancelledError)
        assert seen[0] == b"3\r\nabc\r\n"
        assert b"0\r\n" not in b"".join(seen[1:])


@pytest.mark.parametrize("more", [b"", b"5\r\nab"])
async def test_upload_that_stops(more):
    """A body that comes no further does not hold its upstream for ever."""

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.gone()

    async with fake_pod(script) as pod, gateway(pod.endpoint, body_limit_s=0.1) as gate:
        client = await gate.client()
        await client.send(get("/stream", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n")
        await asyncio.sleep(0.02)
        await client.send(more)

        assert isinstance(await gate.outcome(), TimeoutError)
        assert gate.pool.in_use == 0


async def test_upload_of_another_length():
    """A body that is not as long as it said is not passed off as whole."""
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        await wire.head()
        seen.append(await wire.rest())

    async with fake_pod(script) as pod, gateway(pod.endpoint, lengths=(5, 3)) as gate:
        for number in (1, 2):
            client = await gate.client()
            await client.send(get("/stream", "Content-Length: 4", method="POST") + b"abcd")
            assert isinstance(await gate.outcome(number), ValueError)
        await asyncio.sleep(0.02)

        assert sorted(seen) == [b"", b"abcd"]


async def test_upstream_that_ends_without_reading():
    """An upstream that closes its side, but takes no more of the body either, is gone at once."""
    over = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.head()
        wire.writer.transport.pause_reading()
        wire.writer.write_eof()
        await over.wait()

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(post(b"x" * 20_000_000))
        async with asyncio.timeout(2):
            gone = await gate.outcome()
        over.set()

        assert (type(gone), gone.kind) == (UpstreamExchangeError, "closed")


async def test_both_ways_at_once():
    """A slow client of an answer that runs beside its upload costs neither of them a byte."""
    answer = chunked(*[PIECE] * 60)
    digest = hashlib.sha256()

    async def script(wire: Wire) -> None:
        await wire.head()
        wire.writer.transport.pause_reading()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + answer[:-5])
        wire.writer.transport.resume_reading()
        for _ in range(60):
            digest.update(await wire.exactly(len(PIECE)))
        await wire.send(answer[-5:])

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get("/stream", f"Content-Length: {60 * len(PIECE)}", method="POST"))
        client.writer.transport.pause_reading()
        sending = asyncio.ensure_future(client.send(PIECE * 60))
        await asyncio.sleep(0.2)
        client.writer.transport.resume_reading()
        await client.head()

        assert await client.exactly(len(answer)) == answer
        await sending
        assert (await gate.outcome()).complete
        assert digest.digest() == hashlib.sha256(PIECE * 60).digest()
