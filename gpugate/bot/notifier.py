"""Tells news, unasked, to the chats that want them: a listener of the lifecycle; knows no messenger.

Telling takes as long as the messenger takes, in a task of its own: the pod's life never waits for it.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Protocol

from gpugate.bot import messages, notification_text
from gpugate.core.states import Status
from gpugate.errors import LedgerError
from gpugate.lifecycle.event_bus import (
    BudgetCrossed,
    News,
    ProviderTrouble,
    SessionBegan,
    SessionEnded,
    Transition,
)
from gpugate.tasks import CrashListener, Supervised, report_crash

SUMMARY_AT = time(9, 0)
"""When the daily summary comes, by this machine's own clock; only if there was a session since the last."""

REPEAT_S = 3600.0
"""A start that fails as the last one did is told of again after so long: clients may ask every minute."""

MOST_UNTOLD = 100
"""News that wait for a messenger; of more the oldest are dropped."""

TELL_S = 60.0
"""How long one chat may take for one message."""

LOOK_S = 600.0
"""The clock is looked at so often at least: it may be put forward, or the machine may sleep."""

CALLED_OFF = frozenset(
    {"ManualStopRequested", "ShutdownRequested", "ForcedShutdownRequested", "RequestFinished"}
)
"""Events that end a start without its having failed."""

Tell = Callable[[str, str], Awaitable[None]]
"""Send a text to a chat."""


class DailyCosts(Protocol):
    """What the summary needs of `billing.reports`."""

    async def sessions(self, since: datetime | None, until: datetime | None) -> Sequence[object]:
        """Those that began between."""

    async def spent(self, since: datetime, until: datetime) -> Decimal:
        """What was spent between."""

    async def summary(self, month: str | None = None) -> messages.Summary:
        """The month."""


def _now() -> datetime:
    return datetime.now(UTC)


class Notifier:
    """Tells each of the chats each piece of news, once.

    Args:
        chats: `bot.news`.
        tell: the messenger's.
        costs: for the daily summary.
        currency: `cost.currency`.
        user_of: who wanted the session that is open at this provider; "" where that is not known.
    """

    def __init__(
        self,
        *,
        chats: Sequence[str],
        tell: Tell,
        costs: DailyCosts,
        currency: str = "USD",
        user_of: Callable[[str], str] = lambda provider: "",
        wall: Callable[[], datetime] = _now,
        on_crash: CrashListener | None = None,
    ) -> None:
        self._chats = tuple(chats)
        self._tell = tell
        self._costs = costs
        self._currency = currency
        self._user_of = user_of
        self._wall = wall
        self._on_crash = on_crash
        self._untold: deque[News | str] = deque(maxlen=MOST_UNTOLD)
        self._something = asyncio.Event()
        self._all_told = asyncio.Event()
        self._trouble = ""
        self._alarms: set[tuple[str, str]] = set()
        self._failed: tuple[str, datetime] | None = None
        self._tasks: tuple[Supervised, ...] = ()

    def open(self) -> None:
        """Begin to tell; without chats there is nothing to do."""
        if self._chats:
            self._tasks = (
                Supervised(self._tell_on, "tells news", on_crash=self._on_crash),
                Supervised(self._sum_up_daily, "sums up the day", on_crash=self._on_crash),
            )

    async def aclose(self, patience_s: float = 5.0) -> None:
        """Tell what is left, for so long, and end."""
        if self._tasks:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._all_told.wait()
            await asyncio.gather(*(task.aclose() for task in self._tasks))

    # --- what is news -------------------------------------------------------------------------

    def on_event(self, news: News) -> None:
        """Listen to the lifecycle and the budget."""
        if self._chats and (item := self._worth_telling(news)) is not None:
            self._put(item)

    def _put(self, item: News | str) -> None:
        self._untold.append(item)
        self._all_told.clear()
        self._something.set()

    def _worth_telling(self, news: News) -> News | str | None:
        match news:
            case SessionBegan() | SessionEnded():
                self._alarms = {known for known in self._alarms if known[0] != news.provider}
                return news
            case BudgetCrossed():
                return news
            case ProviderTrouble():
                self._trouble = f"{news.provider}: {news.message}"
                return news if news.alarm and self._is_new(news) else None
            case Transition():
                return self._all_clear(news) or self._failed_start(news)
            case _:
                return None

    def _all_clear(self, news: Transition) -> str | None:
        """A stop that an earlier gateway had ordered is seen; no session ends with it."""
        if news.cause == "GatewayStarted" and news.status is Status.STOPPING and news.provider is not None:
            self._alarms.add((news.provider, ""))  # that gateway may have ended with one
        seen = news.was_status is Status.STOPPING and news.status is Status.STOPPED
        alarms = {known for known in self._alarms if known[0] == news.provider}
        if not seen or not alarms or news.provider is None:
            return None
        self._alarms -= alarms
        return notification_text.all_clear(news.provider)

    def _is_new(self, news: ProviderTrouble) -> bool:
        """An alarm is repeated only after its provider's session ended or another began."""
        alarm = news.provider, _without_numbers(news.message)
        known = alarm in self._alarms
        self._alarms.add(alarm)
        return not known

    def _failed_start(self, news: Transition) -> str | None:
        """A start that ended in nothing; its trouble was told before the step."""
        if news.was_status is Status.STOPPED and news.status is Status.STARTING:
            self._trouble = ""
        was_starting = news.was_status in (Status.STARTING, Status.WARMING)
        over = was_starting and news.status in (Status.STOPPED, Status.STOPPING)
        if not over or news.cause in CALLED_OFF:
            return None
        text, was = _without_numbers(self._trouble), self._failed
        if was is not None and was[0] == text and (news.at - was[1]).total_seconds() < REPEAT_S:
            return None
        self._failed = text, news.at
        return notification_text.start_failed(self._trouble)

    # --- telling ------------------------------------------------------------------------------

    async def _tell_on(self) -> None:
        while True:
            while self._untold:
                text = self._text(self._untold.popleft())
                for chat in self._chats:
                    await self._tell_one(chat, text)
            self._something.clear()
            self._all_told.set()
            await self._something.wait()

    async def _tell_one(self, chat: str, text: str) -> None:
        try:
            async with asyncio.timeout(TELL_S):
                await self._tell(chat, text)
        except Exception as error:  # the next chat is told all the same
            report_crash("news for a chat", error, self._on_crash)

    def _text(self, news: News | str) -> str:
        match news:
            case SessionBegan():
                return notification_text.began(news, self._user_of(news.provider), self._currency)
            case SessionEnded():
                return notification_text.ended(news, self._currency)
            case BudgetCrossed():
                return notification_text.budget(news, self._currency)
            case ProviderTrouble():
                return notification_text.alarm(news)
            case _:
                return str(news)

    # --- every day ----------------------------------------------------------------------------

    async def _sum_up_daily(self) -> None:
        since, due = summary_times(self._wall())
        while True:
            left_s = (due - self._wall()).total_seconds()
            await asyncio.sleep(max(0.0, min(left_s, LOOK_S)))
            if self._wall() >= due:
                await self._sum_up(since, due)
                since, due = summary_times(self._wall())

    async def _sum_up(self, since: datetime, until: datetime) -> None:
        try:
            text = await self._summary(since, until)
        except LedgerError as error:
            report_crash("the daily summary", error, self._on_crash)
        else:
            if text:
                self._put(text)

    async def _summary(self, since: datetime, until: datetime) -> str:
        """Of the day that ended; empty where nothing was paid for."""
        sessions = await self._costs.sessions(since, until)
        spent = await self._costs.spent(since, until)
        if not sessions and not spent:
            return ""
        return notification_text.daily(len(sessions), spent, await self._costs.summary(), self._currency)


def _without_numbers(text: str) -> str:
    """For comparison: "try 3" is nothing new after "try 2"."""
    return re.sub(r"\d+", "", text)


def summary_times(now: datetime) -> tuple[datetime, datetime]:
    """The begin and the end of the day that is summed up next, by local clock, in UTC."""
    today = now.astimezone().date()
    due = _local(today)
    if due <= now:
        today += timedelta(days=1)
        due = _local(today)
    return _local(today - timedelta(days=1)), due


def _local(day: date) -> datetime:
    return datetime.combine(day, SUMMARY_AT).astimezone(UTC)  # a naive time is this machine's
