"""Three pods at two clouds, of which one hangs; and one budget over all of them. In virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from gpugate_testing.clouds.faults import Hang

from gpugate.billing.recorder import CLOSE_LIMIT_S
from gpugate.billing.sqlite_ledger import SqliteLedger
from gpugate.tasks import spawn
from tests.e2e.clouds import COLD_S, FIXED, PODS, SECOND, SLACK_S, Town, play, pods_settings
from tests.e2e.test_bills import open_in_cloud_time

HOUR_S = 3600.0
RATE = 0.69


def hang(town: Town) -> None:
    """Let no call to Vast.ai be answered."""
    for call in ("get", "list", "start", "stop"):
        town.vast.fail(call, Hang(10 * HOUR_S), times=None)


def test_a_cloud_that_hangs(tmp_path: Path) -> None:
    """At boot, while the other pods are used and stopped, and at the end: they are as quick as ever."""

    async def scenario(town: Town) -> None:
        loop = asyncio.get_running_loop()
        town.runpod.add_pod(SECOND)
        hang(town)
        await town.open()
        chat, code, draw = town.gateway.base.fleet
        began = loop.time()
        answers = await asyncio.gather(town.chat("chat"), town.chat("code"))
        assert [200, 200] == [answer.status for answer in answers]
        assert loop.time() - began < COLD_S + SLACK_S
        assert draw.lifecycle.current_status is None  # it is not known yet
        await town.until(lambda: chat.lifecycle.current_status == code.lifecycle.current_status == "STOPPED")
        assert {"runpod": 2, "vastai": 0} == town.starts
        answers = await asyncio.gather(town.chat("chat"), town.chat("code"))
        closing = spawn(town.close(), "test:close")
        await town.until(lambda: not town.billing, 2 * SLACK_S)
        await closing
        town.vast.faults.heal()
        await town.open()
        await town.until(lambda: town.all_are("STOPPED"))

    play(scenario, tmp_path, sections=FIXED, start=False, **pods_settings("fixed"))


def test_a_disk_that_hangs(tmp_path: Path) -> None:
    """At the end: the stops are proved all the same, and the rows of all pods are waited for together."""

    async def scenario(town: Town) -> None:
        loop = asyncio.get_running_loop()
        town.runpod.add_pod(SECOND)
        await town.open()
        for name in PODS["fixed"]:
            assert 200 == (await town.chat(name)).status

        async def hang(*_: object) -> None:
            await asyncio.Event().wait()

        with town.patch.context() as patch:
            patch.setattr(SqliteLedger, "put", hang)
            began = loop.time()
            await town.close()
        assert loop.time() - began < SLACK_S + 2 * CLOSE_LIMIT_S
        assert [] == town.billing
        await town.open()
        await town.until(lambda: town.all_are("STOPPED"))
        await asyncio.sleep(60)
        rows = await town.gateway.base.ledger.starts(9)
        assert [("chat", True), ("code", True), ("draw", True)] == sorted(
            (row.pod, row.ended_at is not None) for row in rows
        )

    play(scenario, tmp_path, sections=FIXED, start=False, **pods_settings("fixed"))


def test_one_budget(tmp_path: Path) -> None:
    """Two pods have spent it: they go on, the third one is not started, and it is told once."""

    async def scenario(town: Town) -> None:
        town.runpod.add_pod(SECOND)
        await open_in_cloud_time(town)
        await asyncio.gather(town.chat("chat"), town.chat("code"))
        await asyncio.sleep(HOUR_S / 12 + 60)
        refused = await town.chat("draw")
        assert (402, 0) == (refused.status, town.starts["vastai"])
        assert [200, 200] == [
            answer.status for answer in await asyncio.gather(town.chat("chat"), town.chat("code"))
        ]
        assert [(50,), (80,), (100,)] == town.told("budget", "percent")
        summary = (await town.ask("GET", "/api/v1/cost/summary")).json["data"]
        sums = [(line["pod"], line["sessionCount"]) for line in summary["byPod"]]
        assert [("chat", 1), ("code", 1)] == sums
        whole = (await town.ask("GET", "/api/v1/cost/session")).json["data"]
        assert 2 * RATE == pytest.approx(whole["hourlyRate"])

    play(
        scenario,
        tmp_path,
        sections=FIXED,
        start=False,
        pod__idle_timeout=HOUR_S,
        cost__monthly_budget=RATE / 6,
        **pods_settings("fixed"),
    )
