"""The gateway's own small calls to the pod: a load through a proxy that gives up, and what models run on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from attrs import define, field

from gpugate.core.commands import LoadOptions
from gpugate.core.request_queue import full_name
from gpugate.lifecycle import pod_calls as adapter
from gpugate.lifecycle.pod_calls import OllamaPodClient
from gpugate.provider_api import Endpoint

GAVE_UP = 524


def loaded(*names: str, size_vram: object = 7) -> dict[str, Any]:
    """An answer of /api/ps."""
    return {"models": [{"name": name, "size": 7, "size_vram": size_vram} for name in names]}


@define
class Script:
    """A pod whose answers are written down; the last of each kind is repeated."""

    loads: list[int] = field(factory=lambda: [200])
    lists: list[object] = field(factory=lambda: [{"models": []}])
    asked: list[tuple[str, Any]] = field(factory=list)
    looks: int = 0

    async def load(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, await request.json()))
        status = self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]
        return web.Response(status=status, text="<html>" if status != 200 else "{}")

    async def ps(self, request: web.Request) -> web.Response:
        self.looks += 1
        answer = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        return answer if isinstance(answer, web.Response) else web.json_response(answer)


@define
class Scene:
    """The pod, and where it is."""

    script: Script
    pod: OllamaPodClient
    endpoint: Endpoint

    async def preload(self, model: str = "llava", *, embeds: bool = False, **fields: object) -> str | None:
        """Have a model loaded, as a request with these fields wants it."""
        return await self.pod.preload(self.endpoint, model, LoadOptions(embeds, fields))


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """A pod whose list is looked at every 10 ms."""
    monkeypatch.setattr(adapter, "LISTED_PAUSE_S", 0.01)
    script = Script()
    app = web.Application()
    app.router.add_post("/api/generate", script.load)
    app.router.add_post("/api/embed", script.load)
    app.router.add_get("/api/ps", script.ps)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        yield Scene(script, OllamaPodClient(session), Endpoint(str(server.make_url("/"))))


async def test_a_load(scene: Scene) -> None:
    """One request without a prompt; nothing else is asked."""
    assert await scene.preload() is None
    assert [("/api/generate", {"model": "llava", "stream": False})] == scene.script.asked
    assert 0 == scene.script.looks


async def test_a_load_of_an_embedding_model(scene: Scene) -> None:
    """Without a text."""
    assert await scene.preload("bge", embeds=True) is None
    assert [("/api/embed", {"model": "bge", "stream": False, "input": []})] == scene.script.asked


@pytest.mark.parametrize("embeds", [False, True])
async def test_a_load_as_a_request_wants_it(scene: Scene, *, embeds: bool) -> None:
    """Its options are asked for; what makes it a load is not overwritten."""
    wish = {"options": {"num_ctx": 8192}, "keep_alive": "1h", "shift": False}
    assert await scene.preload(embeds=embeds, **wish, stream=True) is None
    (asked,) = scene.script.asked
    path, more = ("/api/embed", {"input": []}) if embeds else ("/api/generate", {})
    assert (path, {**wish, "model": "llava", "stream": False, **more}) == asked


async def test_a_model_that_can_only_embed(scene: Scene) -> None:
    """Nobody told: Ollama refuses to load it for text, and it is loaded for embeddings."""
    scene.script.loads = [400, 200]
    assert await scene.preload("bge", keep_alive=60) is None
    assert [
        ("/api/generate", {"model": "bge", "stream": False, "keep_alive": 60}),
        ("/api/embed", {"model": "bge", "stream": False, "keep_alive": 60, "input": []}),
    ] == scene.script.asked


async def test_the_proxy_gives_up(scene: Scene) -> None:
    """524 is no failure: the list is looked at until the model is there, whatever goes wrong meanwhile."""
    scene.script.loads = [GAVE_UP, 500]
    scene.script.lists = [
        {"models": []},
        web.Response(status=502, text="<html>"),
        web.Response(text="<html>"),
        {"models": None},
        [],
        loaded("llava-phi3:latest", "llava:13b"),
        loaded("other:latest", "llava:latest"),
    ]
    assert await scene.preload() is None
    assert 1 == len(scene.script.asked)
    assert 7 == scene.script.looks


async def test_a_load_that_was_dropped(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model shows nowhere: Ollama has dropped the load with its request, so it is asked again."""
    monkeypatch.setattr(adapter, "ASK_AGAIN_S", 0.1)
    scene.script.loads = [GAVE_UP, 200]
    assert await scene.preload() is None
    assert 2 == len(scene.script.asked)


async def test_a_model_that_never_loads(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up in the end."""
    monkeypatch.setattr(adapter, "ASK_AGAIN_S", 0.2)
    monkeypatch.setattr(adapter, "LOAD_LIMIT_S", 1.0)
    scene.script.loads = [GAVE_UP]
    assert "the load of a model answered 524" == await scene.preload()
    assert 2 <= len(scene.script.asked) <= 6


async def test_a_load_that_fails(scene: Scene) -> None:
    """Once is enough."""
    scene.script.loads = [404]
    assert "the load of a model answered 404" == await scene.preload()
    assert 1 == len(scene.script.asked)


@pytest.mark.parametrize(
    ("asked", "listed", "same"),
    [
        ("llava", "llava:latest", True),
        ("LLaVA:13B", "llava:13b", True),
        ("hf.co/user/model", "hf.co/user/model:latest", True),
        ("host:5000/user/model", "host:5000/user/model:latest", True),
        ("llava:13b", "llava:latest", False),
    ],
)
def test_names(asked: str, listed: str, same: bool) -> None:
    """As Ollama compares them: without a tag the latest, in any case."""
    assert same is (full_name(asked) == full_name(listed))


ON_CPU: list[tuple[Callable[[], object], bool]] = [
    (lambda: loaded("llava:latest", size_vram=0), True),
    (lambda: loaded("llava:latest", "bge:latest", size_vram=0), True),
    (lambda: loaded("llava:latest"), False),
    (lambda: {"models": [*loaded("a", size_vram=0)["models"], *loaded("b")["models"]]}, False),
    (lambda: {"models": []}, False),
    (lambda: {"models": [{"name": "llava"}]}, False),
    (lambda: {"models": [7]}, False),
    (list, False),
    (lambda: web.Response(status=502), False),
    (lambda: web.Response(text="<html>"), False),
]


@pytest.mark.parametrize(("answer", "on_cpu"), ON_CPU)
async def test_what_models_run_on(scene: Scene, answer: Callable[[], object], on_cpu: bool) -> None:
    """On the CPU only if something is loaded and nothing of it is in the GPU's memory."""
    scene.script.lists = [answer()]
    assert on_cpu is await scene.pod.on_cpu(scene.endpoint)
