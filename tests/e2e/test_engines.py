"""`pod.engine = "openai"`: engines that have no API of Ollama's, each with its own manners."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from attrs import define, field
from gpugate_demo.ollama import SimulatedOllama
from gpugate_testing.fakes import FakeCloud
from openai import AsyncOpenAI

from gpugate.app import build
from gpugate.config import load_settings
from gpugate.ollama.catalog_refresher import CatalogRefresher
from gpugate.provider_api import Endpoint, PodReport
from gpugate.proxy import heartbeat
from tests.e2e.engines import BEARER, ENGINES, KEY, Engine, llama_cpp, loaded_after, vllm
from tests.e2e.support import MODEL, QUICK, House, bearer, part_of, provider_of, token

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
NO_MODELS = {"models": []}


@define
class KeyedCloud(FakeCloud):
    """A cloud whose provider has `headers`."""

    headers: dict[str, str] = field(factory=lambda: dict(BEARER))

    def report(self) -> PodReport:
        """With the headers at each endpoint."""
        report = FakeCloud.report(self)
        endpoints = {name: Endpoint(one.url, self.headers) for name, one in report.endpoints.items()}
        return PodReport(report.phase, pod_id=report.pod_id, endpoints=endpoints, price=report.price)


@pytest.fixture(params=ENGINES)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """Each of the engines."""
    async with ENGINES[request.param]().serve() as engine:
        yield engine


@pytest.fixture
async def llama() -> AsyncIterator[Engine]:
    """The one that says most of what Ollama says."""
    async with llama_cpp().serve() as engine:
        yield engine


@pytest.fixture
def cloud(request: pytest.FixtureRequest) -> FakeCloud:
    """A cloud whose pod runs the engine, and knows its key."""
    name = "llama" if "llama" in request.fixturenames else "engine"
    return KeyedCloud(boot_s=0.05, url=request.getfixturevalue(name).url)


@pytest.fixture
async def house(opened, cloud) -> House:
    """A gateway in front of it; the pod is off."""
    house = await opened(pod__engine="openai", pod__extra_paths=["/tokenize", "/slots", "/props*"])
    await house.off()
    return house


async def test_a_cold_chat(house: House, engine: Engine):
    """Held until the engine is healthy; nothing but its health, its list and the chat is asked of it."""
    loading = asyncio.ensure_future(loaded_after(engine, 0.3))
    answer = await house.ask("POST", CHAT, json={"model": engine.model, "messages": HI, "stream": True})
    await loading
    assert (200, engine.stream, True) == (answer.status, answer.body, answer.whole)
    assert [f"POST {CHAT}"] == engine.calls
    assert BEARER in engine.keys
    assert token()[:20] not in json.dumps(engine.keys)
    assert 1 == house.cloud.starts


async def test_the_openai_library(house: House, engine: Engine):
    """It works as with the engine itself, whose lists are its own bytes, also when it is off again."""
    async with AsyncOpenAI(base_url=house.url + "/v1", api_key=token(), max_retries=0) as client:
        assert [] == (await client.models.list()).data
        answer = await client.chat.completions.create(model=engine.model, messages=HI)
        assert "Hi" == answer.choices[0].message.content
        assert [engine.model] == [model.id for model in (await client.models.list()).data]
        live = await house.ask("GET", "/v1/models")
        assert b"owned_by" in live.body
        await house.until(lambda: part_of(house.gateway, CatalogRefresher).catalog._answers != {})
        await house.stop()
        assert live.body == (await house.ask("GET", "/v1/models")).body


@pytest.mark.parametrize("warm", [False, True])
async def test_no_api_of_ollamas(house: House, llama: Engine, warm):
    """404 in Ollama's shape; it wakes nothing and reaches no engine, even one that has such paths."""
    if warm:
        await house.warm()
    for path in ("chat", "generate", "embed", "show", "pull", "delete", "push", "blobs/sha256:ab", "me"):
        method = "DELETE" if path == "delete" else "POST"
        answer = await house.ask(method, f"/api/{path}", json={"model": llama.model, "messages": HI})
        assert 404 == answer.status, path
        assert isinstance(answer.json["error"], str)
    unload = {"model": llama.model, "messages": [], "keep_alive": 0}
    assert 404 == (await house.ask("POST", "/api/chat", json=unload)).status
    assert NO_MODELS == (await house.ask("GET", "/api/tags")).json
    assert NO_MODELS == (await house.ask("GET", "/api/ps")).json
    assert "version" in (await house.ask("GET", "/api/version")).json
    assert 404 == (await house.ask("POST", "/api/v1/chat", json={"model": "x", "messages": HI})).status
    assert 404 == (await house.ask("POST", "/api/v1/code/assist", json={"code": "x", "question": "y"})).status
    assert [] == llama.calls
    assert warm == house.cloud.starts


@pytest.mark.parametrize("path", ["/v1/rerank", "/tokenize", "/tokenize?x=1", "/v1/chat/completions"])
async def test_a_post_wakes(house: House, llama: Engine, path):
    """Under /v1 and at the extra paths, whether it names a model or not."""
    answer = await house.ask("POST", path, json={"messages": HI})
    assert (200, 1) == (answer.status, house.cloud.starts)


@pytest.mark.parametrize("path", ["/v1/lora", "/slots", "/props/x"])
async def test_a_get_does_not(house: House, llama: Engine, path):
    """503 while it is off, the engine's own answer while it serves."""
    answer = await house.ask("GET", path)
    assert (503, "POD_STOPPED") == (answer.status, answer.headers["X-Gpugate-Code"])
    await house.warm()
    assert ("/props" not in path) == ((await house.ask("GET", path)).status == 200)
    assert f"GET {path}" in llama.calls


@pytest.mark.parametrize(("method", "path"), [("POST", "/infill"), ("GET", "/props-not"), ("GET", "/health")])
async def test_no_extra_path(opened, cloud, llama: Engine, method, path):
    """404 in the envelope, cold and warm."""
    house = await opened(pod__engine="openai", pod__extra_paths=["/tokenize"])
    answers = [await house.ask(method, path)]
    await house.warm()
    answers.append(await house.ask(method, path))
    assert [404, 404] == [answer.status for answer in answers]
    assert [] == llama.calls


@pytest.mark.parametrize("body", [b"{", b"[]", b"7"])
async def test_no_json(house: House, llama: Engine, body):
    """Refused before it wakes: no engine would take it."""
    answer = await house.ask("POST", CHAT, data=body)
    assert (400, 0) == (answer.status, house.cloud.starts)
    assert "invalid_request_error" == answer.json["error"]["type"]


async def test_the_engines_own_words(house: House, cloud: KeyedCloud, engine: Engine):
    """A wrong key and an unknown model: the answer of the engine, unchanged."""
    cloud.headers = {"X-Api-Key": "wrong"}
    refused = await house.ask("POST", CHAT, json={"model": engine.model, "messages": HI})
    assert (401, engine.no_key) == (refused.status, refused.json)
    await house.stop()
    cloud.headers = {"X-Api-Key": KEY}
    other = await house.ask("POST", CHAT, json={"model": "x", "messages": HI})
    assert (200 if engine.unknown is None else 404) == other.status
    assert engine.unknown in (None, other.json)


async def test_progress_lines(opened, cloud, llama: Engine, monkeypatch: pytest.MonkeyPatch):
    """In front of any engine's answer."""
    monkeypatch.setattr(heartbeat, "LOOK_EVERY_S", 0.02)
    cloud.boot_s = 0.2
    house = await opened(pod__engine="openai", queue__progress="thinking")
    answer = await house.ask("POST", CHAT, json={"model": llama.model, "messages": HI, "stream": True})
    assert b"Starting a pod at fake" in answer.body
    assert answer.body.endswith(llama.stream)


@define
class Pair:
    """A gateway in front of an Ollama, the first pod, and of vLLM, and what was started."""

    engine: Engine
    clouds: Mapping[str, FakeCloud]
    url: str
    http: aiohttp.ClientSession

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """Status and JSON of an answer; of NDJSON the last line."""
        headers = {**bearer(), **more.pop("headers", {})}
        async with self.http.request(method, self.url + path, headers=headers, **more) as response:
            lines = (await response.read()).splitlines()
            return response.status, json.loads(lines[-1]) if lines else None

    @property
    def started(self) -> list[str]:
        """The pods that were ever asked to start."""
        return [name for name, cloud in self.clouds.items() if cloud.starts]


@pytest.fixture
async def pair(tmp_path, ollama, monkeypatch) -> AsyncIterator[Pair]:
    """Both are off; only patterns tell which one a model is for."""
    monkeypatch.setenv("GPUGATE_STATE_DIR", os.environ.get("GPUGATE_STATE_DIR", ""))
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(vllm().serve())
        clouds = {
            "home": FakeCloud(boot_s=0.05, url=ollama.url),
            "fast": KeyedCloud(boot_s=0.05, url=engine.url),
        }
        kinds = {f"cloud-{name}": provider_of(cloud) for name, cloud in clouds.items()}
        overrides = {
            **{key: value for key, value in QUICK.items() if key != "pod.provider"},
            "state.dir": str(tmp_path),
            **{f"pods.{name}.provider": f"cloud-{name}" for name in clouds},
            "pods.fast.engine": "openai",
            "pods.fast.models": ["Qwen/*"],
            "pods.fast.extra_paths": ["/tokenize"],
        }
        settings = load_settings(None, {}, overrides=overrides, complete=False)
        gateway = await build(settings, find=kinds.__getitem__)
        await gateway.open()
        stack.push_async_callback(gateway.close)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)))
        yield Pair(engine, clouds, f"http://127.0.0.1:{gateway.port}", http)


class TestBesideOllama:
    async def test_each_model_at_its_own(self, pair: Pair):
        """By /v1 both are reached, by /api Ollama alone."""
        qwen = {"model": pair.engine.model, "messages": HI}
        assert 404 == (await pair.ask("POST", "/api/chat", json=qwen))[0]
        assert [] == pair.started
        assert 200 == (await pair.ask("POST", CHAT, json=qwen))[0]
        assert ["fast"] == pair.started
        assert 200 == (await pair.ask("POST", CHAT, json={"model": MODEL, "messages": HI}))[0]
        assert ["home", "fast"] == pair.started
        assert pair.engine.calls == [f"POST {CHAT}"]

    async def test_an_extra_path(self, pair: Pair):
        """Without a model it goes to the pod that has it; a model of the other pod has no such path."""
        assert 404 == (await pair.ask("POST", "/tokenize", headers={"X-Gpugate-Pod": "home"}))[0]
        assert [] == pair.started
        assert (200, {"path": "/tokenize"}) == await pair.ask("POST", "/tokenize", json={"prompt": "x"})
        assert ["fast"] == pair.started

    async def test_lists(self, pair: Pair, ollama: SimulatedOllama):
        """Ollama's models alone are in Ollama's lists, and its version is told."""
        for body in ({"model": pair.engine.model, "messages": HI}, {"model": MODEL, "messages": HI}):
            assert 200 == (await pair.ask("POST", CHAT, json=body))[0]
        tags = [model["name"] for model in (await pair.ask("GET", "/api/tags"))[1]["models"]]
        assert MODEL in tags
        assert pair.engine.model not in tags
        listed = [model["id"] for model in (await pair.ask("GET", "/v1/models"))[1]["data"]]
        assert {MODEL, pair.engine.model} < {*listed}
        assert (await pair.ask("GET", "/api/version"))[1]["version"]
        assert "GET /api/version" not in pair.engine.asked

    async def test_unknown_models(self, pair: Pair):
        """Those of Ollama's API go to the Ollama, whichever comes first."""
        assert 404 == (await pair.ask("POST", "/api/chat", json={"model": "none", "messages": HI}))[0]
        assert "fast" not in pair.started
