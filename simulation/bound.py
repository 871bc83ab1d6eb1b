"""How little idle time a policy can do with that does not know the future: `python -m simulation.bound`.

It is reckoned for one that knows all else: the laws by which `traffic` draws the sittings of `home` and
`team`, and which request belongs to which person and sitting. From these follows the exact chance that a
request comes in the next seconds. If a cold start is worth `w` seconds of a pod, nothing can do better than
to have one exactly while that chance, by the second, is above `1 / w`: a second of a pod costs 1, a second
without `w` times the chance. Starts before a request take no time here, and cost nothing. So on average over
months no policy has less than this one in `idle time + w * cold starts`, and each `w` is a bound.
"""

from __future__ import annotations

import argparse
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from math import ceil, comb, exp, log
from statistics import NormalDist

from attrs import frozen

from gpugate.core.idle_policy import FixedIdlePolicy, IdlePolicy, LearnedIdlePolicy

from .hindsight import START_S, WORTH_S, hindsight
from .month import FIRST_BYTE_S
from .pauses import Outcome, live, mean, pauses, use
from .spans import length, union
from .traffic import DAY_S, HOUR_S, KINDS, QUESTIONS, THINK_S, THINK_SPREAD, WEEKEND, Traffic, sittings

STEP_S = 10.0
"""The chance is reckoned for steps of so many seconds."""

FORGOTTEN_S = 7200.0
"""After so long nobody is still thinking: one in 300,000 sittings."""

GOES_ON = exp(-1 / QUESTIONS)
"""The chance that a question is not the last one of its sitting, whatever came before."""

WORTHS_S = tuple(300.0 * 1.25**step for step in range(16))
FIXED_S = (300.0, 600.0, 900.0)
FIRST_SEED = 1000
"""With it begin months that no policy was made with."""

PEOPLE = ("home", "team")


@frozen
class Day:
    """How sittings are drawn: the chances of their number, and that one begins before an hour of the day."""

    numbers: Mapping[int, float]
    before: Callable[[float], float]


def _equally(numbers: Iterable[int]) -> dict[int, float]:
    some = list(numbers)
    return dict.fromkeys(some, 1 / len(some))


def _evenly(first: float, last: float) -> Callable[[float], float]:
    return lambda hour: min(1.0, max(0.0, (hour - first) / (last - first)))


def _evening(hour: float) -> float:
    return 0.0 if hour <= 17 else 1.0 if hour > 23.5 else NormalDist(20, 1.5).cdf(hour)


def _office_day(hour: float) -> float:
    at_noon = min(1.0, max(0.0, hour - 12))
    return _evenly(8.5, 18)(hour) - 0.8 * at_noon / 9.5


DAYS = {
    ("home", False): Day(_equally(range(5)), _evening),
    ("home", True): Day(_equally(range(2, 7)), _evenly(9.5, 23)),
    ("team", False): Day(_equally(range(1, 5)), _office_day),
    ("team", True): Day({0: 0.9, 1: 0.1}, _evenly(10, 20)),
}


@cache
def _begins(kind: str, weekend: bool, begun: int, step: int) -> float:
    """Return how many sittings of a person begin in a step of the day, after so many have begun before it."""
    day = DAYS[kind, weekend]
    before, after = (day.before((step + more) * STEP_S / HOUR_S) for more in (0, 1))
    if after <= before:
        return 0.0
    left = {
        number - begun: chance * comb(number, begun) * (1 - before) ** (number - begun)
        for number, chance in day.numbers.items()
        if number >= begun
    }
    to_come = sum(more * chance for more, chance in left.items()) / (sum(left.values()) or 1.0)
    return to_come * (after - before) / (1 - before)


def _goes_on() -> list[float]:
    """Return the chance of another question of a sitting, for each step since the last answer."""
    thought = NormalDist(log(THINK_S), THINK_SPREAD)
    steps = range(int(FORGOTTEN_S / STEP_S) + 1)
    thinks = [1.0, *(1 - thought.cdf(log(step * STEP_S)) for step in steps[1:])]
    return [GOES_ON * (now - later) / (GOES_ON * now + 1 - GOES_ON) for now, later in pairwise(thinks)]


def chances(kind: str, people: Sequence[Sequence[Traffic]], days: int) -> list[float]:
    """Return how many requests are to be expected in each step, from all that was seen before it."""
    expected, goes_on = [0.0] * int(days * DAY_S / STEP_S), _goes_on()
    for person in people:
        _expect_sittings(expected, kind, person)
        for sitting in person:
            _expect_questions(expected, goes_on, sitting)
    return expected


def _expect_sittings(expected: list[float], kind: str, person: Sequence[Traffic]) -> None:
    per_day = int(DAY_S / STEP_S)
    began = Counter(ceil(sitting[0].at / STEP_S) for sitting in person)
    for day in range(len(expected) // per_day):
        begun, weekend = 0, day % 7 in WEEKEND
        for step in range(per_day):
            begun += began[day * per_day + step]
            expected[day * per_day + step] += _begins(kind, weekend, begun, step)


def _expect_questions(expected: list[float], goes_on: Sequence[float], sitting: Traffic) -> None:
    for number, request in enumerate(sitting, 1):
        first = ceil((request.at + request.takes_s) / STEP_S)
        last = int(sitting[number].at / STEP_S) if number < len(sitting) else len(expected)
        for step, chance in zip(range(first, min(last + 1, len(expected))), goes_on, strict=False):
            expected[step] += chance


def foresight(kind: str, seed: int, days: int = 30) -> list[Outcome]:
    """Return what the best policy comes to that knows all but the future, for each worth of `WORTHS_S`."""
    people = sittings(kind, seed, days)
    expected = chances(kind, people, days)
    limits = [STEP_S / worth for worth in reversed(WORTHS_S)]
    kept, warm, always_s = [0] * (len(limits) + 1), [0] * (len(limits) + 1), 0.0
    month = pauses(KINDS[kind](seed, days))
    for began, ended in month:  # where a chance is above the first n limits, n policies have a pod
        first, last = ceil(began / STEP_S), int(ended / STEP_S)
        always_s += min(ended, first * STEP_S) - began
        for step in range(first, last):
            kept[bisect_left(limits, expected[step])] += 1
        warm[bisect_left(limits, expected[last]) if last >= first else len(limits)] += 1
    outcomes = []
    for place in range(len(limits)):
        cold = 1 + sum(warm[: place + 1])
        idle_s = always_s + STEP_S * sum(kept[place + 1 :]) + cold * START_S
        outcomes.append(Outcome(idle_s, cold))
    return outcomes[::-1]


def least_idle_s(frontier: Sequence[Outcome], cold: float) -> float:
    """Return the least idle time that a policy with so many cold starts can have; see the module."""
    return max(
        outcome.idle_s + (worth - START_S) * (outcome.cold - cold)
        for outcome, worth in zip(frontier, WORTHS_S, strict=True)
    )


def told_who_leaves(kind: str, seed: int, days: int = 30) -> Outcome:
    """Return what it would come to if every person said at once that a sitting was over."""
    there = union(
        (sitting[0].at, min(days * DAY_S, sitting[-1].at + FIRST_BYTE_S + sitting[-1].takes_s))
        for person in sittings(kind, seed, days)
        for sitting in person
        if sitting[0].at < days * DAY_S
    )
    idle_s = length(there) - length(use(KINDS[kind](seed, days)))
    return Outcome(idle_s + len(there) * START_S, len(there))


def main(words: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m simulation.bound", description="what cannot be had")
    parser.add_argument("--days", type=int, default=30, help="how long the month is (30)")
    parser.add_argument("--seeds", type=int, default=12, help="how many months of each traffic (12)")
    given = parser.parse_args(words)
    sys.stdout.write(
        "| traffic | policy | idle h | cold starts | in one number |\n| --- | --- | --- | --- | --- |\n"
    )
    for kind in ("home", "team", "bot"):
        for name, outcome in _rows(kind, range(FIRST_SEED, FIRST_SEED + given.seeds), given.days):
            hours = f"{outcome.idle_s / HOUR_S:.1f} | {outcome.cold:.1f} | {outcome.price_s / HOUR_S:.1f}"
            sys.stdout.write(f"| {kind} | {name} | {hours} |\n")
            sys.stdout.flush()
    return 0


def _rows(kind: str, seeds: Sequence[int], days: int) -> Iterator[tuple[str, Outcome]]:
    months = [KINDS[kind](seed, days) for seed in seeds]
    ways: list[tuple[str, float, Callable[[float], IdlePolicy]]] = [
        *((f"fixed {limit / 60:.0f}m", limit, FixedIdlePolicy) for limit in FIXED_S),
        ("learned 15m", WORTH_S, LearnedIdlePolicy),
    ]
    for name, limit, make in ways:
        outcome = mean(live(make(limit), pauses(month)) for month in months)
        yield name, outcome
        if limit == WORTH_S and kind in PEOPLE:
            frontier = [mean(some) for some in zip(*(foresight(kind, s, days) for s in seeds), strict=True)]
            yield f"bound for as many as {name}", Outcome(least_idle_s(frontier, outcome.cold), outcome.cold)
    if kind in PEOPLE:
        yield "told who leaves", mean(told_who_leaves(kind, seed, days) for seed in seeds)
    best = [hindsight(month) for month in months]
    yield "hindsight", mean(Outcome(b.paid_s - b.useful_s, b.cold) for b in best)


if __name__ == "__main__":
    sys.exit(main())
