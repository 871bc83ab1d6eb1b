"""Arithmetic on stretches of time; knows nothing of what they mean."""

from __future__ import annotations

from collections.abc import Iterable

Span = tuple[float, float]


def union(spans: Iterable[Span]) -> list[Span]:
    """The same time in order and without overlaps."""
    whole: list[Span] = []
    for began, ended in sorted(spans):
        if whole and began <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(ended, whole[-1][1]))
        elif ended > began:
            whole.append((began, ended))
    return whole


def within(spans: Iterable[Span], limits: Iterable[Span]) -> list[Span]:
    """What of `spans` lies in `limits`; both in order and without overlaps."""
    ours, theirs = list(spans), list(limits)
    both: list[Span] = []
    i = j = 0
    while i < len(ours) and j < len(theirs):
        began, ended = max(ours[i][0], theirs[j][0]), min(ours[i][1], theirs[j][1])
        if began < ended:
            both.append((began, ended))
        if ours[i][1] < theirs[j][1]:
            i += 1
        else:
            j += 1
    return both


def between(spans: Iterable[Span], end: float) -> list[Span]:
    """The time from 0 to `end` that is in none of them; in order and without overlaps."""
    rest: list[Span] = []
    at = 0.0
    for began, ended in spans:
        if began > at:
            rest.append((at, began))
        at = max(at, ended)
    return [*rest, (at, end)] if at < end else rest


def length(spans: Iterable[Span]) -> float:
    """Their sum."""
    return sum(ended - began for began, ended in spans)
