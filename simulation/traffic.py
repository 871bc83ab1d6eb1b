"""Who asks when: requests in bursts, with think times and a daily rhythm, from a seed; knows no gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import log
from random import Random

from attrs import frozen

DAY_S = 86_400.0
HOUR_S = 3_600.0
WEEKEND = (5, 6)
"""The simulated month begins on a Monday, at midnight."""

QUESTIONS = 8
"""A sitting has one question, and so many more on average."""

THINK_S, THINK_SPREAD = 70.0, 1.1
"""Log-normal: how long a person reads and thinks before the next question."""


@frozen(order=True)
class Request:
    """One request: when it arrives, and for how long the GPU works on it, in seconds."""

    at: float
    takes_s: float


Traffic = tuple[Request, ...]
HoursOf = Callable[[Random, bool], list[float]]
"""Draws when the sittings of one person and day begin; told whether it is a day of the weekend."""


def home(seed: int, days: int = 30) -> Traffic:
    """One person: a few sittings in the evening, more at the weekend; reads and thinks between questions."""
    return _together(sittings("home", seed, days), days)


def team(seed: int, days: int = 30) -> Traffic:
    """Five people in an office: sittings all day, few at noon, hardly any at the weekend."""
    return _together(sittings("team", seed, days), days)


def office(seed: int, people: int) -> Traffic:
    """So many people on one working day, each as one of the team."""
    dice = Random(f"office {seed}")
    return _together([list(_sittings(dice, 1, _office_sittings)) for _ in range(people)], 1)


def bot(seed: int, days: int = 30) -> Traffic:
    """A program: a batch every hour from 7 to 22, a long one each night, and now and then an alarm."""
    dice = Random(f"bot {seed}")
    return _in_order(_batches(dice, days), days)


def scattered(seed: int, days: int = 30) -> Traffic:
    """Nothing to learn from: single requests without memory, about 25 a day, day and night."""
    dice = Random(f"scattered {seed}")
    return _in_order(_memoryless(dice, days, 25 / DAY_S), days)


KINDS: dict[str, Callable[[int, int], Traffic]] = {
    "home": home,
    "team": team,
    "bot": bot,
    "scattered": scattered,
}


def sittings(kind: str, seed: int, days: int = 30) -> list[list[Traffic]]:
    """Return the sittings that the traffic "home" or "team" is made of, for each person."""
    dice = Random(f"{kind} {seed}")
    people, hours_of = {"home": (1, _home_sittings), "team": (5, _office_sittings)}[kind]
    return [list(_sittings(dice, days, hours_of)) for _ in range(people)]


def _together(people: Iterable[Iterable[Traffic]], days: int) -> Traffic:
    return _in_order((request for person in people for sitting in person for request in sitting), days)


def _in_order(requests: Iterable[Request], days: int) -> Traffic:
    return tuple(sorted(request for request in requests if request.at < days * DAY_S))


def _around(dice: Random, middle: float, spread: float) -> float:
    """Log-normal, with this median: most are near it, a few are far longer."""
    return dice.lognormvariate(log(middle), spread)


def _sitting(dice: Random, began: float, questions: float) -> Iterator[Request]:
    """A person asks, reads the answer, thinks, asks again."""
    at = began
    for _ in range(1 + int(dice.expovariate(1 / questions))):
        takes_s = min(300.0, _around(dice, 14, 0.7))
        yield Request(at, takes_s)
        at += takes_s + _around(dice, THINK_S, THINK_SPREAD)


def _sittings(dice: Random, days: int, hours_of: HoursOf) -> Iterator[Traffic]:
    for day in range(days):
        for hour in hours_of(dice, day % 7 in WEEKEND):
            yield tuple(_sitting(dice, day * DAY_S + hour * HOUR_S, QUESTIONS))


def _home_sittings(dice: Random, weekend: bool) -> list[float]:
    if weekend:
        return [dice.uniform(9.5, 23) for _ in range(dice.randint(2, 6))]
    return [min(23.5, max(17, dice.gauss(20, 1.5))) for _ in range(dice.randint(0, 4))]


def _office_sittings(dice: Random, weekend: bool) -> list[float]:
    if weekend:
        return [dice.uniform(10, 20)] if dice.random() < 0.1 else []
    hours = [dice.uniform(8.5, 18) for _ in range(dice.randint(1, 4))]
    return [hour for hour in hours if not 12 <= hour < 13 or dice.random() < 0.2]


def _batches(dice: Random, days: int) -> Iterator[Request]:
    for day in range(days):
        for hour in range(7, 23):
            yield from _batch(dice, day * DAY_S + hour * HOUR_S + dice.uniform(0, 60), dice.randint(2, 6))
        yield from _batch(dice, day * DAY_S + 3.5 * HOUR_S + dice.uniform(0, 60), 20)
        if dice.random() < 0.5:
            yield from _batch(dice, (day + dice.random()) * DAY_S, 1)


def _batch(dice: Random, began: float, jobs: int) -> Iterator[Request]:
    at = began
    for _ in range(jobs):
        takes_s = _around(dice, 20, 0.4)
        yield Request(at, takes_s)
        at += takes_s + dice.uniform(0.2, 2)


def _memoryless(dice: Random, days: int, rate: float) -> Iterator[Request]:
    at = dice.expovariate(rate)
    while at < days * DAY_S:
        yield Request(at, min(300.0, _around(dice, 14, 0.7)))
        at += dice.expovariate(rate)
