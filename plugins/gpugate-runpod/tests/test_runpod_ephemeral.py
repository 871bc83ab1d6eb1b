"""Pods made for one session: where they are made, how they are found again, and that none is left over."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from attrs import evolve
from gpugate_demo.faults import Answer
from gpugate_testing.clouds import Capacity, Http, LostResponse
from runpod_support import (
    COLD_S,
    DELAYS,
    FIXED,
    GPU,
    IDLE_S,
    RUNPODS_PROXY,
    SECOND_GPU,
    SLACK_S,
    House,
    ephemeral,
    play,
)

from gpugate import Conflict, Misconfigured, NoCapacity, Phase
from gpugate.core.states import Status
from gpugate.lifecycle.gpu_need import GpuNeed

THIRD_GPU = "NVIDIA A40"


def made(house: House) -> list[tuple[str, list[str] | None]]:
    return [(pod.spec["gpu"]["id"], pod.spec.get("dataCenterIds")) for pod in house.cloud.pods.values()]


def stock(house: House, gpu: str, **changes: object) -> None:
    house.cloud.gpus[gpu] = evolve(house.cloud.gpus[gpu], **changes)


def test_what_is_asked_for() -> None:
    """The create holds what was configured, and nothing that RunPod would refuse."""

    async def scenario(house: House) -> None:
        house.cloud.volumes["vol1"] = "EU-RO-1"
        house.cloud.templates["tpl1"] = {"image": "from/template", "env": {"A": "1"}, "disk": 50}
        report = await house.provider.start()
        pod = house.pod
        assert pod.id == report.pod_id
        assert pod.name.startswith("gpugate-home-")
        assert {"A": "1", "TOKEN": house.settings["env"]["TOKEN"]} == pod.spec["env"]
        assert {"id": GPU, "count": 2, "minCudaVersion": "12.4"} == pod.spec["gpu"]
        assert ["11434/http", "8188/http"] == pod.spec["ports"]
        assert {"network": [{"volumeId": "vol1", "path": "/models"}]} == pod.spec["mounts"]
        assert ("from/template", 50, "SECURE") == tuple(pod.spec[key] for key in ("image", "disk", "cloud"))
        assert ["EU-RO-1"] == pod.spec["dataCenterIds"]

    more = {
        "image": "",
        "template_id": "tpl1",
        "instance": "home",
        "gpu_count": 2,
        "min_cuda": "12.4",
        "data_centers": ["US-KS-2", "EU-RO-1"],
        "volume_id": "vol1",
        "volume_path": "/models",
    }
    play(scenario, ephemeral(**more), start=False)


def test_the_order_of_candidates() -> None:
    """GPUs in their order, each in the data centres in theirs; what is not in stock is not asked."""

    async def scenario(house: House) -> None:
        stock(house, GPU, availability="NONE")
        stock(house, SECOND_GPU, data_centers=("US-KS-2",))
        await house.provider.start()
        assert [(SECOND_GPU, ["US-KS-2"])] == made(house)
        assert 1 == house.cloud.count("create")

    play(scenario, ephemeral(data_centers=["EU-RO-1", "US-KS-2"]), start=False)


def test_the_first_is_taken_meanwhile() -> None:
    """The catalogue promised it, the create finds no room: the next candidate is asked."""

    async def scenario(house: House) -> None:
        house.cloud.fail("create", Capacity())
        await house.provider.start()
        assert [(SECOND_GPU, None)] == made(house)

    play(scenario, ephemeral(), start=False)


def test_nowhere_is_room() -> None:
    """No capacity, which `capacity_wait` and the next provider are for."""

    async def scenario(house: House) -> None:
        house.cloud.fail("create", Capacity(), None)
        with pytest.raises(NoCapacity):
            await house.provider.start()
        assert 2 == house.cloud.count("create")
        for gpu in (GPU, SECOND_GPU):
            stock(house, gpu, availability="NONE")
        with pytest.raises(NoCapacity, match="none of"):
            await house.provider.start()
        assert 2 == house.cloud.count("create")

    play(scenario, ephemeral(), start=False)


def test_a_price_limit() -> None:
    """What costs more per pod is not made, however free it is."""

    async def scenario(house: House) -> None:
        await house.provider.start()
        assert [(THIRD_GPU, None)] == made(house)
        await house.provider.stop()
        stock(house, THIRD_GPU, availability="NONE")
        await asyncio.sleep(60)
        with pytest.raises(NoCapacity, match="max_price"):
            await house.provider.start()

    play(scenario, ephemeral(gpus=[GPU, SECOND_GPU, THIRD_GPU], max_price=0.9, gpu_count=2), start=False)


def test_gpus_that_nobody_has() -> None:
    """A name that the catalogue does not know is a mistake, not a lack of room."""

    async def scenario(house: House) -> None:
        with pytest.raises(Misconfigured, match="RTX 9090"):
            await house.provider.start()

    play(scenario, ephemeral(gpus=["RTX 9090"]), start=False)


def test_a_template_without_our_port() -> None:
    """What cannot be reached says so, and does not stay."""

    async def scenario(house: House) -> None:
        house.pod.spec["ports"] = ["22/tcp"]
        with pytest.raises(Exception, match="11434/http"):
            await house.ask()
        await house.off()
        assert house.cloud.billed_s < 30

    play(scenario, {**FIXED, "proxy_url": RUNPODS_PROXY})


def test_room_comes_back() -> None:
    """With `capacity_wait` the same held request is served when a GPU is free again."""

    async def scenario(house: House) -> None:
        stock(house, GPU, availability="NONE")
        stock(house, SECOND_GPU, availability="NONE")
        asking = asyncio.ensure_future(house.ask(hold_s=0))
        await asyncio.sleep(40)
        stock(house, GPU, availability="LOW")
        await asking
        await house.off()
        assert 1 == house.cloud.starts

    play(scenario, ephemeral(), policy={"capacity_wait": 120.0})


@pytest.mark.parametrize("lag_s", [0, 4, 9])
def test_a_lost_answer_and_a_slow_list(lag_s: float) -> None:
    """The pod of an unanswered create is waited for and found by its name; no second one is made."""

    async def scenario(house: House) -> None:
        house.cloud.list_lag_s = lag_s
        house.cloud.fail("create", LostResponse())
        await house.ask(hold_s=0)
        await house.off()
        assert 1 == house.cloud.starts
        assert house.cloud.billed_s <= COLD_S + IDLE_S + DELAYS.stop_s + SLACK_S

    play(scenario, ephemeral())


def test_a_list_slower_than_we_wait() -> None:
    """A second pod is made then; both are seen, and the one that does not serve is deleted at once."""

    async def scenario(house: House) -> None:
        house.cloud.list_lag_s = 25
        house.cloud.fail("create", LostResponse())
        await house.ask(hold_s=0)
        await asyncio.sleep(60)
        assert 1 == len(house.cloud.billing)
        await house.off()
        assert 2 == house.cloud.starts
        assert [] == house.cloud.billing

    play(scenario, ephemeral())


def test_an_answered_create_and_a_slow_list() -> None:
    """What was answered is known, although no list has it yet: neither lost nor made twice."""

    async def scenario(house: House) -> None:
        house.cloud.list_lag_s = 9
        await house.ask(hold_s=0)
        await house.off()
        assert 1 == house.cloud.starts

    play(scenario, ephemeral())


def test_stopped_before_any_list_had_it() -> None:
    """The pod that was made a moment ago is deleted by its id."""

    async def scenario(house: House) -> None:
        house.cloud.list_lag_s = 9
        await house.provider.start()
        await house.provider.stop()
        await asyncio.sleep(DELAYS.stop_s + 1)
        assert [] == house.cloud.billing

    play(scenario, ephemeral(), start=False)


def orphan(house: House, name: str, pod_id: str) -> None:
    house.cloud.add_pod(pod_id, name)
    house.pod.start()


def test_an_orphan_at_boot() -> None:
    """A crashed gateway's pod is adopted and deleted when nobody uses it; nobody else's pod is touched."""

    async def scenario(house: House) -> None:
        orphan(house, "gpugate-main-0123abcd", "ours")
        others = [
            "gpugate-main-2-0123abcd",
            "gpugate-home-0123abcd",
            "my-training",
            "gpugate-main",
            "gpugate-main-x",
            "gpugate-main-0123abcdef",
            "gpugate-main-0123abcd-mine",
        ]
        for number, name in enumerate(others):
            orphan(house, name, f"other{number}")
        await asyncio.sleep(60)
        await house.lifecycle.open()
        await house.until(lambda: house.lifecycle.current_status is Status.READY)
        await house.off()
        assert Phase.GONE is house.cloud.pods["ours"].look()
        assert len(others) == len(house.cloud.billing)
        assert 50 <= (house.sessions[0].at - house.sessions[0].began_at).total_seconds() - IDLE_S

    play(scenario, ephemeral(), start=False)


def test_two_orphans() -> None:
    """One serves; with the stop both go, and a start keeps one only."""

    async def scenario(house: House) -> None:
        orphan(house, "gpugate-main-0123abcd", "one")
        orphan(house, "gpugate-main-4567abcd", "two")
        await house.provider.start()
        await asyncio.sleep(10)
        assert ["one"] == [pod.id for pod in house.cloud.billing]
        orphan(house, "gpugate-main-89ababcd", "three")
        await house.lifecycle.open()
        await house.until(lambda: house.lifecycle.current_status is Status.READY)
        await house.off()
        assert [] == house.cloud.billing

    play(scenario, ephemeral(), start=False)


def test_an_orphan_that_turns_up_while_one_serves() -> None:
    """It is deleted at the next look, not with the session; the pod that serves goes on."""

    async def scenario(house: House) -> None:
        asking = asyncio.ensure_future(house.ask(hold_s=120))
        await house.until(lambda: house.lifecycle.current_status is Status.READY)
        (serving,) = house.cloud.billing
        orphan(house, "gpugate-main-0123abcd", "a late one")
        await asyncio.sleep(60)
        assert [serving.id] == [pod.id for pod in house.cloud.billing]
        assert house.lifecycle.current_status is Status.READY
        await asking
        await house.off()
        assert [] == house.cloud.billing
        assert 1 == len(house.sessions)

    play(scenario, ephemeral())


def test_one_stop_for_all() -> None:
    """A single stop deletes every pod of ours, and goes on where one of them is refused."""

    async def scenario(house: House) -> None:
        for number, name in enumerate(("0123abcd", "4567abcd", "89ababcd")):
            orphan(house, f"gpugate-main-{name}", f"pod{number}")
        house.cloud.pods["pod0"].locked = True
        with pytest.raises(Conflict, match="locked"):
            await house.provider.stop()
        await asyncio.sleep(DELAYS.stop_s + 1)
        assert ["pod0"] == [pod.id for pod in house.cloud.billing]

    play(scenario, ephemeral(), start=False)


@pytest.mark.parametrize("phase", [Phase.STOPPED, Phase.FAILED])
def test_a_leftover_that_is_off(phase: Phase) -> None:
    """A pod of ours that somebody only stopped, or that broke, is deleted: its disk is billed."""

    async def scenario(house: House) -> None:
        orphan(house, "gpugate-main-0123abcd", "ours")
        house.pod.become(phase)
        await house.lifecycle.open()
        await house.off()
        assert Phase.GONE is house.pod.look()

    play(scenario, ephemeral(), start=False)


def test_many_pods_in_the_account() -> None:
    """Ours is found on the last page."""

    async def scenario(house: House) -> None:
        for number in range(45):
            house.cloud.add_pod(f"other{number}", f"other-{number}")
        orphan(house, "gpugate-main-0123abcd", "ours")
        assert "ours" == (await house.provider.inspect()).pod_id
        assert 3 == house.cloud.count("list")

    play(scenario, ephemeral(), start=False)


def test_deleted_pods_that_are_still_shown() -> None:
    """TERMINATED is gone."""

    async def scenario(house: House) -> None:
        house.cloud.terminated_shows = True
        await house.ask(hold_s=0)
        await house.off()
        assert [] == house.cloud.billing
        assert "no pod" == (await house.provider.inspect()).detail

    play(scenario, ephemeral())


GIB = 1 << 30


@pytest.mark.parametrize(
    ("needed_gib", "settings", "taken"),
    [
        (10, {}, "NVIDIA A40"),  # 0.40: cheaper than the smaller ones
        (10, {"cloud": "community"}, SECOND_GPU),
        (30, {"cloud": "community"}, "NVIDIA A40"),
        (40, {"cloud": "community", "gpu_count": 2}, SECOND_GPU),
    ],
)
def test_the_gpu_that_fits(needed_gib: int, settings: dict[str, object], taken: str) -> None:
    """The cheapest on offer whose memory, times `gpu_count`, holds what is needed."""

    async def scenario(house: House) -> None:
        house.provider.needed_gpu_bytes = needed_gib * GIB
        report = await house.provider.start()
        assert taken == house.pod.spec["gpu"]["id"]
        count = house.pod.spec["gpu"]["count"]
        assert report.gpu_bytes == house.cloud.gpus[taken].memory * count * GIB
        assert report.gpu_bytes == (await house.provider.inspect()).gpu_bytes

    play(scenario, ephemeral(gpus="auto", **settings), start=False)


def test_the_next_one_where_the_cheapest_is_not_free() -> None:
    """What is out of stock is not asked for, and after a refusal the next one is."""

    async def scenario(house: House) -> None:
        house.provider.needed_gpu_bytes = 10 * GIB
        stock(house, "NVIDIA A40", availability="NONE")
        house.cloud.fail("create", Capacity(), 1)
        await house.provider.start()
        assert GPU == house.pod.spec["gpu"]["id"]

    play(scenario, ephemeral(gpus="auto"), start=False)


def test_no_gpu_fits() -> None:
    """None that is large enough: say so. None that is free or cheap enough: it may change. AMD's never."""

    async def scenario(house: House) -> None:
        stock(house, GPU, id="AMD Instinct MI300X OAM", memory=192)
        house.cloud.gpus["AMD Instinct MI300X OAM"] = house.cloud.gpus.pop(GPU)
        house.provider.needed_gpu_bytes = 100 * GIB
        with pytest.raises(Misconfigured, match=r"1 x GPU with 100\.0 GiB together: raise .*gpu_count"):
            await house.provider.start()
        house.provider.needed_gpu_bytes = 40 * GIB
        with pytest.raises(NoCapacity, match=r"no GPU with 40\.0 GiB is free, or costs more than"):
            await house.provider.start()
        house.provider.needed_gpu_bytes = None
        with pytest.raises(Misconfigured, match=r"pod\.pull"):
            await house.provider.start()

    play(scenario, ephemeral(gpus="auto", max_price=0.30), start=False)


def bids(house: House) -> list[float | None]:
    """What was bid for each pod; None: it is an on-demand one."""
    return [pod.spec.get("bidPerGpu") for pod in house.cloud.pods.values()]


@pytest.mark.parametrize(("bid", "given"), [(0.0, 0.22), (0.3, 0.3)])
def test_a_spot_pod(bid: float, given: float) -> None:
    """GPUs in their order, a tenth above the least or what is configured; the report says what it is."""

    async def scenario(house: House) -> None:
        stock(house, SECOND_GPU, min_bid=0.2)
        report = await house.provider.start()
        assert [given] == bids(house)
        assert f"{SECOND_GPU}, spot" == report.gpu
        assert ["11434/http", "8188/http"] == house.pod.spec["ports"]
        assert house.settings["env"]["TOKEN"] == house.pod.spec["env"]["TOKEN"]
        assert house.pod.id == (await house.provider.inspect()).pod_id

    play(scenario, ephemeral(spot=True, bid=bid), start=False)


def test_the_cheapest_bid_where_any_gpu_fits() -> None:
    """With gpus = "auto" among those that are large enough."""

    async def scenario(house: House) -> None:
        stock(house, GPU, min_bid=0.1)
        stock(house, SECOND_GPU, min_bid=0.2)
        stock(house, THIRD_GPU, min_bid=0.3)
        house.provider.needed_gpu_bytes = 10 * GIB
        await house.provider.start()
        await house.provider.stop()
        house.provider.needed_gpu_bytes = 30 * GIB
        await asyncio.sleep(30)
        await house.provider.start()
        assert [0.11, 0.33] == bids(house)

    play(scenario, ephemeral(spot=True, gpus="auto"), start=False)


def test_an_interruption_is_a_lost_pod() -> None:
    """It is deleted; who waits is served by an on-demand pod, for an hour."""

    async def scenario(house: House) -> None:
        stock(house, GPU, min_bid=0.2)
        await house.ask(hold_s=0)
        house.cloud.outbid(house.pod)
        await house.until(lambda: house.lifecycle.current_status is not Status.READY, 60)
        await house.ask(hold_s=0)
        assert [0.22, None] == bids(house)
        assert any("interrupted: the spot pod is EXITED" in told for told in house.troubles)
        assert f"{GPU}, on-demand" == (await house.provider.inspect()).gpu
        await house.off()
        await asyncio.sleep(3700)
        await house.ask(hold_s=0)
        assert 0.22 == bids(house)[-1]

    play(scenario, ephemeral(spot=True))


@pytest.mark.parametrize("least", [0.0, 0.2, 0.5])
def test_no_spot_pod_is_to_be_had(least: float) -> None:
    """None is for rent, or none for this price: an on-demand one, within `max_price` as well."""

    async def scenario(house: House) -> None:
        stock(house, SECOND_GPU, min_bid=least)
        house.cloud.fail("graphql", Capacity(), None)
        await house.provider.start()
        assert [None] == bids(house)

    play(scenario, ephemeral(spot=True, gpus=[SECOND_GPU], max_price=0.48), start=False)


def test_a_spot_pod_whose_answer_is_lost() -> None:
    """It is found by its name; never a second one."""

    async def scenario(house: House) -> None:
        stock(house, GPU, min_bid=0.2)
        house.cloud.fail("get", Http(500, {"title": "down", "status": 500}), 1)
        await house.ask(hold_s=0)
        assert [0.22] == bids(house)

    play(scenario, ephemeral(spot=True))


def test_the_next_size_after_a_model_that_did_not_fit(tmp_path: Path) -> None:
    """The gateway sees that it runs partly on the CPU, and the next session gets a larger GPU."""

    async def scenario(house: House) -> None:
        house.lifecycle.set_gpu_need(GpuNeed(["llava:13b"], dict, tmp_path / "need.json", lambda _: None))
        partly = {"models": [{"name": "llava:13b", "size": 10, "size_vram": 7}]}
        house.ollama.faults.add("/api/ps", Answer(200, json.dumps(partly).encode()), times=None)
        await house.lifecycle.open()
        await house.ask(hold_s=0)
        await house.off()
        await house.ask(hold_s=0)
        assert [SECOND_GPU, THIRD_GPU] == [gpu for gpu, _ in made(house)]
        await house.off()

    settings = ephemeral(gpus="auto", cloud="community")
    play(scenario, settings, start=False)
