"""Policies on pauses alone: what is paid, and who waits."""

from __future__ import annotations

import pytest

from gpugate.core.idle_policy import FixedIdlePolicy, PrewarmWindow
from simulation.hindsight import START_S, WORTH_S, hindsight
from simulation.pauses import Outcome, live, mean, pauses, use
from simulation.spans import length
from simulation.traffic import KINDS, Request


def test_a_pod_that_is_kept_and_one_that_is_stopped() -> None:
    """The first start, a pause that is bridged, and one that is not."""
    outcome = live(FixedIdlePolicy(900.0), [(10.0, 110.0), (200.0, 2000.0)])
    assert Outcome(100.0 + 900.0 + 2 * START_S, 2.0) == outcome
    assert outcome.price_s == pytest.approx(1000.0 + 2 * WORTH_S)


@pytest.mark.parametrize(
    ("gap_s", "idle_s", "cold"),
    [
        (2999.0, 60.0 + START_S, 1.0),
        (3000.0 + START_S / 4, 60.0 + START_S, 0.75),
        (3200.0, 60.0 + 200.0, 0.0),
        (3301.0, 60.0 + 300.0 + START_S, 1.0),
    ],
)
def test_a_window(gap_s: float, idle_s: float, cold: float) -> None:
    """Before it, half warm, in it, and after it in vain."""
    policy = FixedIdlePolicy(60.0, PrewarmWindow(3000.0, 3300.0))
    outcome = live(policy, [(0.0, gap_s)])
    assert (idle_s, cold) == pytest.approx((outcome.idle_s - START_S, outcome.cold - 1))
    assert (gap_s >= 3000.0) == outcome.unasked


def test_the_mean() -> None:
    """Each number by itself."""
    assert Outcome(2.0, 3.0, 1.0) == mean([Outcome(1.0, 2.0, 0.0), Outcome(3.0, 4.0, 2.0)])


@pytest.mark.parametrize("kind", KINDS)
def test_pauses_and_use_fill_the_month(kind: str) -> None:
    """And the use is the one that hindsight counts."""
    month: tuple[Request, ...] = KINDS[kind](5, 3)
    worked = use(month)
    assert length(worked) + length(pauses(month)) == pytest.approx(worked[-1][1] - worked[0][0])
    assert length(worked) == hindsight(month).useful_s
