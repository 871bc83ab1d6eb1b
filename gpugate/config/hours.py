"""Times as rules have them: the hours of a week ("Mon-Fri 08:00-18:00; Sat,Sun"), and cron expressions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MIN = 24 * 60
_WEEK_MIN = 7 * _DAY_MIN
_SPAN = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})", re.ASCII)
_SAMPLES = '"Mon-Fri 08:00-18:00", "Sat,Sun" or "22:00-06:00"'
SHAPE = f'must be hours such as {_SAMPLES}, several with ";" between'


def parse_hours(text: str) -> tuple[tuple[int, int], ...]:
    """Return the spans of the week that a text names, in minutes since Monday 00:00; the end is exclusive.

    A part has days, times of day, or both: without days it is every day, without times the whole day. A
    span of times whose end is not after its beginning goes over midnight, into the next day.

    Raises:
        ValueError: the text names no hours.
    """
    spans: list[tuple[int, int]] = []
    for part in text.split(";"):
        words = part.strip()
        found = _SPAN.search(words)
        days = _days(words[: found.start()] if found else words)
        if found and words[found.end() :].strip():
            raise ValueError(SHAPE)
        begin, end = _times(found) if found else (0, _DAY_MIN)
        if not words or begin == end:
            raise ValueError(SHAPE)
        spans += [(day * _DAY_MIN + begin, day * _DAY_MIN + end) for day in days]
    return tuple(spans)


def is_within(spans: tuple[tuple[int, int], ...], local: datetime) -> bool:
    """Return whether a local time is within one of the spans of `parse_hours`."""
    minute = local.weekday() * _DAY_MIN + local.hour * 60 + local.minute
    return any(begin <= at < end for begin, end in spans for at in (minute, minute + _WEEK_MIN))


def is_hours(text: str) -> bool:
    """Return whether a text names hours; so does an empty one, for all of them."""
    try:
        return not text or bool(parse_hours(text))
    except ValueError:
        return False


def is_cron(text: str) -> bool:
    """Return whether a text is a cron expression of five fields that names some time."""
    from croniter import croniter  # type: ignore[import-untyped, unused-ignore]  # not needed without schedules

    try:
        return len(text.split()) == 5 and bool(croniter(text, datetime(2000, 1, 1)).get_next(datetime))  # noqa: DTZ001
    except (ValueError, KeyError):
        return False


def _days(text: str) -> list[int]:
    if not text.strip():
        return list(range(7))
    return [day for part in text.split(",") for day in _day_range(part)]


def _day_range(text: str) -> Iterator[int]:
    """Yield the days of "Mon" or "Fri-Mon"; a range may go over Sunday."""
    first, dash, last = (word.strip() for word in text.partition("-"))
    begin = _day(first)
    yield from ((begin + more) % 7 for more in range((_day(last) - begin) % 7 + 1 if dash else 1))


def _day(word: str) -> int:
    try:
        return DAYS.index(word.lower())
    except ValueError:
        raise ValueError(SHAPE) from None


def _times(found: re.Match[str]) -> tuple[int, int]:
    hours, minutes, end_hours, end_minutes = map(int, found.groups())
    begin, end = hours * 60 + minutes, end_hours * 60 + end_minutes
    if max(minutes, end_minutes) > 59 or begin >= _DAY_MIN or end > _DAY_MIN:
        raise ValueError(SHAPE)
    return begin, end + _DAY_MIN if end < begin else end
