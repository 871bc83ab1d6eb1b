"""The objects of a simulated cluster, and how its API shows them (docs/providers.md#kubernetes)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from attrs import define, field, frozen

from gpugate.provider_api import Phase
from gpugate_testing.clouds.clocks import Clock
from gpugate_testing.clouds.pods import SimPod

PAID_IN = frozenset({Phase.STARTING, Phase.RUNNING, Phase.STOPPING, Phase.UNREACHABLE})
"""A Pod is paid for from its scheduling to its removal."""
UNSCHEDULABLE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available."
NO_GPU = (
    "Pod was rejected: Allocate failed due to requested number of devices unavailable for nvidia.com/gpu."
    " Requested: 1, Available: 0, which is unexpected"
)
GROUPS = {
    "v1": {"pods": "Pod", "nodes": "Node", "services": "Service"},
    "apps/v1": {"deployments": "Deployment", "statefulsets": "StatefulSet"},
    "batch/v1": {"jobs": "Job"},
    "coordination.k8s.io/v1": {"leases": "Lease"},
}


@frozen
class Waiting:
    """A container that waits for more than its image, in the kubelet's words."""

    reason: str
    message: str


@define(kw_only=True)
class SimReplica(SimPod):
    """A Pod.

    Attributes:
        owner: the workload or Job that made it; empty for a bare Pod.
        labels: its own.
        node: where it is scheduled to, once it is.
        waiting: it is scheduled, and never runs.
        ended: reason and message of a Pod that has failed.
    """

    owner: str = ""
    labels: dict[str, str] = field(factory=dict)
    node: str = "gpu-node-1"
    waiting: Waiting | None = None
    ended: tuple[str, str] = ("", "")

    def start(self, *, queued_s: float = 0.0) -> None:
        """See `SimPod`; with `waiting` it stops at its node."""
        super().start(queued_s=queued_s)
        if self.waiting is not None:
            self._plan = [step for step in self._plan if step[1] is not Phase.RUNNING]

    def stop(self, to: Phase = Phase.GONE) -> None:
        """Be deleted; one without a node is gone at once."""
        if self.look() in (Phase.QUEUED, Phase.PROVISIONING, Phase.FAILED):
            self._remember()
            self.become(Phase.GONE)
        else:
            super().stop(Phase.GONE)

    @property
    def is_active(self) -> bool:
        """Its controller counts it."""
        return self.look() not in (Phase.FAILED, Phase.GONE, Phase.STOPPING)


@define
class Workload:
    """A Deployment or StatefulSet; `failure` is the message of its `ReplicaFailure`."""

    kind: str
    name: str
    labels: dict[str, str]
    replicas: int = 0
    version: int = 1
    failure: str = ""


@define
class Job:
    """A Job; `deleted` while its Pods are on their way out."""

    manifest: dict[str, Any]
    deleted: bool = False


# --- how they are shown -------------------------------------------------------------------------


def uid_of(name: str) -> str:
    """A name's uid: the same each time."""
    digits = hashlib.sha256(name.encode()).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:32]}"


def instant(clock: Clock, second: float) -> str:
    """A second of this clock as Kubernetes writes it: whole seconds, in UTC."""
    return f"{clock.at(second):%Y-%m-%dT%H:%M:%SZ}"


def show_scale(workload: Workload, namespace: str, active: int) -> dict[str, Any]:
    """`autoscaling/v1`: 0 replicas are left out of `spec`, since Go omits what is empty."""
    selector = ",".join(f"{key}={value}" for key, value in workload.labels.items())
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": _metadata(workload.name, namespace, workload.version),
        "spec": {"replicas": workload.replicas} if workload.replicas else {},
        "status": {"replicas": active, "selector": selector},
    }


def show_workload(workload: Workload, namespace: str, active: int) -> dict[str, Any]:
    """A Deployment or StatefulSet, with as much as is needed."""
    conditions = []
    if workload.failure:
        conditions.append(
            {
                "type": "ReplicaFailure",
                "status": "True",
                "reason": "FailedCreate",
                "message": workload.failure,
            }
        )
    template = {
        "metadata": {"labels": workload.labels},
        "spec": {"containers": [{"name": "ollama", "image": "ollama/ollama:0.30", "resources": {}}]},
    }
    spec: dict[str, Any] = {
        "replicas": workload.replicas,
        "selector": {"matchLabels": workload.labels},
        "template": template,
    }
    if workload.kind == "StatefulSet":
        spec["serviceName"] = workload.name
    return {
        "kind": workload.kind,
        "apiVersion": "apps/v1",
        "metadata": _metadata(workload.name, namespace, workload.version),
        "spec": spec,
        "status": {"replicas": active, **({"conditions": conditions} if conditions else {})},
    }


def show_pod(pod: SimReplica, namespace: str) -> dict[str, Any]:
    """A Pod, as its API shows it."""
    phase, clock = pod.look(), pod.clock
    scheduled = pod.stretches[0].since if pod.stretches else None
    metadata = _metadata(pod.name, namespace, 1)
    metadata |= {"labels": pod.labels, "creationTimestamp": instant(clock, pod.created_at)}
    if pod.owner:
        kind = "Job" if "job-name" in pod.labels else "ReplicaSet"
        owner = {
            "apiVersion": "batch/v1" if kind == "Job" else "apps/v1",
            "kind": kind,
            "name": pod.owner,
            "uid": uid_of(pod.owner),
            "controller": True,
            "blockOwnerDeletion": True,
        }
        metadata["ownerReferences"] = [owner]
    if phase is Phase.STOPPING:
        metadata |= {"deletionTimestamp": instant(clock, clock.now()), "deletionGracePeriodSeconds": 30}
    spec: dict[str, Any] = {
        "containers": [{"name": "ollama", "image": "ollama/ollama:0.30", "resources": {}}],
        "restartPolicy": "Always",
    }
    if scheduled is not None:
        spec["nodeName"] = pod.node
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": metadata,
        "spec": spec,
        "status": _status(pod, phase, scheduled),
    }


def _status(pod: SimReplica, phase: Phase, scheduled: float | None) -> dict[str, Any]:
    clock = pod.clock
    if phase is Phase.FAILED:
        reason, message = pod.ended
        return {"phase": "Failed", "reason": reason, "message": message, "qosClass": "BestEffort"}
    if scheduled is None:
        status: dict[str, Any] = {"phase": "Pending", "qosClass": "BestEffort"}
        if phase is Phase.QUEUED:
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": UNSCHEDULABLE,
                "lastProbeTime": None,
                "lastTransitionTime": instant(clock, pod.created_at),
            }
            status["conditions"] = [condition]
        return status
    running = phase in (Phase.RUNNING, Phase.STOPPING, Phase.UNREACHABLE) and pod.running_since is not None
    ready = "Unknown" if phase is Phase.UNREACHABLE else "True" if pod.serves else "False"
    at = instant(clock, scheduled)
    state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
    if pod.waiting is not None:
        state = {"waiting": {"reason": pod.waiting.reason, "message": pod.waiting.message}}
    elif running:
        state = {"running": {"startedAt": instant(clock, pod.running_since or 0.0)}}
    return {
        "phase": "Running" if running else "Pending",
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": at},
            {"type": "Ready", "status": ready, "lastProbeTime": None, "lastTransitionTime": at},
        ],
        "hostIP": "127.0.0.1",
        "podIP": "10.42.0.7",
        "startTime": at,
        "qosClass": "BestEffort",
        "containerStatuses": [
            {
                "name": "ollama",
                "image": "docker.io/ollama/ollama:0.30",
                "imageID": "",
                "ready": ready == "True",
                "restartCount": 0,
                "started": running,
                "state": state,
                "lastState": {},
            }
        ],
    }


def show_job(job: Job, namespace: str) -> dict[str, Any]:
    """A Job as it was made, and what became of it."""
    shown: dict[str, Any] = {**job.manifest, "status": {}}
    shown["metadata"] = {**job.manifest["metadata"], "uid": uid_of(job.manifest["metadata"]["name"])}
    shown["metadata"]["namespace"] = namespace
    if job.deleted:
        shown["metadata"] |= {
            "deletionTimestamp": "2026-11-21T12:00:00Z",
            "finalizers": ["foregroundDeletion"],
        }
    return shown


def show_list(kind: str, version: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    """A list: its items carry no kind of their own."""
    bare = [
        {key: value for key, value in item.items() if key not in ("kind", "apiVersion")} for item in items
    ]
    return {"kind": f"{kind}List", "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": bare}


def status_of(
    code: int, reason: str, message: str, details: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """An error: a `Status`."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        **({"details": dict(details)} if details else {}),
        "code": code,
    }


def _metadata(name: str, namespace: str, version: int) -> dict[str, Any]:
    return {"name": name, "namespace": namespace, "uid": uid_of(name), "resourceVersion": str(version)}


# --- what kubectl asks first --------------------------------------------------------------------


def discovered(path: str) -> dict[str, Any] | None:
    """What is at one of the paths by which clients learn what there is; None: nothing."""
    if path == "/version":
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.0", "platform": "linux/amd64"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = []
        for version in list(GROUPS)[1:]:
            short = {"groupVersion": version, "version": "v1"}
            groups.append({"name": version.split("/")[0], "versions": [short], "preferredVersion": short})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    version = path.split("/", 2)[2]
    if version not in GROUPS:
        return None
    resources = [
        line for plural, kind in GROUPS[version].items() for line in _resources(version, plural, kind)
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}


def _resources(version: str, plural: str, kind: str) -> list[dict[str, Any]]:
    verbs = ["get", "list", "create", "delete", "patch", "update"]
    named = {"singularName": kind.lower(), "namespaced": plural != "nodes", "verbs": verbs}
    found: list[dict[str, Any]] = [{"name": plural, "kind": kind, **named}]
    if version == "apps/v1":
        scale = {"kind": "Scale", "group": "autoscaling", "version": "v1"}
        found.append({"name": f"{plural}/scale", **named, "singularName": "", **scale})
    return found
