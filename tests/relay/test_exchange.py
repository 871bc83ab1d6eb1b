"""Answers that break, and answers whose head was ours: never a clean end that the upstream did not make."""

from __future__ import annotations

import asyncio

import pytest

from gpugate.relay.pool import UpstreamExchangeError
from gpugate.relay.response_policy import (
    ErrorTail,
    RelayOutcome,
    ResponseIntercepted,
    ResponsePolicy,
    Truncation,
)
from tests.relay.support import Wire, as_script, chunked, counted, fake_pod, gateway, get, once, streamed_head

LINE = b'{"response":"hello"}\n'
EVENT = b'data: {"x":1}\n\n'
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
WORDS = b'{"error":"the pod was lost"}\n'
SSE_WORDS = b'data: {"error":{"message":"the pod was lost"}}\n\n'
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nall of it"
OURS = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


def last_words(cut: Truncation) -> ErrorTail | None:
    """What the web layer would say: see docs/api.md#in-mid-stream."""
    if cut.content_type.startswith(SSE):
        return ErrorTail((b"" if cut.ends_block else b"\n\n") + SSE_WORDS, clean_end=True)
    if cut.content_type.startswith(NDJSON) and cut.ends_line:
        return ErrorTail(WORDS, clean_end=False)
    return None


def polite() -> ResponsePolicy:
    return ResponsePolicy(error_tail=last_words)


breaks = pytest.mark.parametrize("how", ["reset", "close"])


@breaks
async def test_ndjson_broken_behind_a_line(how):
    """One last line, in a chunk of its own, and no last chunk."""
    sent = streamed_head(NDJSON) + chunked(LINE, LINE, last=False)
    async with fake_pod(as_script(sent, how)) as pod, gateway(pod.endpoint, answer=polite) as gate:
        client = await gate.client()
        await client.send(get())

        assert await client.rest() == sent + chunked(WORDS, last=False)
        relayed = await gate.outcome()
        assert (relayed.outcome, relayed.complete, relayed.keep_alive) == (
            RelayOutcome.UPSTREAM_LOST,
            False,
            False,
        )
        assert (gate.pool.idle, gate.pool.in_use) == (0, 0)


@breaks
async def test_ndjson_broken_inside_a_line(how):
    """Words behind half a line would not be understood: the answer is left unfinished."""
    sent = streamed_head(NDJSON) + chunked(LINE, LINE[:5], last=False)
    async with fake_pod(as_script(sent, how)) as pod, gateway(pod.endpoint, answer=polite) as gate:
        client = await gate.client()
        await client.send(get())

        assert await client.rest() == sent
        assert (await gate.outcome()).outcome is RelayOutcome.UPSTREAM_LOST


@breaks
@pytest.mark.parametrize(("part", "between"), [(EVENT, b""), (EVENT[:5], b"\n\n"), (EVENT[:-1], b"\n\n")])
async def test_sse_broken(how, part, between):
    """The error is an event of its own, and the stream ends in order, as SSE clients want it."""
    sent = streamed_head(SSE) + chunked(EVENT, part, last=False)
    async with fake_pod(as_script(sent, how)) as pod, gateway(pod.endpoint, answer=polite) as gate:
        client = await gate.client()
        await client.send(get())

        assert await client.rest() == sent + chunked(between + SSE_WORDS)


async def test_sse_broken_inside_a_chunk():
    """The words first fill the chunk that the upstream left open."""
    sent = streamed_head(SSE) + b"400\r\n" + EVENT
    async with fake_pod(as_script(sent)) as pod, gateway(pod.endpoint, answer=polite) as gate:
        client = await gate.client()
        await client.send(get())

        filled = (EVENT + SSE_WORDS).ljust(0x400, b"\n")
        assert await client.rest() == streamed_head(SSE) + chunked(filled)


async def test_sse_broken_inside_a_chunk_that_is_nearly_full():
    """What does not fit into the open chunk goes into the next one."""
    sent = streamed_head(SSE) + b"%x\r\n" % (len(EVENT) + 5) + EVENT
    async with fake_pod(as_script(sent)) as pod, gateway(pod.endpoint, answer=polite) as gate:
        client = await gate.client()
        await client.send(get())

        expected = streamed_head(SSE) + chunked(EVENT + SSE_WORDS[:5], SSE_WORDS[5:])
        assert await client.rest() == expected


async def test_ndjson_broken_inside_a_chunk():
    """Behind a line inside a chunk, the last line follows and the chunk stays open."""
    sent = streamed_head(NDJSON) + b"1000\r\n" + LINE
    async with fake_pod(as_script(sent)) as pod, gateway(pod.endpoint, answer=polite) as gate:
        client = await gate.client()
        await client.send(get())

        assert await client.rest() == sent + WORDS


@pytest.mark.parametrize("part", [b"1", b"1a\r", b"0\r\n", b"0\r\nX: 1\r\n"])
async def test_broken_inside_a_chunk_size(part):
    """There is no room for words inside a chunk's size or the trailers, so none are asked for."""
    sent = streamed_head(SSE) + chunked(EVENT, last=False) + part
    asked: list[Truncation] = []
    async with (
        fake_pod(as_script(sent)) as pod,
        gateway(pod.endpoint, answer=lambda: ResponsePolicy(error_tail=asked.append)) as gate,
    ):
        client = await gate.client()
        await client.send(get())

        assert await client.rest() == sent
        assert asked == []


@breaks
async def test_counted_answer_broken(how):
    """A JSON answer that breaks midway is left unfinished."""
    sent = counted(b'{"models":[]}', "Content-Type: application/json")[:-4]
    asked: list[Truncation] = []
    async with (
        fake_pod(as_script(sent, how)) as pod,
        gateway(pod.endpoint, answer=lambda: ResponsePolicy(error_tail=asked.append)) as gate,
    ):
        client = await gate.client()
        await client.send(get())

        assert await client.rest() == sent
        assert asked == []
        assert (await gate.outcome()).outcome is RelayOutcome.UPSTREAM_LOST


async def test_packed_answer_broken():
    """Words cannot be put into a compressed body."""
    sent = streamed_head(SSE, "Content-Encoding: gzip") + chunked(b"\x1f\x8b", last=False)
    async with fake_pod(as_script(sent)) as pod, gateway(pod.endpoint, answer=polite) as gate:
        client = await gate.client()
        await client.send(get())

        assert await client.rest() == sent


async def test_answer_until_close_broken():
    """Where the mere end would look like the end of the answer, the client's connection is reset."""
    sent = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n" + LINE
    async with fake_pod(as_script(sent, "reset")) as pod, gateway(pod.endpoint, answer=polite) as gate:
        client = await gate.client()
        await client.send(get())

        with pytest.raises(ConnectionResetError):
            await client.rest()
        assert (await gate.outcome()).outcome is RelayOutcome.UPSTREAM_LOST


async def test_old_client_of_a_broken_answer():
    """A client that speaks HTTP/1.0 can only be told by a reset."""
    sent = streamed_head(NDJSON) + chunked(LINE, last=False)
    async with fake_pod(as_script(sent)) as pod, gateway(pod.endpoint, answer=polite) as gate:
        client = await gate.client()
        await client.send(get(version="1.0"))

        with pytest.raises(ConnectionResetError):
            await client.rest()


async def test_old_client_of_a_broken_event_stream():
    """Words with an end in order need no chunks."""
    sent = streamed_head(SSE) + chunked(EVENT, last=False)
    async with fake_pod(as_script(sent)) as pod, gateway(pod.endpoint, answer=polite) as gate:
        client = await gate.client()
        await client.send(get(version="1.0"))

        assert (await client.rest()).endswith(b"\r\n\r\n" + EVENT + SSE_WORDS)


async def test_pod_lost_during_an_answer_until_close():
    """A pod that is given up does not look like an upstream that has finished."""
    async with (
        fake_pod(as_script(b"HTTP/1.1 200 OK\r\n\r\nsome", "stay")) as pod,
        gateway(pod.endpoint) as gate,
    ):
        client = await gate.client()
        await client.send(get())
        await client.head()
        gate.pool.abort()

        with pytest.raises(ConnectionResetError):
            await client.rest()


async def test_pod_lost_during_a_stream():
    """Giving the pod up breaks each running answer as a loss, words included, and nothing new begins."""
    sent = streamed_head(SSE) + chunked(EVENT, last=False)
    async with (
        fake_pod(as_script(sent, "stay")) as pod,
        gateway(pod.endpoint, answer=polite) as gate,
    ):
        client = await gate.client()
        await client.send(get())
        assert await client.exactly(len(sent)) == sent
        gate.pool.abort()

        assert await client.rest() == chunked(SSE_WORDS)
        other = await gate.client()
        await other.send(get())
        gone = await gate.outcome(2)
        assert (type(gone), gone.connecting) == (UpstreamExchangeError, True)


async def test_broken_framing_in_mid_answer():
    """Chunks that go wrong are a loss, and the bytes behind the fault never leave."""
    good = streamed_head(NDJSON) + chunked(LINE, last=False)
    gap = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(good)
        await gap.wait()
        await wire.send(b"oops" + chunked(LINE))
        await wire.gone()

    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get())
        assert await client.exactly(len(good)) == good
        gap.set()

        assert await client.rest() == b""
        assert (await gate.outcome()).outcome is RelayOutcome.UPSTREAM_LOST


async def test_server_goes_down_during_an_answer_until_close():
    """A gateway that is stopped in mid-answer does not make the answer look complete."""
    script = as_script(b"HTTP/1.1 200 OK\r\n\r\nsome", "stay")
    async with fake_pod(script) as pod, gateway(pod.endpoint) as gate:
        client = await gate.client()
        await client.send(get())
        await client.exactly(len(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nsome"))
        gate.cut_handlers()

        with pytest.raises(ConnectionResetError):
            await client.rest()


# Answers whose head was ours (heartbeat).


@pytest.mark.parametrize(
    ("raw", "close", "body"),
    [
        (streamed_head() + chunked(LINE, LINE), False, chunked(LINE, LINE)),
        (counted(LINE), False, chunked(LINE)),
        (counted(LINE, status="500 Oops"), False, chunked(LINE)),
        (counted(b""), False, chunked()),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, chunked()),
        (b"HTTP/1.1 200 OK\r\n\r\n" + LINE, True, chunked(LINE)),
    ],
)
async def test_committed(raw, close, body):
    """Behind a head of ours the upstream's body goes on in chunks, whatever it was, errors as well."""
    statuses: list[int] = []
    async with (
        fake_pod(once(raw, close=close)) as pod,
        gateway(
            pod.endpoint,
            answer=lambda: ResponsePolicy(headers_sent=True, on_head=statuses.append, extra_head=b"X: 1\r\n"),
            committed_head=OURS,
        ) as gate,
    ):
        client = await gate.client()
        await client.send(get())

        assert await client.exactly(len(OURS + body)) == OURS + body
        relayed = await gate.outcome()
        assert (relayed.complete, relayed.keep_alive, statuses) == (True, True, [relayed.status])


async def test_committed_asks_for_plain_bytes():
    """Behind filler of ours nothing compressed may follow."""
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        seen.append(await wire.head())
        await wire.send(counted(b"{}"))

    async with (
        fake_pod(script) as pod,
        gateway(pod.endpoint, answer=lambda: ResponsePolicy(headers_sent=True), committed_head=OURS) as gate,
    ):
        client = await gate.client()
        await client.send(get("/", "Accept-Encoding: gzip"))
        await client.until(b"0\r\n\r\n")

        assert b"\r\nAccept-Encoding: identity\r\n" in seen[0]
        assert b"gzip" not in seen[0]


@pytest.mark.parametrize(
    "raw", [counted(LINE * 2)[: -len(LINE)], streamed_head() + chunked(LINE, last=False)]
)
async def test_committed_answer_broken(raw):
    """In a body of our own chunks there is always room for words."""
    cuts: list[Truncation] = []

    def say(cut: Truncation) -> ErrorTail:
        cuts.append(cut)
        return ErrorTail(WORDS, clean_end=False)

    async with (
        fake_pod(as_script(raw)) as pod,
        gateway(
            pod.endpoint,
            answer=lambda: ResponsePolicy(headers_sent=True, error_tail=say),
            committed_head=OURS,
        ) as gate,
    ):
        client = await gate.client()
        await client.send(get())

        assert await client.rest() == OURS + chunked(LINE, WORDS, last=False)
        assert [(cut.status, bool(cut.tail), cut.ends_line) for cut in cuts] == [(200, True, True)]


async def test_committed_and_no_answer():
    """An upstream without an answer is gone for the caller, who has said nothing but filler so far."""
    async with (
        fake_pod(as_script(b"")) as pod,
        gateway(pod.endpoint, answer=lambda: ResponsePolicy(headers_sent=True), committed_head=OURS) as gate,
    ):
        client = await gate.client()
        await client.send(get())

        assert (await gate.outcome()).kind == "closed"


@pytest.mark.parametrize(
    ("tail", "line", "block"),
    [
        (b"", True, True),
        (b"abc", False, False),
        (b"abc\n", True, False),
        (b"c\n\n", True, True),
        (b"\r\n\r\n", True, True),
    ],
)
def test_cut(tail, line, block):
    """A cut knows whether a line, or an event, could begin behind it."""
    cut = Truncation(200, NDJSON, tail)

    assert (line, block) == (cut.ends_line, cut.ends_block)


def failing(*_: object) -> None:
    raise RuntimeError("a hook that fails")


@pytest.mark.parametrize("hook", ["capture", "on_head"])
@pytest.mark.parametrize(
    ("raw", "close"),
    [(counted(b"ok"), False), (streamed_head() + chunked(LINE), False), (UNTIL_CLOSE, True)],
)
async def test_hook_that_fails(hook, raw, close):
    """The answer goes on, its handler comes to its end, and the failure is reported, once."""
    reports: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))
    async with (
        fake_pod(once(raw, close=close)) as pod,
        gateway(pod.endpoint, answer=lambda: ResponsePolicy(**{hook: failing})) as gate,
    ):
        client = await gate.client()
        await client.send(get())

        assert await client.exactly(len(raw)) == raw
        assert (await gate.outcome()).complete
    assert [str(report["exception"]) for report in reports] == ["a hook that fails"]


async def test_epitaph_that_fails():
    """The answer is left unfinished, as if there were no last words."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    sent = streamed_head(NDJSON) + chunked(LINE, last=False)
    async with (
        fake_pod(as_script(sent)) as pod,
        gateway(pod.endpoint, answer=lambda: ResponsePolicy(error_tail=failing)) as gate,
    ):
        client = await gate.client()
        await client.send(get())

        assert await client.rest() == sent
        assert (await gate.outcome()).outcome is RelayOutcome.UPSTREAM_LOST


@pytest.mark.parametrize("hooks", [{"intercept": failing}, {"intercept": lambda head: True, "sink": failing}])
async def test_decision_that_fails(hooks):
    """Without the decision there is no answer; nothing has left, and the handler hears of it."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with (
        fake_pod(once(counted(b"ok"))) as pod,
        gateway(pod.endpoint, answer=lambda: ResponsePolicy(**hooks)) as gate,
    ):
        client = await gate.client()
        await client.send(get())
        outcome = await gate.outcome()

        assert isinstance(outcome, UpstreamExchangeError) or (
            isinstance(outcome, ResponseIntercepted) and not outcome.complete
        )
