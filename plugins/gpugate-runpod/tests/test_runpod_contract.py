"""The provider contract, kept by both modes of the RunPod plugin at a simulated RunPod."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar

import pytest
from gpugate_runpod import RunPod, RunPodConfig
from gpugate_testing import ProviderContract
from gpugate_testing.clouds import RunPodSim
from runpod_support import DELAYS, FIXED, ephemeral


class _AtRunPod(ProviderContract):
    provider_class = RunPod
    settings: ClassVar[dict[str, Any]]

    @pytest.fixture
    async def cloud(self) -> AsyncIterator[RunPodSim]:
        async with RunPodSim(delays=DELAYS) as cloud:
            cloud.clock.now()
            if "pod_id" in self.settings:
                cloud.add_pod()
            yield cloud
            assert [] == cloud.violations

    @pytest.fixture
    def config(self, cloud: RunPodSim) -> RunPodConfig:
        places = {"api_base": cloud.api_base, "proxy_url": cloud.proxy_url}
        return RunPodConfig(**{"api_key": cloud.api_key, **places, **self.settings})

    @pytest.fixture
    def changes(self, cloud: RunPodSim) -> Callable[[], int]:
        return lambda: sum(1 for asked in cloud.asked if asked.operation not in ("get", "list", "gpus"))

    @pytest.fixture
    def billing(self, cloud: RunPodSim) -> Iterator[Callable[[], int]]:
        return lambda: len(cloud.billing)


class TestFixed(_AtRunPod):
    """A pod that exists."""

    settings = FIXED


class TestEphemeral(_AtRunPod):
    """A pod made for each session."""

    settings = ephemeral()
