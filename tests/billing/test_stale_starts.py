"""A provider that tells an old start time, over restarts: the ledger bounds it, and it is told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from attrs import define, evolve
from gpugate_testing.fakes import FakeCloud

from gpugate.billing.model import Session, StartTimeBound
from gpugate.lifecycle.provider_worker import ReportSanitizer
from gpugate.provider_api import Phase, PodReport
from tests.billing.ledger_house import BEGINNING, House, ask, off, play, seconds

NINE_DAYS = timedelta(days=9)
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@define
class Stale(FakeCloud):
    """Tells the start of a run of nine days ago."""

    def report(self) -> PodReport:
        return evolve(super().report(), started_at=BEGINNING - NINE_DAYS)


@define
class Honest(FakeCloud):
    """Tells when its pod began."""

    def report(self) -> PodReport:
        since = self._billed_since
        report = super().report()
        began = None if since is None else BEGINNING + timedelta(seconds=since)
        return evolve(report, started_at=began)


async def put_ended(house: House, provider: str = "alpha", *, ago_s: float = 60, **more: object) -> Session:
    """A session whose end was `ago_s` before now."""
    end = house.wall() - timedelta(seconds=ago_s)
    row = Session(
        id=f"0-{provider}",
        provider=provider,
        asked_at=end - timedelta(seconds=300),
        started_at=end - timedelta(seconds=299),
        ended_at=end,
        end_reason="idle",
        cost=Decimal("0.04"),
    )
    row = evolve(row, **more)
    await house.book.put(row)
    return row


def newest(house: House, provider: str = "alpha") -> Session:
    return [row for row in house.rows if row.provider == provider][-1]


def test_a_pod_that_is_found_after_a_proved_stop() -> None:
    """It is billed from that end at the earliest, and both instants are told, once."""

    async def story() -> None:
        house = House([Stale()])
        ended = await put_ended(house)
        house.clouds[0].turn_on()
        async with house.open() as lifecycle:
            await asyncio.sleep(0.1)
            await off(lifecycle)
        row = newest(house)
        assert row.start_reason == "adopted"
        assert row.started_at == ended.ended_at
        (told,) = house.heard
        assert f"{BEGINNING - NINE_DAYS:%F %T} UTC" in told
        assert f"{ended.ended_at:%F %T} UTC" in told

    play(story)


def test_only_the_same_provider_bounds() -> None:
    """A session at the other provider says nothing of when this one's pod began."""

    async def story() -> None:
        house = House([Honest(), FakeCloud()])
        house.clouds[0].turn_on()
        await asyncio.sleep(100)
        await put_ended(house, "beta", ago_s=1)
        async with house.open() as lifecycle:
            await asyncio.sleep(0.1)
            await off(lifecycle)
        assert newest(house).started_at == BEGINNING
        assert [line for line in house.heard if "not believed" in line] == []

    play(story)


@pytest.mark.parametrize("first_s", [0.0, 3600.0], ids=["the first session", "a later one"])
@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
def test_a_crash_in_mid_session(boot: str, first_s: float) -> None:
    """The row that is open knows when it began: the old word makes it no longer."""

    async def story() -> None:
        house = House([Stale(boot_s=10, stop_s=5)])
        if first_s:
            await put_ended(house, ago_s=first_s)
        async with house.crashes() as lifecycle:
            await ask(lifecycle)
        await asyncio.sleep(50)
        house.boot = boot
        async with house.open() as lifecycle:
            await off(lifecycle)
        assert seconds(newest(house)) == pytest.approx(house.clouds[0].total_billed_s, rel=0.02)
        assert any(f"{BEGINNING - NINE_DAYS:%F %T}" in line for line in house.heard)

    play(story)


def test_a_crash_right_after_the_intent() -> None:
    """The intent was on disk before the provider was called: no run of it is older."""

    async def story() -> None:
        house = House([Stale()])
        await house.book.put(Session(id="1", provider="alpha", asked_at=BEGINNING, start_reason="request"))
        house.clouds[0].turn_on()
        await asyncio.sleep(5)
        async with house.open() as lifecycle:
            await off(lifecycle)
        (row,) = house.rows
        assert seconds(row) == pytest.approx(house.clouds[0].total_billed_s, rel=0.02)

    play(story)


def test_a_pod_that_others_started_right_before_us() -> None:
    """The look that saw it off is older than the intent: the provider's word counts."""

    async def story() -> None:
        house = House([Honest()])
        house.clouds[0].turn_on()
        await asyncio.sleep(100)
        asked = BEGINNING + timedelta(seconds=95)
        await house.book.put(
            Session(id="1", provider="alpha", asked_at=asked, started_at=asked, start_reason="request")
        )
        async with house.open() as lifecycle:
            await off(lifecycle)
        (row,) = house.rows
        assert row.started_at == BEGINNING

    play(story)


def test_a_start_of_ours_hours_after_the_last_session() -> None:
    """It is billed from when it was asked for, not from the end of the last session."""

    async def story() -> None:
        house = House([Stale(boot_s=10, stop_s=5)])
        await put_ended(house, ago_s=7200)
        async with house.open() as lifecycle:
            await asyncio.sleep(40)
            await ask(lifecycle)
            await off(lifecycle)
        assert seconds(newest(house)) == pytest.approx(house.clouds[0].total_billed_s, abs=2)
        assert 1 == len(house.heard)

    play(story)


def test_a_row_whose_end_was_an_estimate() -> None:
    """A pod that ran on behind a closed row is billed from where that row ended: no second twice or never."""

    async def story() -> None:
        house = House([Honest()])
        house.clouds[0].turn_on()
        await asyncio.sleep(600)
        seen = BEGINNING + timedelta(seconds=200)
        await put_ended(
            house, started_at=BEGINNING, seen_at=seen, ended_at=seen, end_reason="not configured any more"
        )
        async with house.open() as lifecycle:
            await off(lifecycle)
        before, row = house.rows
        assert row.started_at == before.ended_at
        assert seconds(before) + seconds(row) == pytest.approx(house.clouds[0].total_billed_s, abs=2)

    play(story)


def test_a_refused_start_bounds_nothing() -> None:
    """A row that cost nothing may have ended while a pod ran."""

    async def story() -> None:
        house = House([Honest()])
        house.clouds[0].turn_on()
        await asyncio.sleep(600)
        await put_ended(house, ago_s=1, started_at=None, cost=Decimal(0))
        async with house.open() as lifecycle:
            await off(lifecycle)
        assert newest(house).started_at == BEGINNING

    play(story)


def test_a_calendar_that_was_set_back() -> None:
    """The last end lies in the future then: a pod that is found is billed from now on, never less."""

    async def story() -> None:
        house = House([Stale()])
        await put_ended(house)
        house.set_back = timedelta(hours=1)
        house.clouds[0].turn_on()
        async with house.open() as lifecycle:
            await off(lifecycle)
        row = newest(house)
        assert 0 < seconds(row) == pytest.approx(house.clouds[0].total_billed_s, abs=2)

    play(story)


def test_an_adopted_pod_whose_start_is_told_late() -> None:
    """Found by a gateway that heard no start time, then by one that does: the real beginning counts."""

    async def story() -> None:
        house = House([Honest()])
        house.clouds[0].turn_on()
        await asyncio.sleep(100)
        found = BEGINNING + timedelta(seconds=50)
        await house.book.put(
            Session(id="1", provider="alpha", asked_at=found, started_at=found, start_reason="adopted")
        )
        async with house.open() as lifecycle:
            await off(lifecycle)
        (row,) = house.rows
        assert row.started_at == BEGINNING

    play(story)


@pytest.mark.parametrize(
    ("said", "believed"),
    [
        (-30.0, 0.0),
        (-1.0, 0.0),
        (0.0, 0.0),
        (5.0, 5.0),
    ],
)
def test_the_bound_of_the_ledger(said: float, believed: float) -> None:
    """Exactly; a second too early is set right, and no news."""
    told: list[str] = []
    bound = StartTimeBound(earliest=NOW, source="it ended")
    plausible = ReportSanitizer(
        lambda: NOW + timedelta(seconds=60), lambda: 1060.0, told.append, lambda _: bound
    )
    report = PodReport(Phase.RUNNING, started_at=NOW + timedelta(seconds=said))

    for _ in range(2):
        assert plausible.sanitize_inspection(report).started_at == NOW + timedelta(seconds=believed)
    assert (said < -2) is (len(told) == 1)


def test_a_stopped_pod_that_tells_its_last_start() -> None:
    """That is true, and no news."""
    told: list[str] = []
    bound = StartTimeBound(earliest=NOW, source="it ended")
    plausible = ReportSanitizer(
        lambda: NOW + timedelta(seconds=60), lambda: 1060.0, told.append, lambda _: bound
    )
    plausible.sanitize_inspection(PodReport(Phase.STOPPED, started_at=NOW - NINE_DAYS))
    assert told == []
