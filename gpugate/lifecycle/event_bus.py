"""The events that the lifecycle and the budget publish, and the bus that hands them to the listeners."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import Decimal

from attrs import frozen

from gpugate.core.commands import StartCause, StopCause
from gpugate.core.events import Cause
from gpugate.core.states import StateName, Status
from gpugate.provider_api import PodReport
from gpugate.tasks import CrashHandler, report_crash, report_to_loop


@frozen(kw_only=True)
class StateChanged:
    """The machine is in another state.

    Attributes:
        was, now: the names of the states.
        was_status, status: the same as users see them; None while it is not known what runs.
        cause: the name of the machine's event.
    """

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
    """The number of waiting or admitted requests has changed; four times a second at most for the latter."""

    waiting: int
    in_flight: int


@frozen(kw_only=True)
class SessionStarted:
    """A billed session began at `at`, which is in the past for a pod that was found running."""

    run_id: int
    provider: str
    cause: StartCause
    report: PodReport
    at: datetime


@frozen(kw_only=True)
class SessionEnded:
    """A billed session ended: an inspection has confirmed the stop. `cost` is None without a known price."""

    run_id: int
    provider: str
    cause: StopCause
    began_at: datetime
    cost: Decimal | None
    at: datetime


@frozen(kw_only=True)
class ProviderProblem:
    """A call to a provider failed, or it reports what cannot be; `alarm`: a pod may be billed unnoticed."""

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


class EventBus:
    """Calls every listener for every event, in the order of subscription, before `publish` returns.

    Listeners must not block. One that raises is reported, and the others are called all the same.
    """

    def __init__(
        self, listeners: Iterable[EventListener] = (), on_crash: CrashHandler = report_to_loop
    ) -> None:
        self._listeners = list(listeners)
        self._on_crash = on_crash

    def subscribe(self, listener: EventListener) -> None:
        """Call `listener` for every event from now on, after those that are subscribed already."""
        self._listeners.append(listener)

    def publish(self, event: LifecycleEvent) -> None:
        """Hand an event to all listeners. Never raises."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception as error:
                report_crash("an event listener", error, self._on_crash)
