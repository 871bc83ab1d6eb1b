"""A whole gateway at the simulated clouds: what it counted, beside what they billed."""

from __future__ import annotations

import asyncio
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from gpugate_testing.clouds import Http
from gpugate_testing.clouds.clocks import EPOCH

from gpugate import clock, pod_builder
from tests.e2e.clouds import DELAYS, IDLE_S, MODES, SLACK_S, Town, play

RATE = {"runpod": 0.69, "vastai": 0.4125}


async def open_in_cloud_time(town: Town) -> None:
    """Let the gateway's books live in the clouds' time too, in a month that is known."""
    town.runpod.clock.epoch = EPOCH  # the two clouds have one clock

    class Calendar:
        @staticmethod
        def now(zone: tzinfo) -> datetime:
            return town.runpod.clock.wall().astimezone(zone)

    town.patch.setattr(clock, "datetime", Calendar)
    town.patch.setattr(pod_builder, "boottime", town.runpod.clock.now)
    await town.open()
    await town.word("STOPPED")


async def reconciled(town: Town) -> dict[str, Any]:
    """By provider."""
    answer = await town.ask("GET", "/api/v1/cost/reconcile?month=2026-11")
    assert 200 == answer.status, answer.body
    return {one["provider"]: one for one in answer.json["data"]["providers"]}


@MODES
@pytest.mark.parametrize("name", ["runpod", "vastai"])
def test_a_long_session(tmp_path: Path, name: str, sections: Any) -> None:
    """The estimate is within two per cent of what the cloud says, a stop's seconds and a look included."""

    async def scenario(town: Town) -> None:
        await open_in_cloud_time(town)
        for _ in range(40):
            await town.served_by()
            await asyncio.sleep(IDLE_S - 10)
        await town.word("STOPPED")
        await asyncio.sleep(60)
        one = (await reconciled(town))[name]
        gpu = one["parts"]["gpu"]
        assert town.cloud.billed_s / 3600 * RATE[name] == pytest.approx(gpu, rel=0.05)
        assert one["estimate"] == pytest.approx(gpu, rel=0.02, abs=(SLACK_S + DELAYS.stop_s) / 3600)
        assert one["bill"] == pytest.approx(sum(one["parts"].values()), abs=1e-6)
        assert (0, None) == (one["otherPods"], one["note"])

    play(scenario, tmp_path, providers=(name,), sections=sections, start=False)


def test_one_bill_fails(tmp_path: Path) -> None:
    """Its provider's line says so; the other's is there."""

    async def scenario(town: Town) -> None:
        await open_in_cloud_time(town)
        await town.served_by()
        await town.word("STOPPED")
        town.vast.fail("charges", Http(429, b"API requests too frequent"))
        found = await reconciled(town)
        assert found["runpod"]["bill"] > 0
        assert (None, "Vast.ai is asked too often") == (found["vastai"]["bill"], found["vastai"]["note"])
        await asyncio.sleep(5)
        assert 0 == (await reconciled(town))["vastai"]["bill"]

    play(scenario, tmp_path, start=False)
