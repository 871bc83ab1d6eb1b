"""`queue.progress`: a held chat shows what it waits for as thinking, and then the pod's own bytes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from gpugate_demo import faults as reply
from gpugate_demo.faults import BreakAfter, CloseBeforeHead, HangAfter
from ollama import AsyncClient, ResponseError
from openai import AsyncOpenAI

from gpugate.errors import NoCapacity
from gpugate.ollama import progress_lines
from gpugate.proxy import heartbeat
from tests.e2e.support import CHAT, MODEL, SOON, Answer, House, bearer, token

PROMPT = "a secret of mine"
HI = [{"role": "user", "content": PROMPT}]
TEXT = " word0 word1 word2 word3 word4"
KINDS = {"ndjson": "/api/chat", "sse": "/v1/chat/completions", "alias": "/api/v1/chat"}
SAID = "Starting a pod at fake (1st in the queue)\n"


@pytest.fixture(autouse=True)
def _quick_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "LOOK_EVERY_S", 0.03)
    monkeypatch.setattr(progress_lines, "CHANGE_EVERY_S", 0.03)


@pytest.fixture
async def telling(opened, cloud) -> House:
    """A gateway that tells its progress, and a cold start of 300 ms."""
    cloud.boot_s = 0.3
    house = await opened(queue__progress="thinking")
    await house.off()
    return house


def parts(answer: Answer) -> list[Any]:
    """The lines or events of a stream, without the end mark."""
    if answer.headers["Content-Type"] == "application/x-ndjson":
        return answer.lines
    events = [event.removeprefix(b"data: ") for event in answer.body.split(b"\n\n") if event]
    return [json.loads(event) for event in events if event != b"[DONE]"]


def thought(part: Any) -> str:
    """The thinking of a line or event."""
    if "choices" in part:
        return part["choices"][0]["delta"].get("reasoning_content", "") if part["choices"] else ""
    return part.get("message", {}).get("thinking", "")


OWN = {
    "application/x-ndjson": b'{"message" : {"role":"assistant","content":"hi"},"done":true}\n',
    "text/event-stream": b'data:  {"choices":[]}\n\ndata: [DONE]\n\n',
}


@pytest.mark.parametrize("kind", KINDS)
async def test_lines_then_the_answer(telling: House, kind):
    """Lines first, behind them the bytes of the pod; a pod that serves sends nothing else."""
    path = KINDS[kind]
    content_type = "text/event-stream" if kind == "sse" else "application/x-ndjson"
    own = OWN[content_type]
    upstream = "/api/chat" if kind == "alias" else path
    telling.ollama.faults.add(upstream, reply.Answer(200, own, content_type), times=None)
    cold = await telling.chat(path, stream=True, messages=HI)
    assert (200, True, content_type) == (cold.status, cold.whole, cold.headers["Content-Type"])
    assert cold.body.endswith(own)
    assert SAID == thought(parts(cold)[0])
    assert PROMPT not in cold.body.decode()
    assert own == (await telling.chat(path, stream=True, messages=HI)).body


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"stream": False}),
        ("/v1/chat/completions", {}),
        ("/api/chat", {"think": False}),
        ("/v1/chat/completions", {"stream": True, "think": False}),
        ("/v1/chat/completions", {"stream": True, "reasoning_effort": "none"}),
        ("/api/generate", {"prompt": "hi"}),
        ("/v1/completions", {"prompt": "hi", "stream": True}),
        ("/v1/messages", {"stream": True, "max_tokens": 9}),
    ],
)
async def test_not_told(telling: House, path, body):
    """No stream, no thinking wanted, or another endpoint: the pod's bytes alone."""
    answer = await telling.chat(path, **body)
    assert 200 == answer.status
    assert b"Starting a pod" not in answer.body
    assert b"word4" in answer.body


async def test_off(opened, cloud):
    """By default nothing is told."""
    cloud.boot_s = 0.2
    assert b"thinking" not in (await (await opened()).chat()).body


async def test_a_quick_refusal(telling: House, monkeypatch: pytest.MonkeyPatch):
    """Keeps its status: nothing has been sent by then."""
    monkeypatch.setattr(heartbeat, "LOOK_EVERY_S", SOON)
    telling.cloud.fail("start", NoCapacity("none free"))
    assert 503 == (await telling.chat()).status


async def test_place_in_the_queue(telling: House):
    """Each is told its own; whoever moves up is told that, too."""
    go_on = asyncio.Event()
    telling.ollama.faults.add("/api/chat", HangAfter(1, until=go_on))
    asks = [await telling.begin("POST", "/api/chat", json=CHAT) for _ in range(3)]
    await telling.until(lambda: telling.in_flight == 1)
    await asyncio.sleep(0.1)
    go_on.set()
    answers = await asyncio.gather(*asks)
    told = ["".join(map(thought, answer.lines)) for answer in answers]
    assert "1st in the queue" in told[0]
    assert "Waiting for earlier answers of the pod at fake (1st in the queue)" in told[1]
    assert "Starting a pod at fake (3rd in the queue)" in told[2]
    assert "Waiting for earlier answers of the pod at fake (2nd in the queue)" in told[2]


async def test_with_filler(opened, cloud):
    """Filler comes where no line does."""
    cloud.boot_s = 0.3
    house = await opened(queue__progress="thinking", queue__heartbeat=0.05)
    answer = await house.chat()
    assert SAID == thought(answer.lines[0])
    assert b"\n  " in answer.body or b"\n {" in answer.body


@pytest.mark.parametrize("kind", KINDS)
async def test_failure_behind_lines(telling: House, kind):
    """As in mid-stream: the last line or event; SSE ends in good order, NDJSON does not."""
    telling.cloud.boot_s = 30
    ask = await telling.begin("POST", KINDS[kind], json={**CHAT, "stream": True})
    await telling.ask("POST", "/api/v1/gpu/stop?force=true")
    answer = await asyncio.wait_for(ask, SOON)
    assert (200, kind == "sse") == (answer.status, answer.whole)
    first, last = parts(answer)[0], parts(answer)[-1]
    assert SAID == thought(first)
    message = last["error"]["message"] if kind == "sse" else last["error"]
    assert "stopped by hand" in message


@pytest.mark.parametrize("kind", KINDS)
async def test_refusal_by_the_model(telling: House, kind):
    """The pod's own words as the last line or event."""
    answer = await telling.chat(KINDS[kind], model="nothing", stream=True)
    last = parts(answer)[-1]["error"]
    assert "model 'nothing' not found" == (last["message"] if kind == "sse" else last)


@pytest.mark.parametrize("fault", [CloseBeforeHead(), BreakAfter(2)])
@pytest.mark.parametrize("kind", KINDS)
async def test_pod_lost_behind_lines(telling: House, kind, fault):
    """The error is a line or event of its own."""
    path = "/api/chat" if kind == "alias" else KINDS[kind]
    telling.ollama.faults.add(path, fault, times=None)
    answer = await telling.chat(KINDS[kind], stream=True)
    assert SAID == thought(parts(answer)[0])
    assert parts(answer)[-1]["error"]


class TestRealClients:
    async def test_ollama(self, telling: House):
        """The lines are thinking, the text is the pod's; a failure raises."""
        client = AsyncClient(host=telling.url, headers=bearer())
        told = [part.message async for part in await client.chat(MODEL, HI, stream=True)]
        assert TEXT == "".join(message.content or "" for message in told)
        assert SAID == told[0].thinking
        await telling.stop()
        telling.cloud.boot_s = 30
        stream = await client.chat(MODEL, HI, stream=True)
        assert "about 5 s (1st" in (await anext(stream)).message.thinking
        await telling.ask("POST", "/api/v1/gpu/stop?force=true")
        with pytest.raises(ResponseError, match="stopped by hand"):
            async for _ in stream:
                pass
        await client.close()

    async def test_openai(self, telling: House):
        """The same; and what the library joins has the text of the pod, ."""
        async with AsyncOpenAI(base_url=telling.url + "/v1", api_key=token(), max_retries=0) as client:
            stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
            told = [chunk.choices[0].delta async for chunk in stream if chunk.choices]
            assert TEXT == "".join(delta.content or "" for delta in told)
            assert SAID == told[0].reasoning_content
            await telling.stop()
            async with client.chat.completions.stream(model=MODEL, messages=HI) as events:
                message = (await events.get_final_completion()).choices[0].message
            assert TEXT == message.content
            assert message.reasoning_content.startswith("Starting a pod at fake, about")
            await telling.stop()
            telling.cloud.boot_s = 30
            stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
            await anext(stream)
            await telling.ask("POST", "/api/v1/gpu/stop?force=true")
            with pytest.raises(openai.APIError, match="stopped by hand"):
                async for _ in stream:
                    pass
