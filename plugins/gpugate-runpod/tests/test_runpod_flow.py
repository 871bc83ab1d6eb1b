"""The whole way, from a held request to a proved stop, over the simulated edge; asserted in money."""

from __future__ import annotations

import asyncio

import pytest
from runpod_support import COLD_S, DELAYS, FIXED, IDLE_S, SLACK_S, House, ephemeral, play

from gpugate.core.states import Status
from gpugate.provider_api import Phase

MODES = pytest.mark.parametrize("settings", [FIXED, ephemeral()], ids=["fixed", "ephemeral"])


def about(house: House, served_s: float) -> None:
    """One start, and a bill of that session with its warm-up, its idle time and its stop."""
    least = COLD_S + served_s + IDLE_S + DELAYS.stop_s
    assert 1 == house.cloud.starts
    assert least - 1 <= house.cloud.billed_s <= least + SLACK_S
    assert [] == house.cloud.billing


@MODES
def test_one_request(settings: dict) -> None:
    """A cold request is answered by the pod's Ollama, and the pod is stopped once it is idle."""

    async def scenario(house: House) -> None:
        assert "version" in await house.ask(hold_s=10)
        await house.off()
        about(house, 10)
        session = house.sessions[0]
        assert "idle" == session.cause
        assert house.cloud.billed_s == pytest.approx(float(session.cost) * 3600 / 0.69, abs=SLACK_S)

    play(scenario, settings)


@MODES
def test_two_requests_at_once(settings: dict) -> None:
    """Open WebUI sends two for every new chat: one start."""

    async def scenario(house: House) -> None:
        await asyncio.gather(house.ask(), house.ask())
        await house.off()
        about(house, 20)

    play(scenario, settings)


@MODES
def test_a_restart_of_the_gateway(settings: dict) -> None:
    """The next gateway finds the running pod by its id or its name, adopts it, and stops it when idle."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        assert await house.lifecycle.close(keep=True, stop_wait_s=60)
        await asyncio.sleep(60)
        house.build()
        await house.lifecycle.open()
        await house.until(lambda: house.lifecycle.current_status is Status.READY)
        await house.off()
        about(house, 60)

    play(scenario, settings)


@MODES
def test_an_exit_of_the_gateway(settings: dict) -> None:
    """Going down stops the pod and has the proof."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        assert await house.lifecycle.close(keep=False, stop_wait_s=60)
        assert [] == house.cloud.billing
        house.build()
        await house.lifecycle.open()

    play(scenario, settings)


@MODES
def test_a_pod_stopped_behind_our_back(settings: dict) -> None:
    """It is noticed at the next looks, nothing is left over, and the next request starts again."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        house.pod.become(Phase.STOPPED)
        await house.until(lambda: house.lifecycle.current_status is not Status.READY, 40)
        await house.off()
        assert "lost" == house.sessions[0].cause
        await house.ask(hold_s=0)
        await house.off()
        assert 2 == house.cloud.starts
        assert [] == house.cloud.billing

    play(scenario, settings)


@MODES
def test_a_pod_deleted_behind_our_back(settings: dict) -> None:
    """It is noticed; a fixed pod is then missing, an ephemeral one is made anew."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        house.pod.become(Phase.GONE)
        await house.until(lambda: house.lifecycle.current_status is Status.STOPPED, 70)
        if settings is FIXED:
            with pytest.raises(Exception, match="deleted or migrated") as told:
                await house.ask(hold_s=0)
            assert "not_found" == told.value.reason
        else:
            await house.ask(hold_s=0)
        await house.off()
        assert [] == house.cloud.billing

    play(scenario, settings)


def test_a_pod_started_in_the_console() -> None:
    """It is adopted, warmed and stopped when nobody uses it."""

    async def scenario(house: House) -> None:
        house.pod.start()
        await house.until(lambda: house.lifecycle.current_status is Status.READY, 60)
        await house.off()
        assert [] == house.cloud.billing

    play(scenario, FIXED)


@MODES
def test_a_pod_whose_ollama_never_answers(settings: dict) -> None:
    """503 after the warm-up limit, and the pod is off again."""

    async def scenario(house: House) -> None:
        house.cloud.edge.upstreams.clear()
        with pytest.raises(Exception, match="failed to become ready"):
            await house.ask()
        await house.off()
        assert [] == house.cloud.billing
        assert house.cloud.billed_s <= COLD_S + 180 + DELAYS.stop_s + SLACK_S

    play(scenario, settings)


@MODES
def test_a_pod_that_is_never_provisioned(settings: dict) -> None:
    """It is given up after `pod.start_timeout`, and stopped."""

    async def scenario(house: House) -> None:
        if settings is FIXED:
            house.pod.never_runs = True
        else:
            house.cloud.delays = type(DELAYS)(provision_s=1e6)
        with pytest.raises(Exception, match="not running within"):
            await house.ask()
        await house.off()
        assert [] == house.cloud.billing
        assert house.cloud.billed_s <= 600 + DELAYS.stop_s + SLACK_S

    play(scenario, settings)


def test_a_container_that_hangs() -> None:
    """RUNNING with an uptime of 0 is no pod: the failure says so, and the pod is stopped."""

    async def scenario(house: House) -> None:
        house.pod.uptime_zero = True
        with pytest.raises(Exception, match=r"failed to become ready|has not begun"):
            await house.ask()
        await house.off()
        assert [] == house.cloud.billing

    play(scenario, FIXED)


@MODES
def test_a_pod_that_crashes_while_it_serves(settings: dict) -> None:
    """ERROR is no proof of a stop for a pod that has to be deleted; the next request gets a new start."""

    async def scenario(house: House) -> None:
        house.cloud.delays = DELAYS
        await house.ask(hold_s=0)
        house.pod.become(Phase.FAILED)
        await house.off()
        await house.ask(hold_s=0)
        await house.off()
        assert 2 == house.cloud.starts
        assert [] == house.cloud.billing

    play(scenario, settings)


@MODES
def test_stops_that_have_no_effect(settings: dict) -> None:
    """A stop is sent again until the pod is seen off."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        house.pod.ignore_stops = 3
        await house.off()
        assert [] == house.cloud.billing
        assert any("not proved" in trouble for trouble in house.troubles)
        assert house.cloud.billed_s <= COLD_S + IDLE_S + 5 + 10 + 20 + DELAYS.stop_s + 3 * SLACK_S

    play(scenario, settings)


@MODES
def test_a_locked_pod(settings: dict) -> None:
    """Its stop is refused: the gateway says what to do, says STOPPING, and stops it once it is unlocked."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        house.pod.locked = True
        await asyncio.sleep(IDLE_S + 60)
        assert Status.STOPPING is house.lifecycle.current_status
        assert any("locked" in trouble for trouble in house.troubles)
        house.pod.locked = False
        await house.off()
        assert [] == house.cloud.billing

    play(scenario, settings)


def test_an_edge_that_answers_for_the_pod() -> None:
    """404 and 502 of the edge are "not ready yet", not health."""

    async def scenario(house: House) -> None:
        before = asyncio.get_running_loop().time()
        await house.ask(hold_s=0)
        took = asyncio.get_running_loop().time() - before
        assert COLD_S <= took <= COLD_S + SLACK_S

    play(scenario, FIXED)
