"""Shares of time: whoever runs together pays together, and no second is lost or counted twice."""

from __future__ import annotations

from math import isclose

from hypothesis import given
from hypothesis import strategies as st

from gpugate.billing.usage import FairShareMeter


def test_alone() -> None:
    """All of it is one's own."""
    meter = FairShareMeter()
    mark = meter.start(10.0)
    assert 4.0 == meter.share_so_far(mark, 14.0)
    assert 5.0 == meter.finish(mark, 15.0)
    assert 5.0 == meter.busy_s


def test_together() -> None:
    """The seconds of two at once are halved."""
    meter = FairShareMeter()
    first = meter.start(0.0)
    second = meter.start(4.0)
    assert 5.0 == meter.finish(first, 6.0)
    assert 5.0 == meter.finish(second, 10.0)
    assert 10.0 == meter.busy_s


def test_a_clock_that_goes_back() -> None:
    """Nothing is ever negative."""
    meter = FairShareMeter()
    mark = meter.start(10.0)
    assert 0.0 == meter.finish(mark, 5.0)
    assert 0.0 == meter.busy_s


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 1000)), max_size=30))
def test_the_shares_are_the_whole(spans: list[tuple[float, float]]) -> None:
    """All shares together are the time in which anybody ran."""
    events = sorted(
        [(min(span), 0, index) for index, span in enumerate(spans)]
        + [(max(span), 1, index) for index, span in enumerate(spans)]
    )
    meter = FairShareMeter()
    marks: dict[int, float] = {}
    shares: list[float] = []
    for at, leaves, index in events:
        if leaves:
            shares.append(meter.finish(marks[index], at))
        else:
            marks[index] = meter.start(at)

    busy, until = 0.0, 0.0
    for begin, end in sorted((min(span), max(span)) for span in spans):
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    assert 0 == meter.running
    assert isclose(busy, sum(shares), abs_tol=1e-6)
    assert isclose(busy, meter.busy_s, abs_tol=1e-6)
    assert all(share >= 0 for share in shares)
