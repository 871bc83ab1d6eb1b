"""Spot pods: what they cost and how one is asked for; GraphQL, since REST v2 has none. Pure.

See docs/providers.md#runpod-creation.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_UP, Decimal
from typing import Any

from gpugate_runpod.settings import RunPodConfig

LOWEST_BIDS = """
query Bids($input: GpuLowestPriceInput) {
  gpuTypes { id lowestPrice(input: $input) { minimumBidPrice } }
}"""
RENT = "mutation Rent($input: PodRentInterruptableInput!) { podRentInterruptable(input: $input) { id } }"
MARK, SPOT, ON_DEMAND = "GPUGATE_RENTED", "spot", "on-demand"
"""A variable in the pod's environment: v2 does not tell which pods are spot ones."""


def bids_input(config: RunPodConfig) -> dict[str, Any]:
    """The variables of `LOWEST_BIDS`."""
    return {"input": {"gpuCount": config.gpu_count, "secureCloud": config.cloud == "secure"}}


def lowest_bids(data: Mapping[str, Any]) -> dict[str, Decimal]:
    """The least that is accepted per GPU and hour, by GPU id; those that nobody rents out so are left out."""
    found = {}
    for line in data.get("gpuTypes") or ():
        price = (line.get("lowestPrice") or {}).get("minimumBidPrice")
        if isinstance(price, int | float) and not isinstance(price, bool) and price > 0:
            found[str(line.get("id"))] = Decimal(str(price))
    return found


def bid_for(least: Decimal, config: RunPodConfig) -> Decimal | None:
    """What is bid per GPU and hour; None: too little within `max_price`.

    Without `bid` it is a tenth above the least, so that the next small bid does not take the pod.
    """
    bid = Decimal(str(config.bid)) or (least * Decimal("1.1")).quantize(Decimal("0.001"), ROUND_UP)
    if config.max_price:
        bid = min(bid, Decimal(str(config.max_price)) / config.gpu_count)
    return bid if bid >= least else None


def rent_input(body: Mapping[str, Any], bid: Decimal, config: RunPodConfig) -> dict[str, Any]:
    """The variables of `RENT`: what the body of a create says, in GraphQL's words."""
    wanted: dict[str, Any] = {
        "name": body["name"],
        "bidPerGpu": float(bid),
        "cloudType": body["cloud"],
        "gpuTypeId": body["gpu"]["id"],
        "gpuCount": body["gpu"]["count"],
        "ports": ",".join(body["ports"]),
        "env": [{"key": key, "value": value} for key, value in body["env"].items()],
        "volumeInGb": 0,
    }
    if "templateId" in body:
        wanted["templateId"] = body["templateId"]
    if "image" in body:
        wanted["imageName"] = body["image"]
    if "disk" in body:
        wanted["containerDiskInGb"] = body["disk"]
    if "dataCenterIds" in body:
        wanted["dataCenterId"] = body["dataCenterIds"][0]
    if config.volume_id:
        wanted |= {"networkVolumeId": config.volume_id, "volumeMountPath": config.volume_path}
    return {"input": wanted}
