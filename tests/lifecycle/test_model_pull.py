"""A model that the pod pulls: Ollama's progress lines, its errors, and what is said of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from attrs import define, field
from gpugate_demo.faults import Answer, BreakAfter, CleanEndAfter, CloseBeforeHead, ErrorLine, HangAfter
from gpugate_demo.ollama import SimulatedOllama
from gpugate_demo.store import guessed

from gpugate.lifecycle import model_pull, pod_calls
from gpugate.lifecycle.model_pull import PullFailure
from gpugate.lifecycle.pod_calls import OllamaPodClient
from gpugate.provider_api import Endpoint

PULL = "/api/pull"


@define
class Scene:
    """A pod, and what was reported of its pull."""

    ollama: SimulatedOllama
    pod: OllamaPodClient
    reports: list[tuple[int, int]] = field(factory=list)

    async def pull(self, model: str = "mistral") -> PullFailure | None:
        """Have it pull a model."""
        report = lambda *bytes_: self.reports.append(bytes_)  # noqa: E731
        return await self.pod.pull(Endpoint(self.ollama.url), model, report)

    @property
    def asked(self) -> int:
        """How many pulls were asked for."""
        return [seen.path for seen in self.ollama.seen].count(PULL)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """A simulated Ollama that can pull anything but "ghost"; tries follow without a pause."""
    monkeypatch.setattr(model_pull, "PAUSE_S", 0.0)
    monkeypatch.setattr(pod_calls, "LISTED_PAUSE_S", 0.0)
    async with SimulatedOllama(unpullable=["ghost"]) as ollama, aiohttp.ClientSession() as session:
        yield Scene(ollama, OllamaPodClient(session))


async def test_a_pull(scene: Scene) -> None:
    """The bytes of all layers are added up; at the end the model is there."""
    size = guessed("mistral").size
    assert "mistral:latest" not in await scene.pod.installed(Endpoint(scene.ollama.url))
    assert await scene.pull() is None
    assert (size, size) == scene.reports[-1]
    assert scene.reports == sorted(scene.reports)
    assert {"mistral:latest", "llava:latest"} <= await scene.pod.installed(Endpoint(scene.ollama.url))


async def test_a_model_that_does_not_exist(scene: Scene) -> None:
    """No pod could pull it: said once, tried once."""
    failure = await scene.pull("ghost")
    assert failure is not None
    assert ("the registry has no such model (pull model manifest: file does not exist)", True) == (
        failure.message,
        failure.anywhere,
    )
    assert 1 == scene.asked


async def test_a_name_that_is_none(scene: Scene) -> None:
    """Ollama's own words."""
    assert PullFailure("invalid model name", anywhere=True, again=False) == await scene.pull("a b")
    assert 1 == scene.asked


async def test_a_full_disk(scene: Scene) -> None:
    """Another try has no more room; another pod may."""
    path = "/root/.ollama/models/blobs/sha256-6a-partial"
    scene.ollama.faults.add(PULL, ErrorLine(3, f"write {path}: no space left on device"))
    assert PullFailure("the pod's disk is full", again=False) == await scene.pull()
    assert 1 == scene.asked


async def test_a_registry_that_cannot_be_reached(scene: Scene) -> None:
    """Tried three times; the signed part of an address is not shown."""
    url = "https://registry.example/v2/library/nope/manifests/latest?X-Amz-Signature=0123"
    error = f'pull model manifest: Get "{url}": dial tcp: lookup registry.example: no such host'
    scene.ollama.faults.add(PULL, ErrorLine(1, error), times=None)
    failure = await scene.pull()
    assert failure is not None
    assert failure.message == error.replace("?X-Amz-Signature=0123", "")
    assert model_pull.TRIES == scene.asked


@pytest.mark.parametrize(
    "fault", [BreakAfter(3), CleanEndAfter(3), CloseBeforeHead(), Answer(502), ErrorLine(2, "unexpected EOF")]
)
async def test_a_pull_that_breaks_off_goes_on(scene: Scene, fault: object) -> None:
    """Ollama keeps what it has; nothing is reported twice as new."""
    scene.ollama.faults.add(PULL, fault)  # type: ignore[arg-type]
    assert await scene.pull() is None
    assert 2 == scene.asked
    assert scene.reports == sorted(scene.reports)


async def test_tries_without_a_byte_more_are_counted(scene: Scene) -> None:
    """As long as each brings something it is tried again."""
    for chunks in (2, 3, 4):
        scene.ollama.faults.add(PULL, BreakAfter(chunks))
    assert await scene.pull() is None
    assert 4 == scene.asked


async def test_a_registry_that_stalls(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given up after a while without a byte more, and said how far it was."""
    monkeypatch.setattr(model_pull, "STALLED_S", 0.05)
    scene.ollama.faults.add(PULL, HangAfter(2), times=None)
    failure = await scene.pull()
    assert failure is not None
    assert failure.message.startswith("no progress for 0.05 s at ")
    assert failure.message.endswith(" %: the registry is slow or away")


async def test_lines_without_progress_are_a_stall(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ollama repeats its last line while it waits for the registry."""
    monkeypatch.setattr(model_pull, "STALLED_S", 0.05)
    stalled = asyncio.StreamReader()
    pull = model_pull.ModelPull(lambda: None, lambda *_: None)  # type: ignore[arg-type, return-value]
    pull._moved_at = asyncio.get_running_loop().time()

    async def repeat() -> None:
        while True:
            stalled.feed_data(b'{"status":"pulling 6a","digest":"sha256:6a","total":9,"completed":4}\n')
            await asyncio.sleep(0.005)

    repeating = asyncio.ensure_future(repeat())
    with pytest.raises(TimeoutError):
        await pull._follow(stalled)
    repeating.cancel()


async def test_the_silence_of_a_check_is_no_stall(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of 40 GB takes minutes, and Ollama says nothing meanwhile."""
    monkeypatch.setattr(model_pull, "STALLED_S", 0.05)
    pull = model_pull.ModelPull(lambda: None, lambda *_: None)  # type: ignore[arg-type, return-value]
    pull._moved_at = asyncio.get_running_loop().time()
    answer = asyncio.StreamReader()
    answer.feed_data(b'{"status":"verifying sha256 digest"}\n')
    asyncio.get_running_loop().call_later(0.15, answer.feed_data, b'{"status":"success"}\n')
    assert await pull._follow(answer) is None


async def test_a_list_that_cannot_be_read(scene: Scene) -> None:
    """Nothing is known to be there; a list that comes late is waited for."""
    scene.ollama.faults.add("/api/tags", Answer(500), times=2)
    assert "llava:latest" in await scene.pod.installed(Endpoint(scene.ollama.url))
    scene.ollama.faults.add("/api/tags", Answer(200, b"[]"), times=1)
    assert frozenset() == await scene.pod.installed(Endpoint(scene.ollama.url))
