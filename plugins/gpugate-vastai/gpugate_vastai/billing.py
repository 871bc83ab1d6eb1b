"""What Vast.ai's charges say, read as gpugate's; asks nobody (docs/providers.md#vastai-api)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal

from gpugate import Charge, Transient
from gpugate_vastai.answers import Object

_SOURCE = re.compile(r"instance-([0-9]+)")


def filters_of(since: datetime, until: datetime) -> str:
    """The filter for a span; Vast.ai bills by the day (UTC), the last one included."""
    last = until - timedelta(seconds=1)
    return json.dumps({"day": {"gte": int(since.timestamp()), "lte": int(last.timestamp())}})


def charges_of(rows: Iterable[Object], since: datetime, until: datetime) -> Iterator[Charge]:
    """Every row about an instance, split by what it is for. Transient: one cannot be read."""
    for row in rows:
        source = _SOURCE.fullmatch(str(row.get("source")))
        if source is None:  # a volume, or what else the account pays for
            continue
        amounts: dict[str, Decimal] = {}
        items = row.get("items")
        for item in items if isinstance(items, list) else ():
            if not isinstance(item, dict):
                raise Transient("Vast.ai's charges have an item that cannot be read")
            what = str(item.get("type") or "")
            amounts[what] = amounts.get(what, Decimal(0)) + _amount(item)
        rest = _amount(row) - sum(amounts.values(), Decimal(0))
        amounts[""] = amounts.get("", Decimal(0)) + rest
        for what, amount in amounts.items():
            if amount:
                yield Charge(pod_id=source[1], began_at=since, ended_at=until, amount=amount, what=what)


def _amount(row: Object) -> Decimal:
    """A sum of money, exactly; a credit is below 0."""
    given = row.get("amount")
    if isinstance(given, bool) or not isinstance(given, int | Decimal) or not Decimal(given).is_finite():
        raise Transient("Vast.ai's charges have a row without its amount")
    return Decimal(given)
