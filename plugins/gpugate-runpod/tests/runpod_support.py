"""A simulated RunPod, the plugin and gpugate's real lifecycle on one loop, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from attrs import define, field
from gpugate_demo.ollama import SimulatedOllama
from gpugate_runpod import RunPod, RunPodConfig
from gpugate_testing.clouds import Delays, RunPodSim, SimPod, loopback_time
from gpugate_testing.clouds.clocks import EPOCH, LoopClock
from gpugate_testing.fakes import FakeDebts

from gpugate.core.policy import Policy, ProviderLimits
from gpugate.core.states import Status
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.pod_calls import OllamaPodClient
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.lifecycle.status import EventBus, LifecycleEvent, ProviderProblem, SessionEnded
from gpugate.provider_api import Price

AGENT = {"User-Agent": "gpugate/0.1"}
SECRET_ENV = "hunter2-in-the-environment"
GPU = "NVIDIA GeForce RTX 4090"
SECOND_GPU = "NVIDIA GeForce RTX 3090"
DELAYS = Delays(provision_s=2.0, start_s=8.0, ready_s=5.0, stop_s=3.0)
COLD_S = DELAYS.provision_s + DELAYS.start_s + DELAYS.ready_s
IDLE_S = 120.0
POLICY: dict[str, Any] = {"idle_timeout": IDLE_S, "max_wait": 2000.0, "preload": "none"}
SLACK_S = 4.0
"""What a look every two seconds, before and after, may add to a bill."""


def ephemeral(**more: Any) -> dict[str, Any]:
    """Settings of ephemeral mode."""
    return {
        "mode": "ephemeral",
        "image": "ollama/ollama:latest",
        "gpus": [GPU, SECOND_GPU],
        "env": {"TOKEN": SECRET_ENV},
        **more,
    }


RUNPODS_PROXY = "https://{pod_id}-{port}.proxy.runpod.net"
FIXED: dict[str, Any] = {"pod_id": "k3x9v2m7q1"}


@define
class House:
    """Everything a scenario has its hands on."""

    cloud: RunPodSim
    ollama: SimulatedOllama
    session: aiohttp.ClientSession = field(repr=False)
    settings: dict[str, Any]
    policy: dict[str, Any]
    news: list[LifecycleEvent] = field(factory=list)
    provider: RunPod = field(init=False)
    lifecycle: Lifecycle = field(init=False)
    debts: FakeDebts = field(factory=FakeDebts)

    def config(self, **more: Any) -> RunPodConfig:
        """The plugin's configuration, pointed at the simulated cloud."""
        places = {"api_base": self.cloud.api_base, "proxy_url": self.cloud.proxy_url}
        if self.settings.get("spot"):
            places["graphql_base"] = f"{self.cloud.url}/graphql"
        return RunPodConfig(**{"api_key": self.cloud.api_key, **places, **self.settings, **more})

    def build(self) -> None:
        """A gateway's worth of objects; again for a gateway that was restarted."""
        self.provider = RunPod(self.config(), self.session)
        can = self.provider.capabilities
        pace = ProviderLimits(name="runpod", min_poll_s=can.min_poll_s, min_probe_s=can.min_probe_s)
        self.lifecycle = Lifecycle(
            providers=[ConfiguredProvider("runpod", self.provider)],
            pod=OllamaPodClient(self.session),
            policy=Policy(**{"providers": (pace,), **POLICY, **self.policy}),
            pending_stops=self.debts,
            fallback_price=Price(),
            events=EventBus([self.news.append]),
            random_fraction=lambda: 0.5,
            wall=self.cloud.clock.wall,
            boottime=lambda: self.cloud.clock.wall().timestamp(),
        )

    @property
    def pod(self) -> SimPod:
        """The fixed pod, or the last that was created."""
        return list(self.cloud.pods.values())[-1]

    async def ask(self, hold_s: float = 10.0) -> str:
        """A client's request: wait for the pod, ask its Ollama through the edge, hold the answer so long."""
        with self.lifecycle.acquire(model="llava") as lease:
            serving = await lease.wait_admitted()
            lease.mark_response_started()
            url = serving.endpoints["ollama"].url + "/api/version"
            async with self.session.get(url) as answer:
                text = await answer.text()
            await asyncio.sleep(hold_s)
            return text

    async def until(self, condition: Callable[[], bool], limit_s: float = 4000.0) -> None:
        """Let time pass until this holds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        while not condition():
            assert loop.time() < end, f"never: {self.lifecycle.current_status}, {self.troubles[-3:]}"
            await asyncio.sleep(3)

    async def off(self) -> None:
        """Wait until the gateway has the proof that nothing runs."""
        await self.until(lambda: self.lifecycle.current_status is Status.STOPPED)

    @property
    def troubles(self) -> list[str]:
        """What the gateway told people that went wrong."""
        return [news.message for news in self.news if isinstance(news, ProviderProblem)]

    @property
    def sessions(self) -> list[SessionEnded]:
        """The sessions that ended."""
        return [news for news in self.news if isinstance(news, SessionEnded)]


@asynccontextmanager
async def open_house(
    settings: dict[str, Any], *, start: bool = True, policy: dict[str, Any] | None = None
) -> AsyncIterator[House]:
    """A gateway at rest; `start=False` leaves the lifecycle to the test."""
    async with (
        SimulatedOllama() as ollama,
        RunPodSim(clock=LoopClock(epoch=EPOCH), delays=DELAYS) as cloud,
        aiohttp.ClientSession(
            headers=AGENT, cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=30)
        ) as session,
    ):
        cloud.edge.upstreams[11434] = ollama.url
        cloud.clock.now()
        if settings.get("mode") != "ephemeral":
            cloud.add_pod(env={"TOKEN": SECRET_ENV})
        house = House(cloud, ollama, session, settings, policy or {})
        house.build()
        if not start:
            yield house
            return
        await house.lifecycle.open()
        await house.off()
        try:
            yield house
        finally:
            cloud.faults.heal()
            await house.lifecycle.close(keep=True, stop_wait_s=60)


def play(scenario: Callable[..., Coroutine[Any, Any, None]], settings: dict[str, Any], **more: Any) -> None:
    """Run a scenario in virtual time, and hold its logs against the secrets."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear = Ear()
    logging.getLogger().addHandler(ear)

    async def main() -> None:
        async with open_house(settings, **more) as house:
            await scenario(house)
        assert [] == house.cloud.violations
        told = " ".join([*map(str, house.news), *heard, repr(house.provider.config)])
        assert house.cloud.api_key not in told
        assert SECRET_ENV not in told

    try:
        loopback_time.run(main())
    finally:
        logging.getLogger().removeHandler(ear)
