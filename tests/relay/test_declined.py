"""Answers that the caller does not want passed on: nothing of them leaves, and the caller gets them."""

from __future__ import annotations

import pytest

from gpugate.relay import Answer, AnswerDeclined
from gpugate.relay.answer import DECLINED_LIMIT

from .support import as_script, chunked, counted, fake_pod, gateway, get, streamed_head


def declining() -> Answer:
    return Answer(declines=lambda status: status == 524)


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (counted(b"<html>").replace(b"200 OK", b"524 Timeout"), b"<html>"),
        (streamed_head("text/html").replace(b"200 OK", b"524 T") + chunked(b"<ht", b"ml>"), b"<html>"),
        (b"HTTP/1.1 524 T\r\n\r\n<html>", b"<html>"),
        (b"HTTP/1.1 524 T\r\nContent-Length: 99\r\n\r\n<html>", b"<html>"),
        (b"HTTP/1.1 524 T\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200000, b"x" * DECLINED_LIMIT),
    ],
    ids=["counted", "chunked", "until close", "broken off", "large"],
)
async def test_declined(raw, body):
    """However its end is told, the caller gets status and body, and the client not a byte."""
    async with fake_pod(as_script(raw, "close")) as pod, gateway(pod.endpoint, answer=declining) as gate:
        client = await gate.client()
        await client.send(get())

        declined = await gate.outcome()
        assert isinstance(declined, AnswerDeclined)
        assert (declined.status, declined.body) == (524, body)
        assert (gate.pool.idle, gate.pool.lent) == (0, 0)


async def test_not_declined():
    """Another status passes as ever."""
    raw = counted(b"abc")
    async with fake_pod(as_script(raw, "close")) as pod, gateway(pod.endpoint, answer=declining) as gate:
        client = await gate.client()
        await client.send(get())

        assert (await client.exactly(len(raw))).endswith(b"abc")
