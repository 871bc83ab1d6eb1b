"""Ephemeral mode's two requests, and which offer is taken (docs/providers.md#vastai-offers); pure."""

from __future__ import annotations

from collections.abc import Container, Sequence
from decimal import ROUND_UP, Decimal
from typing import Any

from gpugate_vastai.answers import Object
from gpugate_vastai.reading import gpu_bytes_of
from gpugate_vastai.settings import VastConfig

MOST_OFFERS = 20


MIB = 1 << 20


def search_body(config: VastConfig, needed_gpu_bytes: int = 0, *, spot: bool = False) -> dict[str, Any]:
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
        "type": "bid" if spot else "on-demand",
        "order": [["dph_total", "asc"]],
        "allocated_storage": config.disk,
        "limit": MOST_OFFERS,
    }
    if config.verified:
        wanted["verified"] = {"eq": True}
    if config.gpus:
        wanted["gpu_name"] = {"in": list(config.gpus)}
    return {**wanted, **config.filters}


def bid_for(offer: Object, config: VastConfig) -> Decimal | None:
    """What is bid for the GPU of a spot offer, in USD per hour; None: too little for it within `max_price`.

    Without `bid` it is a tenth above the least that wins now, so that the next small bid does not take it.
    """
    least, disk = offer.get("min_bid"), offer.get("storage_total_cost", 0)
    if not isinstance(least, int | Decimal) or not isinstance(disk, int | Decimal):
        return None
    wanted = Decimal(str(config.bid)) or (least * Decimal("1.1")).quantize(Decimal("0.0001"), ROUND_UP)
    bid = min(wanted, Decimal(str(config.max_price)) - disk)
    return bid if bid >= least else None


def create_body(config: VastConfig, label: str, bid: Decimal | None = None) -> dict[str, Any]:
    """What is to run; without a GPU nothing shall be created, so nothing waits and bills its disk.

    `bid`: of a spot instance, in USD per hour.
    """
    ports = {f"-p {port}:{port}": "1" for port in (config.ollama_port, config.comfyui_port)}
    body: dict[str, Any] = {
        "label": label,
        "disk": config.disk,
        "env": {"OLLAMA_HOST": f"0.0.0.0:{config.ollama_port}", **config.env, **ports},
        "target_state": "running",
        "cancel_unavail": True,
    }
    if bid is not None:
        body["price"] = float(bid)
    if config.template_id:
        return {**body, "template_hash_id": config.template_id}
    return {**body, "image": config.image, "runtype": "args"}  # "args" keeps the image's own entry point


def fitting(
    offers: Sequence[Object],
    config: VastConfig,
    excluded: Container[object],
    needed_gpu_bytes: int = 0,
    *,
    spot: bool = False,
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
        and (not spot or bid_for(offer, config) is not None)
        and (not needed_gpu_bytes or (gpu_bytes_of(offer) or 0) >= needed_gpu_bytes)
    ]
