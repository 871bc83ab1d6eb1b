"""Mode "fixed": one instance of the user's, started and stopped; which one is all it knows beforehand."""

from __future__ import annotations

import asyncio
from math import inf

from gpugate import NoCapacity, NotFound, Phase, PodReport, ProviderError
from gpugate_vastai.api import SHOW, VastApi
from gpugate_vastai.reading import Reader, Run

_ON_ITS_WAY = frozenset({Phase.PROVISIONING, Phase.STARTING, Phase.RUNNING})


class FixedInstance:
    """Starts and stops `instance_id`; remembers the last start, to tell one that waits from one that died."""

    def __init__(self, instance_id: int, api: VastApi, reader: Reader) -> None:
        self._id = instance_id
        self._api = api
        self._reader = reader
        self._run = Run()
        self._looked_at = -inf

    async def start(self) -> PodReport:
        """Ask for "running", then look once: an instance that runs already is ready to be used.

        Raises:
            NoCapacity: `queued` when Vast.ai keeps the start and may run it any time.
        """
        self._run = Run(asked_at=self._now())
        try:
            await self._api.set_state(self._id, "running")
        except NoCapacity as error:
            self._run = Run(asked_at=self._now(), queued=error.queued)
            raise
        self._run.accepted = True
        return await self._seen_on_its_way() or PodReport(Phase.STARTING, str(self._id), detail="accepted")

    async def stop(self) -> PodReport:
        """Ask for "stopped", which cancels a queued start too."""
        self._run = Run()
        try:
            await self._api.set_state(self._id, "stopped")
        except NotFound:
            return self._gone()
        return PodReport(Phase.STOPPING, str(self._id), detail="accepted")

    async def inspect(self) -> PodReport:
        """Read the instance."""
        self._looked_at = self._now()
        row = await self._api.show(self._id)
        return self._gone() if row is None else self._reader.report(row, self._run, self._now())

    async def _seen_on_its_way(self) -> PodReport | None:
        """A look, unless the last is so fresh that Vast.ai would refuse; its own failure is no matter."""
        if self._now() - self._looked_at < SHOW.interval_s:
            return None
        try:
            report = await self.inspect()
        except ProviderError:
            return None
        return report if report.phase in _ON_ITS_WAY else None

    def _gone(self) -> PodReport:
        return PodReport(Phase.GONE, str(self._id), detail="there is no such instance (any more)")

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
