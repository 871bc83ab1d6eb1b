"""What RunPod's billing API answers, read as charges; asks nobody (docs/providers.md#runpod-operations)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from gpugate import Charge, Transient

HOURLY_BELOW = timedelta(days=2)
"""A longer span is asked for by the day: a month by the hour would be 720 records for each pod."""
PARTS = ("gpu", "cpu", "disk")


def query_of(since: datetime, until: datetime, pod_id: str | None) -> dict[str, str]:
    """The query for a span, of one pod or of all that the account has."""
    query = {
        "startTime": _text(since),
        "endTime": _text(until),
        "bucketSize": "hour" if until - since < HOURLY_BELOW else "day",
    }
    return query if pod_id is None else {**query, "podId": pod_id}


def charges_of(answer: object) -> list[Charge]:
    """Every record, split by what it is for. Transient: not all of it is there, or not to be read."""
    fields = answer if isinstance(answer, dict) else {}
    records, metadata = fields.get("records"), fields.get("metadata")
    if not isinstance(records, list):
        raise Transient("RunPod answered something that is no bill")
    told = metadata.get("recordCount") if isinstance(metadata, dict) else None
    if isinstance(told, int) and told != len(records):
        raise Transient(f"RunPod's bill has {told} records, and {len(records)} came")
    return [charge for record in records for charge in _charges(record)]


def _charges(record: Any) -> Iterator[Charge]:
    if not isinstance(record, Mapping):
        raise Transient("RunPod's bill has a record that cannot be read")
    total = _amount(record, "totalAmount")
    amounts = {part: _amount(record, f"{part}Amount") for part in PARTS if f"{part}Amount" in record}
    amounts[""] = total - sum(amounts.values(), Decimal(0))
    pod_id = record.get("podId")
    for what, amount in amounts.items():
        if amount:
            yield Charge(
                pod_id=pod_id if isinstance(pod_id, str) else None,
                began_at=_instant(record, "startTime"),
                ended_at=_instant(record, "endTime"),
                amount=amount,
                what=what,
            )


def _amount(record: Mapping[str, Any], key: str) -> Decimal:
    """A sum of money by its text; a credit is below 0."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Transient(f"RunPod's bill has a record without its {key}")
    return Decimal(str(value))


def _instant(record: Mapping[str, Any], key: str) -> datetime:
    try:
        at = datetime.fromisoformat(str(record.get(key)))
    except ValueError as error:
        raise Transient(f"RunPod's bill has a record without its {key}") from error
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _text(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
