"""`pod.pull`: what the pod lacks is pulled before it serves, over real sockets."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from gpugate_demo.faults import ErrorLine, HangAfter
from gpugate_demo.ollama import SimulatedOllama
from gpugate_testing.fakes import FakeCloud

from gpugate.lifecycle import model_pull
from tests.e2e.support import MODEL, SOON, House, open_house, words

NEW = "mistral"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull that fails is tried again at once."""
    monkeypatch.setattr(model_pull, "PAUSE_S", 0.0)


def pulls(ollama: SimulatedOllama) -> list[str]:
    """The models whose pull was asked for."""
    return [json.loads(seen.body)["model"] for seen in ollama.seen if seen.path == "/api/pull"]


async def events_of(house: House) -> list[tuple[str, Any]]:
    """The events so far: kind and data."""
    found = []
    async with house.call("GET", "/api/v1/gpu/events?replay=500") as stream:
        async with asyncio.timeout(SOON):
            async for line in stream.content:
                if line.startswith(b"event: "):
                    kind = line[7:].decode().strip()
                elif line.startswith(b"data: "):
                    found.append((kind, json.loads(line[6:])))
                    if kind == "state" and "was" not in found[-1][1]:
                        return found
    return found


async def test_a_model_is_pulled_before_the_pod_serves(tmp_path: Path) -> None:
    """Only what is missing; the request for it waits, and is answered by it."""
    async with (
        SimulatedOllama(reply=words()) as ollama,
        open_house(tmp_path, ollama, pod__pull=(MODEL, NEW)) as house,
    ):
        assert NEW in json.dumps((await house.ask("GET", "/api/tags")).json)
        answer = await house.chat(model=NEW)
        assert 200 == answer.status
        assert [NEW] == pulls(ollama)
        told = [data for kind, data in await events_of(house) if kind == "pull"]
        assert (None, True) == (told[0]["percent"], told[0]["goes_on"])
        assert {"mistral"} == {data["model"] for data in told}
        assert (100, False) == (told[-1]["percent"], told[-1]["goes_on"])
        status = await house.status()
        assert ("READY", None) == (status["status"], status["last_error"])
        assert "pulling" not in status


async def test_the_status_says_how_far_it_is(tmp_path: Path) -> None:
    """The pod is WARMING, and `pulling` names the model."""
    go_on = asyncio.Event()
    async with SimulatedOllama() as ollama, open_house(tmp_path, ollama, pod__pull=(NEW,)) as house:
        ollama.faults.add("/api/pull", HangAfter(3, until=go_on))
        waits = asyncio.ensure_future(house.chat(model=NEW))
        async with asyncio.timeout(SOON):
            while not ((status := await house.status()).get("pulling") or {}).get("percent"):
                await asyncio.sleep(0.01)
        assert "WARMING" == status["status"]
        pulling = status["pulling"]
        assert (NEW, True) == (pulling["model"], pulling["percent"] in (24, 25))
        assert pulling["completed_bytes"] == pytest.approx(pulling["total_bytes"] / 4, abs=1)
        go_on.set()
        assert 200 == (await waits).status


async def test_the_requested_model_does_not_exist(tmp_path: Path) -> None:
    """503 with the reason; the pod is stopped, and nobody has paid for a second try."""
    cloud = FakeCloud()
    async with (
        SimulatedOllama(unpullable=["ghost"]) as ollama,
        open_house(tmp_path, ollama, cloud, pod__pull=("ghost",)) as house,
    ):
        answer = await house.chat(model="ghost")
        assert 503 == answer.status
        assert "the registry has no such model" in answer.json["error"]
        assert ("POD_START_FAILED", "model") == (answer.json["code"], answer.json["reason"])
        await house.off()
        assert 1 == cloud.starts


async def test_another_model_cannot_be_pulled(tmp_path: Path) -> None:
    """It is told, and the pod serves."""
    async with (
        SimulatedOllama(reply=words()) as ollama,
        open_house(tmp_path, ollama, pod__pull=("big", MODEL)) as house,
    ):
        ollama.faults.add("/api/pull", ErrorLine(2, "write /x: no space left on device"))
        assert 200 == (await house.chat()).status
        told = "fake: big could not be pulled: the pod's disk is full"
        assert told == (await house.status())["last_error"]
        problems = [data for kind, data in await events_of(house) if kind == "provider_error"]
        assert [("model", "big could not be pulled: the pod's disk is full")] == [
            (data["reason"], data["message"]) for data in problems
        ]


async def test_a_lost_pod_goes_on_with_its_pull(tmp_path: Path) -> None:
    """The start begins anew, and Ollama goes on where it was."""
    go_on = asyncio.Event()
    cloud = FakeCloud()
    async with SimulatedOllama() as ollama, open_house(tmp_path, ollama, cloud, pod__pull=(NEW,)) as house:
        ollama.faults.add("/api/pull", HangAfter(3, until=go_on))
        waits = asyncio.ensure_future(house.chat(model=NEW))
        await house.until(lambda: bool(pulls(ollama)))
        cloud.turn_off(at_once=True)
        assert 200 == (await waits).status
        assert [NEW, NEW] == pulls(ollama)
        assert 2 == cloud.starts


async def test_a_model_of_pod_pull_is_never_refused(tmp_path: Path) -> None:
    """The remembered list lacks it, and it wakes the pod all the same; another one does not."""
    async with SimulatedOllama() as ollama:
        async with open_house(tmp_path, ollama) as house:
            await house.warm()
            await house.learned()
        async with open_house(tmp_path, ollama, pod__pull=(NEW,)) as house:
            await house.off()
            assert 404 == (await house.chat(model="other")).status
            assert [] == pulls(ollama)
            assert 200 == (await house.ask("POST", "/api/show", json={"model": NEW})).status
            assert 200 == (await house.chat(model=NEW)).status
