"""An exchange broke before its first byte: what the lifecycle finds out about the pod, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from gpugate_testing.fakes import FakeCloud

from gpugate.lifecycle.diagnosis import Diagnosis
from gpugate.provider_api import PodReport
from tests.lifecycle.support import Stage, play


def test_the_pod_lives() -> None:
    """Healthy, and running by the provider's word: found at once."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            with stage.lifecycle.acquire() as lease:
                pod = await lease.wait_admitted()
                assert await stage.lifecycle.diagnose(pod.run_id) is Diagnosis.ALIVE
                assert lease.pod is pod

    play(story())


def test_a_provider_that_goes_on_saying_running() -> None:
    """A dead pod that the provider shows as running for a second is lost: its request waits again."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            with stage.lifecycle.acquire() as lease:
                pod = await lease.wait_admitted()
                stale: PodReport = stage.cloud.report()
                stage.cloud.turn_off(at_once=True)
                stage.cloud.fail("inspect", *(stale for _ in range(4)))
                assert await stage.lifecycle.diagnose(pod.run_id) is Diagnosis.LOST
                again = await lease.wait_admitted()
                assert again.run_id > pod.run_id
                assert stage.cloud.starts == 2

    play(story())


def test_a_service_that_comes_back() -> None:
    """Ollama restarts inside a pod that runs: the request may be tried once more on the same run."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            with stage.lifecycle.acquire() as lease:
                pod = await lease.wait_admitted()
                stage.pod.sick = True
                asyncio.get_running_loop().call_later(1.0, setattr, stage.pod, "sick", False)
                assert await stage.lifecycle.diagnose(pod.run_id) is Diagnosis.RECOVERED
                assert lease.pod is pod
                assert stage.cloud.starts == 1

    play(story())


def test_a_service_that_stays_down() -> None:
    """The provider says that the pod runs, its Ollama stays silent: nobody waits longer than the limit."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            with stage.lifecycle.acquire() as lease:
                pod = await lease.wait_admitted()
                stage.pod.sick = True
                before = stage.cloud.now
                assert await stage.lifecycle.diagnose(pod.run_id) is Diagnosis.UNHEALTHY
                assert stage.cloud.now - before == pytest.approx(5.0)

    play(story())
