"""The simulated Vast.ai against its facts: shapes, lies, intervals, bill."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from gpugate_testing.clouds import API_KEY, Capacity, Delays, ManualClock, RateLimit
from gpugate_testing.clouds.vast import VastSim

HEADERS = {"Authorization": f"Bearer {API_KEY}", "User-Agent": "test/1"}


@asynccontextmanager
async def market(**more: Any) -> AsyncIterator[tuple[VastSim, aiohttp.ClientSession, ManualClock]]:
    clock = ManualClock()
    async with (
        VastSim(clock=clock, delays=Delays(1, 1, 1, 1), **more) as cloud,
        aiohttp.ClientSession(headers=HEADERS) as http,
    ):
        yield cloud, http, clock


async def ask(http: aiohttp.ClientSession, method: str, url: str, **more: Any) -> tuple[int, Any]:
    async with http.request(method, url, allow_redirects=False, **more) as response:
        text = await response.text()
        return response.status, await response.json() if response.content_type.endswith("json") else text


async def test_a_life() -> None:
    """Off reads exited; running has a padded address and new ports, as text; loading is free."""
    async with market() as (cloud, http, clock):
        cloud.add_instance(5)
        url = f"{cloud.api_base}/instances/5/"

        async def row() -> dict[str, Any]:
            clock.advance(2)
            return (await ask(http, "GET", url))[1]["instances"]

        seen = await row()
        assert ("exited", "stopped") == (seen["actual_status"], seen["intended_status"])
        assert (200, {"success": True}) == await ask(http, "PUT", url, json={"state": "running"})
        seen = await row()
        assert "running" == seen["actual_status"]
        assert "127.0.0.1\n" == seen["public_ipaddr"]
        first = seen["ports"]["11434/tcp"][0]["HostPort"]
        assert isinstance(first, str)
        await ask(http, "PUT", url, json={"state": "stopped"})
        seen = await row()
        assert "exited" == seen["actual_status"]
        assert seen["ports"] is None
        assert 1.0 == cloud.billed_s, "from running to stopped, loading not"
        clock.advance(5)
        await ask(http, "PUT", url, json={"state": "running"})
        assert first != (await row())["ports"]["11434/tcp"][0]["HostPort"]
        clock.advance(5)
        await ask(http, "DELETE", url, json={})
        clock.advance(5)
        assert (200, {"instances": None}) == await ask(http, "GET", url)
        assert 404 == (await ask(http, "DELETE", url, json={}))[0]


async def test_lies() -> None:
    """A refused start is 200; a 429 is plain text; a path without its slash leads elsewhere."""
    async with market() as (cloud, http, clock):
        cloud.add_instance(5)
        url = f"{cloud.api_base}/instances/5/"
        cloud.fail("start", Capacity(queued_s=60))
        status, body = await ask(http, "PUT", url, json={"state": "running"})
        assert (200, False, "resources_unavailable") == (status, body["success"], body["error"])
        assert "queued" in body["msg"]
        status, body = await ask(http, "PUT", url, json={"state": "stopped"})
        assert (429, "API requests too frequent: endpoint threshold=1.0") == (status, body)
        clock.advance(63)
        assert [pod.id for pod in cloud.billing] == ["5"]
        cloud.fail("get", RateLimit(None))
        assert 429 == (await ask(http, "GET", url))[0]
        assert 301 == (await ask(http, "GET", url.rstrip("/")))[0]
        assert 2 == len(cloud.violations)


async def test_the_market() -> None:
    """Offers pass the filters in order; what is rented is gone for the next; a wrong filter is refused."""
    async with market() as (cloud, http, clock):
        wanted = {
            "gpu_name": {"in": ["RTX 4090"]},
            "dph_total": {"lte": 0.46},
            "order": [["dph_total", "asc"]],
        }
        _, found = await ask(http, "POST", f"{cloud.api_base}/bundles/", json=wanted)
        assert [1001, 1002] == [offer["id"] for offer in found["offers"]]
        ask_url = f"{cloud.api_base}/asks/1001/"
        status, made = await ask(http, "PUT", ask_url, json={"image": "i", "label": "l"})
        assert (200, True) == (status, made["success"])
        clock.advance(20)
        status, body = await ask(http, "PUT", ask_url, json={"image": "i"})
        assert (410, "no_such_ask") == (status, body["error"])
        status, _ = await ask(http, "POST", f"{cloud.api_base}/bundles/", json={"gpu": {"eq": 1}})
        assert 400 == status
        _, listed = await ask(http, "GET", f"{cloud.url}/api/v1/instances/")
        assert [made["new_contract"]] == [row["id"] for row in listed["instances"]]
        _, charges = await ask(http, "GET", f"{cloud.api_base}/charges/")
        assert charges["results"][0]["amount"] == pytest.approx(18 / 3600 * 0.4)
        assert 25.0 == (await ask(http, "GET", f"{cloud.api_base}/users/current/"))[1]["credit"]


@pytest.mark.parametrize(("documented", "status"), [(False, 401), (True, 404)])
async def test_a_wrong_key(documented: bool, status: int) -> None:
    """401, or the 404 that the search documents."""
    async with market() as (cloud, http, _):
        cloud.wrong_key_is_404 = documented
        seen = await ask(http, "GET", f"{cloud.api_base}/instances/5/", headers={"Authorization": "Bearer x"})
        assert (status, "Invalid user key") == (seen[0], seen[1]["msg"])
