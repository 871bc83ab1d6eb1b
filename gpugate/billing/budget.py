"""Watches what the month has cost: bars new starts when the budget is spent, and tells on the way there.

It knows sums and instants, and neither pods nor HTTP. What to bar is said to the lifecycle in one value
(`BudgetVerdict`); a pod that runs is never touched.

When the ledger cannot be read no start is barred that was not barred before, with an alarm. A budget is a
limit for the month, not the lock on a forgotten pod: the idle stop, `pod.max_session` and the proof of
every stop do not need the ledger. A gateway that refuses all work because of a full disk would cost its
owner more than the start would. What is known stays in force: within a month what was spent grows only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Protocol

from attrs import frozen

from gpugate.core.budget_gate import BudgetVerdict
from gpugate.errors import LedgerError
from gpugate.lifecycle.event_bus import (
    BudgetThresholdCrossed,
    EventListener,
    LifecycleEvent,
    SessionEnded,
    SessionStarted,
)
from gpugate.tasks import CrashHandler, Supervised

THRESHOLDS = (50, 80, 100)
"""Per cent of the budget that are told of (docs/api.md#budget)."""
SECONDS_PER_HOUR = Decimal(3600)
OPEN_RECHECK_S = 60.0
"""While a pod is billed: its rate may change, or be unknown."""
RECHECK_S = 3600.0
"""While none is: the clock may be set."""
MIN_RECHECK_S = 0.1


class SessionRate(Protocol):
    """A session that is open, as far as the budget cares."""

    @property
    def hourly_rate(self) -> Decimal | None:
        """What it costs per hour; None where nobody tells."""


class SpendingQueries(Protocol):
    """What was spent, open sessions until now included; all of it raises `LedgerError`."""

    async def session(self) -> SessionRate | None:
        """The session that is open, if one is."""

    async def spent_in_month(self, month: str | None = None) -> Decimal:
        """In a month ("2026-11", UTC)."""

    async def spent_by_user(self, month: str | None = None) -> Mapping[str, Decimal]:
        """The same by user."""


class ThresholdStore(Protocol):
    """What was told of each month, across restarts; `billing.model.Ledger` keeps it."""

    async def last_notified_threshold(self, month: str) -> int:
        """The highest threshold that was told of this month, 0 for none."""

    async def mark_threshold_notified(self, month: str, percent: int) -> None:
        """Remember that this threshold was told."""


@frozen(kw_only=True)
class BudgetLimits:
    """`[cost]`: the month's budget, above 0, and the share of it that each user has, 0 for all of it."""

    monthly: Decimal
    user_share: Decimal = Decimal(0)
    currency: str = "USD"


class BudgetMonitor:
    """The month's budget.

    Args:
        judge: takes who may have a pod started; called when that changes.
        publish: takes `BudgetThresholdCrossed`.
        warn: takes a line for the log; True with it if it is an alarm.
        wall: the time, aware; months are UTC's.
    """

    def __init__(
        self,
        limits: BudgetLimits,
        spending: SpendingQueries,
        thresholds: ThresholdStore,
        *,
        on_verdict: Callable[[BudgetVerdict], None],
        publish: EventListener,
        warn: Callable[[str, bool], None],
        wall: Callable[[], datetime],
        on_crash: CrashHandler | None = None,
    ) -> None:
        self.verdict = BudgetVerdict()
        self._limits = limits
        self._spending = spending
        self._thresholds = thresholds
        self._on_verdict = on_verdict
        self._publish = publish
        self._warn = warn
        self._wall = wall
        self._on_crash = on_crash
        self._month = ""  # that `verdict` is about
        self._unavailable = False
        self._soon = asyncio.Event()
        self._task: Supervised | None = None

    async def prepare(self) -> BudgetVerdict:
        """Take the first look, before anybody can ask for a start; tells nothing yet."""
        try:
            await self._evaluate(self._wall().astimezone(UTC))
        except LedgerError as error:
            self._mark_unavailable(error)
        return self.verdict

    async def start(self) -> None:
        """Evaluate from now on; the lifecycle is open."""
        self._on_verdict(self.verdict)
        self._task = Supervised(self._evaluate_for_ever, "budget", on_crash=self._on_crash)

    async def aclose(self) -> None:
        """Watch no more."""
        if self._task is not None:
            await self._task.aclose()

    def on_event(self, news: LifecycleEvent) -> None:
        """A session that begins or ends changes what is spent."""
        if isinstance(news, SessionStarted | SessionEnded):
            self._soon.set()

    async def _evaluate_for_ever(self) -> None:
        while True:
            self._soon.clear()
            pause_s = await self._evaluate_and_publish()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._soon.wait()

    async def _evaluate_and_publish(self) -> float:
        """Look, bar or release, tell; return how long nothing can change by itself."""
        now, was = self._wall().astimezone(UTC), self.verdict
        try:
            spent = await self._evaluate(now)
            self._publish_verdict(was)
            await self._publish_thresholds(month_of(now), spent)
            pause_s = await self._pause_s(now, spent)
        except LedgerError as error:
            self._publish_verdict(was)
            self._mark_unavailable(error)
            return OPEN_RECHECK_S
        if self._unavailable:
            self._unavailable = False
            self._warn("the month's budget is watched again", False)
        return pause_s

    def _publish_verdict(self, was: BudgetVerdict) -> None:
        if self.verdict != was:
            self._on_verdict(self.verdict)

    async def _evaluate(self, now: datetime) -> Decimal:
        """Find out what was spent, and who may have a pod started because of it."""
        month = month_of(now)
        if month != self._month:  # the old month's sums bar nobody in the new one
            self._month, self.verdict = month, BudgetVerdict()
        spent = await self._spending.spent_in_month(month)
        users = await self._spending.spent_by_user(month) if self._limits.user_share else {}
        self.verdict = evaluate(self._limits, now, spent, users)
        return spent

    async def _publish_thresholds(self, month: str, spent: Decimal) -> None:
        """Tell each threshold once; one that was passed in a jump is told as well, in order."""
        told = await self._thresholds.last_notified_threshold(month)
        for percent in THRESHOLDS:
            if percent > told and spent * 100 >= self._limits.monthly * percent:
                await self._thresholds.mark_threshold_notified(month, percent)
                self._publish(
                    BudgetThresholdCrossed(
                        percent=percent, spent=spent, budget=self._limits.monthly, month=month
                    )
                )

    async def _pause_s(self, now: datetime, spent: Decimal) -> float:
        turn_s = (next_month(now) - now).total_seconds()
        session = await self._spending.session()
        if session is None:
            return max(MIN_RECHECK_S, min(RECHECK_S, turn_s))
        crossing_s = OPEN_RECHECK_S
        if session.hourly_rate:
            missing = [self._limits.monthly * percent / 100 - spent for percent in THRESHOLDS]
            ahead = [float(sum_ * SECONDS_PER_HOUR / session.hourly_rate) for sum_ in missing if sum_ > 0]
            crossing_s = min(ahead, default=OPEN_RECHECK_S)
        return max(MIN_RECHECK_S, min(OPEN_RECHECK_S, turn_s, crossing_s))

    def _mark_unavailable(self, error: LedgerError) -> None:
        if not self._unavailable:
            self._unavailable = True
            self._warn(f"the month's budget cannot be watched, no further start is barred: {error}", True)


def evaluate(
    limits: BudgetLimits, now: datetime, spent: Decimal, users: Mapping[str, Decimal]
) -> BudgetVerdict:
    """Who may have a pod started after this was spent."""
    month, turn = month_of(now), next_month(now).date()
    budget = f"{limits.monthly.normalize():f} {limits.currency}"
    after = f"a pod that runs can be used on, and is not started again before {turn} (UTC)"
    if spent >= limits.monthly:
        return BudgetVerdict(exhausted_reason=f"the budget of {budget} for {month} is spent: {after}")
    share = limits.monthly * limits.user_share
    part = f"{share.normalize():f} of {budget}"
    told = f"your share of the budget for {month}, {part}, is spent: {after} for you"
    over = {user for user, sum_ in users.items() if sum_ >= share} if share else set()
    return BudgetVerdict(users_over_share=dict.fromkeys(sorted(over), told))


def month_of(now: datetime) -> str:
    """Such as "2026-11"."""
    return f"{now.astimezone(UTC):%Y-%m}"


def next_month(now: datetime) -> datetime:
    """When the month turns, UTC."""
    first = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)
