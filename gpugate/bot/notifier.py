"""Notifies the chats of `bot.news`, or what `notify.urls` names, of what happens to the pod and its cost.

Sending takes as long as the messenger takes, so it happens in a task of its own and never delays the pod.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import partial

from gpugate.billing.model import BY_HAND
from gpugate.billing.reports import CostQueries, CostSummary
from gpugate.bot.messages import duration, sentences, shorten, start_failed
from gpugate.core.events import Cause
from gpugate.core.states import Status
from gpugate.errors import LedgerError
from gpugate.lifecycle.status import (
    BudgetThresholdCrossed,
    LifecycleEvent,
    ProviderProblem,
    SessionEnded,
    SessionStarted,
    StateChanged,
)
from gpugate.tasks import CrashHandler, Supervised, report_crash
from gpugate.wording import count, money

SUMMARY_AT = time(9, 0)
"""When the daily summary is sent, by this machine's clock; only if there was a session since the last one."""

REPEAT_FAILURE_S = 3600.0
"""A start that fails with the same text as the last one is notified again after this time."""

MAX_PENDING = 100
"""Notifications that wait to be sent; of more the oldest are dropped."""

SEND_TIMEOUT_S = 60.0
"""For one notification to one chat."""

CLOCK_CHECK_S = 600.0
"""The clock is read at least this often: it may be set, or the machine may sleep."""

CALLED_OFF = frozenset(
    {
        Cause.MANUAL_STOP_REQUESTED,
        Cause.SHUTDOWN_REQUESTED,
        Cause.FORCED_SHUTDOWN_REQUESTED,
        Cause.REQUEST_FINISHED,
    }
)
"""Events that end a start although it has not failed."""

STOP_REASONS = {
    "idle": "nobody used it",
    "hand": "somebody stopped it by hand",
    "forced": "somebody stopped it by hand",
    "shutdown": "the gateway shut down",
    "max_session": "the session was as long as it may be",
    "queued": "its GPU is taken, and the provider lets it wait for another",
    "lost": "it was stopped from outside, or lost",
    "start_failed": "the start failed",
    "stray": "it ran beside the one that is used",
    "restart": "it was still to be stopped when the gateway went down",
}
"""Why a session ended, by the causes that the lifecycle names."""

_KINDS: Mapping[type, str] = {
    SessionStarted: "started",
    SessionEnded: "stopped",
    BudgetThresholdCrossed: "budget",
    ProviderProblem: "alarm",
}

Send = Callable[[str, str], Awaitable[None]]
"""Sends a text to a chat."""


class Notifier:
    """Sends each notification once to each chat.

    Args:
        chats: `bot.news`, or names of other recipients.
        send: of the messenger.
        kinds: which notifications are sent: those of `notify.events`; None for all.
        costs: for the daily summary.
        user_of: returns, by pod and provider, who caused the session that is open there; "" if unknown.
        names_pods: each text begins with the pod that it is about: there are several.
        wall: the calendar's time.
    """

    def __init__(
        self,
        *,
        chats: Sequence[str],
        send: Send,
        costs: CostQueries,
        currency: str = "USD",
        user_of: Callable[[str, str], str] = lambda pod, provider: "",
        names_pods: bool = False,
        kinds: Collection[str] | None = None,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_crash: CrashHandler | None = None,
    ) -> None:
        self._chats = tuple(chats)
        self._send = send
        self._costs = costs
        self._currency = currency
        self._user_of = user_of
        self._names_pods = names_pods
        self._kinds = kinds
        self._wall = wall
        self._on_crash = on_crash
        self._pending: deque[Callable[[], str]] = deque(maxlen=MAX_PENDING)
        self._has_pending = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._last_problems: dict[str, str] = {}  # by pod
        self._alarms: set[tuple[str, str, str]] = set()  # pod, provider, text
        self._last_failures: dict[str, tuple[str, datetime]] = {}  # by pod
        self._tasks: tuple[Supervised, ...] = ()

    def start(self) -> None:
        """Begin to send; does nothing without chats."""
        if self._chats:
            self._tasks = (
                Supervised(self._send_pending, "sends notifications", on_crash=self._on_crash),
                Supervised(self._summarize_daily, "sends the daily summary", on_crash=self._on_crash),
            )

    def set_chats(self, chats: Sequence[str]) -> None:
        """Send to these chats from now on, also what is pending."""
        self._chats = tuple(chats)
        if not self._tasks:
            self.start()

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Send what is pending, within `timeout_s`, and end."""
        if self._tasks:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._all_sent.wait()
            await asyncio.gather(*(task.aclose() for task in self._tasks))

    # --- which events are notified --------------------------------------------------------------

    def on_event(self, event: LifecycleEvent) -> None:
        """Listener of the lifecycle and the budget."""
        if not self._chats:
            return
        text = self._notification(event)
        kind = _KINDS.get(type(event))
        if text is not None and (kind is None or self._wants(kind)):
            if self._names_pods and not isinstance(event, BudgetThresholdCrossed):
                text = partial(_about_pod, event.pod, text)
            self._put(text)

    def _wants(self, kind: str) -> bool:
        return self._kinds is None or kind in self._kinds

    def _put(self, text: Callable[[], str]) -> None:
        self._pending.append(text)
        self._all_sent.clear()
        self._has_pending.set()

    def _notification(self, event: LifecycleEvent) -> Callable[[], str] | None:
        """The function that makes the text; called when it is sent: the ledger is written meanwhile."""
        match event:
            case SessionStarted():
                self._forget_alarms(event.pod, event.provider)
                user_of = partial(self._user_of, event.pod, event.provider)
                return lambda: session_started(event, user_of(), self._currency)
            case SessionEnded():
                self._forget_alarms(event.pod, event.provider)
                return partial(session_ended, event, self._currency)
            case BudgetThresholdCrossed():
                return partial(budget_crossed, event, self._currency)
            case ProviderProblem():
                self._last_problems[event.pod] = f"{event.provider}: {event.message}"
                return partial(alarm, event) if event.alarm and self._is_new_alarm(event) else None
            case StateChanged():
                clear, failed = self._all_clear(event), self._failed_start(event)
                return (clear if self._wants("alarm") else None) or (
                    failed if self._wants("start_failed") else None
                )
            case _:
                return None

    def _forget_alarms(self, pod: str, provider: str) -> bool:
        """Whether there were alarms of this pod at this provider."""
        alarms = {known for known in self._alarms if known[:2] == (pod, provider)}
        self._alarms -= alarms
        return bool(alarms)

    def _all_clear(self, event: StateChanged) -> Callable[[], str] | None:
        """A stop of an earlier run of the gateway is confirmed; no SessionEnded comes for it."""
        if event.provider is None:
            return None
        if event.cause == "GatewayStarted" and event.status is Status.STOPPING:
            self._alarms.add((event.pod, event.provider, ""))  # that run may have ended with an alarm
        stopped = event.was_status is Status.STOPPING and event.status is Status.STOPPED
        is_news = stopped and self._forget_alarms(event.pod, event.provider)
        return partial(all_clear, event.provider) if is_news else None

    def _is_new_alarm(self, event: ProviderProblem) -> bool:
        """An alarm is repeated only after a session of its provider began or ended."""
        key = event.pod, event.provider, _without_numbers(event.message)
        known = key in self._alarms
        self._alarms.add(key)
        return not known

    def _failed_start(self, event: StateChanged) -> Callable[[], str] | None:
        """A start failed; its reason came before, as a ProviderProblem."""
        if event.was_status is Status.STOPPED and event.status is Status.STARTING:
            self._last_problems.pop(event.pod, None)
        was_starting = event.was_status in (Status.STARTING, Status.WARMING)
        ended = was_starting and event.status in (Status.STOPPED, Status.STOPPING)
        if not ended or event.cause in CALLED_OFF:
            return None
        problem, last = self._last_problems.get(event.pod, ""), self._last_failures.get(event.pod)
        key = _without_numbers(problem)
        if last is not None and last[0] == key and (event.at - last[1]).total_seconds() < REPEAT_FAILURE_S:
            return None
        self._last_failures[event.pod] = key, event.at
        return partial(start_failed, "", problem)

    # --- sending --------------------------------------------------------------------------------

    async def _send_pending(self) -> None:
        while True:
            while self._pending:
                text = self._pending.popleft()()
                for chat in self._chats:
                    await self._send_to(chat, text)
            self._has_pending.clear()
            self._all_sent.set()
            await self._has_pending.wait()

    async def _send_to(self, chat: str, text: str) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._send(chat, text)
        except Exception as error:  # the next chat gets it all the same
            report_crash("notification to a chat", error, self._on_crash)

    # --- the daily summary ----------------------------------------------------------------------

    async def _summarize_daily(self) -> None:
        since, due = summary_times(self._wall())
        while True:
            left_s = (due - self._wall()).total_seconds()
            await asyncio.sleep(max(0.0, min(left_s, CLOCK_CHECK_S)))
            if self._wall() >= due:
                await self._summarize(since, due)
                since, due = summary_times(self._wall())

    async def _summarize(self, since: datetime, until: datetime) -> None:
        try:
            sessions = await self._costs.sessions(since, until)
            spent = await self._costs.spent(since, until)
            if self._wants("summary") and (sessions or spent):
                month = await self._costs.summary()
                self._put(partial(daily, len(sessions), spent, month, self._currency))
        except LedgerError as error:
            report_crash("the daily summary", error, self._on_crash)


def _about_pod(pod: str, text: Callable[[], str]) -> str:
    return f"{pod}: {text()}"


def _without_numbers(text: str) -> str:
    """For comparison: "try 3" is the same failure as "try 2"."""
    return re.sub(r"\d+", "", text)


def summary_times(now: datetime) -> tuple[datetime, datetime]:
    """Return begin and end, in UTC, of the day (from nine to nine, local time) that ends next."""
    today = now.astimezone().date()
    due = _summary_time(today)
    if due <= now:
        today += timedelta(days=1)
        due = _summary_time(today)
    return _summary_time(today - timedelta(days=1)), due


def _summary_time(day: date) -> datetime:
    return datetime.combine(day, SUMMARY_AT).astimezone(UTC)  # a naive time is this machine's


# --- texts ------------------------------------------------------------------------------------------


def session_started(event: SessionStarted, user: str, currency: str) -> str:
    """The pod was started; `user` caused it, as far as that is known."""
    price = event.report.price
    rate = price.running_per_hour if price is not None else None
    costs = f"It costs {money(rate, currency)} per hour" if rate else ""
    return sentences(f"Pod {_start_reason(event, '' if user == BY_HAND else user)}", costs)


def _start_reason(event: SessionStarted, user: str) -> str:
    match event.cause:
        case "request":
            return f"started at {event.provider}: {f'a request of {user}' if user else 'a request'} woke it"
        case "hand":
            return f"started at {event.provider}: {user or 'somebody'} started it by hand"
        case "prewarm":
            return f"started at {event.provider}: it is usually needed about now"
        case "schedule":
            return f"started at {event.provider}: a schedule wanted it"
        case _:
            return f"found running at {event.provider}; from now on it is looked after"


def session_ended(event: SessionEnded, currency: str) -> str:
    """The pod was stopped."""
    why = STOP_REASONS.get(event.cause, event.cause)
    cost = f" and cost {money(event.cost, currency)}" if event.cost is not None else ""
    lasted = duration((event.at - event.began_at).total_seconds())
    return sentences(f"Pod stopped at {event.provider}: {why}", f"It ran for {lasted}{cost}")


def alarm(event: ProviderProblem) -> str:
    """A pod may be billing although it was told to stop."""
    return sentences(
        f"ALARM from {event.provider}: {shorten(event.message)}",
        "The pod may still be billing; please look into the provider's console",
    )


def all_clear(provider: str) -> str:
    """The end of an alarm, of this run of the gateway or an earlier one."""
    return f"The pod at {provider} is seen stopped now."


def budget_crossed(event: BudgetThresholdCrossed, currency: str) -> str:
    """A threshold of the month's budget was crossed."""
    spent = f"{money(event.spent, currency)} of {money(event.budget, currency)}"
    if event.percent < 100:
        return f"{event.percent} % of the budget for {event.month} is spent: {spent}."
    return f"The budget for {event.month} is spent: {spent}. No new pod starts until the month is over."


def daily(sessions: int, spent: Decimal, month: CostSummary, currency: str) -> str:
    """The last 24 hours and the month so far."""
    were = f"there {'was' if sessions == 1 else 'were'} {count(sessions, 'session')}"
    day = were if sessions else "the pod went on"
    return sentences(
        f"In the last 24 hours {day}, estimated cost is {money(spent, currency)}",
        f"This month so far: {count(month.session_count, 'session')}, "
        f"{money(month.estimated_total, month.currency)}",
    )
