"""How long a start will still take: by provider and model, from the ledger and from this process."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gpugate.billing.model import Session
from gpugate.billing.start_times import KEPT_MODELS, KEPT_STARTS, NO_MODEL, ReadyIn, StartTimes, quantile
from tests.billing.ledger_house import BEGINNING


def learned(*starts: tuple[str, str | None, float]) -> StartTimes:
    """What is known after these starts."""
    times = StartTimes()
    for start in starts:
        times.add(*start)
    return times


def row(provider: str, ready_s: float | None, reason: str = "request") -> Session:
    """A session in the ledger."""
    ready_at = None if ready_s is None else BEGINNING + timedelta(seconds=ready_s)
    return Session(id="1", provider=provider, asked_at=BEGINNING, ready_at=ready_at, start_reason=reason)


def test_nothing_known() -> None:
    """No guess; neither from another provider."""
    assert learned().ready_in("runpod", "small", 0.0) is None
    assert learned(("vastai", "small", 60.0)).ready_in("runpod", "small", 0.0) is None


def test_median_and_nine_of_ten() -> None:
    """Between two neighbours in proportion."""
    times = learned(*(("runpod", "small", float(seconds)) for seconds in range(110, 0, -10)))

    assert ReadyIn(60.0, 100.0) == times.ready_in("runpod", "small", 0.0)
    assert 15.0 == quantile([10.0, 20.0], 0.5)
    assert 7.0 == quantile([7.0], 0.9)


def test_a_start_that_is_under_way() -> None:
    """Only those that took longer count; once it took longer than all, it may be ready at any moment."""
    times = learned(("runpod", "small", 10.0), ("runpod", "small", 20.0), ("runpod", "small", 60.0))

    assert ReadyIn(15.0, 47.0) == times.ready_in("runpod", "small", 5.0)
    assert ReadyIn(30.0, 30.0) == times.ready_in("runpod", "small", 30.0)
    assert ReadyIn(0.0, 0.0) == times.ready_in("runpod", "small", 60.0)


def test_models() -> None:
    """Each has its own; one that was never started takes as long as the others."""
    times = learned(("runpod", "small", 20.0), ("runpod", "large", 90.0), ("runpod", NO_MODEL, 10.0))

    assert ReadyIn(20.0, 20.0) == times.ready_in("runpod", "small", 0.0)
    assert ReadyIn(90.0, 90.0) == times.ready_in("runpod", "large", 0.0)
    assert ReadyIn(10.0, 10.0) == times.ready_in("runpod", NO_MODEL, 0.0)
    assert ReadyIn(20.0, 76.0) == times.ready_in("runpod", "new", 0.0)


def test_the_ledger() -> None:
    """Its starts count for every model; not those that failed, nor pods that were found."""
    times = learned(("runpod", "small", 20.0))
    times.add_sessions([row("runpod", 40.0), row("runpod", None), row("runpod", 1.0, "adopted")])

    assert ReadyIn(30.0, 38.0) == times.ready_in("runpod", "small", 0.0)
    assert ReadyIn(40.0, 40.0) == times.ready_in("runpod", "large", 0.0)


@pytest.mark.parametrize("count", [KEPT_STARTS + 1, 10 * KEPT_STARTS])
def test_old_starts_are_forgotten(count: int) -> None:
    """The latest ones count."""
    times = learned(*[("runpod", "small", 1000.0)] * count, *[("runpod", "small", 50.0)] * KEPT_STARTS)

    assert ReadyIn(50.0, 50.0) == times.ready_in("runpod", "small", 0.0)


def test_models_without_end_are_forgotten() -> None:
    """A client that names another model each time fills no memory."""
    times = learned(*(("runpod", f"model-{number}", float(number)) for number in range(KEPT_MODELS + 1)))

    assert KEPT_MODELS == len(times._seconds)
    assert ReadyIn(100.0, 100.0) == times.ready_in("runpod", f"model-{KEPT_MODELS}", 0.0)
