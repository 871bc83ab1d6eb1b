"""RunPod's own bill: read whole, by pod and by what it is for, or an error."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from gpugate_runpod.billing import charges_of, query_of
from gpugate_testing.clouds.clocks import EPOCH
from runpod_matrix import ALL
from runpod_support import FIXED, House, ephemeral, play

from gpugate import AuthFailed, Charge, ProviderError, Transient

NOVEMBER = (EPOCH.replace(day=1, hour=0), EPOCH.replace(month=12, day=1, hour=0))
RECORD: dict[str, Any] = {
    "startTime": "2026-11-20T00:00:00Z",
    "endTime": "2026-11-21T00:00:00Z",
    "podId": "k3x9v2m7q1",
    "totalAmount": 1.83,
    "gpuAmount": 1.72,
    "cpuAmount": 0,
    "diskAmount": 0.11,
}
"""As docs/providers.md#runpod-operations has it."""


def by_what(charges: list[Charge]) -> dict[str, Decimal]:
    """The amounts."""
    return {charge.what: charge.amount for charge in charges}


def test_the_documented_record() -> None:
    """Split into what it is for, exactly."""
    charges = charges_of({"records": [RECORD], "metadata": {"recordCount": 1}})

    assert {"gpu": Decimal("1.72"), "disk": Decimal("0.11")} == by_what(charges)
    assert {("k3x9v2m7q1", EPOCH.replace(day=20, hour=0), EPOCH.replace(hour=0))} == {
        (charge.pod_id, charge.began_at, charge.ended_at) for charge in charges
    }


def test_a_part_without_a_name() -> None:
    """What the total has beyond its parts is not lost, nor a credit."""
    charges = charges_of({"records": [{**RECORD, "totalAmount": 1.80}]})

    assert Decimal("1.80") == sum(charge.amount for charge in charges)
    assert Decimal("-0.03") == by_what(charges)[""]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"records": {}},
        {"records": [1]},
        {"records": [{**RECORD, "totalAmount": None}]},
        {"records": [{**RECORD, "gpuAmount": "1.72"}]},
        {"records": [{**RECORD, "diskAmount": True}]},
        {"records": [{**RECORD, "startTime": "yesterday"}]},
        {"records": [{key: value for key, value in RECORD.items() if key != "endTime"}]},
        {"records": [RECORD], "metadata": {"recordCount": 2}},
    ],
)
def test_what_is_no_bill(answer: object) -> None:
    """Cannot be read, or not all of it came: an error, never a bill that is too small."""
    with pytest.raises(Transient):
        charges_of(answer)


def test_the_bucket() -> None:
    """Hours for a short span, days for a month; instants in UTC."""
    since = EPOCH.astimezone(tz=None)

    assert {
        "startTime": "2026-11-21T12:00:00Z",
        "endTime": "2026-11-21T15:00:00Z",
        "bucketSize": "hour",
        "podId": "p",
    } == query_of(since, since + timedelta(hours=3), "p")
    assert "day" == query_of(*NOVEMBER, None)["bucketSize"]


def test_a_session_over_midnight() -> None:
    """The GPU's seconds by day as the cloud's own ledger has them, and the disk of the stopped pod."""

    async def scenario(house: House) -> None:
        await house.provider.start()
        await asyncio.sleep(20 * 3600)  # from noon to eight
        await house.provider.stop()
        await asyncio.sleep(3600)
        charges = await house.provider.bill(*NOVEMBER)
        gpu = [(charge.began_at.day, float(charge.amount)) for charge in charges if charge.what == "gpu"]
        assert [21, 22] == [day for day, _ in gpu]
        assert [12 * 0.69, 8 * 0.69] == pytest.approx([amount for _, amount in gpu], abs=0.001)
        assert house.cloud.billed_s / 3600 * 0.69 == pytest.approx(sum(amount for _, amount in gpu), abs=1e-3)
        disk = sum(float(charge.amount) for charge in charges if charge.what == "disk")
        assert 100 * 0.20 / 730 == pytest.approx(disk, abs=0.001)
        assert [] == list(await house.provider.bill(EPOCH - timedelta(days=5), EPOCH - timedelta(days=2)))
        assert 2 == house.cloud.count("billing")

    play(scenario, FIXED, start=False)


def test_whose_pods() -> None:
    """A fixed pod's bill is its own; in ephemeral mode the account's, deleted pods included."""

    async def fixed(house: House) -> None:
        other = house.cloud.add_pod("another")
        other.start()
        await house.provider.start()
        await asyncio.sleep(3600)
        assert {"k3x9v2m7q1"} == {charge.pod_id for charge in await house.provider.bill(*NOVEMBER)}

    async def short_lived(house: House) -> None:
        await house.provider.start()
        await asyncio.sleep(3600)
        await house.provider.stop()
        await asyncio.sleep(60)
        charges = await house.provider.bill(*NOVEMBER)
        assert {house.pod.id} == {charge.pod_id for charge in charges}
        assert {"gpu"} == {charge.what for charge in charges}

    play(fixed, FIXED, start=False)
    play(short_lived, ephemeral(), start=False)


def test_faults() -> None:
    """Whatever goes wrong is one of gpugate's errors, and the next call is as good as new."""

    async def scenario(house: House) -> None:
        await house.provider.start()
        await asyncio.sleep(3600)
        for name, fault in ALL.items():
            house.cloud.fail("billing", fault, times=None)  # aiohttp asks again where a GET was reset
            with pytest.raises(ProviderError) as raised:
                await house.provider.bill(*NOVEMBER)
            house.cloud.faults.heal()
            assert house.cloud.api_key not in str(raised.value), name
            assert "\n" not in str(raised.value), name
            await asyncio.sleep(60)
        house.cloud.fail("billing", ALL["401"])
        with pytest.raises(AuthFailed):
            await house.provider.bill(*NOVEMBER)
        assert await house.provider.bill(*NOVEMBER)

    play(scenario, FIXED, start=False)
