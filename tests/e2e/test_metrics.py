"""`GET /metrics` of a whole gateway: after requests, a start, a stop, errors and a client that left."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gpugate.errors import NoCapacity
from gpugate.proxy.addresses import CannotListen
from tests.e2e.conftest import Opener
from tests.e2e.support import House, bearer


async def scrape(house: House, **claims: object) -> Mapping[tuple[str, ...], float]:
    """Every sample by its name and its labels, but the pod, in the order of the labels' names."""
    async with house.call("GET", "/metrics", headers=bearer(**claims)) as answer:
        assert 200 == answer.status
        assert "text/plain; version=0.0.4; charset=utf-8" == answer.headers["Content-Type"]
        text = await answer.text()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if sample.name.startswith("gpugate_") and sample.name != "gpugate_budget_used_ratio":
                assert "main" == labels.pop("pod")
            found[(sample.name, *labels.values())] = sample.value
    return found


async def test_a_start_a_chat_and_a_stop(opened: Opener) -> None:
    """Each number of the contract's table, and the process's own."""
    house = await opened(metrics__enabled=True)
    before = await scrape(house)
    assert 1 == before["gpugate_pod_state", "STOPPED"]
    assert 0 == before["gpugate_pod_state", "READY"]
    for outcome in ("allowed", "denied", "budget"):
        assert 0 == before["gpugate_wakes_total", outcome]

    await house.chat()
    ready = await scrape(house, scope="metrics")
    assert 1 == ready["gpugate_pod_state", "READY"]
    assert 1 == ready["gpugate_wakes_total", "allowed"]
    assert 1 == ready["gpugate_requests_total", "chat", "200"]
    assert 1 == ready["gpugate_request_wait_seconds_count",]
    assert 1 == ready["gpugate_request_wait_seconds_bucket", "600.0"]
    assert 1 == ready["gpugate_time_to_first_byte_seconds_count",]
    assert 0 < ready["gpugate_response_bytes_total",]
    assert 1 == ready["gpugate_provider_calls_total", "start", "ok", "fake"]
    assert 1 == ready["gpugate_provider_call_seconds_count", "start", "ok", "fake"]
    assert 1 == ready["gpugate_pod_transitions_total", "WARMING", "READY"]
    assert 0 == ready["gpugate_unproved_stops",] == ready["gpugate_requests_waiting",]
    assert 0 == ready["gpugate_budget_used_ratio",]
    used = sum(ready["gpugate_session_seconds_total", use] for use in ("starting", "serving", "idle"))
    assert 0 < used
    assert 0 < ready["process_resident_memory_bytes",]

    await house.stop()
    off = await scrape(house)
    assert 1 == off["gpugate_pod_state", "STOPPED"]
    assert ready["gpugate_cost_total", "USD"] <= off["gpugate_cost_total", "USD"]
    assert 0 < off["gpugate_cost_total", "USD"]


async def test_a_start_without_capacity(opened: Opener) -> None:
    """The provider's reason is the outcome of its call; no path is a label."""
    house = await opened(metrics__enabled=True, pod__start_attempts=1)
    house.cloud.fail("start", NoCapacity("none free"))
    await house.chat()
    await house.ask("GET", "/some/where/else")
    await house.ask("GET", "/api/some/where/else")
    found = await scrape(house)

    assert 1 == found["gpugate_provider_calls_total", "start", "capacity", "fake"]
    assert 1 == found["gpugate_requests_total", "chat", "503"]
    assert 1 == found["gpugate_requests_total", "not_ours", "404"]
    assert not [labels for labels in found if any("where" in label for label in labels)]


@pytest.mark.parametrize(("scope", "status"), [("chat pod cost", 403), ("metrics", 200), ("admin", 200)])
async def test_scopes(opened: Opener, scope: str, status: int) -> None:
    """`metrics` or `admin`."""
    house = await opened(metrics__enabled=True)
    async with house.call("GET", "/metrics", headers=bearer(scope=scope)) as answer:
        assert status == answer.status
    async with house.call("GET", "/metrics", headers={}) as answer:
        assert 401 == answer.status


async def test_off(house: House) -> None:
    """404 in the envelope."""
    answer = await house.ask("GET", "/metrics")
    assert (404, "NOT_FOUND") == (answer.status, answer.json["error"]["code"])


async def test_an_address_of_their_own(opened: Opener) -> None:
    """Open, and with nothing else; an address that is taken ends the start in one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"metrics.listen: 127.0.0.1 port {port} cannot be used"):
            await opened(metrics__enabled=True, metrics__listen=f"127.0.0.1:{port}")
    house = await opened(metrics__enabled=True, metrics__listen=f"127.0.0.1:{port}")
    async with house.http.get(f"http://127.0.0.1:{port}/metrics") as answer:
        assert 200 == answer.status
        assert "gpugate_pod_state" in await answer.text()
    async with house.http.get(f"http://127.0.0.1:{port}/api/v1/gpu/status") as answer:
        assert 404 == answer.status
