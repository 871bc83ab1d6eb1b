"""The simulated RunPod itself: its shapes, its limits, its bill, its clocks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from gpugate_testing.clouds import API_KEY, Delays, LoopClock, ManualClock, RunPodSim, SimPod, loopback_time
from gpugate_testing.virtual_time import DeadlockError
from runpod_support import AGENT, GPU

from gpugate.provider_api import Phase

POD_KEYS = {
    *(
        "id",
        "name",
        "image",
        "args",
        "disk",
        "ports",
        "env",
        "registry",
        "status",
        "actions",
        "mounts",
        "gpu",
    ),
    *("cloud", "dataCenterId", "cudaVersion", "ssh", "template", "cost", "locked", "globalNetworking"),
    *("runtime", "createdAt", "startedAt"),
}
"""Of the documented pod object (docs/providers.md#runpod-pod-object)."""


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def cloud(clock: ManualClock) -> AsyncIterator[RunPodSim]:
    async with RunPodSim(clock=clock) as cloud:
        cloud.add_pod()
        yield cloud


async def call(cloud: RunPodSim, method: str, path: str, **more: Any) -> tuple[int, Any, Any]:
    """Status, JSON and headers of one call."""
    more.setdefault("headers", {**AGENT, "Authorization": f"Bearer {API_KEY}"})
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, cloud.api_base + path, **more) as answer,
    ):
        text = await answer.text()
        return answer.status, json.loads(text) if text.startswith("{") else text, answer.headers


async def act(cloud: RunPodSim, action: str) -> tuple[int, Any, Any]:
    return await call(cloud, "POST", "/pods/k3x9v2m7q1/action", json={"action": action})


async def test_a_life(cloud: RunPodSim, clock: ManualClock) -> None:
    """The statuses follow each other in time, and the bill runs from the accepted start to the stop's end."""
    seen = []
    for action, seconds in (("start", 3), ("", 8), ("stop", 1), ("", 3)):
        if action:
            assert 200 == (await act(cloud, action))[0]
        clock.advance(seconds)
        status, pod, _ = await call(cloud, "GET", "/pods/k3x9v2m7q1")
        assert (200, POD_KEYS) == (status, set(pod))
        seen.append((pod["status"], pod["cost"]))
    assert [("STARTING", 0.69), ("RUNNING", 0.69), ("RUNNING", 0.69), ("EXITED", 0.0)] == seen
    assert (14.0, 1) == (cloud.billed_s, cloud.starts)
    _, bill, _ = await call(cloud, "GET", "/billing/pods?podId=k3x9v2m7q1")
    assert round(14 / 3600 * 0.69, 4) == bill["metadata"]["totals"]["gpuAmount"]


async def test_a_restart(cloud: RunPodSim, clock: ManualClock) -> None:
    """The container begins anew, on the same bill."""
    assert 409 == (await act(cloud, "restart"))[0]
    await act(cloud, "start")
    clock.advance(60)
    assert 200 == (await act(cloud, "restart"))[0]
    assert Phase.STARTING is cloud.pods["k3x9v2m7q1"].look()
    clock.advance(8)
    assert Phase.RUNNING is cloud.pods["k3x9v2m7q1"].look()
    assert (68.0, 1) == (cloud.billed_s, cloud.starts)


@pytest.mark.parametrize(
    ("headers", "status", "detail"),
    [
        ({"Authorization": f"Bearer {API_KEY}", "User-Agent": ""}, 403, "error code: 1010"),
        ({"Authorization": f"Bearer {API_KEY}"}, 403, "error code: 1010"),
        (AGENT, 401, "missing bearer token"),
        ({**AGENT, "Authorization": "Bearer other"}, 401, "invalid bearer token"),
    ],
)
async def test_who_is_let_in(cloud: RunPodSim, headers: dict, status: int, detail: str) -> None:
    """aiohttp's own User-Agent is refused as the CDN does, a key as the API does."""
    got, body, _ = await call(cloud, "GET", "/pods", headers=headers)
    assert status == got
    assert detail == (body if isinstance(body, str) else body["detail"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"action": "start", "bogus": 1}, 422),
        ({"action": "explode"}, 422),
        ([], 422),
        ({"action": "stop"}, 409),
        ({"action": "start"}, 200),
    ],
)
async def test_strict_fields(cloud: RunPodSim, body: object, status: int) -> None:
    """Unknown fields and actions are refused, wrong actions are a conflict."""
    got, problem, _ = await call(cloud, "POST", "/pods/k3x9v2m7q1/action", json=body)
    assert status == got
    assert status == 200 or status == problem["status"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "a"}, 422),
        ({"name": "a", "image": "i", "gpuTypeIds": []}, 422),
        ({"name": "a", "image": "i", "gpu": {"id": "none", "count": 1}}, 400),
        ({"name": "a", "image": "i", "gpu": {"id": GPU, "count": 1}, "dataCenterIds": ["MARS-1"]}, 400),
        ({"name": "a", "templateId": "t", "gpu": {"id": GPU, "count": 1}}, 404),
        ({"name": "a", "image": "i", "gpu": {"id": GPU, "count": 1}}, 201),
    ],
)
async def test_a_create(cloud: RunPodSim, body: dict, status: int) -> None:
    """422 for the shape, 400 for what cannot be had, 201 for a pod that is being provisioned."""
    got, answer, _ = await call(cloud, "POST", "/pods", json=body)
    assert status == got
    if got == 201:
        assert "PROVISIONING" == answer["status"]
        assert 204 == (await call(cloud, "DELETE", f"/pods/{answer['id']}"))[0]


async def test_the_limit(cloud: RunPodSim, clock: ManualClock) -> None:
    """60 a minute, said in every answer; the next is 429, and noted."""
    for _ in range(60):
        status, _, headers = await call(cloud, "GET", "/pods")
        assert 200 == status
    assert '"minute";r=0;t=60' == headers["RateLimit"]
    status, _, headers = await call(cloud, "GET", "/pods")
    assert (429, "60") == (status, headers["Retry-After"])
    assert 1 == len(cloud.violations)
    clock.advance(60)
    assert 200 == (await call(cloud, "GET", "/pods"))[0]


async def test_the_end_of_the_account(cloud: RunPodSim) -> None:
    """Without a balance nothing starts."""
    cloud.balance_zero = True
    assert 402 == (await act(cloud, "start"))[0]
    assert 0 == cloud.starts


def a_pod(clock: ManualClock, **more: Any) -> SimPod:
    return SimPod(id="p", name="n", clock=clock, delays=Delays(), billed_in={Phase.RUNNING}, **more)


def test_a_queued_start(clock: ManualClock) -> None:
    """It fires later by itself, unless it is stopped before."""
    pod = a_pod(clock)
    pod.start(queued_s=100)
    clock.advance(50)
    assert Phase.QUEUED is pod.look()
    clock.advance(61)
    assert (Phase.RUNNING, 1) == (pod.look(), pod.starts)
    other = a_pod(clock)
    other.start(queued_s=100)
    other.stop()
    clock.advance(1000)
    assert (Phase.STOPPED, 0, 0.0) == (other.look(), other.starts, other.billed_s)


def test_a_host_that_is_away(clock: ManualClock) -> None:
    """It comes back by itself, and is not billed meanwhile where the cloud says so."""
    pod = a_pod(clock)
    pod.start()
    clock.advance(20)
    pod.become(Phase.UNREACHABLE, back_after_s=30)
    clock.advance(29)
    assert (Phase.UNREACHABLE, 10.0) == (pod.look(), pod.billed_s)
    clock.advance(11)
    assert (Phase.RUNNING, 20.0) == (pod.look(), pod.billed_s)


def test_a_crash(clock: ManualClock) -> None:
    """It fails so long after it runs, once."""
    pod = a_pod(clock, crash_after_s=5)
    pod.start()
    clock.advance(16)
    assert (Phase.FAILED, 5.0) == (pod.look(), pod.billed_s)
    pod.start()
    clock.advance(60)
    assert (Phase.RUNNING, 2) == (pod.look(), pod.starts)


async def test_the_clocks() -> None:
    """One is the loop's, faster; one stands still until it is moved; both bound work."""
    fast, still = LoopClock(scale=1000), ManualClock()
    began = fast.now()
    await fast.sleep(10)
    assert 10 <= fast.now() - began
    assert "done" == await fast.within(5, asyncio.sleep(0, "done"))
    with pytest.raises(TimeoutError):
        await fast.within(5, asyncio.sleep(10))
    with pytest.raises(ZeroDivisionError):
        await fast.within(5, broken())
    waiting = asyncio.ensure_future(still.sleep(5))
    await asyncio.sleep(0)
    still.advance(4)
    await asyncio.sleep(0)
    assert not waiting.done()
    still.advance(1)
    await waiting


async def broken() -> float:
    return 1 / 0


def test_a_day_takes_no_time() -> None:
    """The clock jumps from timer to timer; waiting for nothing is an error."""

    async def a_day() -> float:
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    assert 86_400 == loopback_time.run(a_day())


def test_waiting_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with an error instead of a hang."""
    monkeypatch.setattr(loopback_time, "STUCK_S", 0.01)
    with pytest.raises(DeadlockError):
        loopback_time.run(asyncio.wait_for(never(), None))


async def never() -> None:
    await asyncio.get_running_loop().create_future()
