"""What `gpugate setup` may choose, from a simulated account."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from gpugate_runpod import RunPod, RunPodConfig
from gpugate_testing.clouds.faults import Http
from runpod_support import FIXED, GPU, RUNPODS_PROXY, House, play

from gpugate import AuthFailed, PodChoice


async def choices(house: House, **more: object) -> Sequence[PodChoice]:
    """Ask as `gpugate setup` does: with a key, and without a pod."""
    settings = {"api_key": house.cloud.api_key, "api_base": house.cloud.api_base, **more}
    return await RunPod.list_choices(settings, house.session)


def test_an_account() -> None:
    """Its pods, then the GPUs that are free, cheapest first; nothing is started or made."""

    async def scenario(house: House) -> None:
        house.cloud.add_pod("bare", name="bare", ports=["22/tcp"])
        house.cloud.add_pod("made", name="gpugate-main-0123abcd")
        found = await choices(house)

        pods = [one for one in found if "pod_id" in one.settings]
        offers = [one for one in found if one.settings.get("mode") == "ephemeral"]
        assert ["k3x9v2m7q1", "bare"] == [one.id for one in pods]
        assert {"pod_id": "bare"} == pods[1].settings
        assert GPU in pods[0].title
        assert "exited" in pods[0].title
        assert pods[0].per_hour is not None
        assert not any("11434/http" in problem for problem in pods[0].problems)
        assert any("add 11434/http to its ports" in problem for problem in pods[1].problems)
        prices = [one.per_hour for one in offers]
        assert len(offers) > 1
        assert sorted(prices, key=float) == prices
        assert found == [*pods, *offers]
        assert 0 == house.cloud.count("start") + house.cloud.count("create")

    play(scenario, FIXED, start=False)


def test_what_is_chosen_is_a_configuration() -> None:
    """Every choice's settings, with the key, are all that the provider needs."""

    async def scenario(house: House) -> None:
        for one in await choices(house):
            assert RunPodConfig(**{"api_key": "k", **one.settings})

    play(scenario, FIXED, start=False)


def test_a_wrong_key() -> None:
    """Is told as such."""

    async def scenario(house: House) -> None:
        with pytest.raises(AuthFailed):
            await choices(house, api_key="wrong")

    play(scenario, FIXED, start=False)


def test_no_catalogue() -> None:
    """The pods are there all the same."""

    async def scenario(house: House) -> None:
        house.cloud.fail("gpus", Http(500), times=None)
        assert ["k3x9v2m7q1"] == [one.id for one in await choices(house, proxy_url=RUNPODS_PROXY)]

    play(scenario, FIXED, start=False)
