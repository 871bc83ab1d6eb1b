"""Both idle policies on pauses: what is kept, what is learnt, and what it may cost at the worst."""

from __future__ import annotations

from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpugate.core.idle_policy import (
    MAX_REGRET,
    MAX_SAMPLES,
    MIN_SAMPLES,
    REGRET_RECOVERY,
    FixedIdlePolicy,
    IdleHistory,
    IdlePlan,
    LearnedIdlePolicy,
    PrewarmWindow,
    cheapest_plan,
    cost_of,
)

TIMEOUT_S = 900.0
START_S = 90.0

pauses = st.lists(st.floats(60.001, 400_000.0), max_size=120)
habits = st.lists(st.sampled_from([90.0, 250.0, 901.0, 3500.0, 3560.0, 30_000.0]), max_size=200)


def learned(timeout_s: float = TIMEOUT_S) -> LearnedIdlePolicy:
    """One that has seen a start of 90 s."""
    policy = LearnedIdlePolicy(timeout_s)
    policy.on_start_finished(START_S)
    return policy


def taught(*lessons: float, timeout_s: float = TIMEOUT_S) -> LearnedIdlePolicy:
    """One that has seen these pauses."""
    policy = learned(timeout_s)
    for pause_s in lessons:
        policy.on_gap_ended(pause_s)
    return policy


# --- the fixed timeout --------------------------------------------------------------------------


def test_fixed_is_what_it_is() -> None:
    """It keeps for the timeout, starts nothing, and remembers nothing."""
    policy = FixedIdlePolicy(TIMEOUT_S)
    policy.on_gap_ended(60_000.0)
    policy.on_start_finished(5.0)
    policy.restore(IdleHistory((70.0,)))
    assert (TIMEOUT_S, None, None) == (policy.effective_timeout_s, policy.window, policy.history)


@given(pauses)
def test_fixed_costs_at_most_twice_what_hindsight_would(story: list[float]) -> None:
    """The ski-rental bound, where a cold start is worth the timeout."""
    best = sum(min(pause_s, TIMEOUT_S) for pause_s in story)
    assert cost_of(IdlePlan(TIMEOUT_S), story, TIMEOUT_S, START_S) <= 2 * best + 1e-6


# --- what a pause costs -------------------------------------------------------------------------

PLAN = IdlePlan(120.0, PrewarmWindow(3000.0, 3300.0))


@pytest.mark.parametrize(
    ("pause_s", "cost_s"),
    [
        (100.0, 100.0),
        (120.0, 120.0),
        (121.0, 120.0 + TIMEOUT_S),
        (3000.0, 120.0 + TIMEOUT_S),
        (3045.0, 120.0 + 45.0 + TIMEOUT_S / 2),
        (3090.0, 120.0 + 90.0),
        (3300.0, 120.0 + 300.0),
        (3301.0, 120.0 + 300.0 + TIMEOUT_S),
    ],
)
def test_what_a_pause_costs(pause_s: float, cost_s: float) -> None:
    """Kept; cold; half warm; warm in the window; a window in vain."""
    assert pytest.approx(cost_s) == PLAN.cost_of(pause_s, TIMEOUT_S, START_S)


@given(pauses)
def test_the_plan_is_never_dearer_than_the_timeout_on_what_it_was_made_of(story: list[float]) -> None:
    """And keeps a pod idle for the timeout at the most, the window included."""
    plan = cheapest_plan(story, TIMEOUT_S, START_S)
    window_s = plan.window.closes_s - plan.window.opens_s if plan.window else 0.0
    assert 60.0 <= plan.keep_s
    assert plan.keep_s + window_s <= TIMEOUT_S + 1e-6
    usual = cost_of(IdlePlan(TIMEOUT_S), story, TIMEOUT_S, START_S)
    assert cost_of(plan, story, TIMEOUT_S, START_S) <= usual + 1e-3


# --- what is learnt -----------------------------------------------------------------------------


def test_few_pauses_teach_nothing() -> None:
    """Until there are enough of them it is the fixed timeout."""
    assert TIMEOUT_S == taught(*[5000.0] * (MIN_SAMPLES - 1)).effective_timeout_s
    assert taught(*[5000.0] * MIN_SAMPLES).effective_timeout_s == 60.0


def test_short_pauses_and_long_ones() -> None:
    """Who comes back within 5 minutes or after hours is kept for 5 minutes."""
    dice = Random(1)
    lessons = [dice.uniform(70, 300) if dice.random() < 0.7 else dice.uniform(5e3, 5e4) for _ in range(200)]
    policy = taught(*lessons)
    assert (300.0, None) == (policy.effective_timeout_s, policy.window)


def test_every_hour() -> None:
    """The pod is let go at once, and warm again before the hour is over."""
    dice = Random(2)
    policy = taught(*[3400 + dice.uniform(0, 60) for _ in range(60)])
    assert policy.effective_timeout_s == 60.0
    assert policy.window is not None
    assert policy.window.opens_s + START_S <= 3430
    assert policy.window.closes_s >= 3460


def test_every_day() -> None:
    """A window may lie a whole day after the last use."""
    policy = taught(*[86_000.0] * 30)
    assert policy.window is not None
    assert policy.window.opens_s < 86_000.0 - START_S < 86_000.0 < policy.window.closes_s


def test_nothing_to_gain() -> None:
    """Pauses that are all shorter than the timeout change nothing."""
    assert TIMEOUT_S == taught(*[float(80 + 8 * number) for number in range(100)]).effective_timeout_s


def test_a_single_old_coincidence_opens_no_window() -> None:
    """A pause that came once among many is no habit."""
    policy = taught(*[100.0] * 100, 50_000.0, *[100.0] * 100)
    assert policy.window is None


def test_a_habit_that_changed() -> None:
    """The oldest pauses are forgotten, and what was learnt of them."""
    policy = taught(*[3400.0] * 100, *[float(70 + number) for number in range(MAX_SAMPLES)])
    assert (TIMEOUT_S, None) == (policy.effective_timeout_s, policy.window)


def test_a_pause_without_a_beginning() -> None:
    """After the very first boot nobody knows how long it was quiet: that is no lesson."""
    assert () == taught(inf, -inf).history.gaps_s


def test_it_goes_on_after_a_restart() -> None:
    """What was learnt is the same; the credit is never more than a fresh one."""
    before = taught(*[3400.0] * 50)
    after = LearnedIdlePolicy(TIMEOUT_S)
    after.restore(before.history)
    assert (before.effective_timeout_s, before.window, before.history) == (
        after.effective_timeout_s,
        after.window,
        after.history,
    )
    after.restore(IdleHistory(regret_budget=1e9))
    assert after.history.regret_budget == MAX_REGRET


def test_the_timeout_was_changed_at_a_restart() -> None:
    """What was lost is counted in cold starts, so it weighs the same under the new timeout."""
    before, after = taught(*[3400.0] * 50), LearnedIdlePolicy(60.0)
    before.on_gap_ended(61.0)
    after.restore(before.history)
    assert after.history.regret_budget == pytest.approx(before.history.regret_budget)


def test_a_short_timeout() -> None:
    """A timeout below the shortest pause that counts is left alone."""
    assert taught(*[5000.0] * 100, timeout_s=20.0).effective_timeout_s == 20.0


# --- what it may cost ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(pauses | habits, st.sampled_from([20.0, 60.0, 300.0, 900.0, 3600.0]))
def test_it_never_keeps_a_pod_for_longer_than_the_timeout(story: list[float], timeout_s: float) -> None:
    """Whatever it learns: within bounds, and a window lies behind the stop and is short."""
    policy = learned(timeout_s)
    assert timeout_s == policy.effective_timeout_s
    for pause_s in story:
        policy.on_gap_ended(pause_s)
        assert min(60.0, timeout_s) <= policy.effective_timeout_s <= timeout_s
        if (window := policy.window) is not None:
            assert policy.effective_timeout_s < window.opens_s < window.closes_s
            assert policy.effective_timeout_s + window.closes_s - window.opens_s <= timeout_s + 1e-6


def paid(policy: LearnedIdlePolicy, story: list[float]) -> float:
    """What these pauses cost under a policy that learns as it goes."""
    total = 0.0
    for pause_s in story:
        total += IdlePlan(policy.effective_timeout_s, policy.window).cost_of(pause_s, TIMEOUT_S, START_S)
        policy.on_gap_ended(pause_s)
    return total


@settings(deadline=None, max_examples=40)
@given(pauses | habits)
def test_it_never_falls_far_behind_the_timeout(story: list[float]) -> None:
    """Against any pauses: no more than the fixed timeout, a small share, and a constant."""
    usual = cost_of(IdlePlan(TIMEOUT_S), story, TIMEOUT_S, START_S)
    assert paid(learned(), story) <= (1 + REGRET_RECOVERY) * usual + (MAX_REGRET + 2) * TIMEOUT_S


def test_an_adversary() -> None:
    """One who always comes just after the pod was let go costs a constant, not a share of all there is."""
    policy, story = taught(*[3400.0] * 40), []
    total = 0.0
    for _ in range(2000):
        pause_s = policy.effective_timeout_s + 0.5
        total += IdlePlan(policy.effective_timeout_s, policy.window).cost_of(pause_s, TIMEOUT_S, START_S)
        policy.on_gap_ended(pause_s)
        story.append(pause_s)
    best = sum(min(pause_s, TIMEOUT_S) for pause_s in story)
    usual = cost_of(IdlePlan(TIMEOUT_S), story, TIMEOUT_S, START_S)
    assert total <= (1 + REGRET_RECOVERY) * usual + (MAX_REGRET + 2) * TIMEOUT_S
    assert total <= 2 * (1 + REGRET_RECOVERY) * best + (MAX_REGRET + 2) * TIMEOUT_S
