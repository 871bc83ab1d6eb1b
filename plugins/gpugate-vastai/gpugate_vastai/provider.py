"""The provider class: picks the mode and hands each of the port's calls to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gpugate import Capabilities, Charge, PodChoice, PodReport, Provider
from gpugate_vastai.api import VastApi
from gpugate_vastai.billing import charges_of, filters_of
from gpugate_vastai.choices import instance_choices
from gpugate_vastai.ephemeral import EphemeralInstance
from gpugate_vastai.fixed import FixedInstance
from gpugate_vastai.reading import Reader
from gpugate_vastai.settings import VastConfig

if TYPE_CHECKING:
    from aiohttp import ClientSession


def _now() -> datetime:
    return datetime.now(UTC)


class VastAi(Provider):
    """An instance at Vast.ai: one of the user's (mode "fixed"), or a new one for each run ("ephemeral").

    Its address and ports change with every start, so they are read from the API every time.
    """

    Config = VastConfig
    capabilities = Capabilities(
        resume=True,
        ephemeral=True,
        stable_urls=False,
        billing_api=True,
        stop_keeps_disk=True,
        queue_on_capacity=True,
        min_poll_s=5.0,  # docs/providers.md#vastai-api
        min_change_s=1.0,  # between two PUTs
    )
    config: VastConfig

    def __init__(
        self, config: VastConfig, session: ClientSession, wall: Callable[[], datetime] = _now
    ) -> None:
        super().__init__(config, session)
        api, reader = VastApi(config, session), Reader(config, wall)
        self._api = api
        self._instance: FixedInstance | EphemeralInstance = (
            EphemeralInstance(config, api, reader)
            if config.mode == "ephemeral"
            else FixedInstance(config.instance_id, api, reader)
        )

    @classmethod
    def chooses_gpu(cls, config: VastConfig) -> bool:
        """With gpu_ram = "auto"."""
        return config.chooses_gpu

    @classmethod
    async def list_choices(cls, settings: Mapping[str, Any], session: ClientSession) -> Sequence[PodChoice]:
        """The account's instances, and GPUs on offer."""
        config = VastConfig(**{"instance_id": 1, **settings})
        return await instance_choices(config, VastApi(config, session), Reader(config, _now))

    async def start(self) -> PodReport:
        """Ask for the instance to run, or rent one; `NoCapacity(queued=True)` if the start waits there."""
        if isinstance(self._instance, EphemeralInstance):
            return await self._instance.start(self.needed_gpu_bytes)
        return await self._instance.start()

    async def stop(self) -> PodReport:
        """Ask for the stop, a queued start included; in ephemeral mode destroy what is ours."""
        return await self._instance.stop()

    async def inspect(self) -> PodReport:
        """Read state, addresses and price."""
        return await self._instance.inspect()

    async def sweep(self) -> None:
        """End what of ours is billed beside the one that serves; only in ephemeral mode can there be any."""
        if isinstance(self._instance, EphemeralInstance):
            await self._instance.sweep()

    async def bill(self, since: datetime, until: datetime) -> Sequence[Charge]:
        """What the instance was charged; in ephemeral mode all of the account's: charges have no labels."""
        found = charges_of(await self._api.charges(filters_of(since, until)), since, until)
        own = None if self.config.mode == "ephemeral" else str(self.config.instance_id)
        return [charge for charge in found if own in (None, charge.pod_id)]
