"""A row is a billed stretch, and every billed stretch is a row: queues, crashes, strays and lost prices."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from gpugate_testing.fakes import FakeCloud, LostAnswer

from gpugate.billing.model import Session
from gpugate.errors import Ambiguous, GateError, Transient
from gpugate.provider_api import Phase, PodReport, Price
from tests.billing.ledger_house import House, ask, off, play, seconds


def paid(rows: list[Session]) -> float:
    """Seconds that the ledger has as billed."""
    return sum(seconds(row) for row in rows if row.started_at is not None)


@pytest.mark.parametrize("says_starting", [True, False])
@pytest.mark.parametrize("queue_s", [60.0, 3600.0])
def test_a_start_that_waits_in_the_queue(queue_s: float, says_starting: bool) -> None:
    """The wait is in no row, also if the provider said at first that the pod starts."""

    async def story() -> None:
        cloud = FakeCloud(boot_s=20, stop_s=3, queue_s=queue_s)
        if says_starting:  # the first answer does not know it yet
            cloud.fail("start", LostAnswer(Ambiguous()))
            cloud.fail("inspect", cloud.report(), PodReport(Phase.STARTING, "fake-1"))
        house = House([cloud], numbers={"capacity_wait": 7200.0, "max_wait": 7200.0})
        async with house.open() as lifecycle:
            await ask(lifecycle, user="ann")
            await off(lifecycle)
        (row,) = house.rows
        assert seconds(row) == pytest.approx(cloud.total_billed_s, abs=16)
        assert ("ann", "request", "idle") == (row.started_by, row.start_reason, row.end_reason)

    play(story)


def test_a_start_that_waits_in_vain() -> None:
    """Taken out of the queue it has cost nothing."""

    async def story() -> None:
        cloud = FakeCloud(queue_s=3600)
        house = House([cloud], numbers={"capacity_wait": 600.0, "max_wait": 7200.0})
        async with house.open() as lifecycle:
            with pytest.raises(GateError, match="queued"):
                await ask(lifecycle)
            await off(lifecycle)
        (row,) = house.rows
        assert (None, Decimal(0)) == (row.started_at, row.cost)
        assert 0 == cloud.total_billed_s

    play(story)


@pytest.mark.parametrize("away_s", [30.0, 1800.0])
def test_a_crash_while_a_start_waits_in_the_queue(away_s: float) -> None:
    """The next gateway finds it queued, or running since a while that the provider does not tell."""

    async def story() -> None:
        cloud = FakeCloud(boot_s=20, stop_s=3, queue_s=1800)
        house = House([cloud], numbers={"capacity_wait": 7200.0, "max_wait": 7200.0})
        async with house.crashes() as lifecycle:
            waiting = asyncio.create_task(ask(lifecycle))
            await asyncio.sleep(1000)
            waiting.cancel()
        await asyncio.sleep(away_s)
        async with house.open() as lifecycle:
            await ask(lifecycle)
            await off(lifecycle)
        unseen_s = max(0.0, 1000 + away_s - 1800)  # nobody knows when in it the pod began
        assert paid(house.rows) >= cloud.total_billed_s - 1
        assert paid(house.rows) <= cloud.total_billed_s + (820 if unseen_s else 16)

    play(story)


@pytest.mark.parametrize("phase", [Phase.STOPPED, Phase.FAILED])
def test_a_pod_that_dies_while_it_starts(phase: Phase) -> None:
    """It is started again after a pause: two rows, and the pause is in neither."""

    async def story() -> None:
        cloud = FakeCloud(boot_s=60, stop_s=2)
        house = House([cloud], numbers={"start_backoff": 100.0})
        async with house.open() as lifecycle:
            waiting = asyncio.create_task(ask(lifecycle, user="ann"))
            await asyncio.sleep(30)
            cloud.turn_off(at_once=True)
            cloud.fail("inspect", *[PodReport(phase, "fake-1", billed=False)] * 2)
            await waiting
            await off(lifecycle)
        first, second = house.rows
        assert seconds(first) == pytest.approx(30, abs=6)
        assert seconds(first) + seconds(second) == pytest.approx(cloud.total_billed_s, abs=6)
        assert ("lost", "idle") == (first.end_reason, second.end_reason)
        assert ["ann", "ann"] == [first.started_by, second.started_by]

    play(story)


def test_a_pod_at_the_second_provider() -> None:
    """Found beside the adopted one at boot, or started beside it later: each has a row until it is off."""

    async def story() -> None:
        first, second = FakeCloud(stop_s=20), FakeCloud(stop_s=20)
        house = House([first, second])
        first.turn_on()
        second.turn_on()
        async with house.open() as lifecycle:
            await ask(lifecycle, 100)
            assert 0 < second.total_billed_s < 100
            second.turn_on()
            await asyncio.sleep(100)
            await off(lifecycle)
        rows = [row for row in house.rows if row.provider == "beta"]
        assert ["stray", "stray"] == [row.end_reason for row in rows]
        assert paid(rows) == pytest.approx(second.total_billed_s, abs=32)
        assert all(row.cost for row in rows)

    play(story)


@pytest.mark.parametrize("manner", ["by hand", "exit"])
def test_a_pod_found_while_it_is_looked_at_once_more(manner: str) -> None:
    """At rest nothing is known to run; what the last look finds is stopped, and has a row."""

    async def story() -> None:
        cloud = FakeCloud(stop_s=20)
        house = House([cloud])
        lifecycle, books = await house.gateway()
        await asyncio.sleep(20)
        cloud.turn_on()
        if manner == "by hand":
            lifecycle.stop()
            await off(lifecycle)
        await lifecycle.close(keep=False, stop_wait_s=60)
        await books.aclose()
        (row,) = house.rows
        assert seconds(row) == pytest.approx(cloud.total_billed_s, abs=7)

    play(story)


@pytest.mark.parametrize("told", ["before", "after"])
def test_a_session_whose_looks_all_failed(told: str) -> None:
    """Its price is the one that looks at the same pod told before or after it."""

    async def story() -> None:
        price = Price(Decimal("2.5"), Decimal("0.1"))
        cloud = FakeCloud(stop_s=2, price=price)
        house = House([cloud], numbers={"start_attempts": 1})
        if told == "after":
            cloud.fail("inspect", PodReport(Phase.STOPPED, "fake-1"))
        async with house.open() as lifecycle:
            await asyncio.sleep(5)
            cloud.fail("start", PodReport(Phase.STARTING, "fake-1"))
            cloud.fail("inspect", *[Transient()] * 40)
            with pytest.raises(GateError):
                await ask(lifecycle)
            await off(lifecycle)
        (row,) = house.rows
        assert ("provider", price.running_per_hour) == (row.rate_source, row.hourly_rate)
        assert row.cost is not None
        assert row.cost > 0

    play(story)


def test_another_pod_in_the_middle_of_a_start() -> None:
    """The provider replaces a pod that it could not make: each has a row of its own."""

    async def story() -> None:
        cloud = FakeCloud(boot_s=60, stop_s=2)
        broken = PodReport(Phase.FAILED, "fake-0", price=Price(Decimal(9)), detail="half made")
        cloud.fail("start", broken)
        house = House([cloud], numbers={"start_backoff": 10.0})
        async with house.open() as lifecycle:
            await ask(lifecycle, user="ann")
            await off(lifecycle)
        half, good = house.rows
        assert ("fake-0", Decimal(9), "lost") == (half.pod_id, half.hourly_rate, half.end_reason)
        assert 0 < seconds(half) <= 12
        assert ("fake-1", "idle", "ann") == (good.pod_id, good.end_reason, good.started_by)
        assert seconds(good) == pytest.approx(cloud.total_billed_s, abs=3)

    play(story)


@pytest.mark.parametrize("gap", [Phase.QUEUED, Phase.UNREACHABLE])
def test_a_pod_that_serves_again_after_a_gap(gap: Phase) -> None:
    """It was taken away for a while, which the provider says costs nothing: a row before and one after it."""

    async def story() -> None:
        cloud = FakeCloud(stop_s=2)
        house = House([cloud], numbers={"warmup_timeout": 300.0})
        async with house.open() as lifecycle:
            await ask(lifecycle, 1, user="ann")
            await asyncio.sleep(30)
            cloud.fail("inspect", *[PodReport(gap, "fake-1", billed=False)] * 3)
            await asyncio.sleep(120)
            await ask(lifecycle, 10, user="ann")
            await off(lifecycle)
        first, second = house.rows
        assert ("queued" if gap is Phase.QUEUED else "lost") == first.end_reason
        assert ("adopted", "idle") == (second.start_reason, second.end_reason)
        assert 60 <= cloud.total_billed_s - seconds(first) - seconds(second) <= 95  # three looks
        assert second.ready_at == second.started_at
        used = [use for use in house.book.used.values() if use.session_id == second.id]
        assert ["ann"] == [use.user for use in used]

    play(story)
