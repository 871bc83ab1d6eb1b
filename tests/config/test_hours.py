"""Hours of the week in a wake rule: what the words mean, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gpugate.config.hours import is_hours, is_within, parse_hours

MONDAY = datetime(2026, 11, 30, tzinfo=UTC)


def at(day: int, clock: str) -> datetime:
    """A local time of one week, day 0 is its Monday."""
    hours, minutes = map(int, clock.split(":"))
    return MONDAY + timedelta(days=day, hours=hours, minutes=minutes)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("Mon-Fri 08:00-18:00", [(0, "08:00"), (4, "17:59")], [(0, "07:59"), (4, "18:00"), (5, "12:00")]),
        ("Sat,Sun", [(5, "00:00"), (6, "23:59")], [(4, "23:59"), (0, "00:00")]),
        ("Mon-Fri 08:00-12:00; Sat, Sun", [(2, "09:00"), (6, "03:00")], [(2, "13:00")]),
        ("22:00-06:00", [(0, "22:00"), (3, "05:59"), (0, "00:00")], [(0, "06:00"), (6, "21:59")]),
        ("Sun 22:00-06:00", [(6, "23:00"), (0, "05:59")], [(0, "22:00"), (6, "05:00"), (0, "06:00")]),
        ("Fri-Mon 18:00-24:00", [(4, "23:59"), (0, "18:00")], [(1, "18:00"), (5, "00:00")]),
        ("00:00-24:00", [(0, "00:00"), (6, "23:59")], []),
        ("mon 8:00-9:00", [(0, "08:30")], [(0, "09:00")]),
    ],
)
def test_what_hours_mean(text: str, inside: list[tuple[int, str]], outside: list[tuple[int, str]]) -> None:
    """The end is exclusive; a span over midnight belongs to the day on which it begins."""
    spans = parse_hours(text)

    assert [] == [moment for moment in inside if not is_within(spans, at(*moment))]
    assert [] == [moment for moment in outside if is_within(spans, at(*moment))]


@pytest.mark.parametrize(
    "text",
    [
        "Monday 08:00-18:00",
        "Mon-Fri 08:00",
        "Mon-Fri 8-18",
        "25:00-26:00",
        "08:60-09:00",
        "24:00-08:00",
        "08:00-24:01",
        "08:00-08:00",
        "Mon 08:00-09:00 10:00-11:00",
        "Mon;;Tue",
        "Mon;",
        "-",
    ],
)
def test_what_are_no_hours(text: str) -> None:
    """Refused, not guessed."""
    assert not is_hours(text)
