"""A lease on its own: what its holder hears of the pod, whenever he asks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpugate.core.commands import AS_IT_COMES
from gpugate.errors import PodStopped, QueueFull
from gpugate.lifecycle.lease import Lease, ServingPod

POD = ServingPod(1, "demo", {})


class Desk:
    """The lifecycle's part: writes down what the lease tells it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def mark_response_started(self, lease: Lease) -> None:
        self.told.append(("begun", lease.number))

    def release(self, lease: Lease) -> None:
        self.told.append(("left", lease.number))


def lease_at(desk: Any = None) -> Lease:
    desk = desk or Desk()
    return Lease(7, 100.0, "ann", "r-1", desk.mark_response_started, desk.release)


async def test_a_lease() -> None:
    """Waited for, begun, given back."""
    desk = Desk()
    with lease_at(desk) as lease:
        asyncio.get_running_loop().call_soon(lease.admit, POD, 104.5)
        assert POD is await lease.wait_admitted()
        lease.mark_response_started()

    assert 4.5 == lease.waited_s
    assert [("begun", 7), ("left", 7)] == desk.told


async def test_cut_before_it_is_asked_for() -> None:
    """Who asks after the cut hears of it at once, and does not wait for ever."""
    lease = lease_at()
    lease.admit(POD, 101.0)
    lease.abort()

    with pytest.raises(PodStopped):
        await asyncio.wait_for(lease.wait_admitted(), 1)
    assert isinstance(lease.error, PodStopped)


async def test_cut_while_somebody_waits() -> None:
    """He hears of it as well."""
    lease = lease_at()
    asyncio.get_running_loop().call_soon(lease.abort)

    with pytest.raises(PodStopped):
        await asyncio.wait_for(lease.wait_admitted(), 1)


async def test_refused() -> None:
    """The reason comes out of the wait."""
    lease = lease_at()
    asyncio.get_running_loop().call_soon(lease.reject, QueueFull())

    with pytest.raises(QueueFull):
        await asyncio.wait_for(lease.wait_admitted(), 1)


async def test_requeued() -> None:
    """The exchange is given up, and the wait begins again, without an error."""
    lost: list[str] = []
    lease = lease_at()
    lease.admit(POD, 101.0)
    lease.on_lost = lambda: lost.append("lost")
    lease.requeue()

    assert (None, None, ["lost"]) == (lease.pod, lease.error, lost)
    asyncio.get_running_loop().call_soon(lease.admit, POD, 103.0)
    assert POD is await lease.wait_admitted()


@pytest.mark.parametrize("how", ["abort", "requeue"])
async def test_lost_without_an_exchange(how: str) -> None:
    """Nothing runs that would have to be given up."""
    lease = lease_at()
    lease.admit(POD, 101.0)
    getattr(lease, how)()

    assert None is lease.pod


@pytest.mark.parametrize("how", ["abort", "requeue", "reject"])
async def test_exchange_that_cannot_be_given_up(how: str) -> None:
    """An exchange's own failure is reported and reaches neither the lifecycle nor the one who waits."""
    reports: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: reports.append(str(context["exception"]))
    )

    def fail() -> Any:
        raise RuntimeError("broken")

    lease = lease_at()
    lease.admit(POD, 101.0)
    lease.on_lost, lease.model_hint = fail, fail
    getattr(lease, how)(*([QueueFull()] if how == "reject" else []))

    assert (None, (None, AS_IT_COMES)) == (lease.pod, lease.asked_model())
    assert ["broken", "broken"] == reports
