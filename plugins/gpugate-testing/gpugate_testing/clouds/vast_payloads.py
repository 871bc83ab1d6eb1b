"""Vast.ai's words: the shapes of its instances, bill and errors (docs/providers.md#vastai); no server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpugate.provider_api import Phase
from gpugate_testing.clouds.clocks import Clock
from gpugate_testing.clouds.pods import SimPod

BILLED_IN = frozenset({Phase.RUNNING, Phase.STOPPING})
"""The GPU is billed while the container runs; provisioning, loading and an offline host cost nothing."""
INTERVAL_S = {
    "get": 2.0,
    "list": 2.0,
    "state": 1.0,
    "delete": 3.0,
    "search": 6.0,
    "create": 4.5,
    "reboot": 1.0,
    "charges": 1.0,
    "user": 1.0,
}
"""Minimum intervals by endpoint (docs/providers.md#vastai-api); the list's is not documented."""
CREATE_PENALTY_S = 12.0
PAGE = 25
DAY_S = 86_400
STATE_FIELDS = ("state", "label")
CREATE_FIELDS = (
    *("image", "label", "disk", "runtype", "env", "target_state", "cancel_unavail", "template_hash_id"),
    *("args_str", "onstart", "price"),
)
ERRORS = {
    401: ("auth_error", "Invalid user key"),
    400: ("invalid_args", "Invalid args"),
    404: ("no_such_instance", "Instance with that ID does not exist."),
}
_WORDS: dict[Phase, tuple[str | None, str, str, str]] = {  # actual, intended, cur, next
    Phase.STOPPED: ("exited", "stopped", "stopped", "stopped"),
    Phase.QUEUED: ("exited", "running", "stopped", "running"),
    Phase.PROVISIONING: (
        "exited",
        "running",
        "stopped",
        "running",
    ),  # one that is resumed; see `show_instance`
    Phase.STARTING: ("loading", "running", "running", "running"),
    Phase.RUNNING: ("running", "running", "running", "running"),
    Phase.STOPPING: ("running", "stopped", "running", "stopped"),
    Phase.FAILED: ("exited", "running", "running", "running"),
    Phase.UNREACHABLE: ("offline", "running", "running", "running"),
}


def error(code: str, message: str) -> dict[str, Any]:
    """The usual shape of a failure, whatever its status."""
    return {"success": False, "error": code, "msg": message}


def show_instance(pod: SimPod, clock: Clock, ports: dict[str, Any] | None) -> dict[str, Any]:
    """An instance's row. `pod.spec["says"]` lies over it."""
    phase = pod.look()
    actual, intended, cur, following = _WORDS[phase]
    if phase is Phase.PROVISIONING and pod.spec.get("fresh"):
        actual, cur = None, "running"
    on = phase not in (Phase.STOPPED, Phase.QUEUED)
    up_s = pod.uptime_s
    return {
        "id": int(pod.id),
        "actual_status": actual,
        "intended_status": intended,
        "cur_state": cur,
        "next_state": following,
        "label": pod.name,
        "status_msg": _message(pod, phase),
        "public_ipaddr": "127.0.0.1\n",
        "ssh_host": "ssh7.vast.ai",
        "ssh_port": 21234,
        "ports": ports,
        "machine_id": pod.spec["machine_id"],
        "gpu_name": pod.spec["gpu_name"],
        "num_gpus": pod.spec["num_gpus"],
        **_prices(pod.spec["dph_total"], on=on),
        "is_bid": "bid" in pod.spec,
        "start_date": clock.at(pod.created_at).timestamp() - 86_400,  # the contract's, not this run's
        "uptime_mins": None if up_s is None else up_s / 60,
        "extra_env": [[key, value] for key, value in pod.spec.get("env", {}).items()],
        "jupyter_token": "sim-jupyter-token",
        **pod.spec.get("says", {}),
    }


def _message(pod: SimPod, phase: Phase) -> str | None:
    if phase is Phase.STARTING:
        return "pulling image: 41%"
    if phase is Phase.FAILED:
        return str(pod.spec.get("dies_with", "Error response from daemon: OCI runtime create failed"))
    return "success, running ollama/ollama_latest/ssh" if phase is Phase.RUNNING else None


def _prices(total: float, *, on: bool) -> dict[str, Any]:
    disk = 0.0125
    whole = {"gpuCostPerHour": round(total - disk, 6), "diskHour": disk, "totalHour": total}
    now = whole if on else {"gpuCostPerHour": 0, "diskHour": disk, "totalHour": disk}
    return {
        "dph_base": round(total - disk, 6),
        "dph_total": total,
        "storage_total_cost": disk,
        "search": whole,
        "instance": now,
    }


def show_charges(pods: Iterable[SimPod], clock: Clock, days: Mapping[str, float]) -> list[dict[str, Any]]:
    """The results of `GET /charges/`: what each instance cost on these days, whole ones, both included."""
    began = clock.at(0).timestamp()
    since = days.get("gte", began) // DAY_S * DAY_S - began
    until = days.get("lte", clock.wall().timestamp()) // DAY_S * DAY_S + DAY_S - began
    results = []
    for pod in pods:
        amount = round(pod.billed_between(since, until) / 3600 * pod.spec["dph_total"], 6)
        if amount:
            items = [{"type": "gpu", "amount": amount}]
            results.append({"source": f"instance-{pod.id}", "amount": amount, "items": items})
    return results
