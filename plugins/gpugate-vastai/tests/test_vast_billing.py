"""Vast.ai's own charges: read whole, by instance and by what they are for, or an error."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from gpugate_testing.clouds.clocks import EPOCH
from gpugate_vastai.billing import charges_of, filters_of
from vast_matrix import ALL
from vast_support import EPHEMERAL, FIXED, House, play

from gpugate import Charge, ProviderError, RateLimited, Transient

NOVEMBER = (EPOCH.replace(day=1, hour=0), EPOCH.replace(month=12, day=1, hour=0))
ROW: dict[str, Any] = {
    "source": "instance-20481234",
    "amount": Decimal("1.83"),
    "items": [{"type": "gpu", "amount": Decimal("1.72")}, {"type": "disk", "amount": Decimal("0.11")}],
}


def read(*rows: dict[str, Any]) -> list[Charge]:
    """The charges of November."""
    return list(charges_of(rows, *NOVEMBER))


def test_a_row() -> None:
    """Split into what it is for, exactly; bandwidth in both directions too."""
    more = [{"type": "bwd", "amount": Decimal("0.02")}, {"type": "bwu", "amount": 1}]
    charges = read({**ROW, "amount": Decimal("2.85"), "items": [*ROW["items"], *more]})

    assert {
        "gpu": Decimal("1.72"),
        "disk": Decimal("0.11"),
        "bwd": Decimal("0.02"),
        "bwu": Decimal(1),
    } == {charge.what: charge.amount for charge in charges}
    assert {("20481234", *NOVEMBER)} == {
        (charge.pod_id, charge.began_at, charge.ended_at) for charge in charges
    }


@pytest.mark.parametrize("row", [{**ROW, "items": None}, {**ROW, "items": []}, {**ROW, "items": "gpu"}])
def test_a_row_without_items(row: dict[str, Any]) -> None:
    """What is not told apart is not lost."""
    assert [("", Decimal("1.83"))] == [(charge.what, charge.amount) for charge in read(row)]


def test_what_is_no_instance() -> None:
    """A volume or a deposit belongs to no pod."""
    assert [] == read({**ROW, "source": "volume-7"}, {"amount": 3})


@pytest.mark.parametrize(
    "more",
    [{"amount": None}, {"amount": "1.83"}, {"amount": True}, {"items": [7]}, {"items": [{"type": "gpu"}]}],
)
def test_a_row_that_cannot_be_read(more: dict[str, Any]) -> None:
    """Is an error, never a bill that is too small."""
    with pytest.raises(Transient):
        read({**ROW, **more})


def test_the_days() -> None:
    """Vast.ai takes seconds and includes the last day."""
    day = json.loads(filters_of(*NOVEMBER))["day"]

    assert (NOVEMBER[0].timestamp(), NOVEMBER[1].timestamp() - 1) == (day["gte"], day["lte"])


def test_a_session() -> None:
    """As the cloud's own ledger has it, of that month alone, and of that instance alone."""

    async def scenario(house: House) -> None:
        house.cloud.add_instance(7, "another").start()
        await house.provider.start()
        await asyncio.sleep(20 * 3600)
        await house.provider.stop()
        await asyncio.sleep(60)
        charges = await house.provider.bill(*NOVEMBER)
        assert ["20481234"] == [charge.pod_id for charge in charges]
        billed_s = house.cloud.pods["20481234"].billed_s
        assert billed_s / 3600 * 0.4125 == pytest.approx(float(charges[0].amount), abs=1e-5)
        await asyncio.sleep(2)
        second = await house.provider.bill(EPOCH.replace(day=22, hour=0), EPOCH.replace(day=23, hour=0))
        assert 8 * 0.4125 == pytest.approx(float(second[0].amount), abs=0.01)

    play(scenario, FIXED, start=False)


def test_many_instances() -> None:
    """Every page is read; in ephemeral mode the account's instances are told."""

    async def scenario(house: House) -> None:
        for number in range(60):
            house.cloud.add_instance(number + 1).start()
        await asyncio.sleep(3600)
        assert 60 == len(await house.provider.bill(*NOVEMBER))
        assert 3 == house.cloud.count("charges")

    play(scenario, EPHEMERAL, start=False)


def test_too_soon() -> None:
    """What Vast.ai would refuse is refused here."""

    async def scenario(house: House) -> None:
        await house.provider.bill(*NOVEMBER)
        with pytest.raises(RateLimited):
            await house.provider.bill(*NOVEMBER)
        assert 1 == house.cloud.count("charges")

    play(scenario, FIXED, start=False)


def test_faults() -> None:
    """Whatever goes wrong is one of gpugate's errors, and the next call is as good as new."""

    async def scenario(house: House) -> None:
        await house.provider.start()
        await asyncio.sleep(3600)
        for name, fault in ALL.items():
            house.cloud.fail("charges", fault)
            with pytest.raises(ProviderError) as raised:
                await house.provider.bill(*NOVEMBER)
            assert house.cloud.api_key not in str(raised.value), name
            assert "\n" not in str(raised.value), name
            await asyncio.sleep(60)
        assert await house.provider.bill(*NOVEMBER)

    play(scenario, FIXED, start=False)


def test_a_rented_disk() -> None:
    """Is gone with its instance: a stop costs nothing on; a fixed instance's disk does."""

    async def scenario(house: House) -> None:
        await house.provider.start()
        await asyncio.sleep(60)
        price = (await house.provider.inspect()).price
        assert price is not None
        kept = house.settings is FIXED
        assert kept == bool(price.stopped_per_hour)

    play(scenario, EPHEMERAL, start=False)
    play(scenario, FIXED, start=False)


def test_a_short_span() -> None:
    """Is widened to whole days by Vast.ai, not by us."""
    since = EPOCH
    day = json.loads(filters_of(since, since + timedelta(hours=1)))["day"]

    assert 3599 == day["lte"] - day["gte"]
