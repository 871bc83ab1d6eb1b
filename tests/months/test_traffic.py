"""The months are what they say they are."""

from __future__ import annotations

import pytest

from simulation.traffic import DAY_S, KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_month_comes_from_its_seed(kind: str) -> None:
    """The same seed, the same month; another seed, another month; in order, and within the days."""
    month = KINDS[kind](1, 30)
    assert month == KINDS[kind](1, 30)
    assert month != KINDS[kind](2, 30)
    assert list(month) == sorted(month)
    assert 0 <= month[0].at <= month[-1].at < 30 * DAY_S
    assert min(request.takes_s for request in month) > 0


def test_how_much_there_is() -> None:
    """Some hundreds of requests of one person, some thousands of a team or a program."""
    sizes = {kind: len(make(1, 30)) for kind, make in KINDS.items()}
    assert 400 < sizes["home"] < 1200
    assert 1500 < sizes["team"] < 4000
    assert 1500 < sizes["bot"] < 4000
    assert 500 < sizes["scattered"] < 1000


def test_an_office_sleeps_at_the_weekend() -> None:
    """Hardly anybody is there, and nobody at night."""
    days = [0] * 7
    hours = [0] * 24
    for request in KINDS["team"](3, 28):
        days[int(request.at // DAY_S) % 7] += 1
        hours[int(request.at % DAY_S // 3600)] += 1
    assert sum(days[5:]) < sum(days[:5]) / 10
    assert sum(hours[:8]) == 0
