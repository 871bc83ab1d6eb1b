"""A learning gateway in virtual time: what it does with habits, what it tells, what outlives it."""

from __future__ import annotations

import asyncio

import pytest
from attrs import define, field
from gpugate_testing.fakes import FakeCloud

from gpugate.core.commands import StopCause
from gpugate.core.idle_policy import IdleHistory, LearnedIdlePolicy
from gpugate.core.states import Status
from gpugate.lifecycle.status import StateChanged
from tests.lifecycle.support import Stage, play

HOUR_S = 3600.0
HOURLY = IdleHistory((3400.0,) * 40, (40.0,) * 9)


@define
class Notebook:
    """Habits in memory."""

    habits: IdleHistory = HOURLY
    saved: list[IdleHistory] = field(factory=list)

    def load(self) -> IdleHistory:
        return self.habits

    def save(self, habits: IdleHistory) -> None:
        self.saved.append(habits)


def learning(cloud: FakeCloud, notebook: Notebook) -> Stage:
    """A gateway that knows of somebody who comes every hour."""
    return Stage([cloud], warm_s=10.0, idle=LearnedIdlePolicy(900.0), habits=notebook)


def test_somebody_who_comes_every_hour() -> None:
    """The pod is let go a minute after each use, and ready before the next; nobody waits."""

    async def story() -> None:
        async with learning(FakeCloud(boot_s=30.0), Notebook()) as stage:
            await stage.ask(20.0)
            billed = stage.cloud.total_billed_s
            for _ in range(3):
                await asyncio.sleep(3400.0)
                before = stage.cloud.now
                await stage.ask(20.0)
                assert stage.cloud.now - before == 20.0
            hours = (stage.cloud.total_billed_s - billed) / 3
            assert hours == pytest.approx(20 + 60 + 85, abs=60)
            assert stage.cloud.starts == 4
            assert stage.sessions()[2] == "alpha opens: prewarm"

    play(story())


def test_what_the_status_says() -> None:
    """`stops_in_seconds` is the policy's word, and it is kept."""

    async def story() -> None:
        async with learning(FakeCloud(), Notebook()) as stage:
            await stage.ask(20.0)
            status = await stage.lifecycle.status()
            assert 60.0 == pytest.approx(status.stops_in_seconds)
            await asyncio.sleep(60.5)
            assert stage.lifecycle.current_status is Status.STOPPED

    play(story())


def test_a_restart_in_the_middle_of_a_pause() -> None:
    """The next gateway knows when the pod was wanted last, and is in time."""

    async def story() -> None:
        cloud, notebook = FakeCloud(boot_s=30.0), Notebook()
        async with learning(cloud, notebook) as stage:
            await stage.ask(20.0)
            await asyncio.sleep(100.0)
        saved = notebook.saved[-1]
        assert saved.last_demand_ago_s == pytest.approx(60.0)
        assert saved.gaps_s == HOURLY.gaps_s
        notebook.habits = IdleHistory(saved.gaps_s, saved.starts_s, saved.regret_budget, 1100.0)
        async with learning(cloud, notebook) as stage:
            await asyncio.sleep(3400.0 - 1100.0)
            assert stage.lifecycle.current_status is Status.READY
            assert cloud.starts == 2

    play(story())


def test_the_fixed_policy_saves_nothing() -> None:
    """There is nothing to save."""

    async def story() -> None:
        notebook = Notebook()
        async with Stage([FakeCloud()], {"idle_timeout": 900.0}, habits=notebook) as stage:
            await stage.ask(20.0)
            await asyncio.sleep(1000.0)
            assert stage.lifecycle.current_status is Status.STOPPED
        assert [] == notebook.saved

    play(story())


@pytest.mark.parametrize("idle_timeout", [2.0, 60.0])
def test_what_listeners_are_told_of_an_idle_stop(idle_timeout: float) -> None:
    """Its cause, and for how long the pod had not been used, also where nothing else happened meanwhile."""

    async def story() -> None:
        async with Stage([FakeCloud()], {"idle_timeout": idle_timeout}) as stage:
            await stage.ask(1)
            await asyncio.sleep(idle_timeout + 2)
            told = [news for news in stage.news if isinstance(news, StateChanged)]
            stops = [(news.now, news.stop_cause, news.idle_s) for news in told if news.stop_cause]
            assert [("Stopping", StopCause.IDLE, pytest.approx(idle_timeout))] == stops

    play(story())
