"""What sessions cost: split at midnight and at the month's turn, and by whose seconds they were."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from gpugate.billing import cost_math
from gpugate.billing.cost_math import IDLE, WARM_UP, TimeSpan
from gpugate.billing.model import PodUsage, Session

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
NOVEMBER = cost_math.month_span("2026-11")
LATER = datetime(2027, 6, 1, tzinfo=UTC)


def session(begin: datetime = NOON, hours: float = 2, **more) -> Session:
    fields = {
        "id": f"{begin:%d%H%M}",
        "provider": "runpod",
        "asked_at": begin,
        "started_at": begin,
        "ready_at": begin + timedelta(minutes=6),
        "ended_at": begin + timedelta(hours=hours),
        "hourly_rate": Decimal("0.60"),
        "end_reason": "idle",
    }
    return Session(**{**fields, **more})


def use(of: Session, user: str, after_min: float, minutes: float, name: str = "r") -> PodUsage:
    begin = of.began_at + timedelta(minutes=after_min)
    return PodUsage(
        session_id=of.id,
        id=f"{name}-{user}",
        request_id=name,
        user=user,
        began_at=begin,
        ended_at=begin + timedelta(minutes=minutes),
        seconds=Decimal(str(minutes * 60)),
    )


@pytest.mark.parametrize(
    ("month", "days"), [("2028-02", 29), ("2026-02", 28), ("2026-12", 31), ("2026-04", 30)]
)
def test_a_month(month: str, days: int) -> None:
    """Leap years and the year's end."""
    span = cost_math.month_span(month)
    assert days == (span.until - span.since).days
    assert days == len(list(span.days()))


def test_a_receipt() -> None:
    """Each second is a request's, warm-up, or idle."""
    row = session()
    lines = cost_math.receipt(row, [use(row, "ann", 10, 30, "r-1"), use(row, "ann", 50, 6, "r-2")], LATER)
    assert [(WARM_UP, 360), ("ann", 1800), ("ann", 360), (IDLE, 4680)] == [
        (line.user, line.amount.seconds) for line in lines
    ]


def test_uses_that_claim_more_than_there_was() -> None:
    """A ledger that is wrong does not make the parts more than the whole."""
    row = session()
    lines = cost_math.receipt(row, [use(row, "ann", 10, 500), use(row, "bob", 10, 500)], LATER)
    assert Decimal(7200) == sum(line.amount.seconds for line in lines)


MOMENTS = st.integers(0, 40 * 24 * 3600 * 1000).map(
    lambda ms: datetime(2026, 10, 25, tzinfo=UTC) + timedelta(milliseconds=ms)
)


@st.composite
def stretches(draw: st.DrawFn) -> tuple[Session, list[PodUsage]]:
    """A session with its uses, somewhere around November."""
    begin, end = sorted((draw(MOMENTS), draw(MOMENTS)))
    ready = draw(st.none() | st.floats(0, 1).map(lambda at: begin + at * (end - begin)))
    row = session(
        begin,
        0,
        id=str(draw(st.uuids())),
        provider=draw(st.sampled_from(["runpod", "vastai"])),
        ended_at=draw(st.sampled_from([end, None])),
        ready_at=ready,
        hourly_rate=draw(st.none() | st.decimals(0, 9, places=4)),
    )
    found = []
    for number in range(draw(st.integers(0, 4))):
        from_s, long_s = draw(st.floats(0, 1e6)), draw(st.floats(0, 1e5))
        one = use(row, draw(st.sampled_from(["ann", "bob"])), from_s / 60, long_s / 60, f"r-{number}")
        found.append(evolve(one, seconds=one.seconds / draw(st.integers(1, 3))))
    return row, found


@given(stretches())
def test_a_receipt_is_the_whole(drawn: tuple[Session, list[PodUsage]]) -> None:
    """Of any session: the lines sum to its seconds."""
    row, uses = drawn
    whole = cost_math.lifetime(row, LATER).seconds
    lines = cost_math.receipt(row, uses, LATER)
    assert abs(whole - sum((line.amount.seconds for line in lines), Decimal(0))) < Decimal("1e-9")


@given(st.lists(st.decimals(0, 100, places=9), min_size=1, max_size=9))
def test_apportion(parts: list[Decimal]) -> None:
    """Nobody is off by more than the smallest unit, and together they are right."""
    cent = Decimal("0.01")
    shown = cost_math.round_to_total(sum(parts, Decimal(0)), parts, cent)
    assert sum(parts, Decimal(0)).quantize(cent) == sum(shown)
    assert all(abs(was - now) <= cent for was, now in zip(parts, shown, strict=True))


def test_days_of_nothing() -> None:
    """The wrong way round is no time at all."""
    assert Decimal(0) == TimeSpan(NOON, NOON - HOUR).seconds
    assert date(2026, 11, 21) == next(TimeSpan(NOON, NOON + HOUR).days())[0]
