"""Ephemeral mode's two requests, and which offer is taken (docs/providers.md#vastai-offers); pure."""

from __future__ import annotations

from collections.abc import Container, Sequence
from decimal import Decimal
from typing import Any

from gpugate_vastai.answers import Object
from gpugate_vastai.reading import gpu_bytes_of
from gpugate_vastai.settings import VastConfig

MOST_OFFERS = 20


MIB = 1 << 20


def search_body(config: VastConfig, needed_gpu_bytes: int = 0) -> dict[str, Any]:
    """Vast.ai's filters: memory in MB, disk in GB, cheapest first.

    `needed_gpu_bytes`: of all GPUs together, with gpu_ram = "auto".
    """
    each_mb = -(-needed_gpu_bytes // (config.gpu_count * MIB))
    wanted: dict[str, Any] = {
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "external": {"eq": False},
        "num_gpus": {"eq": config.gpu_count},
        "gpu_ram": {"gte": each_mb if config.gpu_ram == "auto" else config.gpu_ram * 1000},
        "reliability": {"gte": config.min_reliability},
        "direct_port_count": {"gte": 2},
        "dph_total": {"lte": config.max_price},
        "inet_down": {"gte": config.min_download},
        "duration": {"gte": config.min_duration},
        "type": "on-demand",
        "order": [["dph_total", "asc"]],
        "allocated_storage": config.disk,
        "limit": MOST_OFFERS,
    }
    if config.verified:
        wanted["verified"] = {"eq": True}
    if config.gpus:
        wanted["gpu_name"] = {"in": list(config.gpus)}
    return {**wanted, **config.filters}


def create_body(config: VastConfig, label: str) -> dict[str, Any]:
    """What is to run; without a GPU nothing shall be created, so nothing waits and bills its disk."""
    ports = {f"-p {port}:{port}": "1" for port in (config.ollama_port, config.comfyui_port)}
    body: dict[str, Any] = {
        "label": label,
        "disk": config.disk,
        "env": {"OLLAMA_HOST": f"0.0.0.0:{config.ollama_port}", **config.env, **ports},
        "target_state": "running",
        "cancel_unavail": True,
    }
    if config.template_id:
        return {**body, "template_hash_id": config.template_id}
    return {**body, "image": config.image, "runtype": "args"}  # "args" keeps the image's own entry point


def fitting(
    offers: Sequence[Object],
    config: VastConfig,
    excluded: Container[object],
    needed_gpu_bytes: int = 0,
) -> list[Object]:
    """The offers that may be taken.

    The price is checked here too, because it is the user's money, and the memory, because what is needed may
    have changed since the search.
    """
    dearest = Decimal(str(config.max_price))
    return [
        offer
        for offer in offers
        if isinstance(offer.get("id"), int)
        and isinstance(price := offer.get("dph_total"), int | Decimal)
        and price <= dearest
        and offer.get("machine_id") not in excluded
        and (not needed_gpu_bytes or (gpu_bytes_of(offer) or 0) >= needed_gpu_bytes)
    ]
