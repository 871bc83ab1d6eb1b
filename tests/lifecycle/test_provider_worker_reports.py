"""Times and prices that cannot be so, from a plugin or its cloud: not believed, and told once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from attrs import define, evolve, field
from gpugate_testing.fakes import FakeCloud

from gpugate.lifecycle.provider_worker import ReportSanitizer
from gpugate.lifecycle.status import ProviderProblem, SessionStarted
from gpugate.provider_api import Phase, PodReport, Price
from tests.lifecycle.support import Stage, play

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
FIVE_MINUTES = timedelta(minutes=5)


@define
class Judge:
    """A judge at an hour of its own."""

    at_s: float = 0.0
    told: list[str] = field(factory=list)
    plausible: ReportSanitizer = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.plausible = ReportSanitizer(
            lambda: NOW + timedelta(seconds=self.at_s), lambda: 1000 + self.at_s, self.told.append
        )

    def started(self, at: datetime | None) -> datetime | None:
        """What is left of this word."""
        return self.plausible.sanitize_inspection(PodReport(Phase.RUNNING, started_at=at)).started_at


def test_a_report_that_can_be_so() -> None:
    """It is passed on as it is."""
    report = PodReport(Phase.RUNNING, price=Price(0.44), started_at=NOW - FIVE_MINUTES)  # type: ignore[arg-type]
    judge = Judge()

    assert judge.plausible.sanitize_inspection(report) is report
    assert judge.told == []


def test_a_run_that_began_before_the_last_one_ended() -> None:
    """The look that proved the stop is the earliest that the next run can have begun."""
    judge = Judge()
    judge.plausible.sanitize_inspection(PodReport(Phase.STOPPED))
    judge.at_s = 60.0

    assert judge.started(NOW - FIVE_MINUTES) == NOW
    assert judge.started(NOW + timedelta(seconds=10)) == NOW + timedelta(seconds=10)


def test_a_stop_that_the_provider_only_said() -> None:
    """An answer to start or stop proves nothing."""
    judge = Judge()
    judge.plausible.sanitize(PodReport(Phase.STOPPED))

    assert judge.started(NOW - FIVE_MINUTES) == NOW - FIVE_MINUTES


def test_a_run_that_begins_in_the_future() -> None:
    """The cloud's clock is ahead: as good as no word."""
    assert Judge().started(NOW + FIVE_MINUTES) is None


def test_a_run_since_1970() -> None:
    """A zero is no instant; nobody is billed for decades, and the plugin's author is told once."""
    judge = Judge()

    assert judge.started(datetime(1970, 1, 1, tzinfo=UTC)) is None
    assert judge.started(datetime(1970, 1, 2, tzinfo=UTC)) is None
    assert judge.told == ["it says that its pod runs since 1970-01-01: not believed"]


@pytest.mark.parametrize("amount", ["-0.01", "NaN", "sNaN", "Infinity", "-Infinity", "1000000.01"])
def test_a_price_that_nobody_pays(amount: str) -> None:
    """It is unknown instead, so that the configured rate counts."""
    judge = Judge()
    dear = PodReport(Phase.RUNNING, price=Price(Decimal(amount)))

    assert judge.plausible.sanitize_inspection(dear).price is None
    assert judge.plausible.sanitize_inspection(dear).price is None
    assert judge.told == [f"it says that its pod costs {Decimal(amount)} an hour: not believed"]


def test_a_disk_that_costs_less_than_nothing() -> None:
    """Only that part is unknown."""
    price = Price(Decimal("0.44"), Decimal(-1))

    judged = Judge().plausible.sanitize_inspection(PodReport(Phase.RUNNING, price=price)).price

    assert judged == Price(Decimal("0.44"))


class Boaster(FakeCloud):
    """Its reports are changed by `more`."""

    more: dict[str, Any] = {}

    def report(self) -> PodReport:
        return evolve(super().report(), **self.more)


def test_a_session_at_a_price_below_nothing() -> None:
    """Through the whole lifecycle: no cost is made up, a warning is told, and the pod serves."""

    async def story() -> None:
        cloud = Boaster()
        cloud.more = {"price": Price(Decimal(-3)), "started_at": datetime(2020, 1, 1, tzinfo=UTC)}
        async with Stage([cloud]) as stage:
            assert await stage.ask() == 1
            status = await stage.lifecycle.status()
            told = [news.message for news in stage.news if isinstance(news, ProviderProblem)]
            (began,) = (news for news in stage.news if isinstance(news, SessionStarted))

            assert status.hourly_rate is None
            assert status.estimated_cost is None
            assert began.report.started_at is None
            assert [line for line in told if "not believed" in line] == told
            assert len(told) == 2
            await asyncio.sleep(61)
            assert len([news for news in stage.news if isinstance(news, ProviderProblem)]) == 2

    play(story())
