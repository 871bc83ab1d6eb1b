"""Durations and sizes in configuration files, variables and flags: "1h30m" to seconds, "64MiB" to bytes."""

from __future__ import annotations

import math
import re

_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_BYTES = {
    unit + "b": base**power
    for base, infix in ((1000, ""), (1024, "i"))
    for power, unit in enumerate(("", f"k{infix}", f"m{infix}", f"g{infix}", f"t{infix}"))
}
_NUMBER = r"\d+(?:\.\d+)?|\.\d+"
_PLAIN = re.compile(rf"\s*([+-]?(?:{_NUMBER}))\s*", re.ASCII)
# Each unit at most once and from large to small: "5m3h" is more likely a mistake than a duration.
_DURATION = re.compile(
    r"\s*([+-]?)\s*" + r"\s*".join(rf"(?:({_NUMBER})\s*{unit})?" for unit in _SECONDS) + r"\s*", re.ASCII
)
_SIZE = re.compile(rf"\s*([+-]?(?:{_NUMBER}))\s*([kmgt]?i?b)\s*", re.ASCII | re.IGNORECASE)
_MAX_S = 100 * 365 * 86_400.0

_NO_DURATION = 'must be a duration such as "90s", "15m" or "1h30m", or a number of seconds'
_NO_SIZE = 'must be a size such as "64MiB" or "20MB", or a number of bytes'


def duration(value: object) -> float:
    """Return `value` ("1h30m", "500ms", 90) in seconds.

    A number without a unit, also as text, is seconds. The sign is kept: bounds are the caller's to check.

    Raises:
        ValueError: it is no duration, or longer than 100 years.
    """
    seconds = _seconds(value)
    if seconds is None or not math.isfinite(seconds):
        raise ValueError(_NO_DURATION)
    if abs(seconds) > _MAX_S:
        raise ValueError("must be less than 100 years")
    return seconds


def size(value: object) -> int:
    """Return `value` ("64MiB", "20MB", 1024) in bytes; raise ValueError if it is no whole number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = math.nan
    if isinstance(value, str):
        if found := _PLAIN.fullmatch(value):
            number = float(found[1])
        elif (found := _SIZE.fullmatch(value)) and (unit := found[2].lower()) in _BYTES:
            number = float(found[1]) * _BYTES[unit]
    if not math.isfinite(number) or number != round(number):
        raise ValueError(_NO_SIZE)
    return int(number)


def show_duration(seconds: float) -> str:
    """Return the shortest text that `duration` reads back as `seconds`, such as "1h30m"."""
    if seconds < 0:
        return "-" + show_duration(-seconds)
    rest, parts = round(seconds * 1000), ""
    for unit, length in _SECONDS.items():
        count, rest = divmod(rest, round(length * 1000))
        parts += f"{count}{unit}" if count else ""
    return parts or "0s"


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if not isinstance(value, str):
        try:
            return float(value)
        except OverflowError:  # an int that no float can hold
            return math.inf
    if found := _PLAIN.fullmatch(value):
        return float(found[1])
    found = _DURATION.fullmatch(value)
    if not found or not any(found.groups()[1:]):
        return None
    counts = zip(found.groups()[1:], _SECONDS.values(), strict=True)
    total = sum(float(count) * length for count, length in counts if count is not None)
    return -total if found[1] == "-" else total
