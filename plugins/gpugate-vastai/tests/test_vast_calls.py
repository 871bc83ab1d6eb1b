"""Single calls over a real socket: what is sent, what is never sent twice, and what is never said."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from gpugate_testing.clouds import Capacity, Http, LostResponse, Reset
from gpugate_testing.clouds.vast_offers import Offer
from gpugate_vastai import VastAi, VastConfig
from vast_support import EPHEMERAL, FIXED, House, play

from gpugate import Ambiguous, Misconfigured, Phase, ProviderError, RateLimited
from gpugate.config import structure_provider_config
from gpugate.errors import SettingsError


@pytest.mark.parametrize(("settings", "call"), [(FIXED, "start"), (EPHEMERAL, "create")])
@pytest.mark.parametrize("fault", [Reset(), LostResponse()])
def test_a_put_that_breaks(settings: dict[str, Any], call: str, fault: Any) -> None:
    """It is sent once (aiohttp would repeat a PUT by itself), and its outcome is unknown."""

    async def scenario(house: House) -> None:
        house.cloud.fail(call, fault)
        with pytest.raises(Ambiguous):
            await house.provider.start()
        assert 1 == house.cloud.count(call)

    play(scenario, settings, start=False)


def test_stop_and_start_twice() -> None:
    """Both are idempotent; a stop of what is gone is done."""

    async def scenario(house: House) -> None:
        assert Phase.STARTING is (await house.provider.start()).phase
        house.cloud.strict = False
        await house.provider.start()
        assert 1 == house.cloud.starts
        for _ in range(2):
            assert Phase.STOPPING is (await house.provider.stop()).phase
        house.pod.become(Phase.GONE)
        assert Phase.GONE is (await house.provider.stop()).phase

    play(scenario, FIXED, start=False)


def test_a_start_of_what_runs() -> None:
    """It is ready at once, with its address."""

    async def scenario(house: House) -> None:
        house.pod.become(Phase.RUNNING)
        report = await house.provider.start()
        assert Phase.RUNNING is report.phase
        assert report.endpoints["ollama"].url.startswith("http://127.0.0.1:")

    play(scenario, FIXED, start=False)


def test_a_refusal_that_quotes_the_key() -> None:
    """An API may quote what it was sent; the message does not."""

    async def scenario(house: House) -> None:
        key = house.cloud.api_key
        house.cloud.fail("get", Http(401, {"error": "auth_error", "msg": f"bad key {key}"}))
        with pytest.raises(ProviderError) as told:
            await house.provider.inspect()
        assert key not in str(told.value)
        assert key not in repr(told.value)

    play(scenario, FIXED, start=False)


def test_a_look_older_than_a_stop_that_failed() -> None:
    """A read of a moment ago is not asked for again, but it never proves a stop that came after it."""

    async def scenario(house: House) -> None:
        assert Phase.STOPPED is (await house.provider.inspect()).phase
        assert Phase.STOPPED is (await house.provider.inspect()).phase
        assert 1 == house.cloud.count("get")
        house.pod.become(Phase.RUNNING)
        house.cloud.fail("stop", Http(500))
        with pytest.raises(ProviderError):
            await house.provider.stop()
        with pytest.raises(RateLimited):
            await house.provider.inspect()
        await asyncio.sleep(2)
        assert Phase.RUNNING is (await house.provider.inspect()).phase

    play(scenario, FIXED, start=False)


def test_a_create_that_is_cancelled() -> None:
    """It may have rented something: nothing else is rented until the list had time to tell."""

    async def scenario(house: House) -> None:
        house.cloud.list_lag_s = 12.0
        house.cloud.fail("create", LostResponse(5))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await house.provider.start()
        assert Phase.STOPPING is (await house.provider.stop()).phase, "not proved before the list has told"
        for _ in range(4):
            await asyncio.sleep(5)
            assert (await house.provider.start()).phase in (Phase.PROVISIONING, Phase.STARTING, Phase.RUNNING)
        assert 1 == len(house.cloud.pods)
        await house.provider.stop()
        await asyncio.sleep(5)
        assert Phase.STOPPED is (await house.provider.inspect()).phase
        assert [] == house.cloud.billing

    play(scenario, EPHEMERAL, start=False)


def test_a_redirect() -> None:
    """It is not followed: a PUT must not become a GET, nor the key go elsewhere."""

    async def scenario(house: House) -> None:
        house.cloud.fail("start", Http(302, b"", {"Location": f"{house.cloud.url}/api/v1/instances/"}))
        with pytest.raises(Misconfigured, match="redirects"):
            await house.provider.start()
        assert ["start"] == [asked.operation for asked in house.cloud.asked]

    play(scenario, FIXED, start=False)


def test_nobody_there() -> None:
    """A refused connection was never a start."""

    async def scenario(house: House) -> None:
        provider = VastAi(house.config(api_base="http://127.0.0.1:9/api/v0"), house.session)
        with pytest.raises(ProviderError, match="cannot be reached") as told:
            await provider.start()
        assert "transient" == told.value.reason

    play(scenario, FIXED, start=False)


def test_too_quick() -> None:
    """Searches are paced here, before Vast.ai counts them."""

    async def scenario(house: House) -> None:
        house.cloud.fail("search", Capacity())
        with pytest.raises(ProviderError, match="nothing that fits"):
            await house.provider.start()
        with pytest.raises(RateLimited) as told:
            await house.provider.start()
        assert told.value.retry_after == pytest.approx(6, abs=0.5)
        assert 1 == house.cloud.count("search")

    play(scenario, EPHEMERAL, start=False)


def test_an_offer_dearer_than_allowed() -> None:
    """The price is checked here too: the search's filter may be ignored."""

    async def scenario(house: House) -> None:
        dear = {"id": 1, "machine_id": 1, "dph_total": 9.5}
        house.cloud.fail("search", Http(200, {"offers": [dear]}))
        with pytest.raises(ProviderError, match="nothing that fits"):
            await house.provider.start()
        assert 0 == house.cloud.count("create")

    play(scenario, EPHEMERAL, start=False)


def test_what_is_rented() -> None:
    """The cheapest that fits, with a label of ours, the ports mapped, and no parked instance."""

    async def scenario(house: House) -> None:
        house.cloud.offers.append(Offer(7, 7, gpu_name="RTX 3090", dph_total=0.3))
        await house.provider.start()
        assert 0.4 == house.pod.spec["dph_total"]
        assert house.pod.name.startswith("gpugate-main-")
        assert {"OLLAMA_HOST", "TOKEN", "-p 11434:11434", "-p 8188:8188"} == set(house.pod.spec["env"])

    play(scenario, {**EPHEMERAL, "gpus": ["RTX 4090"]}, start=False)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "providers.vastai.api_key: is missing"),
        ({"api_key": ""}, "providers.vastai: api_key is missing"),
        ({"api_key": "a b"}, "providers.vastai.api_key"),
        ({"api_key": "k"}, "instance_id is missing"),
        ({"api_key": "k", "mode": "ephemeral"}, "max_price is missing"),
        ({"api_key": "k", "mode": "ephemeral", "instance_id": 5, "max_price": 1}, "instance_id is for"),
        ({"api_key": "k", "mode": "spot"}, "providers.vastai.mode"),
        ({"api_key": "k", "instance_id": 1, "scheme": "ftp"}, "providers.vastai.scheme"),
        ({"api_key": "k", "instance_id": 1, "api_base": "vast.ai"}, "providers.vastai.api_base"),
        ({"api_key": "k", "instance_id": 1, "timeout": 0}, "providers.vastai.timeout"),
        ({"api_key": "k", "instance_id": 1, "ollama_port": 0}, "providers.vastai.ollama_port"),
        ({"api_key": "k", "instance_id": 1, "headers": {"a b": "c"}}, "providers.vastai.headers"),
        ({"api_key": "k", "instance_id": 1, "tls": "sha256:12"}, "providers.vastai.tls"),
        ({"api_key": "k", "instance_id": 1, "instance": "Two Words"}, "providers.vastai.instance"),
        ({"api_key": "k", "instance": "x", "max_prise": 1}, "did you mean providers.vastai.max_price"),
    ],
)
def test_a_wrong_configuration(given: dict[str, Any], complaint: str) -> None:
    """Every mistake names its key."""
    with pytest.raises(SettingsError) as told:
        structure_provider_config("vastai", VastConfig, given)
    assert complaint in str(told.value)


def test_a_right_configuration() -> None:
    """As the example configuration has it, and for ephemeral mode."""
    fixed = structure_provider_config(
        "vastai", VastConfig, {"api_key": "k", "instance_id": 5, "timeout": "10s", "headers": {"A": "b"}}
    )
    assert (5, 10.0, {"A": "b"}) == (fixed.instance_id, fixed.timeout, fixed.headers)
    given = {
        "api_key": "k",
        "mode": "ephemeral",
        "max_price": 1,
        "min_duration": "2d",
        "filters": {"geolocation": {"in": ["DE"]}},
    }
    ephemeral = structure_provider_config("vastai", VastConfig, given)
    assert (1.0, 172_800.0) == (ephemeral.max_price, ephemeral.min_duration)
    assert "'k'" not in repr(fixed)
