"""gpugate/ollama/catalog_refresher.py: what is asked of a pod that serves, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from attrs import define, field

from gpugate.core.events import Cause
from gpugate.core.states import StateName, Status
from gpugate.errors import ModelNotFound
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.status import StateChanged
from gpugate.ollama.catalog_cache import MAX_SHOWS
from gpugate.ollama.catalog_refresher import LIST_LIMIT_S, MOST_TRIES, CatalogRefresher
from gpugate.ollama.routes import match_route
from gpugate.ollama.validation import scan_body
from gpugate.provider_api import Endpoint

INTERVAL_S = 30.0
LISTS = ["/api/tags", "/v1/models"]
ALL = ["/api/version", "/api/status", *LISTS]


@define
class Pod:
    """A pod's Ollama: its models by name with their digests, and what it was asked.

    Attributes:
        silent: these models have no `show`.
    """

    models: dict[str, str] = field(factory=lambda: {"llava:latest": "1", "a:1b": "1"})
    asked: list[str] = field(factory=list)
    silent: set[str] = field(factory=set)
    serving: ServingPod | None = None
    takes_s: float = 0.0

    async def fetch(self, endpoint: Endpoint, path: str, body: bytes | None) -> bytes | None:
        model = orjson.loads(body)["model"] if body is not None else ""
        self.asked.append(f"{path} {model}".strip())
        await asyncio.sleep(self.takes_s)
        if path == "/api/show":
            return None if model in self.silent else orjson.dumps({"shown": model + self.models[model]})
        models = [{"name": name, "digest": digest} for name, digest in self.models.items()]
        answers: dict[str, object] = {
            "/api/version": {"version": "0.33.1"},
            "/api/status": {"cloud": {}},
            "/api/tags": {"models": models},
            "/v1/models": {"data": [{"id": name} for name in self.models]},
        }
        return orjson.dumps(answers[path])

    def told(self) -> list[str]:
        """What was asked since the last look."""
        asked, self.asked = self.asked, []
        return asked


@pytest.fixture
def pod() -> Pod:
    return Pod()


@pytest.fixture
async def refresher(in_virtual_time: None, pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    async def inline(work: Callable[..., Any], *given: Any) -> Any:
        return work(*given)

    monkeypatch.setattr(asyncio, "to_thread", inline)
    refresher = CatalogRefresher(
        "remembered",
        (),
        tmp_path / "catalog.json",
        named=["named"],
        pods={"one": "one:a", "two": "two:b"},
        fetch=pod.fetch,
        serving=lambda: pod.serving,
        interval_s=INTERVAL_S,
        warn=lambda _: None,
    )
    yield refresher
    await refresher.aclose()
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("catalog")] == []


def changed(refresher: CatalogRefresher, status: Status) -> None:
    refresher.on_event(
        StateChanged(
            was=StateName.WARMING,
            now=StateName.READY,
            was_status=Status.WARMING,
            status=status,
            cause=Cause.PROBE_FINISHED,
            run_id=1,
            provider="one",
            at=datetime(2026, 1, 1, tzinfo=UTC),
        )
    )


async def serve(refresher: CatalogRefresher, pod: Pod, provider: str = "one") -> None:
    pod.serving = ServingPod(1, provider, {"ollama": Endpoint("http://pod")})
    changed(refresher, Status.READY)
    await asyncio.sleep(1)


async def end(refresher: CatalogRefresher, pod: Pod) -> None:
    pod.serving = None
    changed(refresher, Status.STOPPING)
    await asyncio.sleep(0)


def shown(refresher: CatalogRefresher, model: str) -> object:
    """The `show` of a model as a client gets it while the pod is off."""
    body = orjson.dumps({"model": model})
    fields = scan_body(match_route("POST", "/api/show"), {}, body)
    answer = refresher.catalog.answer("POST", "/api/show", fields)
    assert answer is not None
    return orjson.loads(answer.body).get("shown")


async def test_another_engine(refresher: CatalogRefresher, pod: Pod, tmp_path: Path) -> None:
    """Of an engine without /api only /v1/models is asked for, when it is ready and from then on."""
    refresher = CatalogRefresher(
        "empty",
        (),
        tmp_path / "catalog.json",
        named=[],
        pods={"one": "one:a"},
        fetch=pod.fetch,
        serving=lambda: pod.serving,
        interval_s=INTERVAL_S,
        warn=lambda _: None,
        speaks_ollama=False,
    )
    await serve(refresher, pod)
    await asyncio.sleep(INTERVAL_S / 2)
    await end(refresher, pod)
    assert ["/v1/models"] * 2 == pod.told()
    await refresher.aclose()


async def test_a_pod_that_becomes_ready(refresher: CatalogRefresher, pod: Pod) -> None:
    """Lists, version and status are asked for, then the `show` of each model; the first listed one last."""
    await serve(refresher, pod)
    assert pod.told() == [*ALL, "/api/show a:1b", "/api/show llava:latest"]
    assert (shown(refresher, "LLaVA"), shown(refresher, "a:1b")) == ("llava:latest1", "a:1b1")


async def test_nothing_changes(refresher: CatalogRefresher, pod: Pod) -> None:
    """The lists alone are asked for again, twice in each interval."""
    await serve(refresher, pod)
    pod.told()
    await asyncio.sleep(INTERVAL_S)
    assert pod.told() == LISTS * 2


async def test_changes_inside_the_pod(refresher: CatalogRefresher, pod: Pod) -> None:
    """A model that is new, one that is another and one that is gone are known within one interval."""
    await serve(refresher, pod)
    pod.models = {"llava:latest": "2", "new:1b": "1"}
    pod.told()
    await asyncio.sleep(INTERVAL_S / 2)
    assert pod.told() == [*LISTS, "/api/show new:1b", "/api/show llava:latest"]
    await end(refresher, pod)
    assert (shown(refresher, "llava"), shown(refresher, "new:1b")) == ("llava:latest2", "new:1b1")
    with pytest.raises(ModelNotFound):
        shown(refresher, "a:1b")


async def test_a_change_through_the_gateway(refresher: CatalogRefresher, pod: Pod) -> None:
    """It is learned at once."""
    await serve(refresher, pod)
    pod.models["pulled:1b"] = "1"
    pod.told()
    refresher.catalog.invalidate("pulled:1b")
    await asyncio.sleep(0.1)
    assert pod.told() == [*LISTS, "/api/show pulled:1b"]


async def test_a_show_that_fails(refresher: CatalogRefresher, pod: Pod) -> None:
    """It is asked for a few times, and keeps the others from nothing."""
    pod.silent = {"a:1b"}
    await serve(refresher, pod)
    await asyncio.sleep(10 * INTERVAL_S)
    assert pod.asked.count("/api/show a:1b") == MOST_TRIES
    assert shown(refresher, "llava") == "llava:latest1"
    pod.silent.clear()
    pod.models["a:1b"] = "2"
    await asyncio.sleep(INTERVAL_S)
    assert shown(refresher, "a:1b") == "a:1b2"


async def test_many_models(refresher: CatalogRefresher, pod: Pod) -> None:
    """As many as are kept are asked for."""
    pod.models = {f"m{number}:1b": "1" for number in range(MAX_SHOWS + 20)}
    await serve(refresher, pod)
    assert sum(path.startswith("/api/show") for path in pod.asked) == MAX_SHOWS


async def test_a_pod_that_ends_meanwhile(refresher: CatalogRefresher, pod: Pod) -> None:
    """What is under way is given up; nothing is asked of a pod that is off."""
    pod.takes_s = 5.0
    await serve(refresher, pod)
    await end(refresher, pod)
    await asyncio.sleep(10 * INTERVAL_S)
    assert pod.told() == ALL[:1]


async def test_a_pod_that_is_ready_again(refresher: CatalogRefresher, pod: Pod) -> None:
    """All is learned again: it may be another machine."""
    await serve(refresher, pod)
    await end(refresher, pod)
    pod.told()
    await serve(refresher, pod)
    assert pod.told() == [*ALL, "/api/show a:1b", "/api/show llava:latest"]


async def test_a_pod_at_another_address(refresher: CatalogRefresher, pod: Pod) -> None:
    """While READY it may restart with other ports: it is asked there, and all is learned again."""
    await serve(refresher, pod)
    pod.told()
    pod.serving = ServingPod(1, "one", {"ollama": Endpoint("http://moved")})
    await asyncio.sleep(INTERVAL_S / 2)
    assert pod.told() == [*ALL, "/api/show a:1b", "/api/show llava:latest"]


async def test_a_model_that_the_pod_lacks(refresher: CatalogRefresher, pod: Pod) -> None:
    """It is refused while the pod is off, and only then: one that serves answers for itself."""
    refresher.require("nothing")
    await serve(refresher, pod)
    refresher.require("nothing")
    await end(refresher, pod)
    for model in ("llava", "A:1B", None):
        refresher.require(model)
    with pytest.raises(ModelNotFound, match="model 'nothing' not found"):
        refresher.require("nothing")


async def test_a_model_that_the_second_provider_lacks(refresher: CatalogRefresher, pod: Pod) -> None:
    """The next start tries the first one, which may have it."""
    await serve(refresher, pod, "two")
    await end(refresher, pod)
    refresher.require("nothing")


async def test_a_list_of_a_pod_that_hangs(refresher: CatalogRefresher, pod: Pod) -> None:
    """It is waited for once; the next lists are the remembered ones, until it has answered again."""
    loop = asyncio.get_running_loop()
    await serve(refresher, pod)
    await asyncio.sleep(1)
    pod.takes_s = 10 * LIST_LIMIT_S
    pod.models["new:1b"] = "1"

    async def listed() -> tuple[bool, float]:
        began = loop.time()
        body = await refresher.current_list("tags")
        return b"new:1b" in body, loop.time() - began

    assert (False, LIST_LIMIT_S) == await listed()
    assert [(False, 0.0), (False, 0.0)] == [await listed(), await listed()]
    pod.takes_s = 0.0
    await asyncio.sleep(20 * LIST_LIMIT_S)
    pod.takes_s = 1.0
    assert (True, 1.0) == await listed()
