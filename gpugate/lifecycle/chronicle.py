"""What the lifecycle knows to tell: status on request, news to listeners, each once. Decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from math import isfinite

from gpugate.core.commands import PublishProviderProblem, RecordSessionEnd, RecordSessionStart
from gpugate.core.events import Event, PodInspected, cause_of
from gpugate.core.snapshot import MachineSnapshot
from gpugate.core.states import Preloading, Ready, State, Warming, name_of, status_of
from gpugate.lifecycle.event_bus import (
    EventListener,
    LifecycleEvent,
    ProviderProblem,
    QueueChanged,
    SessionEnded,
    SessionStarted,
    StateChanged,
)
from gpugate.lifecycle.report_sanitizer import ReportSanitizer, StartBoundOf, no_bound
from gpugate.lifecycle.status import ObservedSession, PodObservations, PodStatus
from gpugate.provider_api import Price


class Chronicle:
    """Reads the machine, remembers what it saw, and tells.

    Attributes:
        record: sessions and times.
    """

    def __init__(
        self,
        names: Sequence[str],
        fallback_price: Price,
        listeners: Sequence[EventListener],
        wall: Callable[[], datetime],
        steady: Callable[[], float],
    ) -> None:
        self.record = PodObservations(wall, steady, fallback_price)
        self._names = tuple(names)
        self._listeners = tuple(listeners)
        self._wall = wall
        self._queue_told = (0, 0)

    # --- on request ---------------------------------------------------------------------------

    def status(self, snapshot: MachineSnapshot, now: float) -> PodStatus | None:
        """What there is to know of the pod; None while it is not known what the provider has."""
        record, idle_since = self.record, snapshot.idle_since
        if snapshot.status is None:
            return None
        stretch = self._stretch(snapshot)
        stop_due_at = snapshot.stop_due_at
        return PodStatus(
            status=snapshot.status,
            provider=self._names[snapshot.shown_provider],
            pod_id=stretch.report.pod_id if stretch else None,
            since=record.since,
            uptime_seconds=record.uptime(stretch).total_seconds() if stretch else None,
            waiting=snapshot.waiting,
            in_flight=snapshot.in_flight,
            idle_seconds=now - idle_since if idle_since is not None else None,
            stops_in_seconds=max(0.0, stop_due_at - now) if isfinite(stop_due_at) else None,
            hourly_rate=record.rate(stretch) if stretch else None,
            estimated_cost=record.cost(stretch) if stretch else None,
            ready_in_seconds=self._ready_in(snapshot, now),
            last_error=snapshot.last_error,
        )

    def _stretch(self, snapshot: MachineSnapshot) -> ObservedSession | None:
        """The session of the pod that is meant; after a failover the one that serves."""
        stretches = self.record.open_sessions
        return stretches.get(self._names[snapshot.shown_provider]) or next(iter(stretches.values()), None)

    def _ready_in(self, snapshot: MachineSnapshot, now: float) -> float | None:
        began = snapshot.start_began_at
        if began is None or self.record.last_start_s is None:
            return None
        return max(0.0, self.record.last_start_s - (now - began))

    def start_rate(self) -> Decimal | None:
        """What the pod that is started next costs per hour, by its provider's last word or as configured."""
        return self.record.rates.get(self._names[0], self.record.fallback_price.running_per_hour)

    # --- news ---------------------------------------------------------------------------------

    def look(self, event: PodInspected) -> None:
        """Keep the provider's newest word on its pod."""
        self.record.observe(self._names[event.provider], event.report)

    def transition(self, was: State, after: MachineSnapshot, event: Event, now: float) -> None:
        """The pod's life took a step."""
        state = after.state
        if isinstance(state, Ready) and isinstance(was, Warming | Preloading):
            self.record.last_start_s = now - was.attempt.since
        if status_of(was) is not status_of(state):
            self.record.since = self._wall()
        self.tell(
            StateChanged(
                was=name_of(was),
                now=name_of(state),
                was_status=status_of(was),
                status=status_of(state),
                cause=cause_of(event),
                run_id=after.run_id,
                provider=self._names[after.shown_provider],
                at=self._wall(),
            )
        )

    def queue(self, snapshot: MachineSnapshot) -> None:
        """Tell who waits and what is in flight, if that changed."""
        counts = snapshot.waiting, snapshot.in_flight
        if counts != self._queue_told:
            self._queue_told = counts
            self.tell(QueueChanged(waiting=counts[0], in_flight=counts[1]))

    @property
    def waiting_told(self) -> int:
        """How many wait by the last news."""
        return self._queue_told[0]

    def session_opened(self, effect: RecordSessionStart) -> None:
        """A billed stretch began."""
        name = self._names[effect.provider]
        stretch = self.record.open_session(effect.run_id, name, effect.report, effect.up_s)
        self.tell(
            SessionStarted(
                run_id=effect.run_id,
                provider=name,
                cause=effect.cause,
                report=effect.report,
                at=stretch.began_at,
            )
        )

    def session_closed(self, effect: RecordSessionEnd) -> None:
        """A billed stretch ended: the stop is proved."""
        name = self._names[effect.provider]
        stretch = self.record.open_sessions.pop(name)
        self.tell(
            SessionEnded(
                run_id=effect.run_id,
                provider=name,
                cause=effect.cause,
                began_at=stretch.began_at,
                cost=self.record.cost(stretch),
                at=stretch.began_at + self.record.uptime(stretch),
            )
        )

    def trouble(self, effect: PublishProviderProblem) -> None:
        """A provider failed us."""
        self.tell(
            ProviderProblem(
                provider=self._names[effect.provider],
                message=effect.message,
                reason=effect.reason,
                alarm=effect.alarm,
                at=self._wall(),
            )
        )

    def warn(self, provider: str, message: str, *, alarm: bool = True) -> None:
        """Tell of a provider what only people can mend; an alarm where a pod may be billing unseen."""
        self.tell(
            ProviderProblem(provider=provider, message=message, reason="config", alarm=alarm, at=self._wall())
        )

    def plausible(self, provider: str, bound: StartBoundOf | None) -> ReportSanitizer:
        """Who judges this provider's reports before they are believed; `bound` is what the ledger knows."""
        warn = partial(self.warn, provider, alarm=False)
        return ReportSanitizer(self._wall, self.record.boottime, warn, bound or no_bound)

    def tell(self, news: LifecycleEvent) -> None:
        """Tell every listener. A listener that fails is heard of, and never stops the pod's life."""
        for listener in self._listeners:
            try:
                listener(news)
            except Exception as error:
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a listener failed", "exception": error}
                )
