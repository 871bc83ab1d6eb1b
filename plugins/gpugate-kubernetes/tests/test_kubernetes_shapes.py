"""What the simulated cluster answers fits Kubernetes' OpenAPI, of which the client's models are made."""

from __future__ import annotations

from typing import Any

import pytest
from gpugate_kubernetes.reading import pod_of, together
from gpugate_kubernetes.template import filled, labels_of
from gpugate_testing.clouds import KubernetesSim, Waiting
from gpugate_testing.clouds.clocks import ManualClock
from gpugate_testing.clouds.kubernetes_objects import show_list, show_pod, show_scale, show_workload
from kubernetes_support import JOB, POD, schema_complaints

from gpugate.provider_api import Phase


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def cloud(clock: ManualClock) -> KubernetesSim:
    return KubernetesSim(clock=clock)


@pytest.mark.parametrize("trouble", ["none", "queued", "waiting", "refused", "evicted", "lost", "deleted"])
@pytest.mark.parametrize("after_s", [0.0, 5.0, 60.0])
def test_pods(cloud: KubernetesSim, clock: ManualClock, trouble: str, after_s: float) -> None:
    """In every trouble and at every moment; and the plugin can read them."""
    cloud.queued_s = float("inf") if trouble == "queued" else 0.0
    cloud.waiting = Waiting("ErrImagePull", "not found") if trouble == "waiting" else None
    cloud.refused = trouble == "refused"
    cloud.scale_to(1)
    clock.advance(after_s)
    match trouble:
        case "evicted":
            cloud.evict(cloud.replicas[0])
        case "lost":
            cloud.replicas[0].become(Phase.UNREACHABLE)
        case "deleted":
            cloud.scale_to(0)
    shown = [show_pod(pod, "default") for pod in cloud.replicas]

    assert [] == [line for pod in shown for line in schema_complaints("Pod", pod)]
    assert [] == schema_complaints("PodList", show_list("Pod", "v1", shown))
    assert together([pod_of(pod) for pod in shown]).phase in Phase


@pytest.mark.parametrize("replicas", [0, 2])
@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
def test_workloads(cloud: KubernetesSim, kind: str, replicas: int) -> None:
    """And their scale."""
    workload = cloud.add_workload(kind, "other")
    workload.failure = "exceeded quota"
    cloud.scale_to(replicas, "other")

    assert [] == schema_complaints(kind, show_workload(workload, "default", replicas))
    assert [] == schema_complaints("Scale", show_scale(workload, "default", replicas))


@pytest.mark.parametrize("template", [POD, JOB], ids=["Pod", "Job"])
def test_what_is_made(template: dict[str, Any]) -> None:
    """From a template; its name and labels are ours, at a Job's Pods too."""
    made = filled(template, "gpugate-main-1a2b3c4d", "ai", labels_of("main"))

    assert [] == schema_complaints(made["kind"], made)
    assert made["metadata"]["name"] == "gpugate-main-1a2b3c4d"
    pod = made["spec"]["template"] if made["kind"] == "Job" else made
    assert pod["metadata"]["labels"] == {"app": "ollama", **labels_of("main")}
    assert "{name}" not in str(made)


def test_a_wrong_manifest_is_noticed() -> None:
    """The check itself works."""
    assert schema_complaints("Pod", {**POD, "spec": {"containers": "one"}})
    assert schema_complaints("Pod", {**POD, "specification": {}})
    assert schema_complaints("Pod", {"kind": "Pod", "apiVersion": "v1", "spec": {}})
