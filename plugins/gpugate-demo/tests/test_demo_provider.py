"""The demo provider, with its real process: phases, prices, restarts and accidents."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import aiohttp
import pytest
from attrs import evolve
from gpugate_demo.provider import GPU, Demo, DemoConfig

from gpugate.errors import Conflict, Transient
from gpugate.provider_api import Phase, PodReport, Price
from tests.providers.support import until

Make = Callable[..., Demo]


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setenv("GPUGATE_STATE_DIR", str(tmp_path))
    made: list[Demo] = []
    async with aiohttp.ClientSession() as session:

        def demo(**config: float) -> Demo:
            made.append(Demo(DemoConfig(**config), session))
            return made[-1]

        yield demo
        for pod in made:
            await pod.stop()
        for pod in made:
            await phase(pod, Phase.STOPPED)
            await pod.aclose()


async def phase(pod: Demo, wanted: Phase, detail: str | None = None) -> PodReport:
    """Wait for it."""
    async with asyncio.timeout(20):
        while (report := await pod.inspect()).phase is not wanted or detail not in (None, report.detail):
            await asyncio.sleep(0.01)
    return report


async def healthy(pod: Demo, report: PodReport) -> bool:
    try:
        async with pod.session.get(report.endpoints["ollama"].url + "/api/version") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def process_of(pod: Demo) -> int:
    """The pid of the pod's process."""
    kept = await pod._process.inspect()
    assert kept is not None
    return kept.pid


HOLDER = """
import asyncio, sys, aiohttp
from gpugate_demo.provider import Demo, DemoConfig
from gpugate.providers.supervised_process import SupervisorTimeouts

async def main():
    async with aiohttp.ClientSession() as session:
        Demo.timeouts = SupervisorTimeouts(0.1, orphan_grace_s=0.3, orphan_kill_s=0.4, stop_kill_s=0.4)
        pod = Demo(DemoConfig(cold_start=0), session)
        await pod.start()
        print("started", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await pod.aclose()

asyncio.run(main())
"""


class Gateway:
    """Another gateway with a demo pod, in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", HOLDER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "started\n":
            self.process.communicate()
            raise AssertionError("it ended before it had a pod")

    def leave(self) -> None:
        """End cleanly; the pod stays."""
        self.process.communicate("leave\n")

    def kill(self) -> None:
        """End as kill -9 does it."""
        self.process.kill()
        if self.process.stdout is not None and not self.process.stdout.closed:
            self.process.communicate()


@pytest.fixture
def other(make: Make) -> Iterator[Callable[[], Gateway]]:
    made: list[Gateway] = []

    def start() -> Gateway:
        made.append(Gateway())
        return made[-1]

    yield start
    for gateway in made:
        gateway.kill()


class TestConfig:
    def test_defaults(self):
        """Those of the contract."""
        config = DemoConfig()

        assert (6.0, 25.0, 0.44) == (config.cold_start, config.tokens_per_second, config.hourly_rate)

    @pytest.mark.parametrize(
        "wrong", [{"cold_start": -1}, {"tokens_per_second": -1}, {"hourly_rate": float("nan")}]
    )
    def test_impossible_values(self, wrong):
        with pytest.raises(ValueError, match="must be 0 or more"):
            DemoConfig(**wrong)


class TestLife:
    async def test_never_started(self, make):
        report = await make().inspect()

        assert (Phase.STOPPED, None, {}) == (report.phase, report.pod_id, report.endpoints)

    async def test_a_cold_start(self, make):
        """Provisioning, running, healthy later, stopped: each told by the process itself."""
        pod = make(cold_start=1.5)
        began = datetime.now(UTC)
        first = await pod.start()
        running = await phase(pod, Phase.RUNNING)
        early = await healthy(pod, running) and (await pod.inspect()).detail != ""
        ready = await phase(pod, Phase.RUNNING, detail="")

        assert (Phase.PROVISIONING, False) == (first.phase, early)
        assert await healthy(pod, ready)
        assert first.pod_id == ready.pod_id
        assert first.pod_id.startswith("demo-")
        assert timedelta(seconds=-1) < first.started_at - began < timedelta(seconds=5)
        assert first.started_at == ready.started_at
        assert (GPU, Price(Decimal("0.44"), Decimal(0), "USD")) == (first.gpu, first.price)
        assert {"ollama", "comfyui"} == set(ready.endpoints)

        assert (await pod.stop()).phase in (Phase.STOPPING, Phase.STOPPED)
        await phase(pod, Phase.STOPPED)
        assert not await healthy(pod, ready)

    async def test_start_twice_stop_twice(self, make):
        """One process; the second start and stop find nothing to do."""
        pod = make(cold_start=0)
        first, second = await pod.start(), await pod.start()

        assert (first.pod_id, first.endpoints) == (second.pod_id, second.endpoints)
        await pod.stop()
        await phase(pod, Phase.STOPPED)
        assert Phase.STOPPED is (await pod.stop()).phase

    async def test_the_next_pod(self, make):
        """Is another one, with a name of its own."""
        pod = make(cold_start=0)
        first = await pod.start()
        await pod.stop()
        await phase(pod, Phase.STOPPED)
        second = await pod.start()

        assert first.pod_id != second.pod_id

    async def test_both_services(self, make):
        """The pod draws, and its texts say what it is."""
        pod = make(cold_start=0, tokens_per_second=0)
        await pod.start()
        report = await phase(pod, Phase.RUNNING, detail="")
        ollama, comfyui = report.endpoints["ollama"].url, report.endpoints["comfyui"].url
        asked = {"model": "llama3.2:3b", "prompt": "hi", "stream": False}
        async with pod.session.post(ollama + "/api/generate", json=asked) as response:
            assert "simulation" in (await response.json())["response"]
        async with pod.session.get(comfyui + "/system_stats") as response:
            assert 200 == response.status

    async def test_a_price_of_ones_own(self, make):
        assert Decimal("1.1") == (await make(hourly_rate=1.1).inspect()).price.running_per_hour


class TestRestart:
    async def test_adoption(self, make):
        """A gateway that left its pod finds it again, ports and name and beginning."""
        before = make(cold_start=0)
        await before.start()
        was = await phase(before, Phase.RUNNING, detail="")
        await before.aclose()

        after = make(cold_start=0)
        assert was == await after.inspect()
        assert await healthy(after, was)

    async def test_another_gateway(self, make, other):
        """Two on one state directory: the second may look, and says who holds it."""
        holder = other()
        pod = make()
        report = await phase(pod, Phase.RUNNING)
        with pytest.raises(Conflict):
            await pod.start()

        assert (
            f"held by another gpugate with this state directory (process {holder.process.pid})"
            == report.detail
        )
        await asyncio.to_thread(holder.leave)


class TestAccidents:
    async def test_a_pod_that_dies(self, make):
        """Failed, with the signal; a new start works."""
        pod = make(cold_start=0)
        await pod.start()
        await phase(pod, Phase.RUNNING, detail="")
        os.kill(await process_of(pod), signal.SIGKILL)
        report = await phase(pod, Phase.FAILED)

        assert "was killed by signal 9" in report.detail
        await pod.start()
        await phase(pod, Phase.RUNNING)

    async def test_a_pod_that_hangs(self, make, monkeypatch):
        """One that does not tell its stage is an error, not a guess."""
        monkeypatch.setattr("gpugate_demo.provider.ASK_TIMEOUT_S", 0.05)
        pod = make(cold_start=0)
        await pod.start()
        await phase(pod, Phase.RUNNING, detail="")
        pid = await process_of(pod)
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr("gpugate_demo.provider.BOOT_S", 0.0)
        with pytest.raises(Transient, match="does not tell its stage"):
            await pod.inspect()
        os.kill(pid, signal.SIGCONT)

    async def test_a_port_that_was_taken(self, make, monkeypatch):
        """The process ends with a line that names it; the start failed, nothing is left running."""
        with socket.create_server(("127.0.0.1", 0)) as holder:
            taken = holder.getsockname()[1]
            monkeypatch.setattr(
                "gpugate_demo.provider._free_ports", lambda names: dict.fromkeys(names, taken)
            )
            pod = make(cold_start=0)
            try:
                await pod.start()
            except Transient as error:
                told = error.in_full
            else:
                told = (await phase(pod, Phase.FAILED)).output

        assert "address already in use" in told

    async def test_a_stranger_on_the_port(self, make, monkeypatch):
        """Another server's answer is not believed."""
        pod = make(cold_start=0)
        await pod.start()
        await phase(pod, Phase.RUNNING, detail="")
        kept = await pod._process.inspect()
        changed = evolve(kept, meta={**kept.meta, "pod_id": "demo-other"})

        with pytest.raises(Transient, match="something else answers"):
            await pod._ask(changed)


async def test_a_gateway_that_is_killed(make, other, tmp_path):
    """Its pod ends with it, soon after (docs/api.md#the-local-provider; the times are scaled)."""
    holder = other()
    state = tmp_path / "processes" / "demo.json"
    pid = json.loads(state.read_text())["pid"]
    os.kill(pid, 0)
    holder.kill()

    await until(lambda: not Path(f"/proc/{pid}").exists())
