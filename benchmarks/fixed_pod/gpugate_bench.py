"""A provider whose pod is the benchmark's own upstream; knows nothing of what is measured.

It lies beside a hand-written `.dist-info`, so that its entry point is found as soon as this folder is on
`PYTHONPATH`: nothing is installed, and `gpugate providers` elsewhere never shows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from gpugate.provider_api import Endpoint, Phase, PodReport, Provider

if TYPE_CHECKING:
    from aiohttp import ClientSession


@frozen
class PodConfig:
    """`[providers.bench]`.

    Attributes:
        url: the upstream's service.
        control: the upstream's second port; empty: the start is told to nobody.
        cold_start_ms: what the upstream is told at a start: answer after so many milliseconds.
        running: whether the pod runs already when the gateway comes up.
    """

    url: str
    control: str = ""
    cold_start_ms: int = 0
    running: bool = True


class FixedPod(Provider):
    """A pod that obeys at once; only its service takes time."""

    Config = PodConfig

    def __init__(self, config: PodConfig, session: ClientSession) -> None:
        super().__init__(config, session)
        self._running = config.running

    async def start(self) -> PodReport:
        """Run, and start the upstream's clock."""
        if not self._running and self.config.control:
            url = f"{self.config.control}/_cold?ms={self.config.cold_start_ms}"
            async with self.session.post(url) as answer:
                await answer.read()
        self._running = True
        return await self.inspect()

    async def stop(self) -> PodReport:
        """Be stopped."""
        self._running = False
        return await self.inspect()

    async def inspect(self) -> PodReport:
        """Say which of the two it is."""
        if not self._running:
            return PodReport(phase=Phase.STOPPED, pod_id="bench")
        return PodReport(phase=Phase.RUNNING, pod_id="bench", endpoints={"ollama": Endpoint(self.config.url)})
