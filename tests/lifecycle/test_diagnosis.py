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
    """Ollama restarts inside a pod that runs: the request waits for it with those that come now."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            with stage.lifecycle.acquire() as lease:
                pod = await lease.wait_admitted()
                stage.pod.sick = True
                asyncio.get_running_loop().call_later(90.0, setattr, stage.pod, "sick", False)
                before = stage.cloud.now
                assert await stage.lifecycle.diagnose(pod.run_id, lease) is Diagnosis.LOST
                assert stage.cloud.now - before < 0.1
                with stage.lifecycle.acquire() as later:
                    again = await lease.wait_admitted()
                    assert stage.cloud.now - before == pytest.approx(90.0, abs=1.0)
                    assert (pod.run_id, 1) == (again.run_id, stage.cloud.starts)
                    assert later.pod is None  # it came later

    play(story())


def test_requests_that_meet_the_trouble_later() -> None:
    """Whichever request finds the pod unhealthy, all that have failed wait for it."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            diagnose = stage.lifecycle.diagnose
            with stage.lifecycle.acquire() as first:
                run = (await first.wait_admitted()).run_id
                with stage.lifecycle.acquire() as second, stage.lifecycle.acquire() as upload:
                    stage.pod.sick = True
                    asyncio.get_running_loop().call_later(60.0, setattr, stage.pod, "sick", False)
                    found = await asyncio.gather(diagnose(run, first), diagnose(run), diagnose(run, second))
                    assert [Diagnosis.LOST, Diagnosis.UNHEALTHY, Diagnosis.LOST] == found
                    assert upload.pod is not None
                    await first.wait_admitted()

    play(story())


def test_a_pod_that_restarts_at_another_address() -> None:
    """The container came back with other ports: the request is given the present ones."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            with stage.lifecycle.acquire() as lease:
                pod = await lease.wait_admitted()
                other = stage.lifecycle.acquire()
                stage.cloud.url = stage.pod.answers_at = "http://127.0.0.1:2"
                await stage.lifecycle.diagnose(pod.run_id, lease)
                again = await lease.wait_admitted()
                assert (pod.run_id, "http://127.0.0.1:2") == (again.run_id, again.endpoints["ollama"].url)
                assert other.pod is again
                assert 1 == stage.cloud.starts
                other.release()

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
                assert stage.cloud.now - before == pytest.approx(6.0)

    play(story())
