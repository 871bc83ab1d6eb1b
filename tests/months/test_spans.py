"""Arithmetic on stretches of time, against the same on single seconds."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from simulation.spans import Span, between, length, union, within

END = 60
spans = st.lists(
    st.tuples(st.integers(0, END), st.integers(0, END)).map(lambda s: (float(min(s)), float(max(s))))
)


def seconds(some: list[Span]) -> set[int]:
    """The seconds that they cover."""
    return {second for began, ended in some for second in range(int(began), int(ended))}


@given(spans, spans)
def test_the_same_as_with_seconds(some: list[Span], others: list[Span]) -> None:
    """Union, intersection, the rest, and the length."""
    ours, theirs = union(some), union(others)
    assert seconds(some) == seconds(ours)
    assert float(len(seconds(some))) == length(ours)
    assert seconds(ours) & seconds(theirs) == seconds(within(ours, theirs))
    assert set(range(END)) - seconds(ours) == seconds(between(ours, END))
    assert all(before[1] < after[0] for before, after in pairwise(ours))
