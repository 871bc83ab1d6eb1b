"""The sums of SQLite: split at midnight and at the month's turn, by whose seconds they were, and exact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from gpugate.billing import cost_math, sqlite_ledger
from gpugate.billing.cost_math import (
    IDLE,
    WARM_UP,
    CostBreakdown,
    CostGroup,
    CostQuery,
    TimeAndCost,
    TimeSpan,
)
from gpugate.billing.model import PodUsage, Session
from tests.billing.test_cost_math import HOUR, LATER, NOON, NOVEMBER, session, stretches, use


def bill(*sessions: Session, uses: Iterable[PodUsage] = (), **asked: object) -> CostBreakdown:
    """The sums of an SQLite ledger with these rows."""
    with closing(sqlite_ledger.connect(Path(":memory:"))) as database:
        sqlite_ledger.put_rows(database, sessions)
        sqlite_ledger.put_rows(database, list(uses))
        query = CostQuery(**{"span": NOVEMBER, "now": LATER, "currency": "USD", **asked})  # type: ignore[arg-type]
        return sqlite_ledger.cost_breakdown(database, query)


def test_a_session() -> None:
    """Rate times time, and whose it was."""
    row = session()
    told = bill(row, uses=[use(row, "ann", 10, 30), use(row, "bob", 60, 24)])

    assert (1, Decimal("1.2"), Decimal(7200)) == (told.sessions, told.total.cost, told.total.seconds)
    assert {
        "ann": Decimal("0.3"),
        "bob": Decimal("0.24"),
        WARM_UP: Decimal("0.06"),
        IDLE: Decimal("0.6"),
    } == {group.name: group.amount.cost for group in told.by_user}


def test_over_midnight() -> None:
    """Each day gets its own hours."""
    told = bill(session(datetime(2026, 11, 20, 23, tzinfo=UTC), 3))
    assert [("2026-11-20", Decimal(3600)), ("2026-11-21", Decimal(7200))] == [
        (group.name, group.amount.seconds) for group in told.by_day
    ]


def test_over_the_months_turn() -> None:
    """Each month gets its own part, the users' too."""
    row = session(datetime(2026, 11, 30, 23, tzinfo=UTC), 3)
    long = use(row, "ann", 30, 60)
    november, december = (
        bill(row, uses=[long], span=cost_math.month_span(month)) for month in ("2026-11", "2026-12")
    )
    assert (Decimal("0.6"), Decimal("1.2")) == (november.total.cost, december.total.cost)
    assert [Decimal(1800), Decimal(1800)] == [
        group.amount.seconds for told in (november, december) for group in told.by_user if group.name == "ann"
    ]


def test_another_zone() -> None:
    """Half past eleven in New York is the next day: days are UTC's."""
    begin = datetime.fromisoformat("2026-11-20T23:30:00-05:00")
    (day,) = bill(session(begin, 1)).by_day
    assert "2026-11-21" == day.name


def test_an_open_session() -> None:
    """It costs until now; with a clock that was set back, until its last sign of life, and never less."""
    row = session(ended_at=None)
    assert Decimal("0.6") == bill(row, now=NOON + HOUR).total.cost
    assert Decimal("0.06") == bill(row, now=NOON - HOUR).total.cost
    assert Decimal("0.3") == bill(evolve(row, seen_at=NOON + HOUR / 2), now=NOON - HOUR).total.cost
    assert Decimal(0) == bill(evolve(row, ready_at=None), now=NOON - HOUR).total.cost


def test_failed_starts() -> None:
    """Shown apart; one that was billed is in the whole, one that was refused cost nothing."""
    never_ready = session(ready_at=None, hours=0.5)
    refused = session(NOON + HOUR, started_at=None, ready_at=None, id="refused")
    told = bill(never_ready, refused)
    assert (1, Decimal("0.3")) == (told.sessions, told.total.cost)
    assert (2, Decimal("0.3")) == (told.failed_starts.sessions, told.failed_starts.amount.cost)
    assert [WARM_UP] == [group.name for group in told.by_user]


def test_the_disk_of_a_stopped_pod() -> None:
    """Between sessions and after the last, beside the whole; of no pod that was destroyed."""
    first = session(pod_id="a", stopped_rate=Decimal("0.01"))
    second = session(NOON + 10 * HOUR, pod_id="a", stopped_rate=Decimal("0.02"))
    gone = session(NOON - 10 * HOUR, pod_id="b")
    told = bill(gone, first, second, now=NOON + 22 * HOUR)
    assert Decimal("0.01") * 8 + Decimal("0.02") * 10 == told.stopped_disk.cost
    assert Decimal(6 * 3600) == told.total.seconds


def test_a_session_without_a_price() -> None:
    """Counted, at no cost, and said."""
    told = bill(session(hourly_rate=None))
    assert (1, 1, Decimal(0), Decimal(7200)) == (
        told.sessions,
        told.unpriced,
        told.total.cost,
        told.total.seconds,
    )


def test_another_currency() -> None:
    """Left out of every sum, and named."""
    told = bill(session(), session(NOON + 5 * HOUR, currency="EUR"))
    assert (1, ["EUR"]) == (told.sessions, told.other_currencies)


@settings(deadline=None)
@given(st.lists(stretches(), max_size=5))
def test_the_parts_are_the_whole(drawn: list[tuple[Session, list[PodUsage]]]) -> None:
    """By provider, day and user, in seconds and money, exactly, as they are shown."""
    told = bill(*(row for row, _ in drawn), uses=[one for _, uses in drawn for one in uses])
    for groups in (told.by_provider, told.by_day, told.by_user):
        shares = cost_math.rounded_groups(groups, told.total)
        assert told.total.cost.quantize(cost_math.QUANTUM) == sum((s.cost for s in shares), Decimal(0))
        hours = (told.total.seconds / 3600).quantize(cost_math.QUANTUM)
        assert hours == sum((s.hours for s in shares), Decimal(0))
        assert all(share.cost >= 0 and share.hours >= 0 for share in shares)


# --- a plain model of the same sums, session by session ------------------------------------------------

BERLIN = ZoneInfo("Europe/Berlin")


def modelled(rows: Sequence[Session], uses: Sequence[PodUsage], query: CostQuery) -> dict[str, object]:
    """What is to come out, of parsed rows."""
    sums: dict[str, dict[str, TimeAndCost]] = defaultdict(lambda: defaultdict(TimeAndCost))
    failed = sum(
        row.started_at is None and query.span.since <= row.asked_at < query.span.until for row in rows
    )
    for row in rows:
        part = cost_math.lifetime(row, query.now).within(query.span)
        if row.started_at is None or row.currency != query.currency or not part.seconds:
            continue
        amount = cost_math.cost_of(row, part)
        sums["provider"][row.provider] += amount
        sums["pod"][row.pod] += amount
        if row.ready_at is None and row.ended_at is not None:
            sums["failed"][""] += amount
            failed += 1
        for day, piece in part.days(query.zone):
            sums["day"][day.isoformat()] += cost_math.cost_of(row, piece)
        own = sorted(
            (use for use in uses if use.session_id == row.id), key=lambda use: (use.began_at, use.id)
        )
        for line in cost_math.receipt(row, own, query.now, query.span):
            sums["user"][line.user] += line.amount
    sums["disk"][""] += disks([row for row in rows if row.currency == query.currency], query)
    return {**{kind: shown(groups) for kind, groups in sums.items()}, "failures": failed}


def disks(rows: Sequence[Session], query: CostQuery) -> TimeAndCost:
    """From each session's end to the same pod's next, or to now."""
    whole = TimeAndCost()
    rows = sorted((row for row in rows if row.started_at), key=lambda row: (row.began_at, row.id))
    for index, row in enumerate(rows):
        if row.ended_at is not None and row.stopped_rate and row.began_at < query.span.until:
            nexts = [
                other.began_at
                for other in rows[index + 1 :]
                if (other.provider, other.pod_id) == (row.provider, row.pod_id)
                and other.began_at < query.span.until
            ]
            seconds = TimeSpan(row.ended_at, min(nexts, default=query.now)).within(query.span).seconds
            whole += TimeAndCost(seconds, row.stopped_rate * seconds / 3600)
    return whole


def shown(groups: dict[str, TimeAndCost]) -> dict[str, tuple[Decimal, Decimal]]:
    """To far more digits than are ever shown."""
    tiny = Decimal("1e-15")
    rounded = {
        name: (amount.seconds.quantize(tiny), amount.cost.quantize(tiny)) for name, amount in groups.items()
    }
    return {name: amount for name, amount in rounded.items() if amount[0]}


def summed(told: CostBreakdown) -> dict[str, object]:
    def of(groups: Sequence[CostGroup]) -> dict[str, tuple[Decimal, Decimal]]:
        return shown({group.name: group.amount for group in groups})

    whole = {
        "provider": of(told.by_provider),
        "pod": of(told.by_pod),
        "day": of(told.by_day),
        "user": of(told.by_user),
        "failed": of([told.failed_starts]),
        "disk": of([CostGroup(name="", amount=told.stopped_disk)]),
    }
    return {**whole, "failures": told.failed_starts.sessions}


@settings(deadline=None)
@given(
    st.lists(stretches(), max_size=6),
    st.sampled_from([UTC, BERLIN]),
    st.sampled_from([LATER, datetime(2026, 11, 20, 7, tzinfo=UTC)]),
    st.sampled_from([Decimal("0"), Decimal("0.01"), None]),
)
def test_the_sums_are_those_of_the_model(
    drawn: list[tuple[Session, list[PodUsage]]], zone: tzinfo, now: datetime, disk: Decimal | None
) -> None:
    """For any sessions and uses, also damaged clocks' ones, in two time zones, to fifteen digits."""
    rows = [
        evolve(
            row,
            pod=("main", "code")[index % 3 // 2],
            pod_id=str(index % 2),
            stopped_rate=disk,
            started_at=row.started_at if index != 3 else None,
        )
        for index, (row, _) in enumerate(drawn)
    ]
    uses = [use for _, found in drawn for use in found]
    query = CostQuery(span=cost_math.month_span("2026-11", zone), now=now, currency="USD", zone=zone)
    told = bill(*rows, uses=uses, span=query.span, now=now, zone=zone)

    empty = {kind: {} for kind in ("provider", "pod", "day", "user", "failed", "disk")}
    assert {**empty, **modelled(rows, uses, query)} == summed(told)
    assert shown({"": told.total}) == shown({"": sum((g.amount for g in told.by_provider), TimeAndCost())})


def test_only_what_cannot_be_added_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten thousand sessions the ledger hands out sums: rows are read for those that need it."""
    read: list[str] = []
    usage = sqlite_ledger._usage
    monkeypatch.setattr(
        sqlite_ledger, "_usage", lambda database, name: (read.append(name), usage(database, name))[1]
    )
    rows = [session(NOON - number * HOUR, 0.5, id=f"{number:05}") for number in range(10_000)]
    uses = [use(row, f"user {number % 7}", 10, 15) for number, row in enumerate(rows)]
    odd = evolve(rows[100], id="odd")
    told = bill(*rows, odd, uses=[*uses, use(odd, "ann", 10, 500)])

    assert ["odd"] == read
    november = sum(row.began_at >= NOVEMBER.since for row in rows)
    assert november + 1 == told.sessions
    assert Decimal("0.3") * (november + 1) == told.total.cost


def test_days_of_23_and_25_hours() -> None:
    """Where clocks change, a day is as long as it was, and the month sums to its hours."""
    year = session(datetime(2026, 1, 1, tzinfo=UTC), 366 * 24)
    for month, day, hours in (("2026-03", "2026-03-29", 23), ("2026-10", "2026-10-25", 25)):
        span = cost_math.month_span(month, BERLIN)
        told = bill(year, span=span, zone=BERLIN)
        assert hours * 3600 == {group.name: group.amount.seconds for group in told.by_day}[day]
        assert 31 == len(told.by_day)
        assert told.total.seconds == 31 * 24 * 3600 + (hours - 24) * 3600


def test_a_months_turn_in_another_zone() -> None:
    """Half an hour past midnight in Berlin is December there, and still November in UTC."""
    row = session(datetime(2026, 11, 30, 22, 30, tzinfo=UTC), 1)
    told = [
        bill(row, span=cost_math.month_span(month, BERLIN), zone=BERLIN) for month in ("2026-11", "2026-12")
    ]
    assert [[("2026-11-30", 1800)], [("2026-12-01", 1800)]] == [
        [(group.name, group.amount.seconds) for group in one.by_day] for one in told
    ]
    assert Decimal("0.6") == bill(row).total.cost
