"""Durations and sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpugate.config.units import duration, show_duration, size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15m", 900.0),
        ("5s", 5.0),
        ("1h30m", 5400.0),
        ("500ms", 0.5),
        ("30d", 2_592_000.0),
        ("1h 30m", 5400.0),
        (" 2.5s ", 2.5),
        ("-5s", -5.0),
        ("90", 90.0),
        (90, 90.0),
        (0.25, 0.25),
        ("0s", 0.0),
        ("1m500ms", 60.5),
    ],
)
def test_a_duration(text: object, seconds: float) -> None:
    """What the contract and people write is read in seconds, its sign kept."""
    assert seconds == duration(text)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "5x",
        "5 m 3 h",
        "30m1h",
        "1h1h",
        "s",
        "-",
        "1e3s",
        "５s",
        True,
        None,
        [],
        "1.2.3s",
        float("nan"),
        float("inf"),
        "nan",
        "inf",
        10**400,
        "2000000000d",
    ],
)
def test_no_duration(value: object) -> None:
    """What is no duration, or none that anybody means, is refused."""
    with pytest.raises(ValueError, match="must be"):
        duration(value)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("64MiB", 64 * 2**20),
        ("1GiB", 2**30),
        ("20MB", 20_000_000),
        ("1.5KiB", 1536),
        ("10 kb", 10_000),
        ("7B", 7),
        ("1024", 1024),
        (1024, 1024),
        (-1, -1),
    ],
)
def test_a_size(text: object, count: int) -> None:
    """Binary and decimal units and bare bytes are read."""
    assert count == size(text)


@pytest.mark.parametrize("value", ["", "64M", "0.3B", "MiB", True, 1.5, None, "1e3MB"])
def test_no_size(value: object) -> None:
    """A size has a known unit and comes to whole bytes."""
    with pytest.raises(ValueError, match="must be a size"):
        size(value)


@given(st.integers(min_value=-(10**10), max_value=10**10))
def test_what_is_shown_reads_back(milliseconds: int) -> None:
    """A duration that is shown reads back as itself, to the millisecond."""
    seconds = milliseconds / 1000

    assert abs(seconds - duration(show_duration(seconds))) < 0.001


@given(st.text(max_size=12))
def test_any_text(text: str) -> None:
    """Whatever is written is read, or refused with a ValueError; nothing else happens."""
    for read in (duration, size):
        value: object
        try:
            value = read(text)
        except ValueError as error:
            value = error
        assert isinstance(value, float | int | ValueError)
