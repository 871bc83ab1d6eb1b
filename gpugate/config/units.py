"""Durations and sizes as people write them; knows nothing of keys, files or variables."""

from __future__ import annotations

import math
import re

_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_NUMBER = r"\d+(?:\.\d+)?|\.\d+"
_PLAIN = re.compile(rf"\s*([+-]?(?:{_NUMBER}))\s*", re.ASCII)
# Each unit at most once and from large to small, so that "5m3h", a slip, is not read as something.
_DURATION = re.compile(
    r"\s*([+-]?)\s*" + r"\s*".join(rf"(?:({_NUMBER})\s*{unit})?" for unit in _SECONDS) + r"\s*", re.ASCII
)
_SIZE = re.compile(rf"\s*([+-]?(?:{_NUMBER}))\s*([kmgt]?i?b)\s*", re.ASCII | re.IGNORECASE)
_LONGEST_S = 100 * 365 * 86_400.0

A_DURATION = 'must be a duration such as "90s", "15m" or "1h30m", or a number of seconds'
A_SIZE = 'must be a size such as "64MiB" or "20MB", or a number of bytes'


def duration(value: object) -> float:
    """Return `value` ("1h30m", "500ms", 90) in seconds; raise ValueError if it is no duration.

    A bare number, also as text, is seconds. The sign is kept: bounds are the caller's to check.
    """
    seconds = _seconds(value)
    if seconds is None or not math.isfinite(seconds):
        raise ValueError(A_DURATION)
    if abs(seconds) > _LONGEST_S:
        raise ValueError("must be less than 100 years")
    return seconds


def size(value: object) -> int:
    """Return `value` ("64MiB", "20MB", 1024) in bytes; raise ValueError if it is no whole number of them."""
    number: float | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        if found := _PLAIN.fullmatch(value):
            number = float(found[1])
        elif found := _SIZE.fullmatch(value):
            number = float(found[1]) * _BYTES[found[2].lower()]
    if number is None or number != round(number):
        raise ValueError(A_SIZE)
    return int(number)


def show_duration(seconds: float) -> str:
    """Return the shortest text that `duration` reads back as `seconds`, such as "1h30m"."""
    if seconds < 0:
        return "-" + show_duration(-seconds)
    left, parts = round(seconds * 1000), ""
    for unit, worth in _SECONDS.items():
        count, left = divmod(left, round(worth * 1000))
        parts += f"{count}{unit}" if count else ""
    return parts or "0s"


def has_unit(text: str) -> bool:
    """Tell whether `text` is a quantity with a unit, as opposed to a bare number or a word."""
    if _PLAIN.fullmatch(text):
        return False
    return _SIZE.fullmatch(text) is not None or _in_units(text) is not None


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if not isinstance(value, str):
        try:
            return float(value)
        except OverflowError:  # an int that no float holds
            return math.inf
    found = _PLAIN.fullmatch(value)
    return float(found[1]) if found else _in_units(value)


def _in_units(text: str) -> float | None:
    found = _DURATION.fullmatch(text)
    if not found or not any(found.groups()[1:]):
        return None
    total = sum(
        float(count) * worth
        for count, worth in zip(found.groups()[1:], _SECONDS.values(), strict=True)
        if count is not None
    )
    return -total if found[1] == "-" else total
