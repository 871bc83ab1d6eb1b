"""A day with replicas: what they cost lies between one and always four, and so do the waits."""

from __future__ import annotations

from pathlib import Path

from simulation.replicas import RANGES, days


def test_a_day_of_few_people() -> None:
    """More replicas cost more and wait less; a range is cheaper than its greatest number."""
    one, two, four, always = days(1, people=20)

    assert one.paid_h < two.paid_h <= four.paid_h < always.paid_h
    assert one.wait_s(0.95) >= two.wait_s(0.95) >= four.wait_s(0.95)
    assert one.changes == 0 < always.changes < four.changes
    assert len({len(day.waits) for day in (one, two, four, always)}) == 1


def test_the_page_shows_the_table() -> None:
    """`docs/simulation.md` has a row for each number."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "simulation.md").read_text()
    rows = [line.split(" | ")[0].strip("| ") for line in page.splitlines() if line.count(" | ") == 7]

    assert rows == ["pod.replicas", "---", *RANGES]
