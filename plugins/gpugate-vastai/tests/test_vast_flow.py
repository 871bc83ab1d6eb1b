"""The whole way, from a held request to a proved stop, over the mapped ports; asserted in money."""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any

import pytest
from gpugate_testing.clouds import Capacity, LostResponse, Stale
from gpugate_testing.clouds.pods import ON_ITS_WAY
from gpugate_vastai import VastConfig
from vast_support import DELAYS, EPHEMERAL, FIXED, IDLE_S, SLACK_S, House, play

from gpugate.core.states import Status
from gpugate.errors import GateError, Misconfigured, NoCapacity
from gpugate.provider_api import Phase

Settings = dict[str, Any]
MODES = pytest.mark.parametrize("settings", [FIXED, EPHEMERAL], ids=["fixed", "ephemeral"])


def about(house: House, served_s: float, starts: int = 1) -> None:
    """So many starts, and a bill of warm-up, service, idle time and stop; loading costs nothing."""
    least = DELAYS.ready_s + served_s + starts * (IDLE_S + DELAYS.stop_s)
    assert starts == house.cloud.starts
    assert least - 1 <= house.cloud.billed_s <= least + starts * SLACK_S
    assert [] == house.cloud.billing


@MODES
def test_one_request(settings: Settings) -> None:
    """A cold request is answered by the instance's Ollama, and it is off once it was idle for long enough."""

    async def scenario(house: House) -> None:
        assert "version" in await house.ask(hold_s=10)
        await house.off()
        about(house, 10)
        assert ["idle"] == [session.cause for session in house.sessions]
        assert (Phase.STOPPED if settings is FIXED else Phase.GONE) is house.pod.look()

    play(scenario, settings)


@MODES
def test_two_requests_at_once(settings: Settings) -> None:
    """Open WebUI sends two for every new chat: one start."""

    async def scenario(house: House) -> None:
        await asyncio.gather(house.ask(), house.ask())
        await house.off()
        about(house, 20)

    play(scenario, settings)


@MODES
def test_a_second_session_has_other_ports(settings: Settings) -> None:
    """Ports change with every start, and come some looks late: they are read anew each time."""

    async def scenario(house: House) -> None:
        house.cloud.ports_after_polls = 3
        seen = []
        for _ in range(2):
            assert "version" in await house.ask(hold_s=0)
            assert house.lifecycle.serving is not None
            seen.append(house.lifecycle.serving.endpoints["ollama"].url)
            await house.off()
        assert seen[0] != seen[1]
        assert 2 == house.cloud.starts
        assert house.cloud.billed_s <= 2 * (DELAYS.ready_s + IDLE_S + DELAYS.stop_s + SLACK_S + 3 * 5)

    play(scenario, settings)


@MODES
def test_a_restart_of_the_gateway(settings: Settings) -> None:
    """The next gateway finds the running instance by number or label, adopts it, stops it when idle."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        assert await house.lifecycle.close(keep=True, stop_wait_s=60)
        await asyncio.sleep(60)
        house.build()
        await house.lifecycle.open()
        await house.until(lambda: house.lifecycle.current_status is Status.READY)
        status = await house.lifecycle.status()
        assert status.uptime_seconds == pytest.approx(house.pod.uptime_s, abs=2)
        await house.off()
        about(house, 60)

    play(scenario, settings)


@MODES
def test_an_exit_of_the_gateway(settings: Settings) -> None:
    """Going down stops the instance and has the proof."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        assert await house.lifecycle.close(keep=False, stop_wait_s=60)
        assert [] == house.cloud.billing
        await asyncio.sleep(10)
        house.build()
        await house.lifecycle.open()

    play(scenario, settings)


@MODES
def test_an_instance_stopped_in_the_console(settings: Settings) -> None:
    """It is noticed within the reconcile interval; nothing is left over, and the next request starts anew."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        house.pod.become(Phase.STOPPED)
        await house.until(lambda: house.lifecycle.current_status is not Status.READY, 40)
        await house.off()
        if settings is EPHEMERAL:
            assert Phase.GONE is house.pod.look(), "its disk would be billed"
        await house.ask(hold_s=0)
        await house.off()
        assert 2 == house.cloud.starts
        assert [] == house.cloud.billing

    play(scenario, settings)


@MODES
def test_an_instance_destroyed_in_the_console(settings: Settings) -> None:
    """It is noticed; a fixed one is then missing, an ephemeral one is rented anew."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        house.pod.become(Phase.GONE)
        await house.until(lambda: house.lifecycle.current_status is Status.STOPPED, 40)
        if settings is FIXED:
            with pytest.raises(GateError, match="no such instance") as told:
                await house.ask(hold_s=0)
            assert "not_found" == told.value.reason
        else:
            await house.ask(hold_s=0)
        await house.off()
        assert [] == house.cloud.billing

    play(scenario, settings)


def test_an_instance_started_in_the_console() -> None:
    """It is adopted, warmed and stopped when nobody uses it."""

    async def scenario(house: House) -> None:
        house.pod.start()
        await house.until(lambda: house.lifecycle.current_status is Status.READY, 60)
        await house.off()
        found_s = house.cloud.billed_s - IDLE_S - DELAYS.stop_s
        assert found_s <= 30 + SLACK_S

    play(scenario, FIXED)


@pytest.mark.parametrize("wait_s", [28.5, 29.5, 30.5])
def test_an_instance_started_in_the_console_right_before_a_look(wait_s: float) -> None:
    """It reads exited then, like one that waits for its GPU; it is adopted all the same, not stopped."""

    async def scenario(house: House) -> None:
        await asyncio.sleep(wait_s)
        house.pod.start()
        await house.until(lambda: house.lifecycle.current_status is Status.READY, 60)
        await house.off()
        assert 1 == len(house.sessions)

    play(scenario, FIXED)


@MODES
def test_an_ollama_that_never_answers(settings: Settings) -> None:
    """503 after the warm-up limit, and the instance is off again."""

    async def scenario(house: House) -> None:
        house.cloud.ports.upstreams.clear()
        with pytest.raises(GateError, match="failed to become ready"):
            await house.ask()
        await house.off()
        assert [] == house.cloud.billing
        assert house.cloud.billed_s <= 180 + DELAYS.stop_s + SLACK_S

    play(scenario, settings)


@MODES
def test_an_instance_that_never_runs(settings: Settings) -> None:
    """It is given up after `pod.start_timeout`, stopped, and cost nothing."""

    async def scenario(house: House) -> None:
        house.cloud.delays = type(DELAYS)(start_s=1e6)
        for pod in house.cloud.pods.values():
            pod.delays = house.cloud.delays
        with pytest.raises(GateError, match="not running within"):
            await house.ask()
        await house.off()
        assert house.pod.look() not in ON_ITS_WAY
        assert house.cloud.billed_s <= DELAYS.stop_s

    play(scenario, settings)


@MODES
def test_ports_that_never_come(settings: Settings) -> None:
    """Running without its ports is not ready: given up after `pod.start_timeout`, and said why."""

    async def scenario(house: House) -> None:
        house.cloud.ports_after_polls = 10_000
        with pytest.raises(GateError, match="its port 11434 is not mapped"):
            await house.ask()
        await house.off()
        assert [] == house.cloud.billing
        assert house.cloud.billed_s <= 600 + DELAYS.stop_s + SLACK_S

    play(scenario, settings)


@MODES
def test_a_container_that_dies_while_it_serves(settings: Settings) -> None:
    """`exited` after `running` is a dead container, not one that waits: stopped, and started for the next."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        house.pod.spec["dies_with"] = ""
        house.pod.become(Phase.FAILED)
        await house.until(lambda: house.lifecycle.current_status is not Status.READY, 40)
        await house.off()
        await house.ask(hold_s=0)
        await house.off()
        assert 2 == house.cloud.starts
        assert [] == house.cloud.billing

    play(scenario, settings)


@MODES
def test_a_frozen_instance(settings: Settings) -> None:
    """Frozen is billed and serves nobody: it is stopped."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        house.cloud.freeze(house.pod)
        await house.until(lambda: house.lifecycle.current_status is not Status.READY, 40)
        await house.off()
        assert [] == house.cloud.billing
        assert any("frozen" in trouble for trouble in house.troubles)

    play(scenario, settings)


@MODES
def test_a_host_that_is_offline_for_a_minute(settings: Settings) -> None:
    """Offline is not stopped: the pod is waited for, and nothing is started beside it."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        house.pod.become(Phase.UNREACHABLE, back_after_s=60)
        await asyncio.sleep(50)
        assert house.lifecycle.current_status is not Status.STOPPED
        await house.off()
        assert 1 == house.cloud.starts
        assert [] == house.cloud.billing

    play(scenario, settings)


@MODES
def test_stops_that_have_no_effect(settings: Settings) -> None:
    """A stop is sent again until the instance is seen off."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        house.pod.ignore_stops = 3
        await house.off()
        assert [] == house.cloud.billing
        assert 4 <= house.cloud.count("stop") + house.cloud.count("delete")
        assert any("not proved" in trouble for trouble in house.troubles)

    play(scenario, settings)


@pytest.mark.parametrize("queued_s", [1.5, 3600])
def test_a_queued_start_without_patience(queued_s: float) -> None:
    """`capacity_wait` 0: the queued start is cancelled as soon as Vast.ai takes it, and does not fire."""

    async def scenario(house: House) -> None:
        house.cloud.fail("start", Capacity(queued_s=queued_s))
        with pytest.raises(GateError, match="no GPU is free") as told:
            await house.ask()
        assert "capacity" == told.value.reason
        await house.off()
        await asyncio.sleep(4000)
        assert [] == [trouble for trouble in house.troubles if "the stop" in trouble]
        assert 0 == house.cloud.billed_s
        assert 0 == house.cloud.starts

    play(scenario, FIXED)


def test_a_queued_start_that_is_waited_for() -> None:
    """Within `capacity_wait` the queued start runs, and serves who waits."""

    async def scenario(house: House) -> None:
        house.cloud.fail("start", Capacity(queued_s=100))
        assert "version" in await house.ask(hold_s=0)
        await house.off()
        about(house, 0)
        assert 1 == house.cloud.count("start")

    play(scenario, FIXED, policy={"capacity_wait": 300.0})


def test_a_queued_start_that_never_comes() -> None:
    """After `capacity_wait` it is cancelled at Vast.ai, and nothing was billed."""

    async def scenario(house: House) -> None:
        house.cloud.fail("start", Capacity(queued_s=inf), None)
        with pytest.raises(GateError) as told:
            await house.ask()
        assert "capacity" == told.value.reason
        await house.off()
        assert 0 == house.cloud.billed_s
        assert Phase.STOPPED is house.pod.look()

    play(scenario, FIXED, policy={"capacity_wait": 100.0})


def test_a_start_that_is_accepted_and_dropped() -> None:
    """success:true, and nothing follows: asked again, and then it runs; billed once."""

    async def scenario(house: House) -> None:
        house.cloud.refuses_quietly = 1
        await house.ask(hold_s=0)
        await house.off()
        about(house, 0)
        assert 2 == house.cloud.count("start")

    play(scenario, FIXED)


def test_outbid_while_serving() -> None:
    """A spot instance that lost its GPU is stopped, so that it does not start by itself later."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        house.cloud.outbid(house.pod, back_after_s=1800)
        await house.until(lambda: house.lifecycle.current_status is not Status.READY, 40)
        await house.off()
        await asyncio.sleep(2000)
        assert 1 == house.cloud.starts
        assert house.cloud.billed_s <= DELAYS.ready_s + SLACK_S

    play(scenario, FIXED)


def test_a_create_that_fails_and_leaves_an_instance() -> None:
    """success:false with a new_contract: that one is destroyed, its machine left alone, another serves."""

    async def scenario(house: House) -> None:
        house.cloud.half_creates = 1
        await house.ask(hold_s=0)
        await house.off()
        first, second = house.cloud.pods.values()
        assert Phase.GONE is first.look()
        assert first.spec["machine_id"] != second.spec["machine_id"]
        assert house.cloud.billed_s <= DELAYS.ready_s + IDLE_S + 2 * DELAYS.stop_s + SLACK_S

    play(scenario, EPHEMERAL)


def test_a_container_that_cannot_start() -> None:
    """A broken machine is left alone after its instance is destroyed; the next attempt rents another."""

    async def scenario(house: House) -> None:
        asking = asyncio.get_running_loop().create_task(house.ask(hold_s=0))
        await house.until(lambda: len(house.cloud.pods) == 1)
        house.pod.become(Phase.FAILED)
        await asking
        await house.off()
        first, second = house.cloud.pods.values()
        assert first.spec["machine_id"] != second.spec["machine_id"]
        assert Phase.GONE is first.look()
        assert [] == house.cloud.billing

    play(scenario, EPHEMERAL)


def test_an_offer_that_is_gone() -> None:
    """410 no_such_ask: the next offer is taken, not before Vast.ai's interval."""

    async def scenario(house: House) -> None:
        house.cloud.fail("create", Capacity(), 2)
        await house.ask(hold_s=0)
        assert 3 == house.cloud.count("create")
        assert 1 == house.cloud.count("search")
        asks = [asked.pod_id for asked in house.cloud.asked if asked.operation == "create"]
        assert ["1001", "1002", "1005"] == asks
        await house.off()
        about(house, 0)

    play(scenario, EPHEMERAL)


@pytest.mark.parametrize("lag_s", [0.0, 4.0, 20.0])
def test_a_create_whose_answer_is_lost(lag_s: float) -> None:
    """The instance is found by its label, however late it is listed; never a second one."""

    async def scenario(house: House) -> None:
        house.cloud.list_lag_s = lag_s
        house.cloud.fail("create", LostResponse())
        await house.ask(hold_s=0)
        await house.off()
        assert 1 == len(house.cloud.pods)
        about(house, max(0.0, lag_s - 15))

    play(scenario, EPHEMERAL)


def test_a_client_that_leaves_while_a_create_is_in_doubt() -> None:
    """Nobody wants it any more: what the lost create rented is found and destroyed."""

    async def scenario(house: House) -> None:
        house.cloud.list_lag_s = 20.0
        house.cloud.fail("create", LostResponse())
        asking = asyncio.get_running_loop().create_task(house.ask(hold_s=0))
        await house.until(lambda: house.cloud.count("create") == 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await house.off()
        assert Phase.GONE is house.pod.look()
        await asyncio.sleep(60)
        assert [] == house.cloud.billing

    play(scenario, EPHEMERAL)


def test_a_forgotten_instance_of_an_earlier_gateway() -> None:
    """One with our label is adopted at boot, and destroyed when idle; a stranger's is left alone."""

    async def scenario(house: House) -> None:
        ours = house.cloud.add_instance(1, "gpugate-main-0123abcd")
        others = [
            house.cloud.add_instance(2, "gpugate-main-two-0123abcd"),
            house.cloud.add_instance(3, "mine"),
        ]
        for pod in (ours, *others):
            pod.start()
        await house.until(lambda: house.lifecycle.current_status is Status.READY, 60)
        await house.off()
        assert Phase.GONE is ours.look()
        assert [Phase.RUNNING] * 2 == [pod.look() for pod in others]

    play(scenario, EPHEMERAL)


def test_two_instances_of_ours() -> None:
    """One serves, the other is mentioned and destroyed; the stop destroys both."""

    async def scenario(house: House) -> None:
        pods = [house.cloud.add_instance(n, f"gpugate-main-0000000{n}") for n in (1, 2)]
        for pod in pods:
            pod.start()
        await house.until(lambda: house.lifecycle.current_status is Status.READY, 60)
        await asyncio.sleep(10)
        assert "also rented" in (await house.provider.inspect()).alarm
        await house.off()
        assert [Phase.GONE] * 2 == [pod.look() for pod in pods]

    play(scenario, EPHEMERAL)


def test_orphans_that_turn_up_while_one_serves() -> None:
    """They are destroyed one by one at the next looks, not with the session; the one that serves goes on."""

    async def scenario(house: House) -> None:
        asking = asyncio.ensure_future(house.ask(hold_s=240))
        await house.until(lambda: house.lifecycle.current_status is Status.READY, 120)
        (serving,) = house.cloud.billing
        for number in (1, 2):
            house.cloud.add_instance(number, f"gpugate-main-0000000{number}").start()
        await asyncio.sleep(150)
        assert [serving] == house.cloud.billing
        assert house.lifecycle.current_status is Status.READY
        await asking
        await house.off()
        assert [] == house.cloud.billing
        assert 1 == len(house.sessions)

    play(scenario, EPHEMERAL)


def test_more_instances_than_a_page() -> None:
    """Ours is found on the second page of the list."""

    async def scenario(house: House) -> None:
        for number in range(1, 30):
            house.cloud.add_instance(number, "another's")
        house.cloud.add_instance(99, "gpugate-main-0123abcd").start()
        await house.until(lambda: house.lifecycle.current_status is Status.READY, 60)
        await house.off()
        assert [] == house.cloud.billing

    play(scenario, EPHEMERAL)


def test_a_list_that_leaves_ours_out() -> None:
    """It is asked for by its number before it is taken for gone: it serves on, and no second one comes."""

    async def scenario(house: House) -> None:
        await house.ask(hold_s=0)
        house.cloud.fail("list", Stale(), 3)
        for _ in range(8):
            await house.ask(hold_s=10)
        assert Status.READY is house.lifecycle.current_status
        await house.off()
        assert 1 == len(house.cloud.pods)
        about(house, 80)

    play(scenario, EPHEMERAL)


AUTO: dict[str, Any] = {**EPHEMERAL, "gpu_ram": "auto"}
GIB = 1 << 30


@pytest.mark.parametrize(
    ("needed_gib", "more", "machine"),
    [
        (10, {}, 501),
        (10, {"verified": False}, 503),
        (23.995, {"verified": False}, 503),  # 24,576 MB hold it, 24,564 do not
        (60, {"max_price": 3.0}, 504),
    ],
)
def test_the_gpu_that_fits(needed_gib: float, more: dict[str, Any], machine: int) -> None:
    """The cheapest offer whose memory holds what is needed."""

    async def scenario(house: House) -> None:
        house.provider.needed_gpu_bytes = int(needed_gib * GIB)
        report = await house.provider.start()
        assert machine == house.pod.spec["machine_id"]
        assert report.gpu_bytes is not None
        assert report.gpu_bytes >= house.provider.needed_gpu_bytes

    play(scenario, {**AUTO, **more}, start=False)


def test_no_gpu_fits() -> None:
    """Within the price none is on offer; without a size none is looked for."""

    async def scenario(house: House) -> None:
        house.provider.needed_gpu_bytes = 60 * GIB
        with pytest.raises(NoCapacity, match=r"no GPU with 60\.0 GiB that fits"):
            await house.provider.start()
        house.provider.needed_gpu_bytes = None
        with pytest.raises(Misconfigured, match=r"pod\.pull"):
            await house.provider.start()

    play(scenario, AUTO, start=False)


SPOT: dict[str, Any] = {**EPHEMERAL, "spot": True}


def for_rent_by_bid(house: House, **bids: float) -> None:
    """These machines are for rent as spot instances from these prices on."""
    for offer in house.cloud.offers:
        offer.min_bid = bids.get(f"m{offer.machine_id}", 0.0)


def prices(house: House) -> list[float | None]:
    """What was bid for each instance; None: it is an on-demand one."""
    return [pod.spec.get("bid") for pod in house.cloud.pods.values()]


@pytest.mark.parametrize(("bid", "given"), [(0.0, 0.132), (0.2, 0.2)])
def test_a_spot_instance(bid: float, given: float) -> None:
    """The cheapest is bid for, a tenth above the least or as configured; the report says what it is."""

    async def scenario(house: House) -> None:
        for_rent_by_bid(house, m502=0.12, m501=0.15)
        report = await house.provider.start()
        assert [given] == prices(house)
        assert 502 == house.pod.spec["machine_id"]
        assert "RTX 4090, spot" == report.gpu
        await asyncio.sleep(30)
        assert "RTX 4090, spot" == (await house.provider.inspect()).gpu

    play(scenario, {**SPOT, "bid": bid}, start=False)


def test_an_interruption_is_a_lost_pod() -> None:
    """It is destroyed before it can start by itself; who waits is served by an on-demand one, for an hour."""

    async def scenario(house: House) -> None:
        for_rent_by_bid(house, m501=0.1, m502=0.1)
        await house.ask(hold_s=0)
        house.cloud.outbid(house.pod, back_after_s=60)
        await house.until(lambda: house.lifecycle.current_status is not Status.READY, 60)
        await house.ask(hold_s=0)
        assert [0.11, None] == prices(house)
        assert any("interrupted: its GPU went to a higher bid" in told for told in house.troubles)
        first, second = house.cloud.pods.values()
        assert Phase.GONE is first.look()
        assert "RTX 4090, on-demand" == (await house.provider.inspect()).gpu
        await house.off()
        await asyncio.sleep(3700)
        await house.ask(hold_s=0)
        assert 0.11 == prices(house)[-1]
        assert Phase.GONE is second.look()

    play(scenario, SPOT)


def test_no_spot_offer_fits() -> None:
    """None, or none within the price: an on-demand one is rented instead, within the price as well."""

    async def scenario(house: House) -> None:
        for_rent_by_bid(house, m504=0.59)
        await house.ask(hold_s=0)
        assert [None] == prices(house)
        assert 501 == house.pod.spec["machine_id"]

    play(scenario, SPOT)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({**FIXED, "spot": True}, "spot is for mode"),
        ({**EPHEMERAL, "bid": 0.1}, "without spot"),
        ({**SPOT, "bid": 0.7}, "max_price"),
    ],
)
def test_settings_of_spot_that_do_not_go_together(settings: dict[str, Any], said: str) -> None:
    """Each is named."""
    with pytest.raises(ValueError, match=said):
        VastConfig(api_key="k", **settings)
