"""What the lifecycle tells its listeners, once each; values only."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal

from attrs import frozen

from gpugate.core.commands import StartCause, StopCause
from gpugate.core.events import Cause
from gpugate.core.states import StateName, Status
from gpugate.provider_api import PodReport


@frozen(kw_only=True)
class StateChanged:
    """The pod's life took a step; `was` and `now` are state names, the statuses are the users' words."""

    was: StateName
    now: StateName
    was_status: Status | None
    status: Status | None
    cause: Cause
    run_id: int
    provider: str | None
    at: datetime


@frozen(kw_only=True)
class QueueChanged:
    """Somebody joined or left the queue."""

    waiting: int
    in_flight: int


@frozen(kw_only=True)
class SessionStarted:
    """A billed stretch began."""

    run_id: int
    provider: str
    cause: StartCause
    report: PodReport
    at: datetime


@frozen(kw_only=True)
class SessionEnded:
    """A billed stretch ended: the pod was seen stopped."""

    run_id: int
    provider: str
    cause: StopCause
    began_at: datetime
    cost: Decimal | None
    at: datetime


@frozen(kw_only=True)
class ProviderProblem:
    """A provider failed us; `alarm` when a pod may be billing against our will."""

    provider: str
    message: str
    reason: str
    alarm: bool
    at: datetime


@frozen(kw_only=True)
class BudgetThresholdCrossed:
    """So many per cent of the month's budget are spent; once for each of 50, 80 and 100 in a month."""

    percent: int
    spent: Decimal
    budget: Decimal
    month: str


LifecycleEvent = (
    StateChanged | QueueChanged | SessionStarted | SessionEnded | ProviderProblem | BudgetThresholdCrossed
)
EventListener = Callable[[LifecycleEvent], None]
