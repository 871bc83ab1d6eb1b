"""`queue.heartbeat`: filler while a request is held, and how failures look behind it."""

from __future__ import annotations

import asyncio
import gzip
import json

import openai
import pytest
from gpugate_demo.faults import Answer, BreakAfter, CloseBeforeHead, HangAfter
from ollama import AsyncClient, ResponseError
from openai import AsyncOpenAI

from gpugate.errors import NoCapacity
from tests.e2e.support import CHAT, MODEL, SOON, House, bearer, chat_body, request, token, wire_to

HI = [{"role": "user", "content": "hi"}]
TEXT = " word0 word1 word2 word3 word4"
KINDS = {
    "ndjson": ("/api/chat", True, "application/x-ndjson", b" "),
    "json": ("/api/chat", False, "application/json; charset=utf-8", b" "),
    "sse": ("/v1/chat/completions", True, "text/event-stream", b": waiting\n\n"),
    "openai json": ("/v1/chat/completions", False, "application/json", b" "),
    "messages": ("/v1/messages", True, "text/event-stream", b": waiting\n\n"),
    "alias": ("/api/v1/chat", True, "application/x-ndjson", b" "),
}


@pytest.fixture
async def beating(opened, cloud) -> House:
    """A gateway that beats every 30 ms, and a cold start of 300 ms."""
    cloud.boot_s = 0.3
    house = await opened(queue__heartbeat=0.03)
    await house.off()
    return house


@pytest.mark.parametrize("kind", KINDS)
async def test_filler_then_the_answer(beating: House, kind):
    """200 at once, filler, then the pod's own body."""
    path, stream, content_type, filler = KINDS[kind]
    upstream = "/api/chat" if path == "/api/v1/chat" else path
    answer = await beating.chat(path, stream=stream, max_tokens=9)
    assert (200, content_type) == (answer.status, answer.headers["Content-Type"])
    assert answer.whole
    assert answer.body.startswith(filler * 2)
    body = answer.body
    while body.startswith(filler):
        body = body.removeprefix(filler)
    assert b"word0" in body
    assert answer.headers["X-Request-Id"]
    if not stream:
        assert json.loads(answer.body)
    (seen,) = beating.ollama.calls(upstream)
    assert "identity" == seen.headers["Accept-Encoding"]


PACKED = Answer(200, gzip.compress(b'{"done":true}\n'), "application/x-ndjson", {"Content-Encoding": "gzip"})


@pytest.mark.parametrize("kind", KINDS)
async def test_compressed_though_asked_not_to(beating: House, kind):
    """Behind filler the content type is told, and no encoding: packed bytes would be taken for the answer."""
    path, stream, _, _ = KINDS[kind]
    beating.ollama.faults.add("/api/chat" if path == "/api/v1/chat" else path, PACKED, times=None)
    answer = await beating.chat(path, stream=stream, max_tokens=9)
    assert 200 == answer.status
    assert b"compressed its answer" in answer.body
    assert PACKED.body not in answer.body


async def test_warm_answers_are_untouched(beating: House):
    """No filler where nobody is held."""
    await beating.warm()
    answer = await beating.chat()
    assert answer.body.startswith(b"{")


async def test_quick_starts_are_untouched(opened):
    """Nothing is committed before the first beat: the real status code is kept."""
    house = await opened(queue__heartbeat=5)
    house.cloud.fail("start", NoCapacity("none free"))
    assert 503 == (await house.chat()).status


@pytest.mark.parametrize("kind", KINDS)
async def test_failure_behind_filler(beating: House, kind):
    """The error follows the filler directly; SSE and JSON end in good order, NDJSON does not."""
    path, stream, content_type, filler = KINDS[kind]
    beating.cloud.boot_s = 30
    ask = await beating.begin("POST", path, json={**CHAT, "stream": stream, "max_tokens": 9})
    await beating.ask("POST", "/api/v1/gpu/stop?force=true")
    answer = await asyncio.wait_for(ask, SOON)
    sse = content_type == "text/event-stream"
    assert (200, content_type != "application/x-ndjson") == (answer.status, answer.whole)
    body = answer.body
    while body.startswith(filler):
        body = body.removeprefix(filler)
    if sse:
        event = body.removeprefix(b"event: error\n") if path == "/v1/messages" else body
        assert path != "/v1/messages" or body.startswith(b"event: error\n")
        told = json.loads(event.removeprefix(b"data: "))
        assert told["error"]["message"]
        assert b"[DONE]" not in body
    else:
        told = json.loads(body)
        assert told["error"]
        assert not (content_type.startswith("application/x-ndjson") and not isinstance(told["error"], str))


@pytest.mark.parametrize("stream", [True, False])
async def test_pods_error_behind_filler(beating: House, stream):
    """The pod's own 404 comes as a body, as its status is spent."""
    answer = await beating.chat(model="nothing", stream=stream)
    assert (200, not stream) == (answer.status, answer.whole)
    assert "model 'nothing' not found" == json.loads(answer.body)["error"]


@pytest.mark.parametrize("fault", [BreakAfter(2), BreakAfter(2, reset=True)])
async def test_pod_lost_behind_filler(beating: House, fault):
    """As in mid-stream: a last line, and no end."""
    beating.ollama.faults.add("/api/chat", fault)
    answer = await beating.chat()
    assert not answer.whole
    assert isinstance(json.loads(answer.body.splitlines()[-1])["error"], str)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", [CloseBeforeHead(), BreakAfter(0)])
async def test_service_broken_behind_filler(beating: House, fault, stream):
    """No byte of the pod's body ever came: the error object follows the filler."""
    beating.ollama.faults.add("/api/chat", fault, times=None)
    answer = await beating.chat(stream=stream)
    assert answer.whole is not stream
    assert "error" in json.loads(answer.body)


async def test_next_request_behind_a_failure(beating: House):
    """The connection is good after an error that is whole JSON."""
    async with wire_to(beating.port) as wire:
        wire.send(request("POST", "/api/chat", chat_body(model="nothing", stream=False)))
        await wire.head()
        await wire.reader.readuntil(b"0\r\n\r\n")
        wire.send(request("GET", "/api/version"))
        assert 200 == (await wire.answer())[0]


async def test_held_behind_another_answer(beating: House):
    """Who waits for the drain of a pod that serves is held too, and gets filler."""
    go_on = asyncio.Event()
    beating.ollama.faults.add("/api/chat", HangAfter(1, until=go_on))
    first = asyncio.ensure_future(beating.chat())
    await beating.waiting(1)
    second = asyncio.ensure_future(beating.chat())
    await beating.waiting(2)
    await beating.until(lambda: beating.in_flight == 1)
    third = await beating.begin("POST", "/api/chat", json=CHAT)
    await beating.waiting(2)
    go_on.set()
    answers = await asyncio.gather(first, second, third)
    assert [True] * 3 == [answer.whole for answer in answers]
    assert answers[2].body.startswith(b" ")


async def test_lost_pod_then_filler(beating: House):
    """A request that goes back to the queue is held again, with filler."""
    await beating.warm()
    beating.ollama.faults.add("/api/chat", CloseBeforeHead(), times=2)
    beating.cloud.turn_off(at_once=True)
    answer = await beating.chat()
    assert 2 == beating.cloud.starts
    assert answer.body.startswith(b"  ")
    assert answer.whole


async def test_hang_up_while_beating(beating: House):
    """Leaves the queue at once."""
    async with wire_to(beating.port) as wire:
        wire.send(request("POST", "/api/chat", chat_body()))
        await wire.head()
        wire.abort()
        await beating.waiting(0)
    assert 200 == (await beating.chat()).status


async def test_next_request_on_the_same_connection(beating: House):
    """The connection is good after a committed answer."""
    async with wire_to(beating.port) as wire:
        wire.send(request("POST", "/api/chat", chat_body()))
        await wire.head()
        await wire.reader.readuntil(b"0\r\n\r\n")
        wire.send(request("GET", "/api/version"))
        assert 200 == (await wire.answer())[0]


def unfilled(body: bytes, filler: bytes) -> bytes:
    """What follows the filler, of which there must be some."""
    assert body.startswith(filler)
    while body.startswith(filler):
        body = body.removeprefix(filler)
    return body


class TestHttp10:
    """nginx as it is by default: no chunks, and the connection is closed behind the answer."""

    async def ask(self, house: House, path: str, body: bytes, **more: str) -> tuple[bytes, bytes]:
        async with wire_to(house.port) as wire:
            headers = {**house.auth, "Connection": "keep-alive", **more}
            wire.send(request("POST", path, body, headers=headers, version="1.0"))
            head, _, answer = (await wire.rest()).partition(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0]
        assert b"transfer-encoding" not in head.lower()
        assert b"connection: close" in head.lower()
        return head, answer

    @pytest.mark.parametrize("kind", KINDS)
    async def test_answer(self, beating: House, kind):
        """Filler, then the pod's own body."""
        path, stream, content_type, filler = KINDS[kind]
        head, body = await self.ask(beating, path, chat_body(stream=stream, max_tokens=9))
        assert f"content-type: {content_type}".encode() in head.lower()
        answer = unfilled(body, filler)
        assert b"word0" in answer
        assert b"\r\n0\r\n" not in answer
        if not stream:
            assert json.loads(answer)

    @pytest.mark.parametrize("kind", KINDS)
    async def test_failure(self, beating: House, kind):
        """Filler, then the error, and an end that is no reset."""
        path, stream, _, filler = KINDS[kind]
        body = chat_body(stream=stream, max_tokens=9, model="nothing")
        _, said = await self.ask(beating, path, body)
        answer = unfilled(said, filler)
        assert b"error" in answer
        if filler == b" ":
            assert json.loads(answer)["error"]

    @pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("path", ["/api/v1/story/generate", "/api/v1/code/assist"])
    async def test_own_services(self, opened, cloud, path, stream, accept):
        """The same."""
        cloud.boot_s = 0.2
        house = await opened(queue__heartbeat=0.03, models__vision=MODEL, models__code=MODEL)
        await house.off()
        body = json.dumps({"prompt": "once", "question": "why", "code": "x", "stream": stream})
        _, said = await self.ask(house, path, body.encode(), Accept=accept)
        assert b"word0" in said
        assert b"error" not in said or b'"error":null' in said
        assert said.startswith((b" ", b": "))


class TestRealClients:
    async def test_ollama(self, beating: House):
        """Streamed and not, answered and failed."""
        client = AsyncClient(host=beating.url, headers=bearer())
        parts = [part async for part in await client.chat(MODEL, HI, stream=True)]
        assert TEXT == "".join(part.message.content or "" for part in parts)
        await beating.stop()
        assert TEXT == (await client.chat(MODEL, HI)).message.content
        await beating.stop()
        ask = asyncio.ensure_future(anext(await client.chat(MODEL, HI, stream=True)))
        await beating.waiting(1)
        await asyncio.sleep(0.08)
        await beating.ask("POST", "/api/v1/gpu/stop?force=true")
        with pytest.raises(ResponseError, match="stopped by hand"):
            await ask
        await client.close()

    async def test_openai(self, beating: House):
        """The same."""
        async with AsyncOpenAI(base_url=beating.url + "/v1", api_key=token(), max_retries=0) as client:
            stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
            assert TEXT == "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
            await beating.stop()
            answer = await client.chat.completions.create(model=MODEL, messages=HI)
            assert TEXT == answer.choices[0].message.content
            await beating.stop()
            stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
            await beating.ask("POST", "/api/v1/gpu/stop?force=true")
            with pytest.raises(openai.APIError, match="stopped by hand"):
                async for _ in stream:
                    pass
