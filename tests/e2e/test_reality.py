"""What is done in a cloud's console while nobody asks the gateway: at its boot, and later; in money."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from gpugate_demo.faults import Hang as Silence
from gpugate_demo.faults import HangAfter
from gpugate_testing.clouds import Capacity, Hang, Http

from gpugate.provider_api import Phase
from tests.e2e.clouds import BOTH, COLD_S, DELAYS, IDLE_S, RUNNING_COLD_S, SLACK_S, Town, play

EACH = pytest.mark.parametrize("name", BOTH)
COLD = {"runpod": COLD_S, "vastai": RUNNING_COLD_S}
"""Billed seconds from a start to a service that answers."""
NOTICED_S = 30 + SLACK_S
"""`pod.reconcile_interval`."""


def near(expected: float, actual: float, slack_s: float = SLACK_S) -> bool:
    """A bill, give or take a look."""
    return expected - 1 <= actual <= expected + slack_s


def look_is_down(town: Town, *names: str) -> None:
    """Nobody can look at these clouds any more."""
    for name in names or town.providers:
        for operation in ("get", "list"):
            town.clouds[name].fail(operation, Http(503), None)


# --- at boot --------------------------------------------------------------------------------------


@EACH
def test_boot_with_a_stopped_pod(tmp_path: Path, name: str) -> None:
    """Nothing is started, and nothing is sent but looks."""

    async def scenario(town: Town) -> None:
        await asyncio.sleep(300)
        assert {"get"} == {asked.operation for asked in town.cloud.asked}
        assert (0, 0) == (town.cloud.starts, town.cloud.billed_s)
        assert "STOPPED" == (await town.status())["status"]

    play(scenario, tmp_path, providers=(name,))


@EACH
def test_boot_with_a_running_pod(tmp_path: Path, name: str) -> None:
    """It is adopted with its session and its price, serves, and is stopped when nobody uses it."""

    async def scenario(town: Town) -> None:
        town.pod().start()
        await asyncio.sleep(COLD_S + 600)
        before = town.cloud.billed_s
        await town.open()
        await town.word("READY", SLACK_S)
        status = await town.status()
        assert (name, town.pod().id) == (status["provider"], status["pod_id"])
        assert status["uptime_seconds"] == pytest.approx(600, abs=90)  # Vast.ai tells minutes
        assert status["hourly_rate"] is not None
        assert name == await town.served_by()
        await town.word("STOPPED")
        assert 1 == town.cloud.starts
        assert near(IDLE_S + DELAYS.stop_s, town.cloud.billed_s - before)
        assert [("ended", "idle")] == town.told("session", "event", "cause")

    play(scenario, tmp_path, providers=(name,), start=False)


@EACH
def test_boot_with_a_pod_on_its_way(tmp_path: Path, name: str) -> None:
    """Started in the console a moment ago: adopted, not started again."""

    async def scenario(town: Town) -> None:
        town.pod().start()
        await asyncio.sleep(DELAYS.provision_s + 1)
        await town.open()
        assert name == await town.served_by()
        await town.word("STOPPED")
        assert (1, 0) == (town.cloud.starts, town.cloud.count("start"))

    play(scenario, tmp_path, providers=(name,), start=False)


@EACH
def test_boot_with_a_deleted_pod(tmp_path: Path, name: str) -> None:
    """The gateway is up; a request is told what is wrong."""

    async def scenario(town: Town) -> None:
        town.pod().become(Phase.GONE)
        await town.open()
        await town.word("STOPPED", 60)
        answer = await town.chat()
        assert (503, "not_found") == (answer.status, answer.json["reason"])
        assert 0 == town.cloud.billed_s

    play(scenario, tmp_path, providers=(name,), start=False)


@EACH
def test_boot_without_sight(tmp_path: Path, name: str) -> None:
    """Not being able to look is not "stopped": status says so, and the running pod is adopted later."""

    async def scenario(town: Town) -> None:
        town.pod().start()
        await asyncio.sleep(COLD_S)
        look_is_down(town)
        await town.open()
        answer = await town.ask("GET", "/api/v1/gpu/status")
        assert (503, "PROVIDER_UNAVAILABLE") == (answer.status, answer.json["error"]["code"])
        await asyncio.sleep(60)
        assert town.gateway.lifecycle.current_status is None
        town.cloud.faults.heal()
        await town.word("READY", 60)
        await town.word("STOPPED")
        assert (1, 0) == (town.cloud.starts, town.cloud.count("start"))

    play(scenario, tmp_path, providers=(name,), start=False)


def test_boot_with_both_running(tmp_path: Path) -> None:
    """The first of the list is adopted, the other one is stopped and proved so."""

    async def scenario(town: Town) -> None:
        for cloud in BOTH:
            town.pod(cloud).start()
        await asyncio.sleep(COLD_S)
        before = town.billed["vastai"]
        await town.open()
        assert "runpod" == await town.served_by()
        await town.proved()
        assert ["runpod"] == town.billing
        assert near(DELAYS.stop_s, town.billed["vastai"] - before, 10)
        await town.word("STOPPED")
        assert {"runpod": 1, "vastai": 1} == town.starts

    play(scenario, tmp_path, start=False)


def test_boot_with_the_second_running(tmp_path: Path) -> None:
    """What runs is used, whoever is first in the list."""

    async def scenario(town: Town) -> None:
        town.pod("vastai").start()
        await asyncio.sleep(COLD_S)
        await town.open()
        assert "vastai" == await town.served_by()
        assert {"runpod": 0, "vastai": 1} == town.starts

    play(scenario, tmp_path, start=False)


@EACH
def test_a_restart_of_the_gateway(tmp_path: Path, name: str) -> None:
    """Kept at its exit, adopted at the next start; the idle clock begins then."""

    async def scenario(town: Town) -> None:
        assert name == await town.served_by()
        await town.close()
        await asyncio.sleep(30)
        assert [name] == town.billing
        before = town.cloud.billed_s
        await town.open()
        await town.word("READY", SLACK_S)
        await town.word("STOPPED")
        assert 1 == town.cloud.starts
        assert near(IDLE_S + DELAYS.stop_s, town.cloud.billed_s - before, 2 * SLACK_S)

    play(scenario, tmp_path, providers=(name,), server__on_exit="keep")


# --- later ----------------------------------------------------------------------------------------


@EACH
def test_started_in_the_console(tmp_path: Path, name: str) -> None:
    """Noticed, warmed, ready for who comes, and stopped after the idle time."""

    async def scenario(town: Town) -> None:
        town.pod().start()
        await town.word("READY", COLD_S + NOTICED_S)
        assert 0 < (await town.status())["stops_in_seconds"] <= IDLE_S
        await town.word("STOPPED")
        assert (1, 0) == (town.cloud.starts, town.cloud.count("start"))
        least = COLD[name] + IDLE_S + DELAYS.stop_s
        assert near(least, town.cloud.billed_s, NOTICED_S)

    play(scenario, tmp_path, providers=(name,))


@EACH
@pytest.mark.parametrize("phase", [Phase.STOPPED, Phase.GONE], ids=["stopped", "deleted"])
def test_gone_while_it_serves(tmp_path: Path, name: str, phase: Phase) -> None:
    """Noticed without a request; the session ends. The next request starts it again, or is told why not."""

    async def scenario(town: Town) -> None:
        assert name == await town.served_by()
        town.pod().become(phase)
        billed = town.cloud.billed_s
        await town.word("STOPPED", 2 * NOTICED_S)  # a pod that is missing is looked for twice
        assert ("ended", "lost") == town.told("session", "event", "cause")[-1]
        assert billed == town.cloud.billed_s
        if phase is Phase.STOPPED:
            assert name == await town.served_by()
        else:
            answer = await town.chat()
            assert (503, "not_found") == (answer.status, answer.json["reason"])
        await town.word("STOPPED")
        assert (2 if phase is Phase.STOPPED else 1) == town.cloud.starts

    play(scenario, tmp_path, providers=(name,))


@EACH
def test_stopped_under_a_request(tmp_path: Path, name: str) -> None:
    """Its answer has not begun: it goes back to the queue and a new start serves it."""

    async def scenario(town: Town) -> None:
        assert name == await town.served_by()
        ollama = town.ollamas[name]
        ollama.faults.add("/api/chat", Silence())
        ask = asyncio.ensure_future(town.served_by())
        await town.until(lambda: len(ollama.calls("/api/chat")) == 2)
        town.pod().become(Phase.STOPPED)
        assert name == await ask
        await town.word("STOPPED")
        assert 2 == town.cloud.starts

    play(scenario, tmp_path, providers=(name,))


@EACH
def test_stopped_in_the_middle_of_a_stream(tmp_path: Path, name: str) -> None:
    """What has begun breaks, and does not look complete."""

    async def scenario(town: Town) -> None:
        assert name == await town.served_by()
        ollama = town.ollamas[name]
        ollama.faults.add("/api/chat", HangAfter(1))
        ask = asyncio.ensure_future(town.chat(stream=True))
        await town.until(lambda: len(ollama.calls("/api/chat")) == 2)
        await asyncio.sleep(1)
        town.pod().become(Phase.STOPPED)
        answer = await ask
        assert not answer.whole
        await town.word("STOPPED", NOTICED_S)
        assert 1 == town.cloud.starts

    play(scenario, tmp_path, providers=(name,))


@EACH
def test_sight_is_lost_while_it_serves(tmp_path: Path, name: str) -> None:
    """ "I could not look" is never "stopped": it serves on, status says what is wrong, then not any more."""

    async def scenario(town: Town) -> None:
        assert name == await town.served_by()
        look_is_down(town)
        await asyncio.sleep(60)
        status = await town.status()
        assert "READY" == status["status"]
        assert "could not look" in status["last_error"]
        assert name == await town.served_by()
        town.cloud.faults.heal()
        await asyncio.sleep(NOTICED_S)
        assert (await town.status())["last_error"] is None
        await town.word("STOPPED")
        assert 1 == town.cloud.starts

    play(scenario, tmp_path, providers=(name,))


@EACH
def test_sight_is_lost_while_it_is_stopped(tmp_path: Path, name: str) -> None:
    """STOPPING until it was seen, however long that takes."""

    async def scenario(town: Town) -> None:
        assert name == await town.served_by()
        look_is_down(town)
        await asyncio.sleep(IDLE_S + 120)
        assert "STOPPING" == (await town.status())["status"]
        assert [] == town.billing
        town.cloud.faults.heal()
        await town.word("STOPPED", 400)
        assert near(COLD[name] + IDLE_S + DELAYS.stop_s, town.cloud.billed_s)

    play(scenario, tmp_path, providers=(name,))


def test_the_second_is_started_in_the_console_while_the_first_serves(tmp_path: Path) -> None:
    """One pod is enough: the stray one is stopped and proved so."""

    async def scenario(town: Town) -> None:
        assert "runpod" == await town.served_by()
        town.pod("vastai").start()
        await town.until(lambda: town.vast.count("stop") > 0, NOTICED_S)
        await town.proved()
        assert ["runpod"] == town.billing
        assert town.billed["vastai"] <= NOTICED_S + DELAYS.stop_s
        assert "runpod" == await town.served_by()

    play(scenario, tmp_path)


def test_the_pod_of_a_failover_is_stopped_in_the_console(tmp_path: Path) -> None:
    """The next request begins with the first of the list again, and is served by who has room."""

    async def scenario(town: Town) -> None:
        town.runpod.fail("start", Capacity(), None)
        assert "vastai" == await town.served_by()
        town.pod("vastai").become(Phase.STOPPED)
        await town.word("STOPPED", NOTICED_S)
        assert "vastai" == await town.served_by()
        town.runpod.faults.heal()
        await town.word("STOPPED")
        assert "runpod" == await town.served_by()
        assert {"runpod": 1, "vastai": 2} == town.starts

    play(scenario, tmp_path)


@EACH
def test_a_look_that_takes_a_minute(tmp_path: Path, name: str) -> None:
    """A slow cloud is no dead cloud, and what it says late does not undo what came since."""

    async def scenario(town: Town) -> None:
        assert name == await town.served_by()
        town.cloud.fail("get", Hang(60), 2)
        await asyncio.sleep(200)
        await town.word("STOPPED")
        assert 1 == town.cloud.starts
        assert town.cloud.billed_s <= COLD[name] + IDLE_S + 60 + DELAYS.stop_s + 60

    play(scenario, tmp_path, providers=(name,))


def test_the_outbid_instance(tmp_path: Path) -> None:
    """Vast.ai takes the GPU away and would start again by itself: nothing runs for nobody."""

    async def scenario(town: Town) -> None:
        assert "vastai" == await town.served_by()
        town.vast.outbid(town.pod(), back_after_s=600)
        await asyncio.sleep(3000)
        assert "STOPPED" == (await town.status())["status"]
        assert [] == town.billing

    play(scenario, tmp_path, providers=("vastai",))
