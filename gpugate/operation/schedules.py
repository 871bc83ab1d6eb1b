"""Schedules: the pod is started at given times and kept for a while (docs/rules.md#schedules).

When the clock is put forward over a time, it fires once, right after; a time that comes twice fires once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from gpugate.config.schema import Schedule
from gpugate.config.units import show_duration
from gpugate.core.commands import StopCause
from gpugate.core.states import StateName, Status
from gpugate.errors import GateError
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.status import EventBus, LifecycleEvent, ProviderProblem, StateChanged
from gpugate.tasks import CrashHandler, Supervised

RECHECK_S = 30.0
"""Longest sleep: the wall clock may be set, and the machine may have been asleep."""

_LONGEST_GAP = timedelta(hours=25)
"""More than any change of a zone's offset."""


def next_firing(cron: str, zone: ZoneInfo, after: datetime) -> datetime:
    """Return the first instant after `after`, in UTC, at which a cron expression of this zone fires."""
    from croniter import croniter  # type: ignore[import-untyped, unused-ignore]  # not needed without schedules

    walls = croniter(cron, after.astimezone(zone).replace(tzinfo=None) - _LONGEST_GAP)
    while (instant := _instant(walls.get_next(datetime), zone)) <= after:
        pass
    return instant


def in_words(number: int, schedule: Schedule, default_zone: str, now: datetime) -> str:
    """Return what a schedule does and when next, for `gpugate check`."""
    zone = schedule.timezone or default_zone
    next_one = next_firing(schedule.cron, ZoneInfo(zone), now).astimezone(ZoneInfo(zone))
    pod = f"the pod {schedule.pod}" if schedule.pod else "the pod"
    model = f" with {schedule.model}" if schedule.model else ""
    does = f"starts {pod}{model} and keeps it for {show_duration(schedule.keep)}"
    return f"schedule {number} ({schedule.cron}): {does}; next {next_one:%a %d %b %Y %H:%M} ({zone})"


def _instant(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return when a wall clock of this zone first shows this time; if it skips it, when it jumps over it."""
    first = wall.replace(tzinfo=zone).astimezone(UTC)
    if first.astimezone(zone).replace(tzinfo=None) == wall:
        return first
    low, high = wall.replace(tzinfo=zone, fold=1).astimezone(UTC), first
    while high - low > timedelta(seconds=1):  # the jump is between the two readings of the time
        middle = low + (high - low) / 2
        jumped = middle.astimezone(zone).utcoffset() == high.astimezone(zone).utcoffset()
        low, high = (low, middle) if jumped else (middle, high)
    return high.replace(microsecond=0)


class ScheduleRunner:
    """Starts one pod at the times of the schedules, and raises an alarm where it does not come up.

    Args:
        pods: the values of a schedule's `pod` that mean this pod.
        wall: the wall clock, aware.
    """

    def __init__(
        self,
        pods: Collection[str],
        lifecycle: Lifecycle,
        events: EventBus,
        wall: Callable[[], datetime],
        on_crash: CrashHandler | None = None,
    ) -> None:
        self._pods = pods
        self._lifecycle = lifecycle
        self._events = events
        self._wall = wall
        self._on_crash = on_crash
        self._schedules: Sequence[tuple[str, Schedule, ZoneInfo]] = ()
        self._since = wall()
        self._replaced = asyncio.Event()
        self._awaited = ""  # the schedule whose start is under way
        self._listens = False
        self._task: Supervised | None = None

    def replace(self, schedules: Iterable[Schedule], default_zone: str) -> None:
        """Put those of these schedules that mean this pod in force, from now on."""
        if self._task is not None:
            self.fire_due()
        self._since = self._wall()
        self._schedules = [
            (f"schedule {number} ({one.cron})", one, ZoneInfo(one.timezone or default_zone))
            for number, one in enumerate(schedules, 1)
            if one.pod in self._pods
        ]
        self._replaced.set()

    async def start(self) -> None:
        """Begin; what the time before was scheduled for is not made up for."""
        self._since = self._wall()
        self._task = Supervised(self._run, "schedules", on_crash=self._on_crash)

    async def aclose(self) -> None:
        """Fire no more."""
        if self._task is not None:
            await self._task.aclose()

    async def _run(self) -> None:
        while True:
            self._replaced.clear()
            pause_s = self.fire_due()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._replaced.wait()

    def fire_due(self) -> float | None:
        """Fire each schedule that is due, once; return the seconds until this is to be called again."""
        if not self._schedules:
            self._since = self._wall()
            return None
        since, now = self._since, self._wall()
        self._since = now
        for title, schedule, zone in self._schedules:
            if next_firing(schedule.cron, zone, since) <= now:
                self._fire(title, schedule)
        ahead = min(next_firing(one.cron, zone, now) for _, one, zone in self._schedules)
        return min(RECHECK_S, (ahead - now).total_seconds())

    def _fire(self, title: str, schedule: Schedule) -> None:
        if not self._listens:  # not before: without schedules no event need come here
            self._listens = True
            self._events.subscribe(self._on_event)
        self._awaited = title
        try:
            self._lifecycle.start_by_schedule(schedule.keep, schedule.model or None)
        except GateError as error:
            self._awaited = ""
            self._alarm(title, error.message)
            return
        if self._lifecycle.current_status is Status.READY:
            self._awaited = ""

    def _on_event(self, event: LifecycleEvent) -> None:
        """Notice how the start that a schedule wanted ends."""
        if not self._awaited or not isinstance(event, StateChanged):
            return
        by_hand = event.stop_cause in (StopCause.MANUAL, StopCause.FORCED, StopCause.SHUTDOWN)
        if event.now in (StateName.READY, StateName.SHUT_DOWN) or by_hand:
            self._awaited = ""
        elif event.now is StateName.STOPPED:
            title, self._awaited = self._awaited, ""
            status = self._lifecycle.status_now()
            self._alarm(title, (status and status.last_error) or "the start failed")

    def _alarm(self, title: str, why: str) -> None:
        status = self._lifecycle.status_now()
        self._events.publish(
            ProviderProblem(
                provider=(status and status.provider) or "the provider",
                message=f"{title} could not start the pod: {why}",
                reason="schedule",
                alarm=True,
                at=self._wall(),
            )
        )
