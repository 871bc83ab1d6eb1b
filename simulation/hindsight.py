"""The lowest possible cost with knowledge of the future: the ski-rental optimum of a month without faults."""

from __future__ import annotations

from itertools import pairwise
from math import exp

from attrs import frozen

from .cloud import BOOT_SPREAD, USUAL_BOOT_S
from .gateway import WARM_S
from .month import FIRST_BYTE_S
from .spans import length, union
from .traffic import Traffic

WORTH_S = 900.0
"""What a cold start is worth, in seconds of the pod, for every row alike: the default `pod.idle_timeout`."""

START_S = USUAL_BOOT_S * exp(BOOT_SPREAD**2 / 2) + WARM_S
"""A start's share of that, which is on the bill: the mean of the boot, and the warm-up."""


@frozen
class Hindsight:
    """The cheapest month, with every cold start at `WORTH_S`.

    Attributes:
        paid_s: use, pauses that are bridged, and starts.
        useful_s: use alone.
        cold: starts.
        price_s: bridged pauses and the worth of all starts: what policies are compared by.
    """

    paid_s: float
    useful_s: float
    cold: int
    price_s: float


def hindsight(traffic: Traffic) -> Hindsight:
    """Bridge every pause that is shorter than a cold start is worth; stop at once before all others."""
    work = union((r.at, r.at + FIRST_BYTE_S + r.takes_s) for r in traffic)
    if not work:
        return Hindsight(0.0, 0.0, 0, 0.0)
    pauses = [after[0] - before[1] for before, after in pairwise(work)]
    bridged = sum(pause for pause in pauses if pause <= WORTH_S)
    cold = 1 + sum(pause > WORTH_S for pause in pauses)
    useful_s = length(work)
    return Hindsight(useful_s + bridged + cold * START_S, useful_s, cold, bridged + cold * WORTH_S)


def price_s(paid_s: float, useful_s: float, cold: int) -> float:
    """The same for a month that was lived: all that was paid beside use, and the worth of cold starts."""
    return paid_s - useful_s + cold * (WORTH_S - START_S)
