"""One month under one idle policy, of one pod or several: traffic in, money and waiting times out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from random import Random

from attrs import define, field, frozen
from gpugate_testing import virtual_time

from gpugate.core.idle_policy import IdlePolicy
from gpugate.errors import GateError
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.leased_call import LeasedCall, PodUnreachable
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.provider_api import MAIN_POD
from gpugate.tasks import spawn

from .cloud import StormyCloud, Weather, serves
from .gateway import RECONCILE_S, Disk, Gateway
from .record import Record
from .spans import Span, between, length, union, within
from .traffic import DAY_S, Request, Traffic

FIRST_BYTE_S = 1.0
"""From the request to the first token, on a model that is loaded."""

AFTER_S = 6 * 3600.0
"""The clock runs on after the last day, so that all that was started must have been stopped."""

STOP_SLACK_S = 900.0
"""What a start under way, a slow boot and a stop that is ignored or lost may add to one pause's idle time."""


@frozen(kw_only=True)
class Report:
    """What a month came to; times in seconds.

    Attributes:
        paid_s: billed by the cloud.
        useful_s: at least one request was being answered.
        cold: starts for which a request waited.
        prewarmed: starts before a request came.
        waits: from the arrival to the admission, of all that were answered; in order of length.
        failed: why requests were not answered, and how many.
        leaked_s: billed while the gateway was up and thought that nothing ran, for longer than one round of
            looking; and billed in a pause for longer than any policy allows.
        billing_at_end: the cloud still bills, hours after the last request.
        told: what all sessions cost, by the gateway's own word.
        on_record: the same by the ledger, which is written by the real bookkeeper, over all crashes.
        open_rows: sessions of the ledger that never came to an end.
        cost: what they cost by the cloud's bill.
        crashes: of the gateway.
    """

    paid_s: float
    useful_s: float
    cold: int
    prewarmed: int
    waits: Sequence[float]
    failed: Counter[str]
    leaked_s: float
    billing_at_end: bool
    told: float
    on_record: float
    open_rows: int
    cost: float
    crashes: int

    @property
    def answered(self) -> int:
        """How many requests were answered."""
        return len(self.waits)

    def wait_s(self, share: float) -> float:
        """The wait that this share of the answered requests did not exceed."""
        return self.waits[min(len(self.waits) - 1, int(share * len(self.waits)))] if self.waits else 0.0


@define
class Clients:
    """All who ask; they are told apart by nothing but their requests."""

    gateway: Gateway
    waits: list[float] = field(factory=list)
    failed: Counter[str] = field(factory=Counter)
    wanted: list[Span] = field(factory=list)
    worked: list[Span] = field(factory=list)

    async def ask_all(self, traffic: Traffic) -> None:
        """Ask at the given times, however long the answers take."""
        loop = asyncio.get_running_loop()
        asking: set[asyncio.Task[None]] = set()
        for request in traffic:
            await asyncio.sleep(request.at - loop.time())
            asking.add(task := spawn(self._ask(request), "simulation:client"))
            task.add_done_callback(asking.discard)
        while asking:
            await asyncio.wait(asking)

    async def _ask(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        lifecycle = self.gateway.lifecycle
        if lifecycle is None:
            self.failed["gateway down"] += 1
            return
        began = loop.time()
        try:
            self.waits.append(await self._visit(lifecycle, request))
        except (GateError, PodUnreachable) as error:
            crashed = self.gateway.lifecycle is not lifecycle
            self.failed["gateway crashed" if crashed else getattr(error, "code", "POD_SILENT")] += 1
        self.wanted.append((began, loop.time()))

    async def _visit(self, lifecycle: Lifecycle, request: Request) -> float:
        """The wait until the admission that led to the answer."""
        loop = asyncio.get_running_loop()
        arrived, admitted = loop.time(), 0.0
        with lifecycle.acquire() as lease:
            visit = LeasedCall(lifecycle, lease)

            async def work(pod: ServingPod) -> None:
                nonlocal admitted
                admitted = loop.time()
                await self._exchange(FIRST_BYTE_S)
                visit.mark_response_started()
                await self._exchange(request.takes_s)

            await visit.run(work)
        return admitted - arrived

    async def _exchange(self, seconds: float) -> None:
        """Use the pod. Raises PodUnreachable when it goes."""
        cloud, began = self.gateway.cloud, asyncio.get_running_loop().time()
        if not serves(cloud):
            raise PodUnreachable("connection refused")
        try:
            async with asyncio.timeout(seconds):
                await cloud.down.wait()
        except TimeoutError:
            return
        finally:
            self.worked.append((began, asyncio.get_running_loop().time()))
        raise PodUnreachable("connection reset")


def simulate(
    traffic: Traffic,
    idle_timeout_s: float,
    make_idle: Callable[[float], IdlePolicy],
    *,
    seed: int = 0,
    days: int = 30,
    weather: Weather | None = None,
) -> Report:
    """Live through it; the same arguments give the same report.

    Args:
        make_idle: makes the policy, from `idle_timeout_s`.
        weather: what goes wrong, and how often; the usual if not given.
    """
    traffics = {MAIN_POD: traffic}
    reports = simulate_pods(traffics, idle_timeout_s, make_idle, seed=seed, days=days, weather=weather)
    return reports[MAIN_POD]


def simulate_pods(
    traffics: Mapping[str, Traffic],
    idle_timeout_s: float,
    make_idle: Callable[[float], IdlePolicy],
    *,
    seed: int = 0,
    days: int = 30,
    weather: Weather | None = None,
) -> dict[str, Report]:
    """Live through it with a pod for each traffic: their clouds are apart, ledger and crashes are one."""
    return virtual_time.run(_live(traffics, idle_timeout_s, make_idle, seed, days, weather or Weather()))


async def _live(
    traffics: Mapping[str, Traffic],
    idle_timeout_s: float,
    make_idle: Callable[[float], IdlePolicy],
    seed: int,
    days: int,
    weather: Weather,
) -> dict[str, Report]:
    record, clients = Record(), list[Clients]()
    for pod in traffics:
        luck = seed if pod == MAIN_POD else f"{seed} {pod}"
        cloud = StormyCloud(dice=Random(f"cloud {luck}"), weather=weather)
        dice = Random(f"gateway {luck}")
        disk = Disk(record=record)
        clients.append(
            Clients(Gateway(cloud, idle_timeout_s, make_idle, dice, pod, tuple(traffics), disk=disk))
        )
    for each in clients:
        await each.gateway.open()
    everything = tuple(sorted(request for traffic in traffics.values() for request in traffic))
    crashes = _crash(
        [each.gateway for each in clients], everything, Random(f"crashes {seed}"), weather.crashes
    )
    fate = spawn(crashes, "simulation:fate")
    await asyncio.gather(
        *(each.ask_all(traffic) for each, traffic in zip(clients, traffics.values(), strict=True))
    )
    await fate
    end = days * DAY_S + AFTER_S
    await asyncio.sleep(end - asyncio.get_running_loop().time())
    for each in clients:
        await each.gateway.close()
    return {each.gateway.pod: _report(each, end) for each in clients}


async def _crash(gateways: Sequence[Gateway], traffic: Traffic, dice: Random, crashes: int) -> None:
    """Kill the gateway at random moments, most of them soon after a request, when there is much to forget."""
    moments = sorted(
        dice.choice(traffic).at + dice.choice([dice.uniform(0, 90), dice.uniform(0, 5000)])
        for _ in range(crashes if traffic else 0)
    )
    for moment in moments:
        await asyncio.sleep(moment - asyncio.get_running_loop().time())
        down_s = dice.uniform(10, 60)
        await asyncio.gather(*(gateway.crash(down_s) for gateway in gateways))


def _report(clients: Clients, end: float) -> Report:
    gateway = clients.gateway
    cloud, record = gateway.cloud, gateway.disk.record
    bill, books = union(cloud.bill()), gateway.books
    paid_s = length(bill)
    rate = cloud.price.running_per_hour
    return Report(
        paid_s=paid_s,
        useful_s=length(union(clients.worked)),
        cold=books.causes["request"],
        prewarmed=books.causes["prewarm"],
        waits=sorted(clients.waits),
        failed=clients.failed,
        leaked_s=_leaked(bill, gateway, clients, end),
        billing_at_end=bool(bill) and bill[-1][1] >= end,
        told=float(books.told),
        on_record=float(record.cost(gateway.pod)),
        open_rows=sum(row.pod == gateway.pod for row in record.still_open.values()),
        cost=paid_s / 3600 * float(rate or 0),
        crashes=len(gateway.crashes),
    )


def _leaked(bill: list[Span], gateway: Gateway, clients: Clients, end: float) -> float:
    unseen = within(bill, union(gateway.books.asleep))
    late = sum(max(0.0, ended - began - RECONCILE_S - 60) for began, ended in unseen)
    pauses = between(union(clients.wanted), end)
    for began, ended, idle_s in _idle(bill, pauses):
        adopted = sum(began <= crash <= ended for crash in gateway.crashes)  # each begins the clock anew
        late += max(0.0, idle_s - (1 + adopted) * gateway.idle_timeout_s - STOP_SLACK_S)
    return late


def _idle(bill: list[Span], pauses: list[Span]) -> Iterator[tuple[float, float, float]]:
    """Each pause, and for how long of it a pod was billed."""
    pieces = iter([*within(bill, pauses), (inf, inf)])
    piece = next(pieces)
    for began, ended in pauses:
        idle_s = 0.0
        while piece[1] <= ended:
            idle_s += piece[1] - piece[0]
            piece = next(pieces)
        yield began, ended, idle_s
