"""gpugate/lifecycle/leased_call.py: what is tried again. The numbers are those of its docstring."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpugate.errors import PodStopped, QueueTimeout
from gpugate.lifecycle.diagnosis import Diagnosis
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.leased_call import AttemptFailed
from tests.generation.stay import leased_call_on, pod

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
    """(4) It is asked once more, but only once."""
    call, _ = leased_call_on(pod(1), finding=Diagnosis.RECOVERED)
    assert 1 == await call.run(Work(FAILED, FAILED))
    work = Work(FAILED, FAILED, FAILED)
    with pytest.raises(AttemptFailed):
        await call.run(work)
    assert 3 == len(work.runs)


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
