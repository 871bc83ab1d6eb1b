"""Every fault, as a client meets it."""

import asyncio

import aiohttp
import pytest
from gpugate_demo.faults import (
    ANY_PATH,
    Answer,
    BreakAfter,
    CleanEndAfter,
    CloseBeforeHead,
    ErrorLine,
    Faults,
    Garbage,
    Hang,
    HangAfter,
    NotReady,
    Slow,
)
from gpugate_demo.text_generator import fixed

CHAT = {"model": "llama3.2:3b", "messages": [{"role": "user", "content": "hi"}]}
OPENAI = {**CHAT, "stream": True}
MESSAGES = {**OPENAI, "max_tokens": 9}


@pytest.fixture(autouse=True)
def four_pieces(ollama):
    ollama.reply = fixed(*"abcd")


async def stream(session, ollama, path="/api/chat", asked=CHAT):
    """Chunks until the end, and how that was."""
    found = []
    try:
        async with session.post(ollama.url + path, json=asked) as response:
            async for line in response.content:
                found.append(line)
    except aiohttp.ClientError as error:
        return found, type(error).__name__
    return found, response.status


class TestScript:
    def test_order_and_count(self):
        """First planned, first struck; each as often as it was planned."""
        faults = Faults()
        faults.add("/a", Hang(), times=2)
        faults.add(ANY_PATH, Slow(), times=None)

        taken = [faults.take(path) for path in ("/b", "/a", "/a", "/a")]
        assert [Slow, Hang, Hang, Slow] == [type(fault) for fault in taken]
        faults.clear()
        assert faults.take("/a") is None

    async def test_only_that_path(self, ask, ollama):
        ollama.faults.add("/api/tags", Answer(500))

        assert [200, 500, 200] == [
            (await ask("GET", path)).status for path in ("/api/ps", "/api/tags", "/api/tags")
        ]


class TestInstead:
    async def test_another_answer(self, ask, ollama):
        ollama.faults.add("/api/chat", Answer(524, b"<html>", "text/html", {"Retry-After": "9"}))
        got = await ask("POST", "/api/chat", CHAT)

        assert (524, b"<html>", "text/html", "9") == (
            got.status,
            got.body,
            got.kind,
            got.headers["Retry-After"],
        )
        assert CHAT["model"].encode() in ollama.seen[0].body

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            (CloseBeforeHead(), "ServerDisconnectedError"),
            (CloseBeforeHead(reset=True), "ClientOSError"),
            (Garbage(), "ClientResponseError"),
        ],
    )
    async def test_no_answer(self, session, ollama, fault, error):
        """The request was read; the connection then broke. It is told apart from a client that left."""
        ollama.faults.add("/api/chat", fault)

        assert ([], error) == await stream(session, ollama)
        await ollama.until(lambda: ollama.in_flight == 0)
        assert (True, False, False) == (
            ollama.seen[0].severed,
            ollama.seen[0].cancelled,
            ollama.seen[0].finished,
        )

    async def test_hang_and_go_on(self, session, ollama):
        """Silent until it is released."""
        release = asyncio.Event()
        ollama.faults.add("/api/chat", Hang(release))
        reading = asyncio.ensure_future(stream(session, ollama))
        await ollama.until(lambda: len(ollama.seen) == 1 and ollama.seen[0].body_size > 0)
        assert not reading.done()

        release.set()
        assert 200 == (await reading)[1]

    async def test_hang_and_give_up(self, session, ollama):
        """A client that leaves a silent server is noticed."""
        ollama.faults.add("/api/chat", Hang())
        with pytest.raises(TimeoutError):
            await session.post(ollama.url + "/api/chat", json=CHAT, timeout=aiohttp.ClientTimeout(total=0.05))

        await ollama.until(lambda: ollama.seen[0].cancelled)

    async def test_not_ready(self, ask, ollama):
        """The edge's answer until the event, nothing after it; the plan stays in place."""
        ready = asyncio.Event()
        ollama.faults.add(ANY_PATH, NotReady(ready, 502, b"edge"), times=None)

        assert (502, b"edge") == ((await ask("GET", "/api/version")).status, (await ask("GET", "/")).body)
        ready.set()
        assert 200 == (await ask("GET", "/api/version")).status


class TestUnderWay:
    @pytest.mark.parametrize("reset", [False, True])
    @pytest.mark.parametrize("chunks", [0, 1, 3])
    async def test_a_break(self, session, ollama, chunks, reset):
        """So many chunks arrive, then the connection breaks, unfinished."""
        ollama.faults.add("/api/chat", BreakAfter(chunks, reset=reset))
        found, how = await stream(session, ollama)

        assert (chunks, "ClientPayloadError") == (len(found), how)

    async def test_a_break_of_a_whole_answer(self, session, ollama):
        """Its second half is missing."""
        ollama.faults.add("/api/tags", BreakAfter(1))
        async with session.get(ollama.url + "/api/tags") as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()

    async def test_a_truncation_that_looks_complete(self, session, ollama):
        ollama.faults.add("/api/chat", CleanEndAfter(2))
        found, how = await stream(session, ollama)

        assert (2, 200) == (len(found), how)
        assert b'"done":true' not in found[-1]

    async def test_a_failing_model(self, session, ollama):
        """NDJSON tells it in a last line and ends cleanly."""
        ollama.faults.add("/api/chat", ErrorLine(2, "boom"))
        found, how = await stream(session, ollama)

        assert (3, 200, b'{"error":"boom"}\n') == (len(found), how, found[-1])

    @pytest.mark.parametrize(
        ("path", "asked"),
        [
            ("/v1/chat/completions", OPENAI),
            ("/v1/messages", MESSAGES),
            ("/v1/responses", {**OPENAI, "input": "x"}),
        ],
    )
    async def test_an_error_that_is_lost(self, session, ollama, path, asked):
        """SSE loses it: a clean end without an end mark (facts 1.4)."""
        ollama.faults.add(path, ErrorLine(2, "boom"))
        found, how = await stream(session, ollama, path, asked)
        whole = b"".join(found)

        assert 200 == how
        assert not any(mark in whole for mark in (b"boom", b"[DONE]", b"message_stop", b"response.completed"))

    @pytest.mark.parametrize("asked", [CHAT, {**CHAT, "stream": False}])
    async def test_a_model_that_fails_at_once(self, ask, ollama, asked):
        """Before the first byte it is a proper 500."""
        ollama.faults.add("/api/chat", ErrorLine(0, "boom"))
        got = await ask("POST", "/api/chat", asked)

        assert (500, b'{"error":"boom"}') == (got.status, got.body)

    async def test_silence_in_mid_stream(self, session, ollama):
        release = asyncio.Event()
        ollama.faults.add("/api/chat", HangAfter(2, release))
        async with session.post(ollama.url + "/api/chat", json=CHAT) as response:
            for _ in range(2):
                await response.content.readline()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(response.content.readline(), 0.03)
            release.set()
            assert b'"done":true' in await response.content.read()

    async def test_slowness(self, session, ollama):
        """Before the head, and before every chunk."""
        ollama.faults.add("/api/chat", Slow(first_s=0.05, each_s=0.01))
        began = asyncio.get_running_loop().time()
        found, how = await stream(session, ollama)

        assert (5, 200) == (len(found), how)
        assert 0.09 <= asyncio.get_running_loop().time() - began

    async def test_a_pull_breaks(self, session, ollama):
        ollama.faults.add("/api/pull", BreakAfter(2))
        found, how = await stream(session, ollama, "/api/pull", {"model": "mistral"})

        assert (2, "ClientPayloadError") == (len(found), how)


async def test_stopping_cuts(session, ollama):
    """A server with hanging requests stops at once."""
    ollama.faults.add(ANY_PATH, Hang(), times=None)
    readings = [asyncio.ensure_future(stream(session, ollama)) for _ in range(3)]
    await ollama.until(lambda: ollama.in_flight == 3)
    assert 3 == ollama.open_connections

    await ollama.stop()
    assert ["ServerDisconnectedError"] * 3 == [how for _, how in await asyncio.gather(*readings)]
    assert 0 == ollama.open_connections
