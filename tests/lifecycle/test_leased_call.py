"""gpugate/lifecycle/leased_call.py: what is tried again. The numbers are those of its docstring."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpugate.errors import PodStopped, QueueTimeout
from gpugate.lifecycle.diagnosis import Diagnosis
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.leased_call import AttemptFailed
from gpugate.provider_api import Endpoint
from tests.generation.stay import BOTH, leased_call_on, pod

FAILED = AttemptFailed("broke")


class Work:
    """Raises one error after the other, then returns the run; keeps the runs that it was called with."""

    def __init__(self, *errors: AttemptFailed) -> None:
        self.errors = list(errors)
        self.runs: list[int] = []

    async def __call__(self, pod: ServingPod) -> int:
        self.runs.append(pod.run_id)
        if self.errors:
            raise self.errors.pop(0)
        return pod.run_id


def keep_going(pod: ServingPod) -> Any:
    return lambda: None


async def test_no_second_attempt_after_the_start_of_the_response() -> None:
    """(1) Whatever the diagnosis would be."""
    call, _ = leased_call_on(pod(1), pod(2), finding=Diagnosis.LOST)
    call.mark_response_started()
    work = Work(FAILED)
    with pytest.raises(AttemptFailed):
        await call.run(work)
    assert ([1], 0) == (work.runs, call.lifecycle.asked)


async def test_once_more_at_once() -> None:
    """(2) Without asking what became of the pod."""
    call, _ = leased_call_on(pod(1))
    work = Work(FAILED)
    assert 1 == await call.run(work, interrupt=keep_going)
    assert ([1, 1], 0) == (work.runs, call.lifecycle.asked)


@pytest.mark.parametrize(
    "failures",
    [(FAILED, FAILED), (AttemptFailed(sent=2),), (AttemptFailed(resendable=False),)],
)
async def test_a_pod_that_lives(failures: tuple[AttemptFailed, ...]) -> None:
    """(4) Two attempts are enough, a request sent twice is two, and a body that is gone is not sent again."""
    call, _ = leased_call_on(pod(1))
    work = Work(*failures)
    with pytest.raises(AttemptFailed):
        await call.run(work)
    assert (len(failures), 1) == (len(work.runs), call.lifecycle.asked)


async def test_a_pod_that_has_recovered() -> None:
    """(3, 5) The request waited for it, and is sent once more, but only once."""
    call, _ = leased_call_on(pod(1), pod(1), finding=Diagnosis.LOST)
    assert 1 == await call.run(Work(FAILED, FAILED))
    call, _ = leased_call_on(pod(1), pod(1), pod(1), finding=Diagnosis.LOST)

    async def breaks(pod: ServingPod) -> int:
        call.lifecycle.finding = Diagnosis.UNHEALTHY if call.lifecycle.asked else Diagnosis.LOST
        raise FAILED

    with pytest.raises(AttemptFailed):
        await call.run(breaks)
    assert [True, False] == call.lifecycle.may_requeue


async def test_no_connection_to_a_pod_that_lives() -> None:
    """(4) Its Ollama restarted and is back before the health check: once more, and only once."""
    refused = AttemptFailed("refused", connected=False)
    call, _ = leased_call_on(pod(1))
    work = Work(FAILED, refused)
    assert 1 == await call.run(work)
    assert 3 == len(work.runs)
    work = Work(*[refused] * 9)
    with pytest.raises(AttemptFailed):
        await call.run(work)
    assert 3 == len(work.runs)


async def test_a_pod_that_moves_while_it_is_diagnosed() -> None:
    """(4) The request goes to where the pod is now; work that follows its service does so at once."""
    moved = pod(1, {**BOTH, "ollama": Endpoint("http://ollama:2")})
    call, lease = leased_call_on(pod(1))
    places = []

    async def work(pod: ServingPod) -> str:
        places.append(pod.endpoints["ollama"].url)
        if pod is not moved:
            lease.pods[0] = moved
            raise FAILED
        return "done"

    assert "done" == await call.run(work, attempts=1)
    assert ["http://ollama", "http://ollama:2"] == places


@pytest.mark.parametrize(("service", "runs"), [("ollama", 2), ("comfyui", 1)])
async def test_work_follows_its_service(service: str, runs: int) -> None:
    """It begins anew when that has moved, and goes on when only another service has."""
    moved = pod(1, {**BOTH, "ollama": Endpoint("http://ollama:2")})
    call, lease = leased_call_on(pod(1))
    places = []

    async def work(pod: ServingPod) -> str:
        places.append(pod)
        if len(places) == 1:
            lease.move(moved)
            await asyncio.sleep(0.01)
        return "done"

    assert "done" == await call.run(work, service=service)
    assert runs == len(places)


async def test_the_next_pod() -> None:
    """(5) It gets the request as if it were new, with two attempts of its own."""
    call, _ = leased_call_on(pod(1), pod(2), finding=Diagnosis.LOST)
    work = Work(FAILED, FAILED, FAILED)
    assert 2 == await call.run(work, interrupt=keep_going)
    assert [1, 1, 2, 2] == work.runs


async def test_no_next_pod() -> None:
    """(5) The rejection is what the client is told; without one a lost upload is told as such."""
    call, lease = leased_call_on(pod(1), finding=Diagnosis.LOST)
    lease.error = QueueTimeout()
    with pytest.raises(QueueTimeout):
        await call.run(Work(FAILED, FAILED), interrupt=keep_going)
    call, _ = leased_call_on(pod(1), finding=Diagnosis.LOST)
    with pytest.raises(PodStopped, match="upload"):
        await call.run(Work(AttemptFailed(resendable=False)), interrupt=keep_going)


async def test_work_is_cancelled_when_the_pod_is_lost() -> None:
    """Unless it brings an interrupt of its own, and begins anew with the next pod."""
    call, lease = leased_call_on(pod(1), pod(2))
    runs = []

    async def work(pod: ServingPod) -> int:
        runs.append(pod.run_id)
        if pod.run_id == 1:
            lease.lose()
            await asyncio.sleep(60)
        return pod.run_id

    assert 2 == await call.run(work)
    assert [1, 2] == runs
