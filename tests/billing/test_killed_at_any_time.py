"""A gateway is killed at any instant of a pod's life, and another begins: each billed second is told once.

Everything between the first request and the proved stop is tried, with answers that are lost, stops that are
ignored, a calendar that goes back an hour and a machine that boots anew.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from attrs import frozen
from gpugate_testing.fakes import FakeCloud, LostAnswer

from gpugate.errors import Ambiguous, Transient
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.tasks import spawn
from tests.billing.ledger_house import IDLE_S, Book, House, ask, off, play

BOOT_S, STOP_S = 20.0, 5.0
ASKED_AT = (1.0, 100.0)
ANSWER_S = 30.0
STOPS_AT = ASKED_AT[1] + ANSWER_S + IDLE_S
ADOPTED_WITHIN_S = 60.0

INSTANTS = (
    *(0.0, 0.999, 1.0, 1.0001, 1.001, 1.05, 1.5, 5.0, 20.0, 20.9, 21.0, 21.001, 21.1, 21.5, 25.0, 40.0),
    *(51.0, 51.5, 60.0, 99.999, 100.001, 115.0, 130.001, 200.0, 300.0, STOPS_AT - 1),
    *(STOPS_AT + after for after in (-0.001, 0.0001, 0.001, 0.1, 1.0, 3.0, STOP_S, 5.001, 5.1, 6.0, 10.0)),
)


@frozen
class Luck:
    """What goes wrong beside the kill."""

    start_answer_lost: bool = False
    stop_answers_lost: int = 0
    stops_ignored: int = 0
    set_back: timedelta = timedelta(0)
    boots: bool = False


LUCKS = {
    "nothing else": Luck(),
    "the start's answer is lost": Luck(start_answer_lost=True),
    "stops' answers are lost": Luck(stop_answers_lost=2),
    "stops are ignored": Luck(stops_ignored=2),
    "the calendar goes back": Luck(set_back=timedelta(hours=1)),
    "the machine boots": Luck(boots=True),
    "all but a boot": Luck(True, 1, 1, timedelta(hours=1)),
}


def cloud_for(luck: Luck) -> FakeCloud:
    cloud = FakeCloud(boot_s=BOOT_S, stop_s=STOP_S, ignore_stops=luck.stops_ignored)
    if luck.start_answer_lost:
        cloud.fail("start", LostAnswer(Ambiguous("no answer")))
    cloud.fail("stop", *[LostAnswer(Transient("no answer"))] * luck.stop_answers_lost)
    return cloud


async def use(lifecycle: Lifecycle, after_s: float = 0.0) -> None:
    """Two requests, some time apart, the first one so much later."""
    begin = asyncio.get_running_loop().time() + after_s
    for number, at in enumerate(ASKED_AT):
        await asyncio.sleep(max(0.0, begin + at - asyncio.get_running_loop().time()))
        await ask(lifecycle, ANSWER_S, name=f"r-{number}")


async def killed(house: House, at: float) -> None:
    """A gateway that is used, and gone after so many seconds."""
    async with house.crashes() as lifecycle:
        using = spawn(use(lifecycle), "test:use", on_crash=lambda *_: None)
        await asyncio.sleep(at)
        using.cancel()
    await asyncio.gather(using, return_exceptions=True)


@pytest.mark.parametrize("away_s", [1.0, 3600.0])
@pytest.mark.parametrize("luck", LUCKS.values(), ids=LUCKS)
@pytest.mark.parametrize("at", INSTANTS)
def test_killed_at(at: float, luck: Luck, away_s: float) -> None:
    """Within a minute the pod serves or is stopped; in the end all is off, paid and told, to two per cent."""

    async def story() -> None:
        cloud = cloud_for(luck)
        house = House([cloud])
        await killed(house, at)
        house.set_back = luck.set_back
        house.boot = "boot-2" if luck.boots else house.boot
        await asyncio.sleep(away_s)
        async with house.open() as lifecycle:
            await asyncio.sleep(ADOPTED_WITHIN_S)
            stopped = not cloud.total_billed_s or cloud._billed_since is None
            assert stopped or lifecycle.serving is not None
            await off(lifecycle)
        assert cloud._billed_since is None
        paid = [row for row in house.rows if row.started_at is not None]
        assert all(row.ended_at for row in house.rows)
        assert cloud.starts == len(paid)
        billed = float(cloud.price.running_per_hour or 0) * cloud.total_billed_s / 3600
        assert float(sum(row.cost or 0 for row in paid)) == pytest.approx(billed, rel=0.02, abs=1e-9)

    play(story)


THREE = (Luck(start_answer_lost=True), Luck(stop_answers_lost=2), Luck(stops_ignored=2))


async def all_killed(houses: list[House], at: float, apart_s: float) -> None:
    """Pods of one gateway that are used, and gone together after so many seconds."""
    users = []
    async with AsyncExitStack() as gateways:
        for number, house in enumerate(houses):
            using = use(await gateways.enter_async_context(house.crashes()), number * apart_s)
            users.append(spawn(using, "test:use", on_crash=lambda *_: None))
        await asyncio.sleep(at)
        for user in users:
            user.cancel()
        houses[0].book.broken = True  # until the last one is gone, too
    houses[0].book.broken = False
    await asyncio.gather(*users, return_exceptions=True)


@pytest.mark.parametrize("apart_s", [0.0, 30.0])
@pytest.mark.parametrize("at", INSTANTS[2::5])
def test_three_pods_killed_at(at: float, apart_s: float) -> None:
    """Over one ledger, at providers of one name, each with another misfortune: a pod's rows are its bill."""

    async def story() -> None:
        book, pods = Book(), ("chat", "code", "draw")
        houses = [
            House([cloud_for(luck)], book, pod=pod, pods=pods) for pod, luck in zip(pods, THREE, strict=True)
        ]
        await all_killed(houses, at, apart_s)
        await asyncio.sleep(60)
        async with AsyncExitStack() as gateways:
            for lifecycle in [await gateways.enter_async_context(house.open()) for house in houses]:
                await off(lifecycle)
        for house in houses:
            cloud, rows = house.clouds[0], [row for row in house.rows if row.pod == house.pod]
            assert cloud._billed_since is None
            assert all(row.ended_at for row in rows)
            assert cloud.starts == len([row for row in rows if row.started_at is not None])
            billed = float(cloud.price.running_per_hour or 0) * cloud.total_billed_s / 3600
            assert float(sum(row.cost or 0 for row in rows)) == pytest.approx(billed, rel=0.02, abs=1e-9)

    play(story)
