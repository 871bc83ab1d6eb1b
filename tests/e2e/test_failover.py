"""`pod.provider = ["runpod", "vastai"]`: the next one serves the same held request; asserted in money."""

from __future__ import annotations

import asyncio
import json
from math import inf
from pathlib import Path
from typing import Any

import pytest
from gpugate_demo.faults import Answer, Slow
from gpugate_demo.text_generator import fixed
from gpugate_testing.clouds import BalanceZero, Capacity, Fault, Http, LostResponse

from tests.e2e.clouds import COLD_S, DELAYS, FIXED, IDLE_S, MODEL, MODES, RUNNING_COLD_S, SLACK_S, Town, play


def start_of(town: Town) -> str:
    """What RunPod's start is called in this mode."""
    return "start" if town.sections is FIXED else "create"


def near(expected: float, actual: float) -> bool:
    """A bill, give or take a look."""
    return expected - 1 <= actual <= expected + SLACK_S


@MODES
def test_no_capacity_at_the_first(tmp_path: Path, sections: Any) -> None:
    """The held request is served by the second; status, events and the bill say so."""

    async def scenario(town: Town) -> None:
        town.runpod.fail(start_of(town), Capacity(), None)
        assert "vastai" == await town.served_by()
        status = await town.status()
        assert ("READY", "vastai", town.pod("vastai").id) == (
            status["status"],
            status["provider"],
            status["pod_id"],
        )
        assert status["last_error"] is None
        assert 0.4125 == pytest.approx(float(status["hourly_rate"]), abs=0.2)
        await town.proved()
        await town.word("STOPPED")
        assert {"runpod": 0, "vastai": 1} == town.starts
        assert 0 == town.billed["runpod"]
        assert near(RUNNING_COLD_S + IDLE_S + DELAYS.stop_s, town.billed["vastai"])
        assert ("runpod", "capacity") in town.told("provider_error", "provider", "reason")
        assert {"vastai"} == {provider for (provider,) in town.told("session", "provider")}

    play(scenario, tmp_path, sections=sections)


REFUSALS: dict[str, tuple[Fault, str]] = {
    "no funds": (BalanceZero(), "funds"),
    "bad key": (Http(401, {"title": "Unauthorized", "status": 401}), "auth"),
    "blocked": (Http(403, b"error code: 1010"), "blocked"),
    "a wrong request": (Http(422, {"title": "no", "status": 422}), "config"),
    "down": (Http(503, {"title": "down", "status": 503}), "transient"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_any_refusal_at_the_first(tmp_path: Path, kind: str) -> None:
    """Whatever the reason, the second serves, and the first has cost nothing."""
    fault, reason = REFUSALS[kind]

    async def scenario(town: Town) -> None:
        town.runpod.fail("start", fault, None)
        assert "vastai" == await town.served_by()
        assert reason in {told for _, told in town.told("provider_error", "provider", "reason")}
        await town.proved()
        await town.word("STOPPED")
        assert {"runpod": 0, "vastai": 1} == town.starts
        assert 0 == town.billed["runpod"]

    play(scenario, tmp_path)


def test_the_firsts_api_is_down_for_a_while(tmp_path: Path) -> None:
    """The second serves meanwhile; what the first was asked is settled as soon as it can be."""

    async def scenario(town: Town) -> None:
        for operation in ("get", "start", "stop"):
            town.runpod.fail(operation, Http(503), None)
        assert "vastai" == await town.served_by()
        assert "runpod" in str((await town.status())["last_error"])
        await asyncio.sleep(60)
        town.runpod.faults.heal()
        await town.proved()
        assert {"runpod": 0, "vastai": 1} == town.starts
        assert 0 == town.billed["runpod"]

    play(scenario, tmp_path)


def test_the_firsts_start_worked_and_nobody_heard_of_it(tmp_path: Path) -> None:
    """The answer is lost and the API falls silent: its pod is found and stopped, the second serves."""

    async def scenario(town: Town) -> None:
        town.runpod.fail("start", LostResponse())
        for operation in ("get", "start", "stop"):
            town.runpod.fail(operation, Http(503), None)
        assert "vastai" == await town.served_by()
        assert ["runpod", "vastai"] == town.billing
        town.runpod.faults.heal()
        await town.until(lambda: town.billing == ["vastai"], 400)
        await town.proved()
        assert {"runpod": 1, "vastai": 1} == town.starts
        sessions = town.told("session", "provider")
        assert ("vastai",) in sessions

    play(scenario, tmp_path)


@MODES
def test_the_firsts_ollama_never_answers(tmp_path: Path, sections: Any) -> None:
    """After the warm-up limit the second is asked; the first one's pod is stopped and proved so."""

    async def scenario(town: Town) -> None:
        town.runpod.edge.upstreams.clear()
        assert "vastai" == await town.served_by()
        await town.proved()
        assert ["vastai"] == town.billing
        await town.word("STOPPED")
        assert {"runpod": 1, "vastai": 1} == town.starts
        assert near(COLD_S - DELAYS.ready_s + 180 + DELAYS.stop_s, town.billed["runpod"])
        assert near(RUNNING_COLD_S + IDLE_S + DELAYS.stop_s, town.billed["vastai"])
        assert {"runpod", "vastai"} == {provider for (provider,) in town.told("session", "provider")}

    play(scenario, tmp_path, sections=sections)


def test_the_firsts_pod_never_runs(tmp_path: Path) -> None:
    """After `pod.start_timeout` the second serves."""

    async def scenario(town: Town) -> None:
        town.pod("runpod").never_runs = True
        assert "vastai" == await town.served_by()
        await town.proved()
        assert near(600 + DELAYS.stop_s, town.billed["runpod"])

    play(scenario, tmp_path)


def test_the_loser_does_not_obey(tmp_path: Path) -> None:
    """The second serves at once; the first is told to stop until it does, and an alarm says so."""

    async def scenario(town: Town) -> None:
        town.runpod.edge.upstreams.clear()
        town.pod("runpod").ignore_stops = 3
        assert "vastai" == await town.served_by()
        assert ["runpod", "vastai"] == town.billing
        await town.proved()
        assert ["vastai"] == town.billing
        assert 4 <= town.runpod.count("stop")
        assert (True,) in town.told("provider_error", "alarm")
        await town.word("STOPPED")

    play(scenario, tmp_path)


def test_both_have_no_capacity(tmp_path: Path) -> None:
    """503 with the reason of the last and the words of both; nothing runs, nothing is paid."""

    async def scenario(town: Town) -> None:
        town.runpod.fail("start", Capacity(), None)
        town.vast.fail("start", Capacity(), None)
        answer = await town.chat()
        assert (503, "POD_START_FAILED", "capacity") == (
            answer.status,
            answer.json["code"],
            answer.json["reason"],
        )
        assert "runpod: " in answer.json["error"]
        assert "vastai: " in answer.json["error"]
        assert "60" == answer.headers["Retry-After"]
        await town.word("STOPPED")
        assert {"runpod": 0, "vastai": 0} == town.starts
        assert {"runpod": 0, "vastai": 0} == town.billed

    play(scenario, tmp_path)


@pytest.mark.parametrize("fires_s", [300.0, inf])
def test_a_start_that_is_queued_at_the_second(tmp_path: Path, fires_s: float) -> None:
    """When it is given up it is cancelled there: it never fires for nobody."""

    async def scenario(town: Town) -> None:
        town.runpod.fail("start", Capacity(), None)
        town.vast.fail("start", Capacity(queued_s=fires_s))
        answer = await town.chat()
        assert (503, "capacity") == (answer.status, answer.json["reason"])
        await town.word("STOPPED")
        await asyncio.sleep(2000)
        assert {"runpod": 0, "vastai": 0} == town.starts
        assert {"runpod": 0, "vastai": 0} == town.billed

    play(scenario, tmp_path)


def test_capacity_comes_while_it_is_waited_for(tmp_path: Path) -> None:
    """`pod.capacity_wait`: the first is asked again before the second."""

    async def scenario(town: Town) -> None:
        town.runpod.fail("start", Capacity(), 3)
        assert "runpod" == await town.served_by()
        assert 0 == town.vast.count("start")

    play(scenario, tmp_path, pod__capacity_wait=120)


def test_every_start_begins_with_the_first(tmp_path: Path) -> None:
    """Also after the second has served, and when the second loses its pod."""

    async def scenario(town: Town) -> None:
        town.runpod.fail("start", Capacity())
        assert "vastai" == await town.served_by()
        await town.word("STOPPED")
        assert "runpod" == await town.served_by()
        assert {"runpod": 1, "vastai": 1} == town.starts

    play(scenario, tmp_path)


def test_several_requests_fail_over_together(tmp_path: Path) -> None:
    """One start at each provider, however many wait; all are answered."""

    async def scenario(town: Town) -> None:
        town.runpod.edge.upstreams.clear()
        assert ["vastai"] * 5 == await asyncio.gather(*(town.served_by() for _ in range(5)))
        assert {"runpod": 1, "vastai": 1} == town.starts

    play(scenario, tmp_path)


def test_the_firsts_pod_has_no_gpu(tmp_path: Path) -> None:
    """RunPod says so itself ("Zero GPU"): left as soon as it runs, before anything warms."""

    async def scenario(town: Town) -> None:
        town.pod("runpod").spec["gpu"] = {"id": "NVIDIA GeForce RTX 4090", "count": 0}
        assert "vastai" == await town.served_by()
        told = town.told("provider_error", "provider", "message", "reason")
        assert ("runpod", "the pod has no GPU", "capacity") in told
        await town.proved()
        assert town.billed["runpod"] <= COLD_S + DELAYS.stop_s
        assert 0 == town.runpod.edge.passed

    play(scenario, tmp_path)


def on_cpu() -> Answer:
    """`/api/ps` of an Ollama that has found no GPU."""
    models = [{"name": MODEL, "model": MODEL, "size": 9, "size_vram": 0}]
    return Answer(200, json.dumps({"models": models}).encode())


def test_the_first_has_its_model_on_the_cpu(tmp_path: Path) -> None:
    """The second serves; the first is billed for what it took to find out."""

    async def scenario(town: Town) -> None:
        town.ollamas["runpod"].faults.add("/api/ps", on_cpu(), times=None)
        assert "vastai" == await town.served_by()
        assert [] == [call.path for call in town.ollamas["runpod"].calls("/api/chat")]
        cpu = ("runpod", "the model runs on the CPU only", "capacity")
        assert cpu in town.told("provider_error", "provider", "message", "reason")
        await town.proved()
        assert near(COLD_S + DELAYS.stop_s, town.billed["runpod"])

    play(scenario, tmp_path)


def test_the_only_provider_has_its_model_on_the_cpu(tmp_path: Path) -> None:
    """It serves all the same, and status says why it is slow."""

    async def scenario(town: Town) -> None:
        town.ollamas["runpod"].faults.add("/api/ps", on_cpu(), times=None)
        assert "runpod" == await town.served_by()
        assert "runpod: the model runs on the CPU only" == (await town.status())["last_error"]

    play(scenario, tmp_path, providers=("runpod",))


def test_an_answer_that_takes_ten_minutes(tmp_path: Path) -> None:
    """RunPod's proxy gives up after 100 s of silence: it never hears any, and the client gets one answer."""

    async def scenario(town: Town) -> None:
        ollama = town.ollamas["runpod"]
        ollama.reply = fixed(*(f" {number}" for number in range(60)))
        await town.ask("POST", "/api/v1/gpu/start")
        await town.word("READY")
        pod = town.gateway.lifecycle.serving
        assert pod is not None
        url = pod.endpoints["ollama"].url + "/api/generate"
        body = {"model": MODEL, "prompt": "hi", "stream": False}
        ollama.faults.add("/api/generate", Slow(first_s=600))
        async with town.http.post(url, json=body) as silent:
            assert 524 == silent.status
        ollama.faults.add("/api/generate", Slow(each_s=10))
        began = asyncio.get_running_loop().time()
        answer = await town.ask("POST", "/api/generate", json=body)
        assert 600 <= asyncio.get_running_loop().time() - began <= 620
        assert (200, 60) == (answer.status, answer.json["eval_count"])
        assert "".join(f" {number}" for number in range(60)) == answer.json["response"]

    play(scenario, tmp_path, providers=("runpod",), pod__preload="none")


def test_a_model_that_takes_longer_to_load_than_the_proxy_waits(tmp_path: Path) -> None:
    """The preload's 524 is no failure of the start."""

    async def scenario(town: Town) -> None:
        town.ollamas["runpod"].faults.add("/api/generate", Slow(first_s=150))
        assert "runpod" == await town.served_by()
        assert {"runpod": 1, "vastai": 0} == town.starts
        loads = town.ollamas["runpod"].calls("/api/generate")
        assert [True, False] == [call.cancelled for call in loads]

    play(scenario, tmp_path)
