"""A workload that exists already: its replicas are set, and nothing else of it is ever written."""

from __future__ import annotations

from gpugate import Conflict, NotFound, Phase, PodReport, ProviderError
from gpugate_kubernetes.cluster import Cluster, Scale
from gpugate_kubernetes.reading import Pod, Seen, condition, pod_of, together
from gpugate_kubernetes.reports import Reporter
from gpugate_kubernetes.settings import KubernetesConfig

QUOTA = "exceeded quota"


class ScaledWorkload:
    """The Deployment or StatefulSet of `providers.kubernetes.name`."""

    def __init__(self, config: KubernetesConfig, cluster: Cluster, reporter: Reporter) -> None:
        self._id = f"{config.kind}/{config.name}"
        self._kind = config.kind
        self._cluster = cluster
        self._reporter = reporter
        self._selector = ""
        self._ended: frozenset[str] = frozenset()

    async def start(self) -> PodReport:
        """Ask for one replica, unless some are asked for already."""
        scale = await self._read()
        if scale.replicas:
            return await self._report(scale)
        pods = await self._pods(scale.selector)
        self._ended = frozenset(pod.uid for pod in pods if pod.finished)
        await self._cluster.write_scale(1)
        return PodReport(Phase.PROVISIONING, pod_id=self._id, billed=False)

    async def stop(self) -> PodReport:
        """Ask for none. A workload that is gone needs no stop; what it left is looked for by `inspect`."""
        try:
            scale = await self._cluster.write_scale(0)
        except NotFound as error:
            return PodReport(Phase.GONE, pod_id=self._id, detail=error.message)
        self._selector = scale.selector
        return PodReport(Phase.STOPPING, pod_id=self._id)

    async def scale(self, replicas: int) -> PodReport:
        """Ask for so many. Conflict: it was stopped, or written by others, in the meantime."""
        scale = await self._read()
        if not scale.replicas:
            raise Conflict(f"{self._id} has no replicas: it is stopped")
        if scale.replicas != replicas:
            scale = await self._cluster.write_scale(replicas, scale.version)
        return await self._report(scale)

    async def inspect(self) -> PodReport:
        """Look at the workload and its Pods."""
        try:
            scale = await self._read()
        except NotFound as error:
            return await self._gone(error)
        return await self._report(scale)

    async def _read(self) -> Scale:
        scale = await self._cluster.read_scale()
        self._selector = scale.selector
        return scale

    async def _pods(self, selector: str) -> list[Pod]:
        return [pod_of(manifest) for manifest in await self._cluster.list_pods(selector)]

    async def _report(self, scale: Scale) -> PodReport:
        pods = await self._pods(scale.selector)
        if not scale.replicas:
            left = [pod for pod in pods if not pod.finished]
            seen = Seen(Phase.STOPPING if left else Phase.STOPPED, left)
        elif any(not pod.finished for pod in pods):
            seen = together(pods, self._ended)
        else:
            seen = await self._without_pods()
        return await self._reporter.report(self._id, seen)

    async def _without_pods(self) -> Seen:
        """Replicas are asked for and there is none yet: the workload may say why."""
        if self._kind != "Deployment":  # a StatefulSet has no such condition
            return Seen(Phase.PROVISIONING)
        try:
            said = next(condition(await self._cluster.read_workload(), "ReplicaFailure"), "")
        except ProviderError:
            return Seen(Phase.PROVISIONING)
        return Seen(Phase.QUEUED if QUOTA in said else Phase.PROVISIONING, detail=said)

    async def _gone(self, error: NotFound) -> PodReport:
        """It was deleted, and is never made anew; its Pods may have been left, or be on their way out."""
        left = [pod for pod in await self._pods(self._selector) if not pod.finished] if self._selector else []
        if not left:
            return PodReport(Phase.GONE, pod_id=self._id, detail=error.message)
        orphans = [pod.name for pod in left if not pod.terminating]
        detail = f"{error.message}, but its Pod {orphans[0]} is left: delete it" if orphans else error.message
        return await self._reporter.report(self._id, Seen(Phase.STOPPING, left, detail))
