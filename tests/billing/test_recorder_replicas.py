"""A session with replicas costs what all of them cost that ran, for as long as they ran."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from gpugate_testing.fakes import FakeCloud
from gpugate_testing.virtual_time import run

from gpugate.billing.cost_math import SECONDS_PER_HOUR, ReplicaCost
from gpugate.lifecycle.lifecycle import Lifecycle
from tests.billing.ledger_house import House

REPLICAS = {"replicas": "1..4", "target_in_flight": 2, "drain_concurrency": 8}


async def ask(lifecycle: Lifecycle, takes_s: float) -> None:
    """One request, from its arrival to its end."""
    with lifecycle.acquire() as lease:
        await lease.wait_admitted()
        lease.mark_response_started()
        await asyncio.sleep(takes_s)


def cost_of(cloud: FakeCloud) -> float:
    """The cloud's bill."""
    return cloud.total_billed_s / 3600 * float(cloud.price.running_per_hour or 0)


def test_the_cost_of_a_session_with_replicas() -> None:
    """Three for ten minutes, one for the rest: one row, and its cost is the cloud's bill."""

    async def story() -> None:
        house = House([FakeCloud(boot_s=60, stop_s=5)], numbers=REPLICAS)
        async with house.open() as lifecycle:
            await asyncio.gather(*(ask(lifecycle, 600) for _ in range(6)))
            await ask(lifecycle, 1800)
            status = await lifecycle.status()
            assert float(status.estimated_cost or 0) == pytest.approx(cost_of(house.clouds[0]), rel=0.005)
            assert status.replicas == 1
            assert status.hourly_rate == house.clouds[0].price.running_per_hour
            await asyncio.sleep(900)
        (row,) = house.book.rows.values()
        assert row.cost is not None
        assert float(row.cost) == pytest.approx(cost_of(house.clouds[0]), rel=0.005)
        assert house.clouds[0].total_billed_s > 1.4 * (house.clouds[0].now - 900)

    run(story())


def test_the_cost_over_a_crash() -> None:
    """The next gateway goes on with the row and what it has cost."""

    async def story() -> None:
        house = House([FakeCloud(stop_s=5)], numbers=REPLICAS)
        async with house.crashes() as lifecycle:
            asking = [asyncio.create_task(ask(lifecycle, 3000)) for _ in range(6)]
            await asyncio.sleep(1200)
        for task in asking:
            task.cancel()
        async with house.open() as lifecycle:
            await asyncio.sleep(10)
            assert lifecycle.status_now().replicas == 3  # type: ignore[union-attr]
            await ask(lifecycle, 1000)
            await asyncio.sleep(900)
        (row,) = house.book.rows.values()
        assert row.cost is not None
        assert float(row.cost) == pytest.approx(cost_of(house.clouds[0]), rel=0.02)

    run(story())


def test_without_a_price_each_replica_costs_the_configured_one() -> None:
    """`cost.hourly_rate` is that of one replica."""
    costs = ReplicaCost(1, Decimal(1))
    costs.change(3, Decimal(3), 1800.0)

    assert costs.total(3600.0) == Decimal(2)
    assert costs.mean_rate(3600.0) == Decimal(2)


def test_a_price_that_changes_alone() -> None:
    """It counts from the session's start, as ever: the first report may have had none."""
    costs = ReplicaCost(1, None)
    costs.change(1, Decimal(2), 1800.0)

    assert costs.total(3600.0) == Decimal(2)
    assert costs.mean_rate(3600.0) == Decimal(2)
    assert SECONDS_PER_HOUR == 3600
