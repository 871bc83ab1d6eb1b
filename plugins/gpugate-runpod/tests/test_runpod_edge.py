"""The simulated edge, and a whole gateway that speaks to a pod through it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import jwt
import pytest
from gpugate_demo.faults import BreakAfter, HangAfter
from gpugate_demo.faults import Hang as Mute
from gpugate_demo.ollama import SimulatedOllama
from gpugate_runpod import RunPod
from gpugate_testing.clouds import Hang, Html1010, Http, LoopClock, Reset, RunPodSim
from runpod_support import FIXED, House, play

from gpugate.app import build
from gpugate.config import load_settings

CHAT = {"model": "llama3.2:3b", "messages": [{"role": "user", "content": "hi"}]}
SECRET = "a-secret-for-tests-of-40-characters-long"


async def ready(house: House) -> str:
    """Have the pod's Ollama up; its address at the edge."""
    house.pod.start()
    await asyncio.sleep(60)
    return house.config().url("k3x9v2m7q1", 11434)


async def chat(house: House, url: str) -> aiohttp.ClientResponse:
    """A chat through the edge, read to its end."""
    patience = aiohttp.ClientTimeout(total=1000)
    async with house.session.post(url + "/api/chat", json=CHAT, timeout=patience) as answer:
        await answer.read()
        return answer


def test_what_the_edge_answers_by_itself() -> None:
    """404 while there is no pod or no such port, 502 until the service listens, then what it says."""

    async def scenario(house: House) -> None:
        url = house.config().url

        async def status(pod: str = "k3x9v2m7q1", port: int = 11434, path: str = "/api/version") -> int:
            patience = aiohttp.ClientTimeout(total=1000)
            async with house.session.get(url(pod, port) + path, timeout=patience) as answer:
                await answer.read()
                return answer.status

        assert 404 == await status()
        house.pod.start()
        await asyncio.sleep(11)
        assert 502 == await status()
        await asyncio.sleep(5)
        assert 200 == await status()
        assert 502 == await status(port=8188)
        assert 404 == await status(port=22)
        assert 404 == await status(pod="nobody")
        assert 404 == await status(path="/nothing")
        house.cloud.fail("edge", Http(503))
        assert 503 == await status()
        house.cloud.fail("edge", Html1010())
        assert 403 == await status()
        house.cloud.fail("edge", Hang(100))
        assert 524 == await status()
        house.cloud.fail("edge", Reset(), 2)
        with pytest.raises(aiohttp.ClientError):
            await status()
        house.pod.never_ready = True
        assert 502 == await status()

    play(scenario, FIXED, start=False)


def test_the_host_header() -> None:
    """The real proxy is told by its name which pod and port is meant."""

    async def scenario(house: House) -> None:
        await ready(house)
        headers = {"Host": "k3x9v2m7q1-11434.proxy.runpod.net"}
        async with house.session.get(house.cloud.url + "/api/version", headers=headers) as answer:
            assert "version" in await answer.json()

    play(scenario, FIXED, start=False)


def test_silence() -> None:
    """100 s without a first byte is 524; without a further one the connection is cut."""

    async def scenario(house: House) -> None:
        url = await ready(house)
        house.ollama.faults.add("/api/chat", Mute())
        assert 524 == (await chat(house, url)).status
        house.ollama.faults.add("/api/chat", HangAfter(1))
        with pytest.raises(aiohttp.ClientError):
            await chat(house, url)

    play(scenario, FIXED, start=False)


def test_bytes() -> None:
    """What passes is what the service said, also when it broke off."""

    async def scenario(house: House) -> None:
        url = await ready(house)
        async with house.session.get(url + "/api/tags?x=%20y") as answer:
            through = await answer.read()
        async with house.session.get(house.ollama.url + "/api/tags") as answer:
            assert await answer.read() == through
        assert "x=%20y" == house.ollama.calls("/api/tags")[0].query
        house.ollama.faults.add("/api/chat", BreakAfter(1))
        with pytest.raises(aiohttp.ClientError):
            await chat(house, url)

    play(scenario, FIXED, start=False)


def gateway_settings(cloud: RunPodSim, state: Path, **section: object):
    """A gateway with its default times but for the faster looks that a faster cloud wants."""
    given = {
        "api_key": cloud.api_key,
        "api_base": cloud.api_base,
        "proxy_url": cloud.proxy_url,
        **section,
    }
    overrides = {
        "server.port": 0,
        "server.stop_wait": 5,
        "auth.secret": SECRET,
        "pod.provider": ("runpod",),
        "state.dir": str(state),
        "log.format": "json",
        "log.level": "debug",
    }
    environment = {f"GPUGATE_PROVIDERS__RUNPOD__{key.upper()}": str(value) for key, value in given.items()}
    return load_settings(None, environment, overrides=overrides)


class Eager(RunPod):
    """The plugin without its manners, for a cloud that is a hundred times as fast."""

    capabilities = type(RunPod.capabilities)(first_byte_limit_s=100.0)


async def test_a_whole_gateway(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's chat on a pod that is off: answered by its Ollama through the edge, stopped at the exit."""
    monkeypatch.setenv("GPUGATE_STATE_DIR", str(tmp_path))
    async with SimulatedOllama() as ollama, RunPodSim(clock=LoopClock(scale=100)) as cloud:
        cloud.per_minute = 6000
        cloud.edge.upstreams[11434] = ollama.url
        pod = cloud.add_pod()
        gateway = await build(gateway_settings(cloud, tmp_path, pod_id=pod.id), find=lambda name: Eager)
        await gateway.open()
        proved = False
        try:
            token = jwt.encode({"sub": "u", "exp": 4e9}, SECRET, "HS256")
            async with (
                aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as client,
                client.post(f"http://127.0.0.1:{gateway.port}/api/chat", json=CHAT) as answer,
            ):
                lines = [json.loads(line) async for line in answer.content]
            assert (200, True) == (answer.status, lines[-1]["done"])
            assert "k3x9v2m7q1" == (await gateway.lifecycle.status()).pod_id
        finally:
            proved = await gateway.close()
        assert proved
        assert (1, [], []) == (cloud.starts, cloud.billing, cloud.violations)
        told = capfd.readouterr()
        for secret in (cloud.api_key, token, SECRET):
            assert secret not in told.err + told.out
