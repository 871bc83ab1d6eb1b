"""The pod's status as clients see it: the contract's words, seconds and money rounded for people."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from gpugate.lifecycle.status import PodStatus

_SECONDS = ("uptime_seconds", "idle_seconds", "stops_in_seconds", "ready_in_seconds")


def status_json(status: PodStatus) -> Mapping[str, object]:
    """The `data` of `GET /api/v1/gpu/status`."""
    data = attrs.asdict(status)
    for name in _SECONDS:
        if data[name] is not None:
            data[name] = round(data[name], 3)
    if status.estimated_cost is not None:
        data["estimated_cost"] = round(status.estimated_cost, 6)
    return data
