"""Schedules: when a cron expression fires, also where summer time begins and ends, and what is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from attrs import define, field

from gpugate.config.schema import Schedule
from gpugate.core.events import Cause
from gpugate.core.states import StateName, Status
from gpugate.errors import BudgetExceeded
from gpugate.lifecycle.status import EventBus, LifecycleEvent, ProviderProblem, StateChanged
from gpugate.operation.schedules import ScheduleRunner, in_words, next_firing


def firings(cron: str, after: str, count: int = 2, zone: str = "Europe/Berlin") -> list[str]:
    """The next times, as local clocks show them."""
    found, instant = [], datetime.fromisoformat(after).astimezone(UTC)
    for _ in range(count):
        instant = next_firing(cron, ZoneInfo(zone), instant)
        found.append(instant.astimezone(ZoneInfo(zone)).strftime("%m-%d %H:%M %z"))
    return found


@pytest.mark.parametrize(
    ("cron", "after", "fires"),
    [
        ("0 8 * * 1-5", "2026-12-04T08:00+01:00", ["12-07 08:00 +0100", "12-08 08:00 +0100"]),
        ("30 2 * * *", "2026-03-28T12:00+01:00", ["03-29 03:00 +0200", "03-30 02:30 +0200"]),
        (
            "*/30 * * * *",
            "2026-03-29T01:15+01:00",
            ["03-29 01:30 +0100", "03-29 03:00 +0200", "03-29 03:30 +0200"],
        ),
        ("30 2 * * *", "2026-10-24T12:00+02:00", ["10-25 02:30 +0200", "10-26 02:30 +0100"]),
        ("30 2 * * *", "2026-10-25T02:10+01:00", ["10-26 02:30 +0100"]),
        ("0 3 * * *", "2026-10-25T02:30+02:00", ["10-25 03:00 +0100"]),
        ("0 8 29 2 *", "2026-01-01T00:00+01:00", ["02-29 08:00 +0100", "02-29 08:00 +0100"]),
    ],
)
def test_when_it_fires(cron: str, after: str, fires: list[str]) -> None:
    """By the local clock; a time that is skipped once, right after; one that comes twice once; leap days."""
    assert fires == firings(cron, after, len(fires))


def test_a_schedule_in_words() -> None:
    """What it does, and when next by the clock of its zone."""
    now = datetime(2026, 12, 4, 12, tzinfo=UTC)
    plain = Schedule(cron="0 8 * * 1-5")
    own = Schedule(cron="0 8 * * *", timezone="Asia/Tokyo", pod="code", model="llava", keep=7200)

    assert (
        "schedule 1 (0 8 * * 1-5): starts the pod and keeps it for 30m; next Mon 07 Dec 2026 08:00 (UTC)"
        == in_words(1, plain, "UTC", now)
    )
    assert (
        "schedule 2 (0 8 * * *): starts the pod code with llava and keeps it for 2h; "
        "next Sat 05 Dec 2026 08:00 (Asia/Tokyo)" == in_words(2, own, "UTC", now)
    )


@define
class FakeLifecycle:
    """A pod that can be started, unless `error` is set."""

    error: BudgetExceeded | None = None
    current_status: Status = Status.STOPPED
    asked: list[tuple[float, str | None]] = field(factory=list)

    def start_by_schedule(self, keep_s: float, model: str | None) -> None:
        if self.error is not None:
            raise self.error
        self.asked.append((keep_s, model))

    def status_now(self) -> None:
        return None


@define
class Stage:
    """A runner, its clock and what it published."""

    now: datetime = datetime(2026, 12, 1, 7, 59, 30, tzinfo=UTC)
    lifecycle: FakeLifecycle = field(factory=FakeLifecycle)
    heard: list[LifecycleEvent] = field(factory=list)
    bus: EventBus = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.bus = EventBus([self.heard.append])

    def runner(self, *schedules: Schedule) -> ScheduleRunner:
        """A runner with these schedules, in UTC."""
        made = ScheduleRunner(("", "main"), self.lifecycle, self.bus, lambda: self.now)  # type: ignore[arg-type]
        made.replace(schedules, "UTC")
        return made

    @property
    def alarms(self) -> list[str]:
        """What was told as an alarm."""
        return [one.message for one in self.heard if isinstance(one, ProviderProblem) and one.alarm]


EIGHT = Schedule(cron="0 8 * * *", keep=60.0, model="llava:13b")


def change(now: StateName) -> StateChanged:
    """The pod is in this state."""
    return StateChanged(
        was=StateName.STOPPED,
        now=now,
        was_status=None,
        status=None,
        cause=Cause.DEADLINE_REACHED,
        run_id=1,
        provider="fake",
        at=datetime.now(UTC),
    )


def test_it_fires_once() -> None:
    """At its time, late if the machine slept, and not again."""
    stage = Stage()
    runner = stage.runner(EIGHT)
    assert 30.0 == runner.fire_due()
    stage.now += timedelta(hours=5)
    runner.fire_due()
    runner.fire_due()

    assert [(60.0, "llava:13b")] == stage.lifecycle.asked


def test_a_new_schedule_makes_up_for_nothing() -> None:
    """What a reload brings fires from then on."""
    stage = Stage()
    runner = stage.runner()
    assert runner.fire_due() is None
    stage.now += timedelta(hours=5)
    runner.replace((EIGHT,), "UTC")
    runner.fire_due()

    assert [] == stage.lifecycle.asked


def test_a_refusal_is_an_alarm() -> None:
    """A spent budget is told."""
    stage = Stage(lifecycle=FakeLifecycle(error=BudgetExceeded("the budget is spent")))
    runner = stage.runner(EIGHT)
    stage.now += timedelta(minutes=1)
    runner.fire_due()

    assert ["schedule 1 (0 8 * * *) could not start the pod: the budget is spent"] == stage.alarms


@pytest.mark.parametrize(("ends", "alarms"), [(StateName.STOPPED, 1), (StateName.READY, 0)])
def test_a_failed_start_is_an_alarm(ends: StateName, alarms: int) -> None:
    """One alarm if the pod does not come up, none if it does and is stopped later."""
    stage = Stage()
    runner = stage.runner(EIGHT)
    stage.now += timedelta(minutes=1)
    runner.fire_due()
    for state in (StateName.CALLING_START, ends, StateName.STOPPED):
        stage.bus.publish(change(state))

    assert alarms == len(stage.alarms)
