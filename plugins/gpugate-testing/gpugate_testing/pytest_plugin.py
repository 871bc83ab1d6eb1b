"""The pytest plugin of gpugate, for tests of provider plugins; loads nothing of gpugate before a test does.

It is an entry point of `pytest11` under its own module's name, so that naming it in `pytest_plugins` as
well does no harm.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from gpugate_testing.clouds import RunPodSim, VastSim

pytest.register_assert_rewrite(
    "gpugate_testing.contract", "gpugate_testing.contract_base"
)  # else a failing claim shows no values


@pytest.fixture
async def gpugate_session() -> AsyncIterator[ClientSession]:
    """A client session as gpugate gives it to a provider, closed afterwards."""
    from gpugate_testing.fault_sessions import good_session

    async with good_session() as session:
        yield session


@pytest.fixture
async def gpugate_runpod() -> AsyncIterator[RunPodSim]:
    """A simulated RunPod that listens, without a pod."""
    from gpugate_testing.clouds import RunPodSim

    async with RunPodSim() as cloud:
        yield cloud


@pytest.fixture
async def gpugate_vastai() -> AsyncIterator[VastSim]:
    """A simulated Vast.ai that listens, without an instance."""
    from gpugate_testing.clouds import VastSim

    async with VastSim() as cloud:
        yield cloud
