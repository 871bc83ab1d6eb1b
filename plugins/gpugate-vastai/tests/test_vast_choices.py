"""What `gpugate setup` may choose, from a simulated account."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from gpugate_testing.clouds.faults import Http
from gpugate_vastai import VastAi, VastConfig
from vast_support import FIXED, House, play

from gpugate import AuthFailed, PodChoice


async def choices(house: House, **more: object) -> Sequence[PodChoice]:
    """Ask as `gpugate setup` does: with a key, and without an instance."""
    settings = {"api_key": house.cloud.api_key, "api_base": house.cloud.api_base, **more}
    return await VastAi.list_choices(settings, house.session)


def test_an_account() -> None:
    """Its instances, then the cheapest offer of each GPU; nothing is started or rented."""

    async def scenario(house: House) -> None:
        found = await choices(house)

        instances = [one for one in found if "instance_id" in one.settings]
        offers = [one for one in found if one.settings.get("mode") == "ephemeral"]
        assert [{"instance_id": FIXED["instance_id"]}] == [one.settings for one in instances]
        assert "stopped" in instances[0].title
        assert () == instances[0].problems
        assert found == [*instances, *offers]
        assert len(offers) == len({one.id for one in offers}) > 1
        for one in offers:
            limit = one.settings["max_price"]
            assert isinstance(limit, float)
            assert one.per_hour is not None
            assert float(one.per_hour) < limit
        assert 0 == house.cloud.count("start") + house.cloud.count("create")

    play(scenario, FIXED, start=False)


def test_a_port_that_is_missing() -> None:
    """Seen on an instance that runs."""

    async def scenario(house: House) -> None:
        house.pod.start()
        await asyncio.sleep(60)
        (instance, *_) = await choices(house, ollama_port=11500)
        assert any("port 11500 is not mapped" in problem for problem in instance.problems)

    play(scenario, FIXED, start=False)


def test_what_is_chosen_is_a_configuration() -> None:
    """Every choice's settings, with the key, are all that the provider needs."""

    async def scenario(house: House) -> None:
        for one in await choices(house):
            assert VastConfig(**{"api_key": "k", **one.settings})

    play(scenario, FIXED, start=False)


def test_a_wrong_key() -> None:
    """Is told as such."""

    async def scenario(house: House) -> None:
        with pytest.raises(AuthFailed):
            await choices(house, api_key="wrong")

    play(scenario, FIXED, start=False)


def test_no_market() -> None:
    """The instances are there all the same."""

    async def scenario(house: House) -> None:
        house.cloud.fail("search", Http(500), times=None)
        assert [str(FIXED["instance_id"])] == [one.id for one in await choices(house)]

    play(scenario, FIXED, start=False)
