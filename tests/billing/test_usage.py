"""Usage by request: long requests one by one, short ones added up, seconds shared, nothing counted twice."""

from __future__ import annotations

from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpugate.billing.usage import FairShareMeter, UsageSlice, UsageTracker


def test_a_long_request() -> None:
    """It is told so far while it runs, and whole at its end, once."""
    uses = UsageTracker()
    uses.start(1, "ann", "r-1", 100.0)
    assert [UsageSlice(1, "ann", "r-1", 100.0, 102.0, 2.0)] == uses.collect(102.0)
    uses.finish(1, 105.0)
    assert [UsageSlice(1, "ann", "r-1", 100.0, 105.0, 5.0)] == uses.collect(106.0)
    assert [] == uses.collect(107.0)
    assert 105.0 == uses.last_finished_at


def test_short_requests() -> None:
    """They are gathered by user and minute, under the name of the first."""
    uses = UsageTracker()
    for number, (user, at) in enumerate([("ann", 60.0), ("bob", 61.0), ("ann", 62.0), ("ann", 120.0)]):
        uses.start(number, user, f"r-{number}", at)
        uses.finish(number, at + 0.01)
    told = {(spent.user, spent.request_id): (spent.requests, spent.seconds) for spent in uses.collect(121.0)}
    assert {("ann", "r-0"): (2, pytest.approx(0.02)), ("bob", "r-1"): (1, pytest.approx(0.01))} == {
        key: told[key] for key in (("ann", "r-0"), ("bob", "r-1"))
    }
    assert (1, pytest.approx(0.01)) == told["ann", "r-3"]


def test_a_minute_that_goes_on() -> None:
    """What was told of it is told again with what came after: the newer row replaces the older."""
    uses = UsageTracker()
    for number in range(2):
        uses.start(number, "ann", f"r-{number}", 60.0 + number)
        uses.finish(number, 60.05 + number)
        (told,) = uses.collect(61.0 + number)
    assert ("r-0", 2, pytest.approx(0.1)) == (told.request_id, told.requests, told.seconds)


def test_a_run_that_is_over() -> None:
    """The next pod's requests are gathered apart, though it is the same minute."""
    uses = UsageTracker()
    uses.start(1, "ann", "r-1", 60.0)
    uses.finish(1, 60.05)
    uses.collect(61.0, run_ended=True)
    uses.start(2, "ann", "r-2", 62.0)
    uses.finish(2, 62.05)
    (told,) = uses.collect(63.0)
    assert ("r-2", 1) == (told.request_id, told.requests)


def test_left_twice() -> None:
    """Nothing happens the second time, nor for one that never entered."""
    uses = UsageTracker()
    uses.start(1, "ann", "r-1", 0.0)
    uses.finish(1, 1.0)
    uses.finish(1, 9.0)
    uses.finish(2, 9.0)
    assert [1.0] == [spent.seconds for spent in uses.collect(10.0)]


# --- FairShareMeter -----------------------------------------------------------------------------


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
