"""Who used the pod: long requests one by one, short ones gathered, and nothing counted twice."""

from __future__ import annotations

import pytest

from gpugate.billing.usage import UsageSlice, UsageTracker


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
