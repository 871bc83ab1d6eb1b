"""Mode "fixed": one instance of the user's, started and stopped; which one is all it knows beforehand."""

from __future__ import annotations

import asyncio
from math import inf

from attrs import evolve

from gpugate import NoCapacity, NotFound, Phase, PodReport, ProviderError
from gpugate_vastai.answers import Object
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
        self._row: Object | None = None
        self._read_at = -inf
        self._told_at = -inf  # the last command, whatever came of it
        self._stopping = False  # it was an accepted stop, and nothing was read since

    async def start(self) -> PodReport:
        """Ask for "running", then look once: an instance that runs already is ready to be used.

        Raises:
            NoCapacity: `queued` when Vast.ai keeps the start and may run it any time.
        """
        self._run = Run(asked_at=self._now())
        self._told_at, self._stopping = self._now(), False
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
        self._told_at, self._stopping = self._now(), False
        try:
            await self._api.set_state(self._id, "stopped")
        except NotFound:
            return self._gone()
        self._stopping = True
        return PodReport(Phase.STOPPING, str(self._id), detail="accepted")

    async def inspect(self) -> PodReport:
        """Read the instance; what was read less than the endpoint's interval ago is good enough.

        Not when it is older than our last command: it must not prove that nothing runs. Only right after
        an accepted stop it may still say that the instance is on, or that its start waits.
        """
        if self._now() - self._read_at < SHOW.interval_s:
            report = self._report()
            if self._read_at > self._told_at:
                return report
            if self._stopping and report.phase in (*_ON_ITS_WAY, Phase.QUEUED):
                billed = report.is_billed
                return evolve(report, phase=Phase.STOPPING, endpoints={}, detail="accepted", billed=billed)
        self._row = await self._api.show(self._id)
        self._read_at = self._now()
        return self._report()

    def _report(self) -> PodReport:
        return self._gone() if self._row is None else self._reader.report(self._row, self._run, self._now())

    async def _seen_on_its_way(self) -> PodReport | None:
        """A look, as far as it can be had now; its own failure is no matter."""
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
