"""A simulated Slurm, the plugin and gpugate's real lifecycle on one loop, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from attrs import define, field
from gpugate_demo.ollama import SimulatedOllama
from gpugate_slurm import Slurm, SlurmConfig
from gpugate_slurm.commands import CommandClient
from gpugate_testing.clouds import Delays, loopback_time
from gpugate_testing.clouds.clocks import EPOCH, LoopClock
from gpugate_testing.fakes import FakeDebts
from slurm_sim import TOKEN, SimRunner, SlurmSim

from gpugate.core.policy import Policy, ProviderLimits
from gpugate.core.states import Status
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.pod_calls import OllamaPodClient
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.lifecycle.status import EventBus, LifecycleEvent, ProviderProblem, SessionEnded
from gpugate.provider_api import Price

DELAYS = Delays(provision_s=2.0, start_s=3.0, ready_s=0.0, stop_s=4.0)
IDLE_S = 120.0
POLICY: dict[str, Any] = {
    "idle_timeout": IDLE_S,
    "max_wait": 2000.0,
    "preload": "none",
    "capacity_wait": 600.0,
}


@define
class House:
    """Everything a scenario has its hands on; `way` is "rest" or "commands"."""

    cloud: SlurmSim
    ollama: SimulatedOllama
    session: aiohttp.ClientSession = field(repr=False)
    way: str
    policy: dict[str, Any]
    runner: SimRunner = field(init=False)
    news: list[LifecycleEvent] = field(factory=list)
    provider: Slurm = field(init=False)
    lifecycle: Lifecycle = field(init=False)
    debts: FakeDebts = field(factory=FakeDebts)

    def config(self, **more: Any) -> SlurmConfig:
        """The plugin's configuration, pointed at the simulated cluster."""
        way = {"rest_url": self.cloud.url, "token": TOKEN} if self.way == "rest" else {}
        return SlurmConfig(**{**way, "ollama_url": self.ollama.url, "hourly_rate": 3.6, **more})

    def make_provider(self) -> Slurm:
        """A provider that goes this house's way."""
        provider = Slurm(self.config(), self.session)
        if self.way == "commands":
            provider._client = CommandClient(provider.config, self.runner)
        return provider

    def build(self) -> None:
        """A gateway's worth of objects; again for a gateway that was restarted."""
        self.provider = self.make_provider()
        can = self.provider.capabilities
        pace = ProviderLimits(name="slurm", min_poll_s=can.min_poll_s, min_probe_s=can.min_probe_s)
        self.lifecycle = Lifecycle(
            providers=[ConfiguredProvider("slurm", self.provider)],
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
    def job(self) -> str:
        """The id of the last job."""
        return list(self.cloud.pods)[-1]

    async def ask(self, hold_s: float = 10.0) -> str:
        """A client's request: wait for the pod, ask its Ollama, hold the answer so long."""
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
async def open_house(way: str, *, policy: dict[str, Any] | None = None) -> AsyncIterator[House]:
    """A gateway at rest."""
    async with (
        SimulatedOllama() as ollama,
        SlurmSim(clock=LoopClock(epoch=EPOCH), delays=DELAYS) as cloud,
        aiohttp.ClientSession(
            headers={"User-Agent": "gpugate/0.1"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=30),
        ) as session,
    ):
        cloud.clock.now()
        house = House(cloud, ollama, session, way, policy or {})
        house.runner = SimRunner(cloud)
        house.build()
        await house.lifecycle.open()
        await house.off()
        try:
            yield house
        finally:
            cloud.faults.heal()
            house.runner.says.clear()
            await house.lifecycle.close(keep=True, stop_wait_s=60)
            await house.provider.aclose()


def play(scenario: Callable[..., Coroutine[Any, Any, None]], way: str, **more: Any) -> None:
    """Run a scenario in virtual time, and hold its logs against the token."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear = Ear()
    logging.getLogger().addHandler(ear)

    async def main() -> None:
        async with open_house(way, **more) as house:
            await scenario(house)
        assert [] == house.cloud.violations
        told = " ".join([*map(str, house.news), *heard, repr(house.provider.config)])
        assert TOKEN not in told

    try:
        loopback_time.run(main())
    finally:
        logging.getLogger().removeHandler(ear)
