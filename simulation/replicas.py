"""An office of 120 people on one working day, at a provider that scales: what replicas cost and save.

The real lifecycle in virtual time, as in a month, without faults. A replica answers two requests at a time,
and more wait in its engine. What is told is the wait for both: for the pod, and in the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from random import Random

from attrs import define, field, frozen
from gpugate_testing import virtual_time
from gpugate_testing.fakes import FakeCloud, FakePod, FakeProvider

from gpugate.core.policy import Policy, ProviderLimits
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.provider_worker import ConfiguredProvider
from gpugate.lifecycle.status import EventBus, LifecycleEvent, ReplicasAsked
from gpugate.provider_api import Price
from gpugate.tasks import spawn

from .cloud import USUAL_BOOT_S, wall
from .gateway import WARM_S
from .traffic import Request, Traffic, office

SLOTS = 2
"""How many requests a replica answers at a time; the others wait for one of them to end."""

PEOPLE = 120
IDLE_TIMEOUT_S = 900.0
RANGES = ("1", "1..2", "1..4", "4")


@frozen
class Outcome:
    """One day with these replicas.

    Attributes:
        paid_h: hours of a replica, all together.
        changes: how often another number of replicas was asked for.
        waits: of each request, in order of length.
    """

    replicas: str
    paid_h: float
    cost: float
    changes: int
    waits: Sequence[float]

    def wait_s(self, share: float) -> float:
        """The wait that this share of the requests did not exceed."""
        return self.waits[min(len(self.waits) - 1, int(share * len(self.waits)))]


@define
class Engine:
    """The engines of all replicas: requests take a free slot in order."""

    cloud: FakeCloud
    busy: int = 0
    _turn: asyncio.Lock = field(factory=asyncio.Lock)
    _freed: asyncio.Event = field(factory=asyncio.Event)

    async def answer(self, seconds: float) -> float:
        """Answer a request; return when a slot was free for it."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            while self.busy >= SLOTS * self.cloud.running_replicas:
                self._freed.clear()
                wake = loop.call_later(2.0, self._freed.set)  # another replica may run by then
                await self._freed.wait()
                wake.cancel()
            self.busy += 1
        began = loop.time()
        await asyncio.sleep(seconds)
        self.busy -= 1
        self._freed.set()
        return began


def days(seed: int, people: int = PEOPLE) -> Iterator[Outcome]:
    """Live the same day with each number of replicas."""
    traffic = office(seed, people)
    for replicas in RANGES:
        yield virtual_time.run(_live(traffic, replicas))


async def _live(traffic: Traffic, replicas: str) -> Outcome:
    cloud = FakeCloud(boot_s=USUAL_BOOT_S, stop_s=4.0)
    engine, dice, asked = Engine(cloud), Random(0), 0

    def count(news: LifecycleEvent) -> None:
        nonlocal asked
        asked += isinstance(news, ReplicasAsked)

    lifecycle = Lifecycle(
        providers=[ConfiguredProvider("cloud", FakeProvider(cloud))],
        pod=FakePod(cloud, WARM_S),
        policy=Policy(
            providers=(ProviderLimits(name="cloud", min_poll_s=2.0, min_probe_s=1.0),),
            replicas=replicas,
            target_in_flight=SLOTS,
            idle_timeout=IDLE_TIMEOUT_S,
            drain_concurrency=SLOTS,
            max_waiting=10_000,
        ),
        fallback_price=Price(),
        events=EventBus([count]),
        wall=wall,
        boottime=asyncio.get_running_loop().time,
        random_fraction=dice.random,
    )
    await lifecycle.open()
    waits = await _ask_all(lifecycle, engine, traffic)
    await asyncio.sleep(IDLE_TIMEOUT_S + 60)
    await lifecycle.close(keep=False, stop_wait_s=60)
    paid_h = cloud.total_billed_s / 3600
    return Outcome(replicas, paid_h, paid_h * float(cloud.price.running_per_hour or 0), asked, sorted(waits))


async def _ask_all(lifecycle: Lifecycle, engine: Engine, traffic: Traffic) -> list[float]:
    loop, waits = asyncio.get_running_loop(), list[float]()

    async def ask(request: Request) -> None:
        with lifecycle.acquire() as lease:
            await lease.wait_admitted()
            lease.mark_response_started()
            waits.append(await engine.answer(request.takes_s) - request.at)

    asking = []
    for request in traffic:
        await asyncio.sleep(request.at - loop.time())
        asking.append(spawn(ask(request), "simulation:client"))
    await asyncio.gather(*asking)
    return waits
