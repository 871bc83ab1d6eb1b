"""Code, story, picture and fantasy over real sockets, on simulated services behind a cold start."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve
from gpugate_demo.comfyui import FailJob, HangJob, SimulatedComfyUI
from gpugate_demo.faults import (
    Answer,
    BreakAfter,
    CleanEndAfter,
    CloseBeforeHead,
    ErrorLine,
    Hang,
    HangAfter,
)
from gpugate_demo.ollama import SimulatedOllama
from gpugate_demo.picture import draw
from gpugate_demo.text_generator import fixed
from gpugate_testing.fakes import FakeCloud

from gpugate.cli.main import main
from gpugate.errors import NoCapacity
from gpugate.generation.image_format import read_image
from gpugate.provider_api import Endpoint, PodReport
from tests.e2e.support import SOON, House, bearer, open_house, wire_to, words

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "services"
PNG = base64.b64encode(draw("input", 1, 32, 24)).decode()
TOLD = " word0 word1 word2 word3 word4"
CODE = {"code": "x = 1", "question": "What is x?", "language": "python"}
SERVICES = {
    "/api/v1/code/assist": CODE,
    "/api/v1/story/generate": {"prompt": "a dragon"},
    "/api/v1/image/generate": {"prompt": "a castle"},
    "/api/v1/fantasy/generate": {"image_base64": PNG},
}


@define
class CloudWithBoth(FakeCloud):
    """Its pod has a ComfyUI too."""

    comfyui_url: str = ""

    def report(self) -> PodReport:
        report = FakeCloud.report(self)
        if not report.endpoints or not self.comfyui_url:
            return report
        return evolve(report, endpoints={**report.endpoints, "comfyui": Endpoint(self.comfyui_url)})


Opener = Callable[..., Any]


@pytest.fixture
async def comfyui() -> AsyncIterator[SimulatedComfyUI]:
    """The pod's ComfyUI."""
    async with SimulatedComfyUI() as comfyui:
        yield comfyui


@pytest.fixture
async def opened(tmp_path, ollama: SimulatedOllama, comfyui: SimulatedComfyUI) -> AsyncIterator[Opener]:
    """Opens a gateway before both; `comfyui_url=""` for a pod without."""
    async with AsyncExitStack() as stack:

        async def opener(comfyui_url: str = comfyui.url, boot_s: float = 0.02, **overrides: object) -> House:
            cloud = CloudWithBoth(boot_s=boot_s, comfyui_url=comfyui_url)
            quick = {"comfyui__poll_interval": 0.05, "comfyui__timeout": 3, **overrides}
            return await stack.enter_async_context(open_house(tmp_path, ollama, cloud, **quick))

        yield opener


@pytest.fixture
async def house(opened: Opener) -> House:
    """A gateway whose pod is off."""
    house = await opened()
    await house.off()
    return house


def events(body: bytes) -> list[tuple[str, Any]]:
    """(event, data) of a stream of Server-Sent Events; comments left out."""
    found = []
    for block in body.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


async def post(house: House, path: str, headers: dict[str, str] | None = None, **body: object) -> Any:
    """The answer to one call of a service."""
    return await house.ask("POST", path, json=body, headers={**house.auth, **(headers or {})})


class TestAll:
    @pytest.mark.parametrize("path", SERVICES)
    async def test_cold_pod(self, house: House, path):
        """Waits for the pod like a chat, says how long, and leaves nothing in flight; the clock restarts."""
        answer = await post(house, path, **SERVICES[path])
        assert 200 == answer.status, answer.body
        assert int(answer.headers["X-Gpugate-Waited-Ms"]) > 0
        assert "X-Request-Id" in answer.headers
        await house.until(lambda: house.in_flight == 0)
        assert house.idle_for() < SOON
        assert 1 == house.cloud.starts

    async def test_users_name(self, opened: Opener):
        """Each waits and holds its lease under the name in its token: the ledger's."""
        house = await opened(boot_s=0.2)
        await house.off()
        asks = [asyncio.ensure_future(post(house, path, **SERVICES[path])) for path in SERVICES]
        await house.waiting(len(SERVICES))
        waiting = house.gateway.lifecycle._machine.queue.waiting
        assert ["tester"] * len(SERVICES) == [ticket.user for ticket in waiting]
        assert {200} == {(await ask).status for ask in asks}

    @pytest.mark.parametrize("path", SERVICES)
    async def test_scope(self, house: House, path):
        """Needs `chat`, and wakes nothing without."""
        answer = await house.ask("POST", path, json=SERVICES[path], headers=bearer(scope="pod cost"))
        assert (403, "FORBIDDEN") == (answer.status, answer.json["error"]["code"])
        assert 0 == house.cloud.starts

    @pytest.mark.parametrize("path", SERVICES)
    @pytest.mark.parametrize("body", [b"", b"no JSON", b"[1]", b'"text"', b"{}"])
    async def test_body_that_is_none(self, house: House, path, body):
        """400 in the envelope, and the pod sleeps on."""
        answer = await house.ask("POST", path, data=body)
        assert (400, "INVALID_REQUEST") == (answer.status, answer.json["error"]["code"])
        assert 0 == house.cloud.starts

    @pytest.mark.parametrize("path", SERVICES)
    async def test_failed_start(self, opened: Opener, path):
        """Told as anywhere else."""
        house = await opened(pod__start_attempts=1)
        house.cloud.fail("start", NoCapacity("none free"))
        answer = await post(house, path, **SERVICES[path])
        assert (503, "POD_START_FAILED") == (answer.status, answer.json["error"]["code"])
        assert "Retry-After" in answer.headers

    async def test_get(self, house: House):
        """405: a page reload draws nothing."""
        for path in SERVICES:
            assert 405 == (await house.ask("GET", path)).status
        assert 0 == house.cloud.starts


KEPT_ALIVE = {
    "code": ("/api/v1/code/assist", CODE, {}, b" "),
    "code events": ("/api/v1/code/assist", CODE, {"Accept": "text/event-stream"}, b": waiting\n\n"),
    "code whole": ("/api/v1/code/assist", {**CODE, "stream": False}, {}, b" "),
    "story": ("/api/v1/story/generate", {"prompt": "a dragon"}, {}, b": waiting\n\n"),
    "image": ("/api/v1/image/generate", {"prompt": "a castle"}, {}, b" "),
    "image events": ("/api/v1/image/generate", {"prompt": "x", "stream": True}, {}, b": waiting\n\n"),
    "fantasy": ("/api/v1/fantasy/generate", {"image_base64": PNG}, {}, b" "),
    "fantasy events": (
        *("/api/v1/fantasy/generate", {"image_base64": PNG, "stream": True}, {}),
        b": waiting\n\n",
    ),
}
"""By kind of answer: path, body, headers, filler."""


@pytest.mark.parametrize("kind", KEPT_ALIVE)
class TestHeartbeat:
    async def test_answer(self, opened: Opener, kind):
        """Behind the filler stands what would have come without."""
        path, body, headers, filler = KEPT_ALIVE[kind]
        house = await opened(boot_s=0.15, queue__heartbeat=0.03)
        await house.off()
        answer = await post(house, path, headers, **body)
        assert (200, True) == (answer.status, answer.whole)
        assert answer.body.startswith(filler)
        again = await post(house, path, headers, **body)
        assert not again.body.startswith(filler)
        if filler == b" " and kind != "code":
            assert json.loads(again.body)["data"].keys() == answer.json["data"].keys()
        elif kind == "code":
            assert [line["message"] for line in again.lines] == [line["message"] for line in answer.lines]
        else:
            told = [[name for name, _ in events(one.body)] for one in (answer, again)]
            assert told[0][-1] == told[1][-1] != "error"
        assert (
            again.headers["Content-Type"].partition(";")[0]
            == answer.headers["Content-Type"].partition(";")[0]
        )
        assert 0 == house.in_flight

    async def test_failure(self, opened: Opener, kind):
        """As in mid-stream: an error event, or the error and no end. An envelope is whole JSON."""
        path, body, headers, filler = KEPT_ALIVE[kind]
        house = await opened(boot_s=5, queue__heartbeat=0.02)
        await house.off()
        ask = await house.begin("POST", path, json=body, headers={**house.auth, **(headers or {})})
        await house.ask("POST", "/api/v1/gpu/stop?force=true")
        answer = await ask
        assert (200, kind != "code") == (answer.status, answer.whole)
        if filler != b" ":
            assert [("error", "POD_STOPPED")] == [(name, data["code"]) for name, data in events(answer.body)]
        elif kind == "code":
            assert isinstance(answer.json["error"], str)
        else:
            assert ("error", "POD_STOPPED") == (answer.json["status"], answer.json["error"]["code"])

    async def test_pods_failure(self, opened: Opener, ollama: SimulatedOllama, comfyui, kind):
        """The status is spent, so what went wrong on the pod is told the same way."""
        path, body, headers, _filler = KEPT_ALIVE[kind]
        house = await opened(boot_s=0.1, queue__heartbeat=0.02)
        await house.off()
        for upstream in ("/api/chat", "/api/generate"):
            ollama.faults.add(upstream, Answer(404, b'{"error":"no such model"}'), times=None)
        comfyui.faults.add("/prompt", Answer(400, b'{"error":{"message":"bad"},"node_errors":{}}'))
        answer = await post(house, path, headers, **body)
        assert (200, kind != "code") == (answer.status, answer.whole)
        assert b"error" in answer.body


class TestFillerWhileComfyUIWorks:
    @pytest.mark.parametrize("kind", ["image", "image events", "fantasy", "fantasy events"])
    async def test_job_that_is_silent(self, opened: Opener, comfyui: SimulatedComfyUI, kind):
        """It waits behind others, or its model is loaded: nothing would be sent for minutes."""
        path, body, headers, filler = KEPT_ALIVE[kind]
        house = await opened(queue__heartbeat=0.02, comfyui__timeout=30)
        await house.warm()
        comfyui.plan(HangJob(until := asyncio.Event()))
        other = asyncio.ensure_future(post(house, "/api/v1/image/generate", prompt="another"))
        await comfyui.until(lambda: comfyui.jobs.running is not None)
        asked = asyncio.ensure_future(post(house, path, headers, **body))
        await comfyui.until(lambda: len(comfyui.jobs.pending()) == 1)
        asyncio.get_running_loop().call_later(0.2, until.set)
        answer = await asked
        await other
        assert (200, True) == (answer.status, answer.whole)
        assert answer.body.count(filler) > 2
        if filler == b" ":
            assert answer.json["data"]["image_base64"]
        else:
            assert "result" == events(answer.body)[-1][0]

    @pytest.mark.parametrize("kind", ["image", "image events"])
    async def test_failure_behind_filler(self, opened: Opener, comfyui: SimulatedComfyUI, kind):
        """Is told as in mid-stream: here ComfyUI never comes up."""
        path, body, headers, filler = KEPT_ALIVE[kind]
        house = await opened(queue__heartbeat=0.02, comfyui__timeout=0.2)
        await house.warm()
        comfyui.faults.add("/prompt", Answer(404, b"not up"), times=None)
        answer = await post(house, path, headers, **body)
        assert (200, True) == (answer.status, answer.body.startswith(filler))
        assert b"IMAGE_GEN_FAILED" in answer.body


class TestCode:
    async def test_bytes(self, house: House, ollama: SimulatedOllama):
        """The chat's own stream; in front of the question the system prompt, the code between fences."""
        answer = await post(house, "/api/v1/code/assist", **CODE)
        assert "application/x-ndjson" == answer.headers["Content-Type"]
        assert TOLD == "".join(line["message"]["content"] for line in answer.lines)
        assert answer.lines[-1]["done"] is True
        asked = json.loads(ollama.calls("/api/chat")[-1].body)
        assert ["system", "user"] == [message["role"] for message in asked["messages"]]
        assert ("deepseek-coder", True) == (asked["model"], asked["stream"])
        assert "```python\nx = 1\n```" in asked["messages"][1]["content"]

    async def test_events(self, house: House):
        """For a client that accepts nothing else."""
        answer = await post(house, "/api/v1/code/assist", {"Accept": "text/event-stream"}, **CODE)
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        got = events(answer.body)
        assert TOLD == "".join(data["delta"] for name, data in got if name == "code")
        assert ("done", {"model": "deepseek-coder"}) == got[-1]

    @pytest.mark.parametrize("accept", ["*/*", "text/event-stream, */*", "text/plain, text/event-stream"])
    async def test_bytes_for_who_accepts_more(self, house: House, accept):
        """Events are only for who takes nothing else."""
        answer = await post(house, "/api/v1/code/assist", {"Accept": accept}, **CODE)
        assert "application/x-ndjson" == answer.headers["Content-Type"]

    async def test_instructions_of_ones_own(self, opened: Opener, ollama: SimulatedOllama):
        """`models.code_system` stands in front of the question instead of the built-in ones."""
        house = await opened(models__code_system="Answer in verse.")
        assert 200 == (await post(house, "/api/v1/code/assist", **CODE)).status
        first = json.loads(ollama.calls("/api/chat")[-1].body)["messages"][0]
        assert {"role": "system", "content": "Answer in verse."} == first

    async def test_in_one_piece(self, house: House):
        """In the envelope, by the model that was asked for."""
        answer = await post(house, "/api/v1/code/assist", stream=False, model="qwen2.5-coder:7b", **CODE)
        assert {"answer": TOLD, "model": "qwen2.5-coder:7b"} == answer.json["data"]

    @pytest.mark.parametrize("stream", [True, False])
    async def test_model_that_the_pod_lacks(self, house: House, stream):
        """502 in the envelope, naming it."""
        answer = await post(house, "/api/v1/code/assist", stream=stream, model="no-such", **CODE)
        assert (502, "UPSTREAM_ERROR") == (answer.status, answer.json["error"]["code"])
        assert "no-such" in answer.json["error"]["message"]

    @pytest.mark.parametrize("fault", [BreakAfter(2), CleanEndAfter(2), ErrorLine(2), Answer(500, b"{}")])
    async def test_broken_answer_in_one_piece(self, house: House, ollama: SimulatedOllama, fault):
        """502, naming the model."""
        ollama.faults.add("/api/chat", fault, times=None)
        answer = await post(house, "/api/v1/code/assist", stream=False, **CODE)
        assert (502, "UPSTREAM_ERROR") == (answer.status, answer.json["error"]["code"])
        assert "deepseek-coder" in answer.json["error"]["message"]

    @pytest.mark.parametrize("stream", [True, False])
    async def test_why_there_is_no_answer(self, house: House, ollama: SimulatedOllama, stream):
        """The model's own reason, behind what could not be made."""
        ollama.faults.add("/api/chat", Answer(500, b'{"error":"out of memory"}'), times=None)
        answer = await post(house, "/api/v1/code/assist", **CODE, stream=stream)
        expected = (
            "the question about the code could not be answered: "
            "the model 'deepseek-coder' failed with 500: out of memory"
        )
        assert expected == answer.json["error"]["message"]

    async def test_stream_that_breaks(self, house: House, ollama: SimulatedOllama):
        """One last line with an error, and no clean end."""
        ollama.faults.add("/api/chat", BreakAfter(2))
        answer = await post(house, "/api/v1/code/assist", **CODE)
        assert not answer.whole
        assert "error" in answer.lines[-1]

    async def test_pod_stopped_by_force(self, house: House, ollama: SimulatedOllama):
        """One last line as well: the answer had begun."""
        await house.warm()
        ollama.faults.add("/api/chat", HangAfter(2))
        ask = await house.begin("POST", "/api/v1/code/assist", json=CODE)
        await house.stop(force=True)
        answer = await ask
        assert (False, True) == (answer.whole, "error" in answer.lines[-1])

    @pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
    async def test_pod_lost_in_mid_answer(self, house: House, ollama: SimulatedOllama, accept):
        """The answer breaks, and nothing is started for it: it would not be told twice."""
        await house.warm()
        ollama.faults.add("/api/chat", HangAfter(2))
        ask = asyncio.ensure_future(post(house, "/api/v1/code/assist", {"Accept": accept}, **CODE))
        leases = house.gateway.lifecycle._machine.queue.leases
        await house.until(lambda: any(ticket.response_started for ticket in leases.values()))
        house.cloud.turn_off(at_once=True)
        assert b"error" in (await lost(house, ask)).body
        await house.off()
        assert 1 == house.cloud.starts

    @pytest.mark.parametrize("stream", [True, False])
    async def test_proxy_that_gives_up_waiting(self, house: House, ollama: SimulatedOllama, stream):
        """504, and never asked again: the model may still be at it."""
        ollama.faults.add("/api/chat", Answer(524, b"a proxy's page", "text/html"), times=None)
        answer = await post(house, "/api/v1/code/assist", **CODE, stream=stream)
        assert (504, "UPSTREAM_TIMEOUT") == (answer.status, answer.json["error"]["code"])
        assert 1 == len(ollama.calls("/api/chat"))

    async def test_events_that_break(self, house: House, ollama: SimulatedOllama):
        """An error is the last event."""
        ollama.faults.add("/api/chat", BreakAfter(2))
        answer = await post(house, "/api/v1/code/assist", {"Accept": "text/event-stream"}, **CODE)
        got = events(answer.body)
        assert ["code", "code", "error"] == [name for name, _ in got]
        assert "UPSTREAM_ERROR" == got[-1][1]["code"]

    async def test_connection_that_breaks_once(self, house: House, ollama: SimulatedOllama):
        """Tried once more, unseen."""
        await house.warm()
        ollama.faults.add("/api/chat", CloseBeforeHead())
        assert 200 == (await post(house, "/api/v1/code/assist", **CODE)).status

    @pytest.mark.parametrize(
        ("field", "body"),
        [
            ("question", {"code": "x"}),
            ("question", {"code": "x", "question": "  "}),
            ("code", {"question": "why?"}),
            ("language", {**CODE, "language": "```\nignore"}),
            ("stream", {**CODE, "stream": "yes"}),
            ("model", {**CODE, "model": 7}),
        ],
    )
    async def test_wrong_field(self, house: House, field, body):
        """400, naming it; nothing wakes."""
        answer = await post(house, "/api/v1/code/assist", **body)
        assert (400, True) == (answer.status, answer.json["error"]["message"].startswith(field))
        assert 0 == house.cloud.starts

    async def test_client_gone(self, house: House, ollama: SimulatedOllama):
        """The model is stopped."""
        await house.warm()
        ollama.faults.add("/api/chat", HangAfter(1))
        await hang_up(house, "/api/v1/code/assist", CODE, lambda: ollama.in_flight == 1)
        await ollama.until(lambda: ollama.calls("/api/chat")[-1].cancelled)
        await house.until(lambda: house.in_flight == 0)


@pytest.mark.parametrize("command", ["check", "serve"])
def test_wrong_workflow(tmp_path, capsys, monkeypatch, command):
    """Exit status 2, one line, with setting, node and key; nothing is served."""
    monkeypatch.chdir(tmp_path)
    node = {"class_type": "CLIPTextEncode", "_meta": {"title": "prompt"}, "inputs": {"clip": ["1", 1]}}
    (tmp_path / "mine.json").write_text(json.dumps({"1": {**node, "_meta": {}}, "6": node}))
    (tmp_path / "gpugate.toml").write_text(
        f"""
        auth.secret = "{"s" * 40}"
        pod.provider = "demo"
        state.dir = "state"
        comfyui.workflow = "mine.json"
        """
    )
    assert 2 == main([command, "--config", "gpugate.toml"])
    said = capsys.readouterr().err.splitlines()
    assert 1 == len(said)
    assert "comfyui.workflow" in said[0]
    assert 'node 6 ("prompt")' in said[0]
    assert '"inputs.text"' in said[0]


def asking(house: House, path: str, body: object) -> bytes:
    """A whole request."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: gate\r\nContent-Length: {len(data)}\r\n"
    return f"{head}Authorization: {house.auth['Authorization']}\r\n\r\n".encode() + data


async def hang_up(house: House, path: str, body: object, when: Callable[[], bool]) -> None:
    """Ask, wait until `when`, and close the connection."""
    async with wire_to(house.port) as wire:
        wire.send(asking(house, path, body))
        await house.until(lambda: house.in_flight == 1 and when())
        wire.abort()


class TestStory:
    async def test_prompt(self, opened: Opener, ollama: SimulatedOllama):
        """Told by `models.story`, token by token."""
        house = await opened(models__story="llama3.2:3b")
        answer = await post(house, "/api/v1/story/generate", prompt="a dragon")
        got = events(answer.body)
        assert TOLD.strip() == "".join(data["delta"] for name, data in got if name == "story")
        assert ("done", {"model": "llama3.2:3b"}) == got[-1]
        asked = json.loads(ollama.calls("/api/generate")[-1].body)
        assert "a dragon" == asked["prompt"]
        assert "images" not in asked

    @pytest.mark.parametrize("name", ["image_base64", "imageBase64"])
    @pytest.mark.parametrize("before", ["", "data:image/png;base64,"])
    async def test_image(self, house: House, ollama: SimulatedOllama, name, before):
        """Seen by the vision model, in plain Base64 whatever it came in."""
        broken = "\r\n".join(PNG[at : at + 60] for at in range(0, len(PNG), 60))
        answer = await post(house, "/api/v1/story/generate", **{name: before + broken})
        assert ("done", {"model": "llava"}) == events(answer.body)[-1]
        assert [PNG] == json.loads(ollama.calls("/api/generate")[-1].body)["images"]

    @pytest.mark.parametrize(
        "fault", [Answer(500, b'{"error":"/root/.ollama broke"}'), CleanEndAfter(0), ErrorLine(0)]
    )
    async def test_no_story(self, house: House, ollama: SimulatedOllama, fault):
        """Before the first token: a plain 502."""
        ollama.faults.add("/api/generate", fault, times=None)
        answer = await post(house, "/api/v1/story/generate", prompt="a dragon")
        assert (502, "STORY_FAILED") == (answer.status, answer.json["error"]["code"])
        assert answer.json["error"]["message"].startswith("the story could not be told: the model 'llava' ")
        assert b"/root" not in answer.body

    async def test_why_there_is_no_story(self, house: House, ollama: SimulatedOllama):
        """The model's own reason, behind what could not be made."""
        reason = Answer(500, b'{"error":"llama runner process has terminated: out of memory"}')
        ollama.faults.add("/api/generate", reason, times=None)
        answer = await post(house, "/api/v1/story/generate", image_base64=PNG)
        expected = (
            "the story about the picture could not be told: the model 'llava' failed with 500: "
            "llama runner process has terminated: out of memory"
        )
        assert expected == answer.json["error"]["message"]

    async def test_connection_that_breaks(self, house: House, ollama: SimulatedOllama):
        """Tried once more; then 502, for the pod lives."""
        await house.warm()
        ollama.faults.add("/api/generate", CloseBeforeHead())
        assert 200 == (await post(house, "/api/v1/story/generate", prompt="a dragon")).status
        ollama.faults.add("/api/generate", CloseBeforeHead(), times=2)
        answer = await post(house, "/api/v1/story/generate", prompt="a dragon")
        assert (502, "STORY_FAILED") == (answer.status, answer.json["error"]["code"])

    @pytest.mark.parametrize("fault", [BreakAfter(2), CleanEndAfter(2), ErrorLine(2)])
    async def test_story_that_breaks_off(self, house: House, ollama: SimulatedOllama, fault):
        """An error is the last event, and there is no `done`."""
        await house.warm()
        ollama.faults.add("/api/generate", fault)
        got = events((await post(house, "/api/v1/story/generate", prompt="a dragon")).body)
        assert ("error", "STORY_FAILED") == (got[-1][0], got[-1][1]["code"])
        assert "done" not in [name for name, _ in got]

    async def test_model_that_says_nothing(self, tmp_path):
        """An empty story is none."""
        async with SimulatedOllama(reply=fixed(" ", "\n")) as ollama, open_house(tmp_path, ollama) as house:
            answer = await post(house, "/api/v1/story/generate", prompt="a dragon")
        assert (502, "STORY_FAILED") == (answer.status, answer.json["error"]["code"])

    async def test_pod_lost_before_the_first_token(self, house: House, ollama: SimulatedOllama):
        """Goes back to the queue, and is told by the next pod."""
        await house.warm()
        ollama.faults.add("/api/generate", Hang())
        ask = asyncio.ensure_future(post(house, "/api/v1/story/generate", prompt="a dragon"))
        await ollama.until(lambda: len(ollama.calls("/api/generate")) == 1)
        house.cloud.turn_off(at_once=True)
        house.gateway.lifecycle.start()
        async with asyncio.timeout(SOON):
            answer = await lost(house, ask)
        assert ("done", 2) == (events(answer.body)[-1][0], house.cloud.starts)

    async def test_pod_stopped_by_force(self, house: House, ollama: SimulatedOllama):
        """Ends the story with an error event."""
        await house.warm()
        ollama.faults.add("/api/generate", HangAfter(2))
        ask = await house.begin("POST", "/api/v1/story/generate", json={"prompt": "a dragon"})
        await house.stop(force=True)
        assert ("error", "POD_STOPPED") == (lambda last: (last[0], last[1]["code"]))(
            events((await ask).body)[-1]
        )

    async def test_client_that_reads_nothing(self, tmp_path, monkeypatch):
        """Is as good as gone after a while: the model is stopped, the lease given back."""
        monkeypatch.setattr("gpugate.api.events.SEND_S", 0.2)
        reply = fixed(*["x" * 500_000] * 40)
        async with SimulatedOllama(reply=reply) as ollama, open_house(tmp_path, ollama) as house:
            await house.warm()
            async with wire_to(house.port) as wire:
                wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
                wire.send(asking(house, "/api/v1/story/generate", {"prompt": "x"}))
                await ollama.until(lambda: bool(ollama.calls("/api/generate")))
                await house.until(lambda: house.in_flight == 0)
                await ollama.until(lambda: ollama.calls("/api/generate")[-1].cancelled)

    async def test_client_gone(self, house: House, ollama: SimulatedOllama):
        """The model is stopped."""
        await house.warm()
        ollama.faults.add("/api/generate", HangAfter(1))
        await hang_up(
            house, "/api/v1/story/generate", {"prompt": "x"}, lambda: bool(ollama.calls("/api/generate"))
        )
        await ollama.until(lambda: ollama.calls("/api/generate")[-1].cancelled)
        await house.until(lambda: house.in_flight == 0)

    @pytest.mark.parametrize(
        ("field", "body"),
        [
            ("prompt or image_base64", {"prompt": " "}),
            ("prompt", {"prompt": 7}),
            ("image_base64: is empty", {"prompt": "a castle", "image_base64": ""}),
            ("imageBase64: is empty", {"prompt": "a castle", "imageBase64": " "}),
            ("image_base64", {"prompt": "a castle", "image_base64": "data:image/png;base64,"}),
            ("image_base64", {"image_base64": "bm8gaW1hZ2U="}),
            ("imageBase64", {"imageBase64": "!!!"}),
            ("image_base64", {"image_base64": PNG[: len(PNG) // 8 * 4]}),
        ],
    )
    async def test_wrong_field(self, house: House, field, body):
        """400, naming it; nothing wakes."""
        answer = await post(house, "/api/v1/story/generate", **body)
        assert (400, True) == (answer.status, answer.json["error"]["message"].startswith(field))
        assert 0 == house.cloud.starts


async def lost(house: House, ask: asyncio.Future[Any]) -> Any:
    """The answer of a request whose pod is gone; the lifecycle is told to look."""
    run = house.gateway.lifecycle.serving.run_id if house.gateway.lifecycle.serving else 0
    await house.gateway.lifecycle.diagnose(run)
    return await ask


class TestImage:
    async def test_picture(self, house: House, comfyui: SimulatedComfyUI):
        """Drawn as wished, without metadata; seed and bare name are told."""
        wish = {"prompt": "a castle", "negative_prompt": "fog", "width": 128, "height": 64, "seed": 2**64 - 1}
        answer = await post(house, "/api/v1/image/generate", **wish)
        data = answer.json["data"]
        assert {"image_base64", "filename", "seed"} == set(data)
        picture = base64.b64decode(data["image_base64"])
        image = read_image(picture)
        assert ("PNG", 128, 64) == (image.kind, image.width, image.height)
        assert b"castle" not in picture
        assert b"tEXt" not in picture
        assert 2**64 - 1 == data["seed"]
        assert "/" not in data["filename"]
        graph = json.loads(comfyui.calls("/prompt")[-1].body)["prompt"]
        assert ("a castle", "fog") == (graph["2"]["inputs"]["text"], graph["3"]["inputs"]["text"])

    async def test_metadata_on_demand(self, house: House):
        """ComfyUI's own, for who asks for it."""
        answer = await post(house, "/api/v1/image/generate", prompt="a castle", metadata=True)
        assert b"a castle" in base64.b64decode(answer.json["data"]["image_base64"])

    async def test_same_wish_twice(self, house: House, comfyui: SimulatedComfyUI):
        """The same seed gives the same picture in another file, so a cleaned disk does no harm."""
        first = (await post(house, "/api/v1/image/generate", prompt="a castle", seed=7)).json["data"]
        for key in list(comfyui.shelf._files):
            comfyui.shelf.remove(key)
        second = (await post(house, "/api/v1/image/generate", prompt="a castle", seed=7)).json["data"]
        assert first["image_base64"] == second["image_base64"]
        assert first["filename"] != second["filename"]

    async def test_seed_by_chance(self, house: House):
        """Drawn anew each time."""
        seeds = {
            (await post(house, "/api/v1/image/generate", prompt="x", width=64, height=64)).json["data"][
                "seed"
            ]
            for _ in range(2)
        }
        assert 2 == len(seeds)

    async def test_progress(self, house: House):
        """Steps, then the result."""
        got = events((await post(house, "/api/v1/image/generate", prompt="x", stream=True)).body)
        assert {"progress", "result"} == {name for name, _ in got}
        steps = [data for name, data in got if name == "progress"]
        assert {"stage": "image", "value": 20, "max": 20} == steps[-1]
        assert "result" == got[-1][0]

    async def test_failing_job(self, house: House, comfyui: SimulatedComfyUI):
        """502 in one line, without what ComfyUI knows of its disk."""
        comfyui.plan(FailJob("cannot open '/opt/comfyui/models/x'"))
        answer = await post(house, "/api/v1/image/generate", prompt="x")
        assert (502, "IMAGE_GEN_FAILED") == (answer.status, answer.json["error"]["code"])
        assert b"/opt" not in answer.body

    async def test_failing_job_after_progress(self, house: House, comfyui: SimulatedComfyUI):
        """The error is the last event."""
        comfyui.plan(FailJob())
        got = events((await post(house, "/api/v1/image/generate", prompt="x", stream=True)).body)
        assert ("error", "IMAGE_GEN_FAILED") == (got[-1][0], got[-1][1]["code"])

    async def test_no_comfyui(self, opened: Opener):
        """502 at once."""
        house = await opened(comfyui_url="")
        answer = await post(house, "/api/v1/image/generate", prompt="x")
        assert (502, "IMAGE_GEN_FAILED") == (answer.status, answer.json["error"]["code"])

    async def test_timeout(self, opened: Opener, comfyui: SimulatedComfyUI):
        """502, and the job is stopped."""
        house = await opened(comfyui__timeout=0.3)
        comfyui.plan(HangJob())
        answer = await post(house, "/api/v1/image/generate", prompt="x")
        assert (502, "IMAGE_GEN_FAILED") == (answer.status, answer.json["error"]["code"])
        await comfyui.until(lambda: comfyui.jobs.running is None)

    async def test_client_gone(self, house: House, comfyui: SimulatedComfyUI):
        """The job is stopped by name."""
        await house.warm()
        comfyui.plan(HangJob())
        await hang_up(
            house,
            "/api/v1/image/generate",
            {"prompt": "x"},
            lambda: comfyui.jobs.running is not None,
        )
        await comfyui.until(lambda: comfyui.jobs.running is None)
        job = json.loads(comfyui.calls("/prompt")[-1].body)["prompt_id"]
        assert {"prompt_id": job} == json.loads(comfyui.calls("/interrupt")[-1].body)
        [deletion] = [seen.body for seen in comfyui.calls("/queue") if seen.method == "POST"]
        assert {"delete": [job]} == json.loads(deletion)
        await house.until(lambda: house.in_flight == 0)

    async def test_more_than_a_hundred_at_once(self, opened: Opener, comfyui: SimulatedComfyUI):
        """All get into ComfyUI's queue: those that wait there, each with its websocket, block nobody."""
        house = await opened(comfyui__poll_interval=30, comfyui__timeout=60)
        await house.warm()
        comfyui.plan(HangJob())
        async with AsyncExitStack() as stack:
            for _ in range(102):
                wire = await stack.enter_async_context(wire_to(house.port))
                wire.send(asking(house, "/api/v1/image/generate", {"prompt": "x"}))
            await house.until(lambda: len(comfyui.jobs.pending()) == 101)
        await comfyui.until(lambda: (comfyui.jobs.pending(), comfyui.jobs.running) == ([], None))

    async def test_workflow_of_the_users_own(self, opened: Opener, comfyui: SimulatedComfyUI, tmp_path):
        """Chosen by its name, with or without .json."""
        graph = {
            "1": {
                "class_type": "EmptyImage",
                "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
            },
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "sub/own"}},
            "3": {
                "class_type": "CLIPTextEncode",
                "_meta": {"title": "Prompt"},
                "inputs": {"text": "", "clip": ["4", 1]},
            },
            "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": comfyui.checkpoints[0]}},
        }
        folder = tmp_path / "workflows"
        folder.mkdir()
        (folder / "own.json").write_text(json.dumps(graph))
        house = await opened(comfyui__workflows_dir=str(folder))
        for name in ("own", "own.json"):
            answer = await post(house, "/api/v1/image/generate", prompt="x", workflow=name)
            assert answer.json["data"]["filename"].startswith("own_"), answer.body
        for wish, title in (("seed", 7), ("width", 64), ("negative_prompt", "fog")):
            answer = await post(house, "/api/v1/image/generate", prompt="x", workflow="own", **{wish: title})
            assert (400, True) == (answer.status, answer.json["error"]["message"].startswith(wish))
        for name in ("other", "../own", "/etc/passwd"):
            answer = await post(house, "/api/v1/image/generate", prompt="x", workflow=name)
            assert (400, True) == (answer.status, answer.json["error"]["message"].startswith("workflow"))

    @pytest.mark.parametrize(
        ("field", "body"),
        [
            ("prompt", {}),
            ("prompt", {"prompt": " "}),
            ("width", {"prompt": "x", "width": 63}),
            ("height", {"prompt": "x", "height": 2049}),
            ("width", {"prompt": "x", "width": 512.0}),
            ("width", {"prompt": "x", "width": True}),
            ("seed", {"prompt": "x", "seed": -1}),
            ("seed", {"prompt": "x", "seed": 2**64}),
            ("workflow", {"prompt": "x", "workflow": "none"}),
            ("negative_prompt", {"prompt": "x", "negative_prompt": []}),
            ("metadata", {"prompt": "x", "metadata": "yes"}),
        ],
    )
    async def test_wrong_field(self, house: House, field, body):
        """400, naming it; nothing wakes."""
        answer = await post(house, "/api/v1/image/generate", **body)
        assert (400, True) == (answer.status, answer.json["error"]["message"].startswith(field))
        assert 0 == house.cloud.starts


class TestFantasy:
    async def test_story_and_picture(self, house: House, ollama: SimulatedOllama, comfyui: SimulatedComfyUI):
        """Both, on one lease; the picture is of the story."""
        answer = await post(house, "/api/v1/fantasy/generate", image_base64=PNG, prompt="make it sad")
        data = answer.json["data"]
        assert {"story", "image_base64", "warnings"} == set(data)
        assert (TOLD.strip(), []) == (data["story"], data["warnings"])
        assert "PNG" == read_image(base64.b64decode(data["image_base64"])).kind
        asked = json.loads(ollama.calls("/api/generate")[-1].body)
        assert ("llava", [PNG]) == (asked["model"], asked["images"])
        assert "make it sad" in asked["prompt"]
        graph = json.loads(comfyui.calls("/prompt")[-1].body)["prompt"]
        assert "word0 word1" in graph["2"]["inputs"]["text"]
        assert 1 == house.gateway.lifecycle._last_ticket

    async def test_events(self, house: House):
        """Story, progress of both stages, result."""
        got = events((await post(house, "/api/v1/fantasy/generate", image_base64=PNG, stream=True)).body)
        assert ["story", "progress", "result"] == list(dict.fromkeys(name for name, _ in got))
        assert ["story", "image"] == list(
            dict.fromkeys(data["stage"] for name, data in got if name == "progress")
        )
        assert ("result", []) == (got[-1][0], got[-1][1]["warnings"])
        assert got[-1][1]["image_base64"]

    async def test_other_spelling_beside_an_empty_one(self, house: House, ollama: SimulatedOllama):
        """A form that sends both names and fills one is served."""
        body = {"image_base64": "", "imageBase64": PNG, "include_image": False}
        assert 200 == (await post(house, "/api/v1/fantasy/generate", **body)).status
        assert [PNG] == json.loads(ollama.calls("/api/generate")[-1].body)["images"]

    async def test_without_picture(self, house: House, comfyui: SimulatedComfyUI):
        """Not wanted: null, and no warning."""
        answer = await post(house, "/api/v1/fantasy/generate", image_base64=PNG, include_image=False)
        assert (None, []) == (answer.json["data"]["image_base64"], answer.json["data"]["warnings"])
        assert [] == comfyui.calls("/prompt")

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("trouble", ["absent", "failing", "slow"])
    async def test_picture_that_fails(self, opened: Opener, comfyui: SimulatedComfyUI, trouble, stream):
        """The story still comes, with a warning."""
        house = await opened(comfyui_url="" if trouble == "absent" else comfyui.url, comfyui__timeout=0.3)
        comfyui.plan(FailJob() if trouble == "failing" else HangJob())
        answer = await post(house, "/api/v1/fantasy/generate", image_base64=PNG, stream=stream)
        data = events(answer.body)[-1][1] if stream else answer.json["data"]
        assert (200, TOLD.strip(), None) == (answer.status, data["story"], data["image_base64"])
        assert ["IMAGE_GEN_FAILED"] == [warning["code"] for warning in data["warnings"]]

    async def test_no_story(self, house: House, ollama: SimulatedOllama, comfyui: SimulatedComfyUI):
        """502, and nothing is drawn."""
        ollama.faults.add("/api/generate", CleanEndAfter(1), times=None)
        answer = await post(house, "/api/v1/fantasy/generate", image_base64=PNG)
        assert (502, "STORY_FAILED") == (answer.status, answer.json["error"]["code"])
        assert [] == comfyui.calls("/prompt")

    async def test_client_gone_while_drawing(self, house: House, comfyui: SimulatedComfyUI):
        """The job is stopped, the lease given back."""
        await house.warm()
        comfyui.plan(HangJob())
        body = {"image_base64": PNG}
        await hang_up(house, "/api/v1/fantasy/generate", body, lambda: comfyui.jobs.running is not None)
        await comfyui.until(lambda: comfyui.jobs.running is None)
        await house.until(lambda: house.in_flight == 0)

    async def test_pod_stopped_while_drawing(self, house: House, comfyui: SimulatedComfyUI):
        """The story is there already, so it arrives."""
        await house.warm()
        comfyui.plan(HangJob())
        ask = asyncio.ensure_future(post(house, "/api/v1/fantasy/generate", image_base64=PNG))
        await house.until(lambda: comfyui.jobs.running is not None)
        await house.stop(force=True)
        data = (await ask).json["data"]
        assert (TOLD.strip(), "IMAGE_GEN_FAILED") == (data["story"], data["warnings"][0]["code"])

    async def test_large_picture(self, tmp_path, comfyui: SimulatedComfyUI):
        """Of some MiB: taken, and seen whole."""
        big = draw("large", 3, 2000, 1500)
        async with SimulatedOllama(reply=words()) as ollama, open_house(tmp_path, ollama) as house:
            answer = await post(
                house,
                "/api/v1/fantasy/generate",
                image_base64=base64.b64encode(big + bytes(500_000)).decode(),
                include_image=False,
            )
        assert 200 == answer.status

    @pytest.mark.parametrize(
        ("field", "body"),
        [
            ("image_base64", {"prompt": "x"}),
            ("image_base64", {"image_base64": 5}),
            ("include_image", {"image_base64": PNG, "include_image": 1}),
            ("prompt", {"image_base64": PNG, "prompt": {}}),
        ],
    )
    async def test_wrong_field(self, house: House, field, body):
        """400, naming it; nothing wakes."""
        answer = await post(house, "/api/v1/fantasy/generate", **body)
        assert (400, True) == (answer.status, answer.json["error"]["message"].startswith(field))
        assert 0 == house.cloud.starts


async def run(house: House, token: str, *command: str) -> tuple[int | None, bytes, bytes]:
    """Exit status, output and complaints of an example."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "GPUGATE_URL": house.url, "GPUGATE_TOKEN": token},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaints = await process.communicate()
    return process.returncode, said, complaints


class TestExamples:
    @pytest.mark.parametrize("command", ["story.py x", "image.sh {out}", "story.sh"])
    async def test_refused(self, house: House, tmp_path, command):
        """Ends in failure, with the gateway's line, and writes no file."""
        name, *arguments = command.format(out=tmp_path / "out.png").split()
        if name.endswith(".sh") and shutil.which("curl") is None:
            pytest.skip("there is no curl")
        start = sys.executable if name.endswith(".py") else "sh"
        code, said, complaints = await run(house, "none", start, str(EXAMPLES / name), *arguments)
        assert code
        assert b"token is missing or malformed" in said + complaints
        assert b"Traceback" not in complaints
        assert not (tmp_path / "out.png").exists()

    @pytest.mark.parametrize("name", ["assist.py", "story.py", "image.py", "fantasy.py", "image.sh"])
    async def test_without_arguments(self, house: House, name):
        """Says how it wants to be called."""
        start = sys.executable if name.endswith(".py") else "sh"
        code, _, complaints = await run(house, "none", start, str(EXAMPLES / name))
        assert code
        assert name.encode() in complaints
        assert b"Traceback" not in complaints

    @pytest.fixture
    def picture(self, tmp_path) -> str:
        """A file to begin with."""
        (tmp_path / "in.png").write_bytes(base64.b64decode(PNG))
        (tmp_path / "x.py").write_text("x = 1")
        return str(tmp_path / "in.png")

    @pytest.mark.parametrize(
        ("command", "says", "draws"),
        [
            ("assist.py {tmp}/x.py why?", TOLD, False),
            ("story.py dragon", TOLD.strip(), False),
            ("image.py castle {out}", "seed", True),
            ("fantasy.py {tmp}/in.png {out}", TOLD.strip(), True),
            ("assist.sh", '"done":true', False),
            ("story.sh", "event: done", False),
            ("image.sh {out}", "", True),
            ("fantasy.sh {tmp}/in.png", '"image_base64":"', False),
        ],
    )
    async def test_runs(self, house: House, tmp_path, picture, command, says, draws):
        """As its README says, and brings what it promises."""
        out = tmp_path / "out.png"
        name, *arguments = command.format(tmp=tmp_path, out=out).split()
        if name.endswith(".sh") and shutil.which("curl") is None:
            pytest.skip("there is no curl")
        start = [sys.executable] if name.endswith(".py") else ["sh"]
        token = house.auth["Authorization"].partition(" ")[2]
        code, said, complaints = await run(house, token, *start, str(EXAMPLES / name), *arguments)
        assert 0 == code, complaints
        assert says in said.decode()
        if draws:
            assert "PNG" == read_image(out.read_bytes()).kind


async def test_the_ledger_names_who_had_it_done(house: House) -> None:
    """A token's subject, with the seconds of each service, and of whoever had the pod started."""
    for path, body in SERVICES.items():
        answer = await house.ask("POST", path, json=body, headers=bearer(sub=f"who asked {path}"))
        assert 200 == answer.status, answer.body
    await house.stop()
    await house.off()

    (row,) = (await house.ask("GET", "/api/v1/cost/sessions")).json["data"]["sessions"]
    assert (f"who asked {next(iter(SERVICES))}", "request") == (row["started_by"], row["start_reason"])
    lines = (await house.ask("GET", f"/api/v1/cost/receipt?id={row['id']}")).json["data"]["lines"]
    took_s = {line["user"]: line["seconds"] for line in lines}
    assert {f"who asked {path}" for path in SERVICES} == {user for user in took_s if user.startswith("who")}
    assert all(took_s[f"who asked {path}"] > 0 for path in SERVICES)
