"""A gateway's process in front of a simulated RunPod, killed at a point of its life, and the next one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from attrs import define, evolve, field
from gpugate_demo.ollama import SimulatedOllama
from gpugate_testing.clouds import Delays, LoopClock, RunPodSim
from gpugate_testing.clouds.cloud import Operation

from gpugate.provider_api import Phase
from tests.e2e.process import Ground, Running
from tests.e2e.support import CHAT, words

DELAYS = Delays(provision_s=0.1, start_s=0.2, ready_s=0.1, stop_s=0.2)
RATE = 0.69
PATIENCE_S = 30.0
"""Longest that anything is waited for: a busy machine is slow."""
_PLUGIN = Path(__file__).parent / "mortal.py"
_ENTRY_POINTS = "[gpugate.providers]\nmortal = gpugate_mortal:Mortal\nsecond = gpugate_mortal:Second\n"
_SETTINGS = """
[server]
stop_wait = 20
shutdown_grace = 1
[pod]
provider = {providers}
idle_timeout = {idle}
start_backoff = 0.05
health_interval = 0.1
reconcile_interval = 0.3
stop_retry = 0.1
{pod}
"""


class OurClock(LoopClock):
    """Its calendar is the machine's, also when that is set while a test runs."""

    def at(self, second: float) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=second - self.now())


class WatchedRunPod(RunPodSim):
    """Tells when it has done something, before anybody hears of it."""

    def __init__(self) -> None:
        super().__init__(clock=OurClock(), delays=DELAYS, strict=False)
        self.done: dict[str, Callable[[], None]] = {}

    async def _answer(self, operation: Operation, request: web.Request) -> web.StreamResponse:
        response = await super()._answer(operation, request)
        if (act := self.done.pop(operation.name, None)) is not None:
            act()
        return response


@define
class Scene:
    """The clouds and the pod's Ollama, which outlive the gateways."""

    ground: Ground
    clouds: dict[str, WatchedRunPod]
    ollama: SimulatedOllama
    order: Path
    asking: list[asyncio.Task[None]] = field(factory=list)

    @property
    def cloud(self) -> WatchedRunPod:
        """The first provider's."""
        return self.clouds["mortal"]

    def settings(
        self,
        *,
        mode: str = "fixed",
        idle: str = "0.3s",
        pod: str = "",
        second: bool = False,
        pods: Sequence[str] = (),
    ) -> None:
        """Write what the gateways are told; `pods` are pods of one account, each fixed."""
        names = list(self.clouds) if second else ["mortal"]
        parts = [_SETTINGS.format(providers=json.dumps(names), idle=json.dumps(idle), pod=pod)]
        for name in names:
            cloud = self.clouds[name]
            section: dict[str, object] = {
                "api_key": cloud.api_key,
                "api_base": cloud.api_base,
                "proxy_url": cloud.proxy_url,
            }
            if mode == "fixed":
                section["pod_id"] = cloud.add_pod().id
            else:
                gpu = next(iter(cloud.gpus))
                section |= {"mode": mode, "image": "ollama/ollama:latest", "gpus": [gpu]}
            lines = [f"{key} = {json.dumps(value)}" for key, value in section.items()]
            parts.append(f"[providers.{name}]\n" + "\n".join(lines) + "\n")
        for name in pods:
            pod_id = self.cloud.add_pod(f"id-{name}").id
            parts.append(f"[pods.{name}.mortal]\npod_id = {json.dumps(pod_id)}\n")
        self.ground.settings = "".join(parts)

    def hold(self) -> None:
        """Let pods that are started from now on come no further than that, until a gateway was killed."""
        for cloud in self.clouds.values():
            cloud.delays = evolve(DELAYS, start_s=2 * PATIENCE_S)
            for pod in cloud.pods.values():
                pod.delays = cloud.delays

    def _let_go(self) -> None:
        for cloud in self.clouds.values():
            cloud.delays = DELAYS
            for pod in cloud.pods.values():
                pod.delays = DELAYS
                if pod.look() is Phase.STARTING:
                    pod.become(Phase.RUNNING)

    # --- clients ------------------------------------------------------------------------------

    def ask(self, gateway: Running, *, stream: bool = False, pod: str = "") -> None:
        """Have a client ask; that it is cut off is its fate."""
        named = {"X-Gpugate-Pod": pod} if pod else {}
        body = {**CHAT, "stream": stream}

        async def chat() -> None:
            with suppress(aiohttp.ClientError, asyncio.TimeoutError):
                async with gateway.call("POST", "/api/chat", json=body, headers=named) as response:
                    await response.read()

        self.asking.append(asyncio.ensure_future(chat()))

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until this holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.01)

    async def until_told(self, gateway: Running, condition: Callable[[Any], object]) -> None:
        """Wait until the status is like this."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition(await gateway.status()):
                await asyncio.sleep(0.01)

    # --- death, and life after it ---------------------------------------------------------------

    async def killed(self, drive: Callable[[Running], Awaitable[None]]) -> None:
        """Run a gateway, use it, and see that it was killed."""
        async with self.ground.serve(wait=False) as gateway:
            async with asyncio.timeout(PATIENCE_S):
                while '"listening"' not in gateway.lines and gateway.process.returncode is None:
                    await asyncio.sleep(0.02)
            if gateway.process.returncode is None:
                with suppress(aiohttp.ClientError):
                    await drive(gateway)
            async with asyncio.timeout(PATIENCE_S):
                assert -9 == await gateway.process.wait(), gateway.lines
            await asyncio.gather(*self.asking)
            self._let_go()

    async def restarted(self) -> list[dict[str, Any]]:
        """Run the next gateway until nothing is billed or left to do; returns the ledger's rows."""
        async with self.ground.serve() as gateway:
            await self.until_told(gateway, are_off)
            await self.until(lambda: not self.billing)
            await self.until_told(gateway, are_off)
            async with gateway.call("GET", "/api/v1/cost/sessions?from=2000-01-01") as response:
                body = await response.json()
            assert 200 == response.status, body
            gateway.signal()
            assert 0 == await gateway.ended(), gateway.lines
            assert "Traceback" not in gateway.lines, gateway.lines
        rows: list[dict[str, Any]] = body["data"]["sessions"]
        return rows

    @property
    def billing(self) -> list[str]:
        """Who is paid now."""
        return [name for name, cloud in self.clouds.items() if cloud.billing]

    @property
    def stretches(self) -> int:
        """How often a bill began."""
        return sum(len(pod.stretches) for cloud in self.clouds.values() for pod in cloud.pods.values())

    @property
    def billed_s(self) -> float:
        """By all clouds together."""
        return sum(cloud.billed_s for cloud in self.clouds.values())

    @property
    def unseen_s(self) -> float:
        """Between the end of a bill and the look that told of it: nobody can know better."""
        return sum(
            min((asked.at for asked in cloud.asked if asked.at >= until), default=until) - until
            for cloud in self.clouds.values()
            for pod in cloud.pods.values()
            for until in (stretch.until for stretch in pod.stretches)
            if until is not None
        )


def are_off(told: Any) -> bool:
    """Whether all pods are known to be off."""
    return all(pod["status"] == "STOPPED" for pod in told.get("pods", [told]))


@asynccontextmanager
async def open_scene(folder: Path) -> AsyncIterator[Scene]:
    """Clouds and an Ollama; at the end nothing may be billed by anybody."""
    site = folder / "site"
    info = site / "gpugate_mortal-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "gpugate_mortal.py").write_text(_PLUGIN.read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gpugate-mortal\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS)
    order = folder / "mortal-at"
    async with (
        SimulatedOllama(reply=words()) as ollama,
        WatchedRunPod() as first,
        WatchedRunPod() as second,
    ):
        clouds = {"mortal": first, "second": second}
        for cloud in clouds.values():
            cloud.edge.upstreams[11434] = ollama.url
        ground = Ground(folder, env={"MORTAL_AT": str(order)})
        yield Scene(ground, clouds, ollama, order)
        assert [] == [name for name, cloud in clouds.items() if cloud.billing]
