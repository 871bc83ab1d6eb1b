"""A Pod or Job for each session, made from the user's template and deleted afterwards."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from gpugate import Ambiguous, Conflict, NotFound, Phase, PodReport, ProviderError
from gpugate_kubernetes.cluster import Cluster
from gpugate_kubernetes.reading import Pod, Seen, condition, pod_of, together
from gpugate_kubernetes.reports import Reporter
from gpugate_kubernetes.settings import KubernetesConfig
from gpugate_kubernetes.template import filled, labels_of, read_template, selector_of

ROOM_FOR_POD_NAME = 40
"""A Pod of a Job has the Job's name and six more characters, 63 in all."""


@frozen
class Made:
    """Something of ours: a Pod or a Job with its Pods."""

    name: str
    pods: tuple[Pod, ...]
    terminating: bool = False
    failed: str = ""

    @property
    def is_alive(self) -> bool:
        """It serves or will, if nothing is done."""
        ended = bool(self.pods) and all(pod.finished for pod in self.pods)
        return not (self.terminating or self.failed or ended)

    @property
    def is_left(self) -> bool:
        """Something of it is in the cluster that is no mere record."""
        return any(not pod.finished for pod in self.pods)


class EphemeralPods:
    """What carries our labels; `pod_name` is the pod's name in gpugate's configuration."""

    def __init__(self, config: KubernetesConfig, cluster: Cluster, reporter: Reporter, pod_name: str) -> None:
        self._template = read_template(config.template)
        self._kind = str(self._template["kind"])
        self._namespace = config.namespace
        self._cluster = cluster
        self._reporter = reporter
        self._pod_name = pod_name
        self._drawn = ""

    async def start(self) -> PodReport:
        """Make one, unless there is one; what ended by itself is deleted first."""
        made = await self._list()
        if any(one.is_alive for one in made):
            return await self._report(made)
        for one in made:
            if not one.terminating:
                await self._delete(one.name)
        name = self._drawn = self._drawn or self._draw()
        try:
            await self._cluster.create(
                filled(self._template, name, self._namespace, labels_of(self._pod_name))
            )
        except Conflict:
            pass  # an earlier try, whose answer was lost, has made it
        except Ambiguous:
            raise  # the next try has the same name, so that there are never two
        except ProviderError:
            self._drawn = ""
            raise
        self._drawn = ""
        return PodReport(Phase.PROVISIONING, pod_id=f"{self._kind}/{name}", billed=False)

    async def stop(self) -> PodReport:
        """Delete everything of ours, and what a lost create may still have made."""
        made = await self._list()
        names = {one.name for one in made if not one.terminating} | ({self._drawn} if self._drawn else set())
        failed: ProviderError | None = None
        for name in sorted(names):
            try:
                await self._delete(name)
            except ProviderError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        self._drawn = ""
        return PodReport(Phase.STOPPING, pod_id=self._id_of(made))

    async def inspect(self) -> PodReport:
        """Look at everything of ours."""
        return await self._report(await self._list())

    async def sweep(self) -> None:
        """Delete all but the one that is reported."""
        alive = [one for one in await self._list() if one.is_alive]
        for one in alive[1:]:
            await self._delete(one.name)

    # --- looking ------------------------------------------------------------------------------

    async def _list(self) -> list[Made]:
        """Everything with our labels, the oldest first."""
        selector = selector_of(self._pod_name)
        jobs = await self._cluster.list_jobs(selector) if self._kind == "Job" else []
        pods = await self._cluster.list_pods(selector)
        made = list(_jobs(jobs, pods) if self._kind == "Job" else _pods(pods))
        made.sort(key=lambda one: min((str(pod.created_at) for pod in one.pods), default="~"))
        return made

    async def _report(self, made: list[Made]) -> PodReport:
        alive = [one for one in made if one.is_alive]
        left = [pod for one in made for pod in one.pods if not pod.finished]
        alarm = ""
        if alive:
            first = alive[0]
            seen = together(first.pods)
            if len(alive) > 1:
                alarm = f"{len(alive)} of gpugate's are there, such as {self._kind}/{alive[1].name}"
        elif left:
            seen = Seen(Phase.STOPPING, left)
        elif ended := [one for one in made if not one.terminating]:
            words = ended[-1].failed or next((pod.detail for pod in ended[-1].pods), "")
            failure = next((pod.failure for pod in ended[-1].pods), None)
            seen = Seen(Phase.FAILED, ended[-1].pods, words, failure)
        else:
            seen = Seen(Phase.STOPPED if not made else Phase.STOPPING)
        return await self._reporter.report(
            self._id_of(alive or made) or f"{self._kind}/none", seen, alarm=alarm
        )

    def _id_of(self, made: list[Made]) -> str | None:
        return f"{self._kind}/{made[0].name}" if made else None

    # --- making and deleting ------------------------------------------------------------------

    def _draw(self) -> str:
        return f"gpugate-{self._pod_name[:ROOM_FOR_POD_NAME]}-{secrets.token_hex(4)}"

    async def _delete(self, name: str) -> None:
        try:
            await self._cluster.delete(self._kind, name)
        except NotFound:
            return


def _pods(manifests: list[Mapping[str, Any]]) -> Iterator[Made]:
    for manifest in manifests:
        pod = pod_of(manifest)
        yield Made(pod.name, (pod,), pod.terminating)


def _jobs(jobs: list[Mapping[str, Any]], manifests: list[Mapping[str, Any]]) -> Iterator[Made]:
    """Each Job with its Pods, and Pods that a deleted Job has left."""
    by_job: dict[str, list[Pod]] = {}
    for manifest in manifests:
        labels = (manifest.get("metadata") or {}).get("labels") or {}
        by_job.setdefault(str(labels.get("job-name") or ""), []).append(pod_of(manifest))
    for job in jobs:
        metadata = job.get("metadata") or {}
        name = str(metadata.get("name") or "")
        ended = next(condition(job, "Failed"), "") or next(condition(job, "Complete"), "")
        yield Made(name, tuple(by_job.pop(name, ())), bool(metadata.get("deletionTimestamp")), ended)
    for name, pods in by_job.items():
        yield Made(name, tuple(pods), terminating=True)
