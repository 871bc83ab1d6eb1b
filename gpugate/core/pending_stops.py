"""Kept for each provider: its pending stop, its open billed session, what it shows, and when it is inspected.

Theory of operation of the stops. A decided stop is kept until an inspection confirms it. A provider bills
until its pod is really stopped, and the return of `stop()` does not show that: a cloud may accept the call
and lose it, time out after it worked, or report a pod as stopping for hours (docs/providers.md#failed-stops).
So a stop is not an action here but an obligation, a `PendingStop`, which lives beside the pod's state and
survives it. It is created by a decision (`add`), its `StopPod` is sent at once and again with growing pauses
for as long as it takes, and only an inspection that shows STOPPED or GONE ends it (`on_inspected`). After
every answer to a stop an inspection comes first; only then is the stop sent again.

There are three strengths:

    until_seen_stopped   A pod may be running. Nothing but an inspection that shows it stopped ends this.
    one good try         The provider refused the start outright, so nothing should run; stop once, inspect
                         once, and do not insist if the inspection fails.
    is_inspect_only      Nothing is known to run (at rest, before an exit). Inspect first; only what that
                         shows is stopped.

The providers with a stop of the first kind are persisted (`unconfirmed_providers`), and a gateway that was
killed goes on with them at its next start. A start may overtake a pending stop whose outcome is unknown
(`may_start_again`): `start()` is idempotent, and waiting requests come first. The stop is then abandoned,
and the provider stays in `abandoned_providers` until it is seen stopped, so that a later refusal of the
start is not taken for proof that nothing runs there.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from attrs import define, field

from gpugate.core.commands import (
    CleanUpOrphans,
    Command,
    PublishProviderProblem,
    RecordSessionEnd,
    RecordSessionStart,
    StartCause,
    StopCause,
)
from gpugate.core.events import InspectFailed, PodInspected
from gpugate.core.policy import Policy
from gpugate.errors import NotFound, ProviderError, RateLimited
from gpugate.provider_api import Phase, PodReport

STOPPED_PHASES = frozenset({Phase.STOPPED, Phase.GONE})
ACTIVE_PHASES = frozenset({Phase.QUEUED, Phase.PROVISIONING, Phase.STARTING, Phase.RUNNING})
LOST_PHASES = frozenset({Phase.FAILED, Phase.UNREACHABLE})

MAX_IGNORED_STOPS = 3
"""A pod that still runs after this many stops ignores them, so it may as well serve waiting requests."""


@define(kw_only=True)
class PendingStop:
    """One stop, from the decision to its confirmation.

    Attributes:
        until_seen_stopped: a pod may be running, so only an inspection that shows it stopped ends this.
        since: when it was decided.
        op: the `StopPod` that is out, if one is.
        sent_count: how often the stop was sent.
        send_at: when it has to be sent (again).
        failed: the last result was an error, so it is not known what the pod does.
        stopping_since: since when the provider has reported STOPPING.
        resend_at: what `send_at` was before a STOPPING report put it off.
    """

    provider: int
    cause: StopCause
    until_seen_stopped: bool
    since: float
    op: int | None = None
    sent_count: int = 0
    send_at: float = -inf
    failed: bool = False
    stopping_since: float | None = None
    resend_at: float = -inf

    @property
    def is_inspect_only(self) -> bool:
        """No stop was sent, and none will be unless the inspection shows a pod."""
        return self.sent_count == 0 and self.send_at == inf

    @property
    def may_start_again(self) -> bool:
        """A start may overtake this stop, because the pod is not known to be stopping.

        Never after the session limit: then no request is served before the stop is confirmed.
        """
        return self.is_inspect_only or (self.failed and self.cause is not StopCause.MAX_SESSION)

    @property
    def due(self) -> float:
        """When the stop has to be sent; `inf` while one is out."""
        return inf if self.op is not None else self.send_at


@define
class PendingStops:
    """The pending stops, at most one per provider.

    Attributes:
        abandoned_providers: where a start overtook an unconfirmed stop.
        stopped_seen_at: when each provider was last seen without a running pod.
    """

    policy: Policy
    by_provider: dict[int, PendingStop] = field(factory=dict)
    abandoned_providers: set[int] = field(factory=set)
    stopped_seen_at: dict[int, float] = field(factory=dict)

    @property
    def next_due(self) -> float:
        """When the next stop has to be sent."""
        return min((stop.due for stop in self.by_provider.values()), default=inf)

    @property
    def are_inspect_only(self) -> bool:
        """Nothing is known to run: only results of inspections are missing."""
        return all(stop.is_inspect_only for stop in self.by_provider.values())

    @property
    def unconfirmed_providers(self) -> frozenset[int]:
        """Where a pod may be running although it was to be stopped."""
        return frozenset(p for p, stop in self.by_provider.items() if stop.until_seen_stopped)

    def add(self, provider: int, cause: StopCause, until_seen_stopped: bool, now: float) -> None:
        """Decide to stop this provider's pod. A stop that is pending already goes on as it is."""
        if provider not in self.by_provider or self.by_provider[provider].is_inspect_only:
            self.by_provider[provider] = PendingStop(
                provider=provider, cause=cause, until_seen_stopped=until_seen_stopped, since=now
            )

    def add_inspect_only(self, provider: int, cause: StopCause, now: float) -> bool:
        """Decide to inspect this provider, and to stop what that shows.

        Returns False, and does nothing, if a stop is pending there or it was seen stopped a moment ago.
        """
        recently_s = self.policy.boot_interval_s(provider)
        if provider in self.by_provider or now - self.stopped_seen_at.get(provider, -inf) < recently_s:
            return False
        self.by_provider[provider] = PendingStop(
            provider=provider, cause=cause, until_seen_stopped=False, since=now, send_at=inf
        )
        return True

    def note_phase(self, provider: int, phase: Phase, now: float) -> None:
        """Remember when this provider was last seen without a running pod."""
        if phase in STOPPED_PHASES:
            self.stopped_seen_at[provider] = now

    def abandon(self, provider: int) -> None:
        """Drop a pending stop because a start overtakes it."""
        stop = self.by_provider.pop(provider, None)
        if stop is not None and stop.until_seen_stopped:
            self.abandoned_providers.add(provider)

    def resend_all(self, now: float) -> None:
        """Make every stop due now, whatever pause it is in."""
        for stop in self.by_provider.values():
            if not stop.is_inspect_only:
                stop.send_at = now

    def take_due(self, now: float) -> list[PendingStop]:
        """Return the stops to send now."""
        return [stop for stop in self.by_provider.values() if stop.due <= now]

    def sent(self, stop: PendingStop, op: int) -> None:
        """Note that the stop was sent with this number."""
        stop.op, stop.sent_count = op, stop.sent_count + 1

    def on_answered(self, op: int, error: ProviderError | None, now: float) -> PendingStop | None:
        """Note the result of a `StopPod`; return its stop, or None for a result that is out of date.

        The pause before the next try begins now, not when the stop was sent: however slow the provider
        was to answer, an inspection comes before the stop is sent again.
        """
        for stop in self.by_provider.values():
            if stop.op == op:
                # NotFound is no failure: nothing is there, and the inspection will confirm it.
                stop.op, stop.failed = None, error is not None and not isinstance(error, NotFound)
                stop.send_at = stop.resend_at = now + self._resend_pause_s(stop, error)
                return stop
        return None

    def _resend_pause_s(self, stop: PendingStop, error: ProviderError | None) -> float:
        pause = self.policy.stop_retry_delay_s(stop.sent_count)
        if not isinstance(error, RateLimited) or error.retry_after is None:
            return pause
        asked = max(0.0, min(error.retry_after, self.policy.max_rate_limit_s))
        return asked if stop.sent_count == 1 else max(pause, asked)  # refused at first: as soon as allowed

    # What an inspection means for a pending stop:
    #
    # 1. It failed. With NotFound nothing is there: confirmed. Otherwise a stop that must be seen goes on;
    #    a "one good try" ends here; an inspect-only one ends too, unless a rate limit only puts it off.
    # 2. It shows a host out of reach, and nothing was known to run: a stop could not be delivered. End.
    # 3. It shows STOPPED or GONE: confirmed.
    # 4. It shows anything else. From now on the stop must be seen, whatever strength it had before.
    #    a. Whether a start may overtake it (`failed`): yes if the pod is lost or has ignored several stops,
    #       or if the stop had failed before and the pod does not report that it is stopping.
    #    b. A pod that reports STOPPING gets no second stop for `stopping_grace_s`; any other phase ends
    #       that grace, and the stop is due when it would have been without it.
    def on_inspected(self, stop: PendingStop, seen: PodReport | ProviderError, now: float) -> bool:
        """Apply the result of an inspection; return True if this stop is over and removed."""
        if isinstance(seen, ProviderError):  # 1
            stop.failed = True
            put_off = stop.is_inspect_only and isinstance(seen, RateLimited)
            over = isinstance(seen, NotFound) or not (stop.until_seen_stopped or put_off)
        elif stop.is_inspect_only and seen.phase is Phase.UNREACHABLE:  # 2
            over = True
        else:
            over = seen.phase in STOPPED_PHASES  # 3
            self._insist(stop, seen.phase, now)  # 4
        if over:
            del self.by_provider[stop.provider]
            self.abandoned_providers.discard(stop.provider)
        return over

    def _insist(self, stop: PendingStop, phase: Phase, now: float) -> None:
        if stop.is_inspect_only:
            stop.send_at = -inf
        stop.until_seen_stopped = stop.until_seen_stopped or phase not in STOPPED_PHASES
        ignored = phase is Phase.RUNNING and stop.sent_count >= MAX_IGNORED_STOPS  # 4a
        stop.failed = phase in LOST_PHASES or (stop.failed and phase is not Phase.STOPPING) or ignored
        self._delay_resend(stop, phase, now)  # 4b

    def _delay_resend(self, stop: PendingStop, phase: Phase, now: float) -> None:
        if phase is not Phase.STOPPING:
            stop.stopping_since = None
            stop.send_at = stop.resend_at
            return
        if stop.stopping_since is None:
            stop.stopping_since = now
        if stop.op is None:
            stop.send_at = max(stop.send_at, stop.stopping_since + self.policy.stopping_grace_s)


@define
class OpenSession:
    """A billed session: its run, when it began, its pod as far as it is known, and whether that ever ran."""

    run_id: int
    began_at: float
    pod_id: str | None
    ran: bool


@define
class OpenSessions:
    """At most one session per provider."""

    by_provider: dict[int, OpenSession] = field(factory=dict)

    def __contains__(self, provider: object) -> bool:
        return provider in self.by_provider

    def began_at(self, provider: int) -> float:
        """Return when the session of this provider began; it must be open."""
        return self.by_provider[provider].began_at

    def open(
        self, provider: int, run_id: int, cause: StartCause, report: PodReport, up_s: float, now: float
    ) -> list[RecordSessionStart | RecordSessionEnd]:
        """Open a session that began `up_s` ago; one of another pod ends. An open one of this pod goes on."""
        ended: list[RecordSessionEnd] = []
        if (session := self.by_provider.get(provider)) is not None:
            if None in (session.pod_id, report.pod_id) or session.pod_id == report.pod_id:
                session.pod_id = session.pod_id or report.pod_id
                session.ran = session.ran or report.phase is Phase.RUNNING
                return []
            ended = self.close(provider, StopCause.LOST)
        ran = report.phase is Phase.RUNNING
        self.by_provider[provider] = OpenSession(run_id, now - up_s, report.pod_id, ran)
        started = RecordSessionStart(run_id=run_id, provider=provider, cause=cause, report=report, up_s=up_s)
        return [*ended, started]

    def close(self, provider: int, cause: StopCause) -> list[RecordSessionEnd]:
        """Close the session of this provider, if one is open."""
        session = self.by_provider.pop(provider, None)
        if session is None:
            return []
        billed = session.ran or cause is not StopCause.QUEUED
        return [RecordSessionEnd(run_id=session.run_id, provider=provider, cause=cause, billed=billed)]


@define
class ProviderViews:
    """What the inspections since boot have shown.

    Attributes:
        errors: by provider, why its last inspection failed; removed by the next good one.
        asked: the providers whose first answer is there.
        seen: the providers that have shown what they have; an unreachable host has not.
    """

    policy: Policy
    errors: dict[int, str] = field(factory=dict)
    asked: set[int] = field(factory=set)
    seen: set[int] = field(factory=set)
    _alarms: dict[int, str] = field(factory=dict)

    def requested_delay_s(self, event: PodInspected | InspectFailed) -> float:
        """Return how long a provider that was inspected too often asks to be left alone; 0 if it does not."""
        error = event.error if isinstance(event, InspectFailed) else None
        if isinstance(error, RateLimited) and error.retry_after is not None:
            return min(error.retry_after, self.policy.max_rate_limit_s)
        return 0.0

    def update(self, event: PodInspected | InspectFailed, *, serves: bool) -> Iterator[Command]:
        """Note whether the pod can be seen there; that it cannot is published once.

        A first inspection that is too early is no problem: `gpugate check --live` was there a moment ago.
        """
        provider, name = event.provider, self.policy.providers[event.provider].name
        is_first = provider not in self.asked
        self.asked.add(provider)
        if is_first and self.requested_delay_s(event):
            return
        known = self.errors.pop(provider, None)
        if isinstance(event, InspectFailed):
            message = self.errors[provider] = f"{name}: could not look: {event.error.message}"
            if known is None:
                yield PublishProviderProblem(provider=provider, message=message, reason=event.error.reason)
            return
        if event.report.phase is not Phase.UNREACHABLE:
            self.seen.add(provider)
        else:
            self.errors[provider] = f"{name}: the pod is unreachable"
        yield from self._note_alarm(provider, event.report.alarm, serves)

    def _note_alarm(self, provider: int, alarm: str, serves: bool) -> Iterator[Command]:
        """The provider reports that it bills for more than the pod: clean up, and publish each alarm once."""
        if alarm and serves:
            yield CleanUpOrphans(provider)  # at each inspection until one shows no alarm
        if alarm != self._alarms.get(provider, ""):
            self._alarms[provider] = alarm
            if alarm:
                yield PublishProviderProblem(provider=provider, message=alarm, reason="transient", alarm=True)


@define
class _Slot:
    due: float = inf
    op: int | None = None


def _slots(count: int) -> list[_Slot]:
    return [_Slot() for _ in range(count)]


@define
class InspectSchedule:
    """One inspection at a time per provider. A start or stop cancels the one that is out: it is older."""

    slots: list[_Slot] = field(converter=_slots)

    @property
    def next_due(self) -> float:
        """When the next inspection has to be sent; `inf` if each is out or none is planned."""
        return min(inf if slot.op is not None else slot.due for slot in self.slots)

    def schedule(self, provider: int, at: float) -> None:
        """Inspect this provider at `at`, or when the inspection that is out has its result."""
        self.slots[provider].due = at

    def schedule_no_later_than(self, provider: int, at: float) -> None:
        """Inspect at `at`, or earlier if that was scheduled while the last inspection was out."""
        slot = self.slots[provider]
        slot.due = min(slot.due, at)

    def cancel(self, provider: int) -> None:
        """Ignore the result of the inspection that is out, and plan none."""
        self.slots[provider] = _Slot()

    def take_due(self, now: float) -> list[int]:
        """Return the providers to inspect now."""
        return [i for i, slot in enumerate(self.slots) if slot.due <= now and slot.op is None]

    def sent(self, provider: int, op: int) -> None:
        """Note that an inspection with this number is out."""
        self.slots[provider] = _Slot(op=op)

    def is_out(self, provider: int) -> bool:
        """Return whether an inspection of this provider is out."""
        return self.slots[provider].op is not None

    def take_result(self, provider: int, op: int) -> bool:
        """Return True, once, if the result with this number is the one that is waited for."""
        slot = self.slots[provider]
        if slot.op != op:
            return False
        slot.op = None
        return True
