"""What the lifecycle knows to tell: status on request, news to listeners, each once. Decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from math import isfinite

from gpugate.core.commands import PublishProviderProblem, RecordSessionEnd, RecordSessionStart
from gpugate.core.events import Event, PodInspected
from gpugate.core.machine import PodMachine
from gpugate.core.states import Preloading, Ready, State, Warming, status_of
from gpugate.lifecycle.event_bus import (
    Listener,
    News,
    ProviderTrouble,
    QueueChanged,
    SessionBegan,
    SessionEnded,
    Transition,
)
from gpugate.lifecycle.report_sanitizer import Plausible, StartBoundOf, no_bound
from gpugate.lifecycle.status import PaidStretch, PodStatus, Record
from gpugate.provider_api import Price


class Chronicle:
    """Reads the machine, remembers what it saw, and tells.

    Attributes:
        record: sessions and times.
    """

    def __init__(
        self,
        machine: PodMachine,
        names: Sequence[str],
        fallback_price: Price,
        listeners: Sequence[Listener],
        wall: Callable[[], datetime],
        steady: Callable[[], float],
    ) -> None:
        self.record = Record(wall, steady, fallback_price)
        self._machine = machine
        self._names = tuple(names)
        self._listeners = tuple(listeners)
        self._wall = wall
        self._queue_told = (0, 0)

    # --- on request ---------------------------------------------------------------------------

    def status(self, now: float) -> PodStatus | None:
        """What there is to know of the pod; None while it is not known what the provider has."""
        machine, record = self._machine, self.record
        word = machine.status
        if word is None:
            return None
        stretch = self._stretch()
        quiet = machine.queue.idle_since
        serving = isinstance(machine.state, Ready)
        return PodStatus(
            status=word,
            provider=self._provider(),
            pod_id=stretch.report.pod_id if stretch else None,
            since=record.since,
            uptime_seconds=record.uptime(stretch).total_seconds() if stretch else None,
            waiting=len(machine.queue.waiting),
            in_flight=len(machine.queue.leases),
            idle_seconds=now - quiet if serving and quiet is not None else None,
            stops_in_seconds=max(0.0, machine.idle_deadline_at - now)
            if isfinite(machine.idle_deadline_at)
            else None,
            hourly_rate=record.rate(stretch) if stretch else None,
            estimated_cost=record.cost(stretch) if stretch else None,
            ready_in_seconds=self._ready_in(now),
            last_error=machine.last_error,
        )

    def _provider(self) -> str:
        """Of the pod that is meant: the one that lives or is being stopped, else the next to be started."""
        provider = getattr(self._machine.state, "provider", None)
        if provider is None:
            provider = next(iter(self._machine.pending_stops.by_provider), 0)
        return self._names[provider]

    def _stretch(self) -> PaidStretch | None:
        """The session of the pod that is meant; after a failover the one that serves."""
        stretches = self.record.stretches
        return stretches.get(self._provider()) or next(iter(stretches.values()), None)

    def _ready_in(self, now: float) -> float | None:
        began: float | None = getattr(self._machine.state, "since", None)
        if began is None or self.record.last_start_s is None:
            return None
        return max(0.0, self.record.last_start_s - (now - began))

    def rate_of_start(self) -> Decimal | None:
        """What the pod that is started next costs per hour, by its provider's last word or as configured."""
        return self.record.rates.get(self._names[0], self.record.fallback.running_per_hour)

    # --- news ---------------------------------------------------------------------------------

    def look(self, event: PodInspected) -> None:
        """Keep the provider's newest word on its pod."""
        self.record.observe(self._names[event.provider], event.report)

    def transition(self, was: State, state: State, event: Event, now: float) -> None:
        """The pod's life took a step."""
        if isinstance(state, Ready) and isinstance(was, Warming | Preloading):
            self.record.last_start_s = now - was.since
        if status_of(was) is not status_of(state):
            self.record.since = self._wall()
        self.tell(
            Transition(
                was=type(was).__name__,
                now=type(state).__name__,
                was_status=status_of(was),
                status=status_of(state),
                cause=type(event).__name__,
                run=self._machine.last_run_id,
                provider=self._provider(),
                at=self._wall(),
            )
        )

    def queue(self) -> None:
        """Tell who waits and what is in flight, if that changed."""
        backlog = self._machine.queue
        counts = len(backlog.waiting), len(backlog.leases)
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
        stretch = self.record.open(effect.run_id, name, effect.report, effect.up_s)
        self.tell(
            SessionBegan(
                run=effect.run_id,
                provider=name,
                cause=effect.cause,
                report=effect.report,
                at=stretch.began_at,
            )
        )

    def session_closed(self, effect: RecordSessionEnd) -> None:
        """A billed stretch ended: the stop is proved."""
        name = self._names[effect.provider]
        stretch = self.record.stretches.pop(name)
        self.tell(
            SessionEnded(
                run=effect.run_id,
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
            ProviderTrouble(
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
            ProviderTrouble(provider=provider, message=message, reason="config", alarm=alarm, at=self._wall())
        )

    def plausible(self, provider: str, bound: StartBoundOf | None) -> Plausible:
        """Who judges this provider's reports before they are believed; `bound` is what the ledger knows."""
        warn = partial(self.warn, provider, alarm=False)
        return Plausible(self._wall, self.record.steady, warn, bound or no_bound)

    def tell(self, news: News) -> None:
        """Tell every listener. A listener that fails is heard of, and never stops the pod's life."""
        for listener in self._listeners:
            try:
                listener(news)
            except Exception as error:
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a listener failed", "exception": error}
                )
