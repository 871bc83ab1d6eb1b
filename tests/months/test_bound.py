"""The bound is a bound: its chances come true, and nothing that is lived lies below it."""

from __future__ import annotations

from functools import cache
from itertools import count
from pathlib import Path

import pytest

from gpugate.core.idle_policy import FixedIdlePolicy
from simulation.bound import (
    DAYS,
    FIXED_S,
    PEOPLE,
    STEP_S,
    WORTHS_S,
    chances,
    foresight,
    least_idle_s,
    main,
    told_who_leaves,
)
from simulation.hindsight import START_S, hindsight
from simulation.pauses import Outcome, live, pauses
from simulation.traffic import KINDS, sittings

COUNT = 7
"""Days; enough for some hundred pauses."""


@cache
def a_week() -> list[Outcome]:
    """What the best policy comes to in one week."""
    return foresight("home", 5, COUNT)


@pytest.mark.parametrize("kind", PEOPLE)
def test_the_sittings_make_up_the_traffic(kind: str) -> None:
    """Nothing is missing, and nothing is added but what begins after the last midnight."""
    apart = sorted(one for person in sittings(kind, 5, COUNT) for sitting in person for one in sitting)
    assert KINDS[kind](5, COUNT) == tuple(one for one in apart if one.at < COUNT * 86_400)


@pytest.mark.parametrize(("kind", "days"), [("home", COUNT), ("team", 2)])
def test_as_many_requests_come_as_are_expected(kind: str, days: int) -> None:
    """The sum of the chances in all pauses is the number of pauses, but for luck."""
    expected = chances(kind, sittings(kind, 1, days), days)
    month = [(int(began / STEP_S) + 1, int(ended / STEP_S)) for began, ended in pauses(KINDS[kind](1, days))]
    whole = [(first, last) for first, last in month if last >= first]
    assert sum(sum(expected[first : last + 1]) for first, last in whole) == pytest.approx(
        len(whole), rel=2 / len(whole) ** 0.5
    )


@pytest.mark.parametrize(("kind", "weekend"), DAYS)
def test_the_numbers_of_sittings(kind: str, weekend: bool) -> None:
    """Their chances sum up to 1; none begins at midnight, and no more than all by the next one."""
    day = DAYS[kind, weekend]
    assert 1 == pytest.approx(sum(day.numbers.values()))
    hours = [day.before(hour / 4) for hour in range(97)]
    assert 0 == hours[0]
    assert hours == sorted(hours)
    assert 0.9 < hours[-1] <= 1


def test_nothing_that_is_lived_lies_below_it() -> None:
    """No fixed timeout, but for the luck of one week; hindsight does."""
    month = KINDS["home"](5, COUNT)
    frontier = a_week()
    assert len(WORTHS_S) == len(frontier)
    for limit_s in FIXED_S:
        lived = live(FixedIdlePolicy(limit_s), pauses(month))
        assert least_idle_s(frontier, lived.cold) <= 1.05 * lived.idle_s
    best = hindsight(month)
    assert least_idle_s(frontier, best.cold) > 1.5 * (best.paid_s - best.useful_s)


def test_the_dearer_a_cold_start_the_fewer() -> None:
    """And the more idle time."""
    frontier = a_week()
    assert [one.cold for one in frontier] == sorted((one.cold for one in frontier), reverse=True)
    assert [one.idle_s for one in frontier] == sorted(one.idle_s for one in frontier)


def test_the_least_idle_time() -> None:
    """A line of slope `w` through each point: the highest one counts."""
    frontier = [Outcome(1000.0 + 100.0 * place, 10.0) for place, _ in zip(count(), WORTHS_S, strict=False)]
    assert frontier[-1].idle_s == least_idle_s(frontier, 10.0)
    assert least_idle_s(frontier, 9.0) == pytest.approx(frontier[-1].idle_s + WORTHS_S[-1] - START_S)


def test_to_be_told_who_leaves() -> None:
    """The pod is there while a person is: half the idle time, as many cold starts."""
    lived = live(FixedIdlePolicy(900.0), pauses(KINDS["home"](5, 30)))
    told = told_who_leaves("home", 5)
    assert told.idle_s < 0.7 * lived.idle_s
    assert told.cold < 1.1 * lived.cold


def test_the_page_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """`docs/explanation/idle-policies.md` has every row that is printed."""
    assert 0 == main(["--days", "1", "--seeds", "1"])
    printed = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines()]
    page = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "idle-policies.md"
    shown = [line.split(" | ")[:2] for line in page.read_text().splitlines() if line.startswith("| ")]
    assert printed == [row for row in shown if row in printed]
