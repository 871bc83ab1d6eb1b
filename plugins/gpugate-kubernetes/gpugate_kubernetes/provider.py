"""The plugin's face: Kubernetes as gpugate's provider port has it, in one of two modes."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from attrs import evolve

from gpugate import ActiveRole, Capabilities, Misconfigured, PodReport, Provider
from gpugate_kubernetes.cluster import Cluster
from gpugate_kubernetes.ephemeral import EphemeralPods
from gpugate_kubernetes.places import Places
from gpugate_kubernetes.reports import Reporter
from gpugate_kubernetes.role import LeaseRole
from gpugate_kubernetes.scaled import ScaledWorkload
from gpugate_kubernetes.settings import KubernetesConfig

if TYPE_CHECKING:
    from aiohttp import ClientSession

MIN_POLL_S = 1.0
"""Two reads each; an API server has thousands a second to give (docs/providers.md#kubernetes-errors)."""
MAX_REPLICAS = 100


class Kubernetes(Provider):
    """A workload that is scaled, or a Pod or Job for each session; `[providers.kubernetes]` says which."""

    Config = KubernetesConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        resume=True,
        ephemeral=True,
        stable_urls=True,
        stop_keeps_disk=True,
        queue_on_capacity=True,
        min_poll_s=MIN_POLL_S,
        max_replicas=MAX_REPLICAS,
    )

    def __init__(self, config: KubernetesConfig, session: ClientSession) -> None:
        super().__init__(config, session)
        self.cluster = Cluster(config, str(session.headers.get("User-Agent", "gpugate")))
        self._places = Places(config, self.cluster)
        if config.mode == "ephemeral":
            self.capabilities = evolve(  # type: ignore[misc]  # of this one, narrower than the class's
                self.capabilities, resume=False, stop_keeps_disk=False, max_replicas=1
            )

    @cached_property
    def _pods(self) -> ScaledWorkload | EphemeralPods:
        """Made at the first call: until then the pod has no name."""
        reporter = Reporter(self._places)
        if self.config.mode == "ephemeral":
            return EphemeralPods(self.config, self.cluster, reporter, self.pod_name)
        return ScaledWorkload(self.config, self.cluster, reporter)

    @classmethod
    def active_role(cls, config: KubernetesConfig) -> ActiveRole | None:
        """The Lease, if there is to be one."""
        return LeaseRole(config) if config.lease else None

    async def start(self) -> PodReport:
        """Ask for a replica, or make a Pod or Job; see the port for what is promised and raised."""
        return await self._pods.start()

    async def stop(self) -> PodReport:
        """Ask for no replica, or delete what was made."""
        return await self._pods.stop()

    async def inspect(self) -> PodReport:
        """Look at the workload or at what was made, and at the Pods."""
        return await self._pods.inspect()

    async def scale(self, replicas: int) -> PodReport:
        """Ask for so many replicas, while it runs."""
        if not isinstance(self._pods, ScaledWorkload):
            raise Misconfigured('there are replicas only with providers.kubernetes.mode = "scale"')
        return await self._pods.scale(replicas)

    async def sweep(self) -> None:
        """Delete what of ours is there beside the one that serves; only in ephemeral mode."""
        if isinstance(self._pods, EphemeralPods):
            await self._pods.sweep()

    async def aclose(self) -> None:
        """Close the local listener and all connections to the API."""
        await self._places.aclose()
        await self.cluster.aclose()
