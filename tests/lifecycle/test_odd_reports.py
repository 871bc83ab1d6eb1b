"""Reports and errors of a plugin that are not quite what the port says, in virtual time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from gpugate_testing.fakes import FakeCloud

from gpugate.core.states import Status
from gpugate.errors import NoCapacity, Transient
from gpugate.lifecycle.status import ProviderProblem
from gpugate.provider_api import Phase, PodReport, Price
from tests.lifecycle.support import Stage, play


def test_values_that_are_nearly_right() -> None:
    """Money as a float, an id as a number, seconds since 1970, no endpoints: each is understood."""
    odd: dict[str, Any] = {"pod_id": 7, "endpoints": None, "price": 0.44, "started_at": 0}
    report = PodReport("running", **odd)

    assert report == PodReport(
        Phase.RUNNING, "7", {}, Price(Decimal("0.44")), started_at=datetime(1970, 1, 1, tzinfo=UTC)
    )
    floats: dict[str, Any] = {"running_per_hour": 0.1, "stopped_per_hour": "0.02"}
    assert Price(**floats) == Price(Decimal("0.1"), Decimal("0.02"))


class Forgetful(Transient):
    """A plugin's own error that does not call ours."""

    def __init__(self) -> None:
        Exception.__init__(self, "it broke")


def test_an_error_that_forgot_its_message() -> None:
    """It is an error like any other, and the next command goes out."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            stage.cloud.fail("start", Forgetful())
            assert await stage.ask() == 1
            told = [news.message for news in stage.news if isinstance(news, ProviderProblem)]
            assert told == ["it broke"]

    play(story())


def test_a_second_pod_that_is_billed() -> None:
    """The alarm of a report is told once, whatever the pod's phase."""

    async def story() -> None:
        async with Stage([FakeCloud()]) as stage:
            await stage.ask()
            said = PodReport(
                Phase.RUNNING, endpoints=stage.cloud.report().endpoints, alarm="another one: xyz"
            )
            stage.cloud.fail("inspect", said, said)
            await asyncio.sleep(61)
            told = [news for news in stage.news if isinstance(news, ProviderProblem)]
            assert [(news.message, news.alarm) for news in told] == [("another one: xyz", True)]
            assert stage.lifecycle.current_status is Status.READY

    play(story())


def test_a_queued_start_that_nobody_waits_for() -> None:
    """The only client hangs up: the start is cancelled at the provider instead of firing for nobody."""

    async def story() -> None:
        cloud = FakeCloud()
        async with Stage([cloud], {"capacity_wait": 3600.0}) as stage:
            cloud.fail("start", NoCapacity(queued=True))
            cloud.fail("inspect", *(PodReport(Phase.QUEUED) for _ in range(30)))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stage.ask(), 5)
            await asyncio.sleep(60)
            assert cloud.calls.count("stop") >= 1
            assert stage.lifecycle.current_status is Status.STOPPED
            assert cloud.total_billed_s == 0

    play(story())
