"""What RunPod shows of a pod, read and put into gpugate's words; asks nobody and decides nothing.

Figures and meanings: docs/providers.md#runpod-pod-object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from attrs import define, field, frozen

from gpugate import Endpoint, Phase, PodReport, Price, Transient
from gpugate_runpod.settings import RunPodConfig
from gpugate_runpod.spot import MARK

PHASES = {
    "PROVISIONING": Phase.PROVISIONING,
    "STARTING": Phase.STARTING,
    "RUNNING": Phase.RUNNING,
    "EXITED": Phase.STOPPED,
    "ERROR": Phase.FAILED,
    "TERMINATED": Phase.GONE,
}
ON = frozenset({"PROVISIONING", "STARTING", "RUNNING"})
STOPPED_DISK_PER_GB_MONTH = Decimal("0.20")
HOURS_PER_MONTH = Decimal(730)
STUCK_S = 180.0
"""A container hangs whose uptime stays 0: 180 to 300 s seen (docs/providers.md#runpod-pod-object)."""


@frozen
class Shown:
    """A pod as RunPod shows it; its `env` is not kept, since it holds secrets.

    Attributes:
        cost: USD per hour now; RunPod says 0 while a pod is off, although its disk is billed.
        gpu: model and number, for people.
        disk_gb: of the disk that outlives a stop; None if there is none or it cannot be told.
        uptime_s: of the container; None where nothing is said.
        rented: "spot" or "on-demand", where gpugate has noted it in the pod's environment.
    """

    id: str
    name: str
    status: str
    cost: Decimal | None
    ports: tuple[str, ...] | None
    gpu: str | None
    has_gpu: bool
    disk_gb: Decimal | None
    locked: bool
    uptime_s: float | None
    created_at: datetime | None
    started_at: datetime | None
    rented: str = ""

    @classmethod
    def of(cls, pod: object) -> Shown | None:
        """Read a pod object; None if it is none."""
        if not isinstance(pod, dict):
            return None
        pod_id, status = pod.get("id"), pod.get("status")
        if not isinstance(pod_id, str) or not pod_id or not isinstance(status, str):
            return None
        ports = pod.get("ports")
        runtime = _mapping(pod.get("runtime"))
        gpu, count = _gpu(pod)
        uptime = _number(runtime.get("uptime"))
        return cls(
            id=pod_id,
            name=str(pod.get("name") or ""),
            status=status,
            cost=_number(pod.get("cost")),
            ports=tuple(map(str, ports)) if isinstance(ports, list) else None,
            gpu=gpu,
            has_gpu=count > 0,
            disk_gb=_disk(_mapping(pod.get("mounts"))),
            locked=pod.get("locked") is True,
            uptime_s=None if uptime is None else float(uptime),
            created_at=_instant(pod.get("createdAt")),
            started_at=_instant(pod.get("startedAt")),
            rented=str(_mapping(pod.get("env")).get(MARK) or ""),
        )


@frozen
class Stock:
    """One line of the catalogue; `price` is USD per hour and GPU, `memory` GiB of one GPU."""

    id: str
    memory: Decimal | None
    price: Decimal | None
    available: bool
    data_centers: tuple[str, ...]

    @classmethod
    def of(cls, line: Mapping[str, Any], cloud: str) -> Stock:
        """Read a line; what it does not say is taken for available, since the create will tell."""
        places = line.get("dataCenters")
        return cls(
            id=str(line.get("id") or ""),
            memory=_number(line.get("memory")),
            price=_number(_mapping(line.get("price")).get(cloud.lower())),
            available=line.get("availability") != "NONE",
            data_centers=tuple(filter(None, map(_place, places))) if isinstance(places, list) else (),
        )


@define
class Reader:
    """Makes reports, and remembers what one look alone cannot tell."""

    config: RunPodConfig
    _running_cost: Decimal | None = None
    _old_start: datetime | None = None
    _hangs_since: dict[str, float] = field(factory=dict)

    def report(self, shown: Shown, now: float, *, detail: str = "") -> PodReport:
        """What gpugate needs to know of this pod, at `now` of the loop's clock.

        Raises: Transient, a status that nobody has heard of is no answer.
        """
        phase = PHASES.get(shown.status)
        if phase is None:
            raise Transient(f"RunPod shows the pod in an unknown status, {shown.status[:32]!r}")
        self._remember(shown)
        notes = [detail, *self._notes(shown)]
        if phase is Phase.RUNNING and self._hangs(shown, now):
            phase = Phase.FAILED
            notes.append(f"its container has not begun for {STUCK_S:g} s: a hung volume, or a broken host")
        if shown.status == "ERROR":
            notes.append("RunPod calls it ERROR: look at its log in the console")
            phase = Phase.STOPPED if shown.cost == 0 else Phase.FAILED  # not billed: nothing to stop
        return PodReport(
            phase=phase,
            pod_id=shown.id,
            endpoints=self.endpoints(shown.id) if shown.status in ON else {},
            price=Price(self._running_cost, self._stopped_cost(shown)),
            gpu=f"{shown.gpu}, {shown.rented}" if shown.gpu and shown.rented else shown.gpu,
            started_at=self._started_at(shown),
            detail="; ".join(filter(None, notes)),
            cpu_only=shown.status in ON and not shown.has_gpu,
        )

    def endpoints(self, pod_id: str) -> dict[str, Endpoint]:
        """Composed, not asked for: RunPod's proxy knows a pod by its id (docs/providers.md#runpod-proxy)."""
        ports = {"ollama": self.config.ollama_port, "comfyui": self.config.comfyui_port}
        return {
            name: Endpoint(self.config.url(pod_id, port), self.config.headers) for name, port in ports.items()
        }

    def unreachable_port(self, shown: Shown) -> str | None:
        """Why Ollama can never be reached through RunPod's proxy, if so: its edge answers 404 for ever."""
        wanted = f"{self.config.ollama_port}/http"
        if shown.ports is None or wanted in shown.ports or not self.config.uses_runpods_proxy:
            return None
        return f"the pod does not expose its Ollama: add {wanted} to its ports at RunPod"

    def _remember(self, shown: Shown) -> None:
        if shown.status in ON and shown.cost:
            self._running_cost = shown.cost
        if shown.status != "RUNNING":
            self._old_start = shown.started_at

    def _started_at(self, shown: Shown) -> datetime | None:
        """Since when this run is billed. Until RUNNING, and for a moment after, the last run's is shown."""
        if shown.status != "RUNNING" or shown.started_at == self._old_start:
            return None
        return shown.started_at

    def _stopped_cost(self, shown: Shown) -> Decimal | None:
        if shown.disk_gb is None:
            return None
        return shown.disk_gb * STOPPED_DISK_PER_GB_MONTH / HOURS_PER_MONTH

    def _hangs(self, shown: Shown, now: float) -> bool:
        if shown.uptime_s != 0:
            self._hangs_since.pop(shown.id, None)
            return False
        return now - self._hangs_since.setdefault(shown.id, now) >= STUCK_S

    def _notes(self, shown: Shown) -> list[str]:
        if shown.status not in ON:
            return []
        notes = [] if shown.has_gpu else ["the pod has no GPU"]
        if (why := self.unreachable_port(shown)) is not None:
            notes.append(why)
        if shown.locked:
            notes.append("the pod is locked at RunPod: its stop will be refused")
        return notes


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> Decimal | None:
    """A number that is one; money goes by its text, so that 0.69 stays 0.69."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return Decimal(str(value))


def _instant(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _gpu(pod: Mapping[str, Any]) -> tuple[str | None, int]:
    gpu = _mapping(pod.get("gpu"))
    count = gpu.get("count", 1 if gpu else 0)
    count = count if isinstance(count, int) else 0
    name = gpu.get("id")
    if not isinstance(name, str) or count == 0:
        return None, 0
    return (name if count == 1 else f"{count} x {name}"), count


def _disk(mounts: Mapping[str, Any]) -> Decimal | None:
    """GB that are billed while the pod is off; a network volume's size is not told with the pod."""
    if mounts.get("network"):
        return None
    return _number(_mapping(mounts.get("persistent")).get("size", 0))


def _place(entry: object) -> str:
    """A data centre in the catalogue: its id, bare or in an object."""
    return entry if isinstance(entry, str) else str(_mapping(entry).get("id") or "")
