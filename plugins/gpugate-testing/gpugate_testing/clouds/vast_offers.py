"""Vast.ai's market: offers and the filters that find them (docs/providers.md#vastai-offers); no server."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
from attrs import define

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "in": lambda has, wanted: has in wanted,
    "notin": lambda has, wanted: has not in wanted,
}
DISK = 0.0125
"""USD per hour."""
_NO_FILTERS = frozenset({"type", "order", "allocated_storage", "limit"})


@define
class Offer:
    """One machine for rent; `gpu_ram` in MB, `dph_total` in USD per hour, `duration` in seconds.

    `min_bid` is the least that is accepted for its GPU as a spot instance; 0: not for rent as one.
    """

    id: int
    machine_id: int
    gpu_name: str = "RTX 4090"
    num_gpus: int = 1
    gpu_ram: int = 24_564
    dph_total: float = 0.4125
    reliability: float = 0.9971
    direct_port_count: int = 32
    inet_down: float = 800.0
    duration: float = 2_592_000.0
    geolocation: str = "Romania, RO"
    verified: bool = True
    rentable: bool = True
    rented: bool = False
    external: bool = False
    min_bid: float = 0.0
    storage_total_cost: float = 0.0125


def default_offers() -> list[Offer]:
    """A small market, the cheapest not first."""
    return [
        Offer(1002, 502, dph_total=0.45),
        Offer(1001, 501, dph_total=0.40),
        Offer(1003, 503, gpu_name="RTX 3090", gpu_ram=24_576, dph_total=0.22, verified=False),
        Offer(1004, 504, gpu_name="H100 SXM", gpu_ram=81_559, dph_total=2.1),
        Offer(1005, 505, dph_total=0.5),
    ]


def unknown_filters(wanted: Mapping[str, Any]) -> list[str]:
    """What in a search is no filter of Vast.ai's."""
    names = {a.name for a in attrs.fields(Offer)} | _NO_FILTERS
    wrong = [key for key in wanted if key not in names]
    for key, test in wanted.items():
        if (
            key in names
            and key not in _NO_FILTERS
            and not (isinstance(test, dict) and set(test) <= set(_OPERATORS))
        ):
            wrong.append(key)
    return wrong


def found(offers: Iterable[Offer], wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The offers that pass the filters, in the wanted order."""
    bids = wanted.get("type") == "bid"
    shown = (attrs.asdict(offer) for offer in offers if offer.min_bid or not bids)
    priced = (
        row | {"dph_total": round(row["min_bid"] + DISK, 6), "is_bid": True} if bids else row for row in shown
    )
    rows = [row for row in priced if _fits(row, wanted)]
    for key, direction in reversed(wanted.get("order", [])):
        rows.sort(key=lambda row: row[key], reverse=direction == "desc")
    return rows[: wanted.get("limit", 64)]


def _fits(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(
        _OPERATORS[name](row[key], value)
        for key, tests in wanted.items()
        if key not in _NO_FILTERS
        for name, value in tests.items()
    )
