"""The provider contract, kept by both modes of the Vast.ai plugin at a simulated Vast.ai."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import pytest
from gpugate_demo.ollama import SimulatedOllama
from gpugate_testing import ProviderContract
from gpugate_testing.clouds import Capacity, VastSim
from gpugate_vastai import VastAi, VastConfig
from vast_support import DELAYS, EPHEMERAL, FIXED

READS = ("get", "list", "search", "user")


class _AtVast(ProviderContract):
    provider_class = VastAi
    settings: ClassVar[dict[str, Any]]

    @pytest.fixture
    async def cloud(self) -> AsyncIterator[VastSim]:
        async with SimulatedOllama() as ollama, VastSim(delays=DELAYS) as cloud:
            cloud.ports.upstreams[11434] = ollama.url
            cloud.clock.now()
            if "instance_id" in self.settings:
                cloud.add_instance()
            yield cloud
            hasty = [each for each in cloud.violations if not each.startswith(("start:", "stop:", "delete:"))]
            assert [] == hasty

    @pytest.fixture
    def config(self, cloud: VastSim) -> VastConfig:
        place = {"api_key": cloud.api_key, "api_base": cloud.api_base}
        return VastConfig(**{**place, **self.settings})

    @pytest.fixture
    def changes(self, cloud: VastSim) -> Callable[[], int]:
        return lambda: sum(1 for asked in cloud.asked if asked.operation not in READS)

    @pytest.fixture
    def billing(self, cloud: VastSim) -> Callable[[], int]:
        return lambda: len(cloud.billing)


class TestFixed(_AtVast):
    """An instance that exists."""

    settings = FIXED

    @pytest.fixture
    def queue_start(self, cloud: VastSim) -> Callable[[], None]:
        return lambda: cloud.fail("start", Capacity(queued_s=20.0))


class TestEphemeral(_AtVast):
    """An instance rented for each run."""

    settings = EPHEMERAL
