"""Decides whether the month's budget allows a new start, and reports when 50, 80 and 100 % of it are spent.

The decision is one value (`BudgetVerdict`) that is handed to the lifecycle; a running pod is never stopped.

While the ledger cannot be read the last verdict of the month stays in force, with an alarm: starts that were
allowed stay allowed. The idle stop, `pod.max_session` and the confirmation of stops do not need the ledger,
and a gateway that refuses all work because of a full disk would cost its owner more than the starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import Protocol

from attrs import frozen

from gpugate.billing.cost_math import SECONDS_PER_HOUR, month_of, month_span
from gpugate.billing.reports import CostQueries
from gpugate.core.request_queue import BudgetVerdict
from gpugate.errors import LedgerError
from gpugate.lifecycle.status import (
    BudgetThresholdCrossed,
    EventListener,
    LifecycleEvent,
    SessionEnded,
    SessionStarted,
)
from gpugate.tasks import CrashHandler, Supervised

THRESHOLDS = (50, 80, 100)
"""Per cent of the budget at which `BudgetCrossed` is published (docs/api.md#budget)."""
OPEN_RECHECK_S = 60.0
"""Longest pause between evaluations while a pod is billed: its rate may change, or be unknown."""
RECHECK_S = 3600.0
"""The same while none is billed: the wall clock may be set."""
MIN_RECHECK_S = 0.1


class ThresholdStore(Protocol):
    """Keeps across restarts which thresholds were published: the ledger."""

    async def last_notified_threshold(self, month: str) -> int:
        """Return the highest threshold that was published for this month, 0 for none."""

    async def mark_threshold_notified(self, month: str, percent: int) -> None:
        """Store that this threshold is published."""


@frozen(kw_only=True)
class BudgetLimits:
    """The settings `[cost]`: the month's budget, 0: none, each user's share of it, 0: no limit, and whose
    months these are.
    """

    monthly: Decimal
    user_share: Decimal = Decimal(0)
    currency: str = "USD"
    zone: tzinfo = UTC


class BudgetMonitor:
    """The month's budget.

    Attributes:
        verdict: for whom it allows a start.
        used_ratio: the spent part of this month's budget, 1 for all of it, by the last evaluation.

    Args:
        on_verdict: takes the verdict, when it changes.
        publish: takes `BudgetThresholdCrossed`.
        warn: takes a line for the log, and whether it is an alarm.
        wall: the wall clock, aware.
    """

    def __init__(
        self,
        limits: BudgetLimits,
        spending: CostQueries,
        thresholds: ThresholdStore,
        *,
        on_verdict: Callable[[BudgetVerdict], None],
        publish: EventListener,
        warn: Callable[[str, bool], None],
        wall: Callable[[], datetime],
        on_crash: CrashHandler | None = None,
    ) -> None:
        self.verdict = BudgetVerdict()
        self.used_ratio = 0.0
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
        """Compute the first verdict, before a start can be requested; publishes nothing."""
        try:
            await self._evaluate(self._wall())
        except LedgerError as error:
            self._mark_unavailable(error)
        return self.verdict

    async def start(self) -> None:
        """Hand over the verdict and begin to evaluate regularly; called when the lifecycle is open."""
        self._on_verdict(self.verdict)
        self._task = Supervised(self._evaluate_for_ever, "budget", on_crash=self._on_crash)

    async def aclose(self) -> None:
        """End the evaluation."""
        if self._task is not None:
            await self._task.aclose()

    def set_limits(self, limits: BudgetLimits) -> None:
        """Use other limits from now on."""
        if limits != self._limits:
            self._limits = limits
            self._soon.set()

    def on_event(self, news: LifecycleEvent) -> None:
        """Evaluate soon when a session begins or ends."""
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
        """Evaluate and publish what has changed; return the pause before the next evaluation in seconds."""
        now, was = self._wall(), self.verdict
        try:
            spent = await self._evaluate(now)
            self._publish_verdict(was)
            await self._publish_thresholds(month_of(now, self._limits.zone), spent)
            pause_s = await self._pause_s(now, spent)
        except LedgerError as error:
            self._publish_verdict(was)
            self._mark_unavailable(error)
            return OPEN_RECHECK_S
        if self._unavailable:
            self._unavailable = False
            self._warn("the month's budget can be checked again", False)
        return pause_s

    def _publish_verdict(self, was: BudgetVerdict) -> None:
        if self.verdict != was:
            self._on_verdict(self.verdict)

    async def _evaluate(self, now: datetime) -> Decimal:
        """Update the verdict; return what was spent this month."""
        limits = self._limits
        month = month_of(now, limits.zone)
        if not limits.monthly:
            self.verdict, self.used_ratio = BudgetVerdict(), 0.0
            return Decimal(0)
        if month != self._month:  # last month's verdict does not apply any more
            self._month, self.verdict = month, BudgetVerdict()
        spent = await self._spending.spent_in_month(month)
        self.used_ratio = float(spent / limits.monthly)
        users = await self._spending.spent_by_user(month) if limits.user_share else {}
        self.verdict = evaluate(limits, now, spent, users)
        return spent

    async def _publish_thresholds(self, month: str, spent: Decimal) -> None:
        """Publish each threshold once, in order, also those that were passed in one step."""
        if not self._limits.monthly:
            return
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
        if not self._limits.monthly:
            return RECHECK_S
        turn_s = (_month_end(now, self._limits.zone) - now).total_seconds()
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
            self._warn(
                "the month's budget cannot be checked, starts stay allowed or refused as they are: "
                f"{error.detail}",
                True,
            )


def evaluate(
    limits: BudgetLimits, now: datetime, spent: Decimal, users: Mapping[str, Decimal]
) -> BudgetVerdict:
    """Return the verdict on starts after `spent` in total and `users` by user were spent this month."""
    zone = limits.zone
    month, turn = month_of(now, zone), _month_end(now, zone).astimezone(zone).date()
    budget = f"{limits.monthly.normalize():f} {limits.currency}"
    after = f"a running pod stays in use, and no pod is started before {turn} ({zone})"
    if spent >= limits.monthly:
        return BudgetVerdict(exhausted_reason=f"the budget of {budget} for {month} is spent: {after}")
    share = limits.monthly * limits.user_share
    part = f"{share.normalize():f} of {budget}"
    told = f"your share of the budget for {month}, {part}, is spent: {after} for you"
    over = {user for user, sum_ in users.items() if sum_ >= share} if share else set()
    return BudgetVerdict(users_over_share=dict.fromkeys(sorted(over), told))


def _month_end(now: datetime, zone: tzinfo) -> datetime:
    return month_span(month_of(now, zone), zone).until
