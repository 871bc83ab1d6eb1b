"""The plugin's face: RunPod as gpugate's provider port has it, in one of two modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import evolve

from gpugate import Capabilities, Charge, PodChoice, PodReport, Provider
from gpugate_runpod.api import Api
from gpugate_runpod.choices import pod_choices
from gpugate_runpod.ephemeral import EphemeralPods
from gpugate_runpod.fixed import FixedPod
from gpugate_runpod.settings import RunPodConfig

if TYPE_CHECKING:
    from aiohttp import ClientSession

FIRST_BYTE_LIMIT_S = 100.0
"""RunPod's proxy ends a request that is silent so long, with a 524 (docs/providers.md#silent-requests)."""
MIN_POLL_S = 2.0
"""At most 30 looks a minute, half of the documented limit of 60 (docs/providers.md#runpod-operations)."""
MIN_PROBE_S = 0.25
"""Health checks go through RunPod's edge, which others share."""


class RunPod(Provider):
    """RunPod through REST v2; `[providers.runpod]` says which pod, or what to make pods from."""

    Config = RunPodConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume=True,
        ephemeral=True,
        stable_urls=True,
        billing_api=True,
        stop_keeps_disk=True,
        min_poll_s=MIN_POLL_S,
        min_probe_s=MIN_PROBE_S,
        first_byte_limit_s=FIRST_BYTE_LIMIT_S,
    )

    def __init__(self, config: RunPodConfig, session: ClientSession) -> None:
        super().__init__(config, session)
        api = self._api = Api(config, session)
        self._pods: FixedPod | EphemeralPods
        if config.mode == "ephemeral":
            self._pods = EphemeralPods(config, api)
            self.capabilities = evolve(  # type: ignore[misc]  # of this one, narrower than the class's
                self.capabilities, resume=False, stable_urls=False, stop_keeps_disk=bool(config.volume_id)
            )
        else:
            self._pods = FixedPod(config, api)

    @classmethod
    def chooses_gpu(cls, config: RunPodConfig) -> bool:
        """With gpus = "auto"."""
        return config.chooses_gpu

    @classmethod
    async def list_choices(cls, settings: Mapping[str, Any], session: ClientSession) -> Sequence[PodChoice]:
        """The account's pods, and GPUs to make one with."""
        config = RunPodConfig(**{"pod_id": "unknown", **settings})
        return await pod_choices(config, Api(config, session))

    async def start(self) -> PodReport:
        """Start the pod, or create one; see the port for what is promised and raised."""
        if isinstance(self._pods, EphemeralPods):
            return await self._pods.start(self.needed_gpu_bytes)
        return await self._pods.start()

    async def stop(self) -> PodReport:
        """Stop the pod, or delete every pod of ours."""
        return await self._pods.stop()

    async def inspect(self) -> PodReport:
        """Look at the pod."""
        return await self._pods.inspect()

    async def sweep(self) -> None:
        """End what of ours is billed beside the one that serves; only in ephemeral mode can there be any."""
        if isinstance(self._pods, EphemeralPods):
            await self._pods.sweep()

    async def bill(self, since: datetime, until: datetime) -> Sequence[Charge]:
        """What the pod was billed; in ephemeral mode the account's pods, since a bill knows no names."""
        pod_id = self.config.pod_id if self.config.mode == "fixed" else None
        return await self._api.bill(since, until, pod_id)
