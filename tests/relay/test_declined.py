"""Answers that the caller does not want passed on: nothing of them leaves, and the caller gets them."""

from __future__ import annotations

import pytest

from gpugate.relay.response_policy import INTERCEPTED_LIMIT, ResponseIntercepted, ResponsePolicy
from tests.relay.support import Wire, as_script, chunked, counted, fake_pod, gateway, get, streamed_head


def declining() -> ResponsePolicy:
    return ResponsePolicy(intercept=lambda head: head.status == 524)


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (counted(b"<html>").replace(b"200 OK", b"524 Timeout"), b"<html>"),
        (streamed_head("text/html").replace(b"200 OK", b"524 T") + chunked(b"<ht", b"ml>"), b"<html>"),
        (b"HTTP/1.1 524 T\r\n\r\n<html>", b"<html>"),
        (b"HTTP/1.1 524 T\r\nContent-Length: 99\r\n\r\n<html>", b"<html>"),
        (b"HTTP/1.1 524 T\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200000, b"x" * INTERCEPTED_LIMIT),
    ],
    ids=["counted", "chunked", "until close", "broken off", "large"],
)
async def test_declined(raw, body):
    """However its end is told, the caller gets status and body, and the client not a byte."""
    async with fake_pod(as_script(raw, "close")) as pod, gateway(pod.endpoint, answer=declining) as gate:
        client = await gate.client()
        await client.send(get())

        declined = await gate.outcome()
        assert isinstance(declined, ResponseIntercepted)
        assert (declined.status, declined.body) == (524, body)
        assert (gate.pool.idle, gate.pool.in_use) == (0, 0)


async def test_not_declined():
    """Another status passes as ever."""
    raw = counted(b"abc")
    async with fake_pod(as_script(raw, "close")) as pod, gateway(pod.endpoint, answer=declining) as gate:
        client = await gate.client()
        await client.send(get())

        assert (await client.exactly(len(raw))).endswith(b"abc")


KEPT = [
    (counted(b'{"a":1}'), True, 1),
    (streamed_head("text/plain") + chunked(b'{"a"', b":1}"), True, 1),
    (streamed_head("text/plain") + b"7\r\n" + b'{"a":1}\r\n', False, 0),
    (streamed_head("text/plain") + b"7\r\n" + b'{"a":1}\r\nno length\r\n', False, 0),
    (b"HTTP/1.1 200 OK\r\n\r\n" + b'{"a":1}', True, 0),
]


@pytest.mark.parametrize(
    ("raw", "complete", "idle"),
    KEPT,
    ids=["counted", "chunked", "broken off", "garbage", "until close"],
)
async def test_kept(raw, complete, idle):
    """The pieces of a declined 200 go to who wants them; a connection whose answer ended serves on."""
    pieces: list[bytes] = []

    def keeping() -> ResponsePolicy:
        return ResponsePolicy(intercept=lambda head: True, sink=lambda piece: pieces.append(piece) is None)

    heads: list[bytes] = []

    async def script(wire: Wire) -> None:
        heads.append(await wire.head())
        await wire.send(raw)
        if idle:
            await wire.gone()

    async with fake_pod(script) as pod, gateway(pod.endpoint, answer=keeping) as gate:
        client = await gate.client()
        await client.send(get("/api/tags", "Accept-Encoding: gzip"))

        declined = await gate.outcome()
        assert isinstance(declined, ResponseIntercepted)
        assert (declined.status, declined.body, declined.complete) == (200, b"", complete)
        assert b'{"a":1}' == b"".join(pieces)
        assert (gate.pool.idle, gate.pool.in_use) == (idle, 0)
        assert heads[0].lower().count(b"accept-encoding") == heads[0].count(b"Accept-Encoding: identity") == 1


async def test_refusals_are_not_kept():
    """Only a 200 is read piece by piece; another status comes with its body."""
    raw = counted(b"no").replace(b"200 OK", b"404 NF")
    pieces: list[bytes] = []

    def keeping() -> ResponsePolicy:
        return ResponsePolicy(intercept=lambda head: True, sink=lambda piece: pieces.append(piece) is None)

    async with fake_pod(as_script(raw, "close")) as pod, gateway(pod.endpoint, answer=keeping) as gate:
        client = await gate.client()
        await client.send(get())

        declined = await gate.outcome()
        assert isinstance(declined, ResponseIntercepted)
        assert (404, b"no", []) == (declined.status, declined.body, pieces)


async def test_who_keeps_them_has_enough():
    """Nothing more is read of a response that is of no use, though the pod goes on with it."""
    keeping = ResponsePolicy(intercept=lambda head: True, sink=lambda piece: False)
    raw = streamed_head("text/plain") + chunked(b"nonsense", last=False)
    async with (
        fake_pod(as_script(raw, "stay")) as pod,
        gateway(pod.endpoint, answer=lambda: keeping) as gate,
    ):
        client = await gate.client()
        await client.send(get())

        declined = await gate.outcome()
        assert isinstance(declined, ResponseIntercepted)
        assert (declined.status, declined.complete, declined.compressed) == (200, False, "")
        assert (gate.pool.idle, gate.pool.in_use) == (0, 0)


@pytest.mark.parametrize("encoding", ["gzip", "BR"])
@pytest.mark.parametrize("policy", ["sink", "headers_sent"])
async def test_compressed_though_asked_not_to(policy, encoding):
    """It can be read neither by who puts it together nor by a client that was told what comes: declined."""
    pieces: list[bytes] = []
    wishes = ResponsePolicy(headers_sent=True)
    if policy == "sink":
        wishes = ResponsePolicy(intercept=lambda head: True, sink=lambda piece: pieces.append(piece) is None)
    raw = streamed_head("text/plain", f"Content-Encoding: {encoding}") + chunked(b"\x1f\x8b", last=False)
    async with (
        fake_pod(as_script(raw, "stay")) as pod,
        gateway(pod.endpoint, answer=lambda: wishes) as gate,
    ):
        client = await gate.client()
        await client.send(get())

        declined = await gate.outcome()
        assert isinstance(declined, ResponseIntercepted)
        assert (declined.status, declined.compressed, pieces) == (200, encoding, [])
        assert (gate.pool.idle, gate.pool.in_use) == (0, 0)
