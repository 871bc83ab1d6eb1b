"""RunPod's words: shapes of its pods, catalogue, bill and errors (docs/providers.md#runpod); no server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from attrs import field, frozen

from gpugate.provider_api import Phase
from gpugate_testing.clouds.clocks import Clock
from gpugate_testing.clouds.pods import ON_ITS_WAY, SimPod

TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    402: "Payment Required",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
}
HOST_FULL = "There are not enough free GPUs on the host machine to start this pod."
NONE_LEFT = "There are no longer any instances available with the requested specifications."
STATUS = {
    Phase.STOPPED: "EXITED",
    Phase.QUEUED: "PROVISIONING",
    Phase.PROVISIONING: "PROVISIONING",
    Phase.STARTING: "STARTING",
    Phase.RUNNING: "RUNNING",
    Phase.STOPPING: "RUNNING",  # v2 has no word for it: the pod reads as before until it has stopped
    Phase.UNREACHABLE: "RUNNING",
    Phase.FAILED: "ERROR",
    Phase.GONE: "TERMINATED",
}
ACTIONS = {
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
    "ERROR": ["start", "terminate"],
    "PROVISIONING": ["stop", "terminate"],
    "STARTING": ["stop", "terminate"],
    "TERMINATED": [],
}
BILLED_IN = frozenset(
    {
        Phase.PROVISIONING,
        Phase.STARTING,
        Phase.RUNNING,
        Phase.STOPPING,
        Phase.UNREACHABLE,
    }
)
CREATE_FIELDS = frozenset(
    {
        *("name", "image", "templateId", "args", "cloud", "gpu", "disk", "ports", "env", "mounts"),
        *("dataCenterIds", "registryId", "globalNetworking", "entrypoint", "cmd"),
    }
)
WINDOW_S = 60.0
BUCKETS_S = {"hour": 3600, "day": 86_400}
STOPPED_DISK = 0.20 / 730
"""USD per GB and hour (docs/providers.md#runpod-lifecycle)."""
PAGE = 20


@frozen
class Gpu:
    """A line of the catalogue; prices in USD per hour and GPU."""

    id: str
    memory: int = 24
    secure: float = 0.69
    community: float = 0.44
    availability: str = "HIGH"
    data_centers: tuple[str, ...] = field(default=("EU-RO-1", "US-KS-2"))
    min_bid: float = 0.0  # 0: none is for rent as a spot pod


DEFAULT_GPUS = (
    Gpu("NVIDIA GeForce RTX 4090"),
    Gpu("NVIDIA GeForce RTX 3090", secure=0.46, community=0.22),
    Gpu("NVIDIA A40", memory=48, secure=0.40, community=0.30, availability="LOW"),
)


def rate(pod: SimPod, gpus: Mapping[str, Gpu]) -> float:
    """What the pod costs per hour while it is on, in USD."""
    given = pod.spec.get("gpu", {})
    gpu = gpus.get(given.get("id", ""))
    bid = pod.spec.get("bidPerGpu")
    price = (
        bid or 0.0
        if gpu is None or bid
        else gpu.secure
        if pod.spec.get("cloud") == "SECURE"
        else gpu.community
    )
    return price * int(given.get("count", 1))


def show_pod(pod: SimPod, clock: Clock, gpus: Mapping[str, Gpu]) -> dict[str, Any]:
    """The pod object of docs/providers.md#runpod-pod-object."""
    phase = pod.look()
    status = STATUS[phase]
    return {
        "id": pod.id,
        "name": pod.name,
        "image": pod.spec.get("image", ""),
        "args": "",
        "disk": pod.spec.get("disk", 0),
        "ports": pod.spec.get("ports", []),
        "env": pod.spec.get("env", {}),
        "registry": None,
        "status": status,
        "actions": ACTIONS[status],
        "mounts": pod.spec.get("mounts", {}),
        "gpu": pod.spec.get("gpu"),
        "cloud": pod.spec.get("cloud", "SECURE"),
        "dataCenterId": "EU-RO-1" if phase is not Phase.PROVISIONING else None,
        "cudaVersion": "12.8" if phase is not Phase.PROVISIONING else None,
        "ssh": {"proxy": None, "direct": None},
        "template": pod.spec.get("templateId"),
        "cost": rate(pod, gpus) if phase in pod.billed_in else 0.0,
        "locked": pod.locked,
        "globalNetworking": {"enabled": False},
        "runtime": _runtime(pod, clock) if status == "RUNNING" else {} if phase in ON_ITS_WAY else None,
        "createdAt": iso(clock.at(pod.created_at)),
        "startedAt": None if pod.running_since is None else iso(clock.at(pod.running_since)),
    }


def _runtime(pod: SimPod, clock: Clock) -> dict[str, Any]:
    up = clock.now() - (pod.running_since or 0.0)
    return {
        "uptime": 0 if pod.uptime_zero else int(up),
        "gpus": [] if pod.uptime_zero else [{"util": 0, "memoryUtil": 1}],
        "cpu": {"util": 1},
        "memory": {"util": 2},
        "ports": [],
    }


def show_gpu(gpu: Gpu) -> dict[str, Any]:
    """A line of `GET /catalog/gpus?include=AVAILABILITY`."""
    return {
        "id": gpu.id,
        "name": gpu.id.removeprefix("NVIDIA ").removeprefix("GeForce "),
        "memory": gpu.memory,
        "price": {"secure": gpu.secure, "community": gpu.community},
        "availability": gpu.availability,
        "dataCenters": list(gpu.data_centers),
        "cudaVersions": ["12.8", "12.4"],
    }


def show_bill(
    pods: Iterable[SimPod], clock: Clock, gpus: Mapping[str, Gpu], query: dict[str, str]
) -> dict[str, Any]:
    """`GET /billing/pods`: what pods cost, by bucket; the window snaps to whole ones."""
    width = BUCKETS_S[query.get("bucketSize", "day")]
    since = _second(query.get("startTime"), clock, 0.0) // width * width
    until = _second(query.get("endTime"), clock, clock.wall().timestamp())
    began = clock.at(0).timestamp()
    given = list(pods)
    since = max(since, began // width * width)  # before it there was no cloud
    records = []
    while since < until:
        for pod in given:
            gpu, disk = _costs(pod, since - began, since + width - began, clock, gpus)
            if gpu or disk:
                span = {"startTime": _at(since), "endTime": _at(since + width)}
                records.append({**span, "podId": pod.id, **_amounts(gpu, disk)})
        since += width
    totals = [round(sum(record[key] for record in records), 4) for key in ("gpuAmount", "diskAmount")]
    counts = {"recordCount": len(records), "uniquePodCount": len({r["podId"] for r in records})}
    return {"records": records, "metadata": {"query": query, **counts, "totals": _amounts(*totals)}}


def _costs(
    pod: SimPod, since: float, until: float, clock: Clock, gpus: Mapping[str, Gpu]
) -> tuple[float, float]:
    """Of the GPU while the pod is on, and of the disk that stays while it is off."""
    on_s = pod.billed_between(since, until)
    gpu = round(on_s / 3600 * rate(pod, gpus), 4)
    if pod.look() is Phase.GONE:
        return gpu, 0.0
    there_s = max(0.0, min(until, clock.now()) - max(since, pod.created_at))
    size = pod.spec.get("mounts", {}).get("persistent", {}).get("size", 0)
    return gpu, round((there_s - on_s) / 3600 * size * STOPPED_DISK, 4)


def _second(given: str | None, clock: Clock, otherwise: float) -> float:
    return otherwise if given is None else datetime.fromisoformat(given).timestamp()


def _at(second: float) -> str:
    return iso(datetime.fromtimestamp(second, UTC))


def _amounts(gpu: float, disk: float) -> dict[str, Any]:
    return {"totalAmount": round(gpu + disk, 4), "gpuAmount": gpu, "cpuAmount": 0, "diskAmount": disk}


def problem(status: int, detail: str, errors: list[str]) -> dict[str, Any]:
    """RFC 9457, as RunPod has it."""
    body: dict[str, Any] = {"title": TITLES[status], "status": status, "detail": detail}
    return {**body, "errors": errors} if errors else body


def iso(at: datetime) -> str:
    """An instant as RunPod writes it."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
