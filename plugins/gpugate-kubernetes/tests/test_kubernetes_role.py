"""The Lease: two gateways that want it, at a simulated cluster in virtual time (docs/api.md#two-gateways)."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from gpugate_kubernetes import KubernetesConfig
from gpugate_kubernetes.role import WAITING, LeaseRole
from gpugate_testing.clouds import Http, KubernetesSim, LostResponse, loopback_time
from gpugate_testing.clouds.kubernetes_objects import status_of
from kubernetes_support import Files, schema_complaints

from gpugate import AuthFailed, Transient

Scenario = Callable[[KubernetesSim, LeaseRole, LeaseRole], Coroutine[Any, Any, None]]


def play(scenario: Scenario) -> None:
    """Two roles of one Lease."""

    async def main(folder: str) -> None:
        async with KubernetesSim() as cloud:
            cloud.check = schema_complaints
            kubeconfig = Files(Path(folder)).kubeconfig(cloud.url, cloud.api_key)
            config = KubernetesConfig(kubeconfig=kubeconfig, lease="gpugate")
            one, two = LeaseRole(config), LeaseRole(config)
            await scenario(cloud, one, two)
            await one.aclose()
            await two.aclose()
        assert [] == cloud.violations

    with tempfile.TemporaryDirectory() as folder:
        loopback_time.run(main(folder))


def test_the_first_one_has_it() -> None:
    """Made where there is none; the other one knows by whom it is held, and says that it waits."""

    async def scenario(cloud: KubernetesSim, one: LeaseRole, two: LeaseRole) -> None:
        assert await one.take()
        assert not await two.take()
        assert two.holder == one.me
        assert cloud.leases["gpugate"]["spec"]["leaseTransitions"] == 0
        assert two.me in cloud.leases["gpugate"]["metadata"]["annotations"][WAITING]
        assert await one.take()
        assert one.is_awaited
        assert not two.is_awaited

    play(scenario)


def test_it_is_over() -> None:
    """Ten seconds after it was last seen to change, and not before; the first one then learns it."""

    async def scenario(cloud: KubernetesSim, one: LeaseRole, two: LeaseRole) -> None:
        await one.take()
        assert not await two.take()
        await asyncio.sleep(9.5)
        assert not await two.take()
        await asyncio.sleep(0.6)
        assert await two.take()
        assert cloud.leases["gpugate"]["spec"]["leaseTransitions"] == 1
        assert not await one.take()
        assert one.holder == two.me

    play(scenario)


def test_it_is_renewed() -> None:
    """For ever, while the other one looks and says that it waits."""

    async def scenario(cloud: KubernetesSim, one: LeaseRole, two: LeaseRole) -> None:
        for _ in range(60):
            assert await one.take()
            assert not await two.take()
            await asyncio.sleep(2)
        assert one.is_awaited
        await asyncio.sleep(0)
        for _ in range(8):
            assert await one.take()
            await asyncio.sleep(2)
        assert not one.is_awaited  # nobody has said so for a while

    play(scenario)


def test_it_is_given_back() -> None:
    """The other one has it at once; who has it no more gives nothing back."""

    async def scenario(cloud: KubernetesSim, one: LeaseRole, two: LeaseRole) -> None:
        await one.take()
        await two.take()
        await one.give_back()
        assert await two.take()
        await one.give_back()
        assert cloud.leases["gpugate"]["spec"]["holderIdentity"] == two.me

    play(scenario)


def test_two_at_the_same_moment() -> None:
    """One of them wins."""

    async def scenario(cloud: KubernetesSim, one: LeaseRole, two: LeaseRole) -> None:
        for _ in range(5):
            won = await asyncio.gather(one.take(), two.take())
            assert sorted(won) == [False, True]
            await (one if won[0] else two).give_back()

    play(scenario)


def test_trouble() -> None:
    """An error is no loss, and no gain; a renewal whose answer was lost counts as soon as it is seen."""

    async def scenario(cloud: KubernetesSim, one: LeaseRole, two: LeaseRole) -> None:
        cloud.fail("get_lease", Http(403, status_of(403, "Forbidden", "cannot get resource")))
        with pytest.raises(AuthFailed):
            await one.take()
        await one.take()
        cloud.fail("replace_lease", LostResponse(30))
        with pytest.raises(Transient):
            await one.take()
        assert await one.take()
        assert not await two.take()

    play(scenario)
