"""Long answers through a proxy that minds silence: asked for as a stream, told in one piece."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from gpugate_demo.faults import (
    Answer,
    BreakAfter,
    CleanEndAfter,
    CloseBeforeHead,
    ErrorLine,
    HangAfter,
    Slow,
)
from gpugate_testing.fakes import FakeProvider
from ollama import AsyncClient
from openai import AsyncOpenAI

from gpugate.provider_api import Capabilities
from tests.e2e.support import MODEL, SOON, House, token

HI = [{"role": "user", "content": "hi <b>"}]
TEXT = " word0 word1 word2 word3 word4"
ASKED: dict[str, dict[str, Any]] = {
    "/api/chat": {"model": MODEL, "messages": HI, "stream": False},
    "/api/generate": {"model": MODEL, "prompt": "hi", "stream": False},
    "/v1/chat/completions": {"model": MODEL, "messages": HI},
    "/v1/completions": {"model": MODEL, "prompt": "hi", "stream": False},
    "/v1/messages": {"model": MODEL, "messages": HI, "max_tokens": 99},
    "/v1/responses": {"model": MODEL, "input": "hi"},
}
VOLATILE = {
    "created_at",
    "created",
    "completed_at",
    "id",
    "total_duration",
    "load_duration",
    "eval_duration",
}
PATHS = pytest.mark.parametrize("path", ASKED)


@pytest.fixture
async def limited(opened, monkeypatch: pytest.MonkeyPatch) -> House:
    """A gateway whose provider has a proxy that gives up after 100 s of silence."""
    monkeypatch.setattr(FakeProvider, "capabilities", Capabilities(first_byte_limit_s=100))
    house = await opened()
    await house.off()
    return house


def steady(value: Any) -> Any:
    """What does not change from one answer to the next; of the rest only that it is there."""
    if isinstance(value, dict):
        return {key: type(item) if key in VOLATILE else steady(item) for key, item in value.items()}
    return [steady(item) for item in value] if isinstance(value, list) else value


def streamed(house: House, path: str) -> list[bool]:
    """What the pod was asked for, request by request."""
    return [json.loads(call.body).get("stream", False) for call in house.ollama.calls(path)]


@PATHS
async def test_equal_to_ollamas_own(limited: House, path: str) -> None:
    """Field by field, cold and warm, with its content type; the pod was asked for a stream."""
    cold = await limited.ask("POST", path, json=ASKED[path])
    warm = await limited.ask("POST", path, json=ASKED[path])
    assert [True, True] == streamed(limited, path)[-2:]  # a preload comes before
    own = await limited.ask("POST", path, url=limited.ollama.url, json=ASKED[path])
    for answer in (cold, warm):
        assert (200, own.headers["Content-Type"]) == (answer.status, answer.headers["Content-Type"])
        assert steady(own.json) == steady(answer.json)
        assert answer.headers["X-Request-Id"]
    assert int(cold.headers["X-Gpugate-Waited-Ms"]) > 0
    assert "X-Gpugate-Waited-Ms" not in warm.headers


@PATHS
async def test_only_stream_is_changed(limited: House, path: str) -> None:
    """All else reaches the pod as the client wrote it."""
    await limited.warm()
    await limited.ask("POST", path, json=ASKED[path], headers={**limited.auth, "Accept-Encoding": "gzip"})
    (seen,) = limited.ollama.calls(path)
    usage = {"stream_options": {"include_usage": True}} if "completions" in path else {}
    assert {**ASKED[path], "stream": True, **usage} == json.loads(seen.body)
    assert "identity" == seen.headers["Accept-Encoding"]
    assert "Authorization" not in seen.headers


async def test_compressed_though_asked_not_to(limited: House) -> None:
    """It cannot be put together: an error that says so, once."""
    await limited.warm()
    packed = Answer(200, b"\x1f\x8b...", "application/x-ndjson", {"Content-Encoding": "gzip"})
    limited.ollama.faults.add("/api/chat", packed, times=None)
    answer = await limited.ask("POST", "/api/chat", json=ASKED["/api/chat"])
    assert (502, "UPSTREAM_ERROR") == (answer.status, answer.json["code"])
    assert "compressed" in answer.json["error"]
    assert 1 == len(limited.ollama.calls("/api/chat"))


@PATHS
async def test_without_a_limit(house: House, path: str) -> None:
    """A provider that has no such proxy is asked as the client asks, and its bytes pass."""
    await house.warm()
    answer = await house.ask("POST", path, json=ASKED[path])
    assert 200 == answer.status
    (seen,) = house.ollama.calls(path)
    assert json.dumps(ASKED[path]).encode() == seen.body


async def test_the_alias(limited: House) -> None:
    """`/api/v1/chat` as `/api/chat`."""
    answer = await limited.ask("POST", "/api/v1/chat", json=ASKED["/api/chat"])
    assert TEXT == answer.json["message"]["content"]
    assert [True] == streamed(limited, "/api/chat")


async def test_what_has_no_stream(limited: House) -> None:
    """Embeddings, and a client's own stream, pass as they are."""
    body = {"model": "nomic-embed-text:latest", "input": "hi"}
    answer = await limited.ask("POST", "/api/embed", json=body)
    assert 200 == answer.status, answer.body
    assert json.dumps(body).encode() == limited.ollama.calls("/api/embed")[-1].body
    chat = await limited.chat()
    assert TEXT == "".join(line["message"]["content"] for line in chat.lines)
    assert "stream" not in json.loads(limited.ollama.calls("/api/chat")[-1].body)


@PATHS
async def test_refused_by_the_pod(limited: House, path: str) -> None:
    """Its status and its words pass unchanged."""
    await limited.warm()
    asked = {**ASKED[path], "model": "nobody-has-it"}
    answer = await limited.ask("POST", path, json=asked)
    own = await limited.ask("POST", path, url=limited.ollama.url, json=asked)
    assert (404, own.headers["Content-Type"]) == (answer.status, answer.headers["Content-Type"])
    if path != "/v1/messages":  # whose refusals have a number
        assert own.body == answer.body


@PATHS
async def test_the_model_fails_under_way(limited: House, path: str) -> None:
    """An error, never a part that looks complete: Ollama's own where its stream still tells it."""
    await limited.warm()
    limited.ollama.faults.add(path, ErrorLine(2, "out of memory"))
    answer = await limited.ask("POST", path, json=ASKED[path])
    assert b"word1" not in answer.body
    if path.startswith("/api"):
        assert (500, {"error": "out of memory"}) == (answer.status, answer.json)
    else:
        assert 502 == answer.status
    assert [True] == streamed(limited, path)


@PATHS
async def test_a_stream_that_ends_too_soon(limited: House, path: str) -> None:
    """In order, and without its end: the truncation that looks complete is told as an error."""
    await limited.warm()
    limited.ollama.faults.add(path, CleanEndAfter(2))
    assert 502 == (await limited.ask("POST", path, json=ASKED[path])).status
    assert limited.gateway.lifecycle.serving is not None


@PATHS
@pytest.mark.parametrize("fault", [BreakAfter(2), BreakAfter(2, reset=True), CloseBeforeHead()], ids=repr)
async def test_a_stream_that_breaks(limited: House, path: str, fault: Any) -> None:
    """Nothing has left, so it is tried once more."""
    await limited.warm()
    limited.ollama.faults.add(path, fault)
    answer = await limited.ask("POST", path, json=ASKED[path])
    assert 200 == answer.status
    assert b"word4" in answer.body
    assert [True, True] == streamed(limited, path)


async def test_a_stream_that_breaks_twice(limited: House) -> None:
    """The pod lives: UPSTREAM_ERROR."""
    await limited.warm()
    limited.ollama.faults.add("/api/chat", BreakAfter(2), times=None)
    answer = await limited.chat(stream=False)
    assert (502, "UPSTREAM_ERROR") == (answer.status, answer.json["code"])
    assert 2 == len(streamed(limited, "/api/chat"))


async def test_the_pod_is_lost_under_way(limited: House) -> None:
    """The request goes back to the queue, and is answered by the next run."""
    await limited.warm()
    limited.ollama.faults.add("/api/chat", HangAfter(2))
    ask = asyncio.ensure_future(limited.chat(stream=False))
    await limited.until(lambda: bool(streamed(limited, "/api/chat")))
    await asyncio.sleep(0.05)
    limited.cloud.turn_off(at_once=True)
    limited.gateway.lifecycle._machine.inspect_schedule.schedule(0, 0)
    limited.gateway.lifecycle._on_timer()
    answer = await asyncio.wait_for(ask, SOON)
    assert (200, TEXT) == (answer.status, answer.json["message"]["content"])
    assert 2 == limited.cloud.starts


async def test_the_proxy_gives_up_all_the_same(limited: House) -> None:
    """524 is never tried again: the job may still run."""
    await limited.warm()
    limited.ollama.faults.add("/api/chat", Answer(524, b"<html>", "text/html"))
    answer = await limited.chat(stream=False)
    assert (504, "UPSTREAM_TIMEOUT") == (answer.status, answer.json["code"])
    assert 1 == len(streamed(limited, "/api/chat"))


async def test_the_client_hangs_up(limited: House) -> None:
    """The pod's work ends with it."""
    await limited.warm()
    limited.ollama.faults.add("/api/chat", HangAfter(2))
    ask = asyncio.ensure_future(limited.chat(stream=False))
    await limited.until(lambda: bool(streamed(limited, "/api/chat")))
    ask.cancel()
    await limited.until(lambda: limited.in_flight == 0)
    await limited.until(lambda: limited.ollama.calls("/api/chat")[0].cancelled)


async def test_a_forced_stop(limited: House) -> None:
    """Who has no answer yet is told so."""
    await limited.warm()
    limited.ollama.faults.add("/api/chat", HangAfter(2))
    ask = asyncio.ensure_future(limited.chat(stream=False))
    await limited.until(lambda: bool(streamed(limited, "/api/chat")))
    await limited.stop(force=True)
    answer = await asyncio.wait_for(ask, SOON)
    assert (503, "POD_STOPPED") == (answer.status, answer.json["code"])


async def test_connections_serve_again(limited: House) -> None:
    """A stream that was read to its end leaves its connection to the next."""
    await limited.warm()
    for _ in range(3):
        await limited.chat(stream=False)
    pod = limited.gateway.lifecycle.serving
    assert pod is not None
    assert 1 == limited.gateway.base.fleet.first.pools.pool_for(pod).idle


@PATHS
async def test_behind_filler(opened, cloud, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """`queue.heartbeat`: blanks, then the answer in one piece."""
    monkeypatch.setattr(FakeProvider, "capabilities", Capabilities(first_byte_limit_s=100))
    cloud.boot_s = 0.3
    house = await opened(queue__heartbeat=0.03, pod__preload="none")
    await house.off()
    answer = await house.ask("POST", path, json=ASKED[path])
    assert answer.whole
    assert answer.body.startswith(b"  ")
    assert b"word4" in answer.body
    assert isinstance(answer.json, dict)
    await house.stop()
    house.ollama.faults.add(path, ErrorLine(2, "out of memory"))
    answer = await house.ask("POST", path, json=ASKED[path])
    assert answer.whole  # blanks and an object are whole JSON (docs/api.md#heartbeat)
    assert "error" in answer.json


async def test_the_real_clients(limited: House) -> None:
    """Take it for Ollama's own."""
    ollama = AsyncClient(host=limited.url, headers=limited.auth)
    try:
        said = await ollama.chat(model=MODEL, messages=HI)
        assert (TEXT, "stop", 5) == (said.message.content, said.done_reason, said.eval_count)
        made = await ollama.generate(model=MODEL, prompt="hi")
        assert TEXT == made.response
        assert made.context
    finally:
        await ollama.close()
    async with AsyncOpenAI(base_url=f"{limited.url}/v1", api_key=token(), max_retries=0) as client:
        chat = await client.chat.completions.create(model=MODEL, messages=HI)
        assert (TEXT, "stop") == (chat.choices[0].message.content, chat.choices[0].finish_reason)
        assert chat.usage is not None
        assert 5 == chat.usage.completion_tokens
        response = await client.responses.create(model=MODEL, input="hi")
        assert TEXT == response.output_text


async def test_a_slow_answer_outlives_the_proxys_patience(limited: House) -> None:
    """Each piece comes in time, although the whole takes longer than the silence that is allowed."""
    await limited.warm()
    limited.ollama.faults.add("/api/chat", Slow(each_s=0.03))
    assert TEXT == (await limited.chat(stream=False)).json["message"]["content"]
