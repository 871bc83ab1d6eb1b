"""Records billed sessions in the ledger: the row is on disk before the provider is called for a start.

Theory of operation:

1. `record_start_intent` writes a row without `started_at` and waits for the disk; it is the only write that
   the lifecycle waits for. A start whose intent cannot be written is not made.
2. `SessionStarted` sets `started_at`: the session is billed from here. Reports of inspections and changes of
   state update the row in memory; one task writes changed rows, and repeats a failed write every `RETRY_S`.
3. The session ends with `SessionEnded` (the stop was confirmed). An intent that never became a session is
   closed as a failed start when the provider is seen off or its pending stop is confirmed.
4. After a crash the open rows of the earlier gateway are *inherited*: they are continued if the provider
   reports the same pod, else closed at the last time at which the pod was surely billed.

Durations come from the monotonic clock: `clock_anchor` is its reading at the session's beginning, so a wall
clock that is set back does not make a session cheaper.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType

from attrs import evolve

from gpugate.billing.cost_math import SECONDS_PER_HOUR, ZERO, ReplicaCost
from gpugate.billing.ledger import SessionStore
from gpugate.billing.model import BY_HAND, PodUsage, Session, StartOrigin, StartTimeBound
from gpugate.billing.usage import NoUsage, UsageSlice, UsageTracker
from gpugate.core.commands import StartCause
from gpugate.core.states import StateName
from gpugate.errors import LedgerError
from gpugate.lifecycle.status import (
    LifecycleEvent,
    ProviderProblem,
    SessionEnded,
    SessionStarted,
    StateChanged,
)
from gpugate.provider_api import MAIN_POD, Phase, PodReport, Price
from gpugate.tasks import CrashHandler, Supervised

FLUSH_S = 2.0
"""How often the usage of a serving pod is written; a crash loses at most this much of it."""
LAST_SEEN_INTERVAL_S = 60.0
"""How old the row's `seen_at` may become while the pod lives."""
LAST_SEEN_INTERVAL_STOPPING_S = 2.0
"""The same once a stop was sent: the pod may end between two inspections."""
RETRY_S = 5.0
"""Pause before a failed write is repeated."""
CLOSE_LIMIT_S = 5.0
"""How long the last writes may delay the gateway's exit."""
_MAX_INSPECTION_AGE = timedelta(minutes=10)
"""How long before the intent to start the pod may have been started by another client of the provider: the
inspection that saw it off may be this old."""
_NO_PROVIDER_START = timedelta(seconds=1)
"""If an adopted session began at most this long before it was found, its provider reported no start time."""
_UNBILLED = frozenset({Phase.STOPPED, Phase.QUEUED, Phase.GONE})
_ALIVE = frozenset({Phase.PROVISIONING, Phase.STARTING, Phase.RUNNING, Phase.STOPPING})
_OUR_STARTS = frozenset(StartCause) - {StartCause.ADOPTED}
_SERVES = frozenset({StateName.READY, StateName.DRAINING})


class Recorder:
    """What the lifecycle reports to its ledger; this class records nothing and knows of no earlier session.

    Attributes:
        usage: told by the lifecycle which requests use the pod.
    """

    def __init__(self) -> None:
        self.usage: UsageTracker = NoUsage()

    async def record_start_intent(self, provider: str, origin: StartOrigin) -> None:
        """Write down that this provider is about to be called for a pod; called before every start call.

        Raises:
            LedgerError: it could not be written, so the provider must not be called.
        """

    def on_report(self, provider: str, report: PodReport) -> None:
        """Take an inspection's report."""

    def on_stops_changed(self, providers: frozenset[str]) -> None:
        """Take the providers with a pending stop; called whenever they change."""

    async def flush(self) -> None:
        """Write what has changed, as far as the disk can be written."""

    def start_time_bound(self, provider: str, report: PodReport) -> StartTimeBound:
        """Return what the ledger knows of the beginning of the run in this report."""
        return StartTimeBound()

    def inherited_sessions(self) -> frozenset[str]:
        """Return the providers where an earlier gateway left a session open, or the intent to start one."""
        return frozenset()

    def age_s(self, provider: str, report: PodReport) -> float | None:
        """Return for how long an earlier gateway's session has billed this pod; None: no such session."""
        return None

    def on_event(self, news: LifecycleEvent) -> None:
        """Take an event of the lifecycle."""


class SessionRecorder(Recorder):
    """Keeps the open sessions of one pod and writes them to the ledger, which all pods share.

    Its `on_event` hears the events of this pod alone.

    Args:
        pod: the pod's name.
        pods: the names of all configured pods. The recorder of the first one closes, with an alarm, the
            sessions of pods that are not configured any more.
        fallback: the price where a provider reports none, and the currency.
        wall: the wall clock.
        boottime: a monotonic clock in seconds that counts the machine's sleep.
        boot_id: identifies the boot that this clock counts from.
        flush_s: how often the usage of a serving pod is written.
        alarm: called when the ledger cannot be written, once for each outage, and when it can be again.
    """

    def __init__(
        self,
        ledger: SessionStore,
        *,
        pod: str = MAIN_POD,
        pods: Sequence[str] = (MAIN_POD,),
        fallback: Price,
        wall: Callable[[], datetime],
        boottime: Callable[[], float],
        boot_id: str,
        flush_s: float = FLUSH_S,
        alarm: Callable[[str], None],
        on_crash: CrashHandler | None = None,
    ) -> None:
        super().__init__()
        self.usage = UsageTracker()
        self._ledger = ledger
        self._pod = pod
        self._pods = pods
        self._fallback = fallback
        self._wall = wall
        self._boottime = boottime
        self._boot = boot_id
        self._flush_s = flush_s
        self._alarm = alarm
        self._on_crash = on_crash
        self._open: dict[str, Session] = {}
        # By provider, for rows that are inherited and not confirmed yet: until when the pod was surely
        # billed; None once this gateway has seen the pod alive.
        self._inherited_until: dict[str, datetime | None] = {}
        # When billed sessions last ended: at each provider, and of removed pods by their provider and pod id.
        self._last_ends: dict[str | tuple[str, str], datetime] = {}
        self._told_ends: dict[str, datetime] = {}  # by session: the end that its provider tells
        self._failed_starts: dict[str, str] = {}  # why; the pod runs all the same, and is being stopped
        self._providers: Collection[str] = ()
        self._has_inherited = False
        self._inheriting = asyncio.Lock()
        self._stopping: frozenset[str] = frozenset()
        self._replica_costs: dict[str, ReplicaCost] = {}  # by session
        self._reasons: dict[str, str] = {}
        self._origins: dict[str, StartOrigin] = {}  # of the latest start
        self._serving: str | None = None
        self._unsaved_sessions: dict[str, Session] = {}  # by id, the newest version
        self._unsaved_usage: dict[tuple[str, str], PodUsage] = {}
        self._run = secrets.token_hex(4)  # keeps its usage ids apart from an earlier gateway's
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._problem = ""

    @property
    def open_rows(self) -> Mapping[str, Session]:
        """The open sessions by provider."""
        return MappingProxyType(self._open)

    async def open(self, providers: Collection[str]) -> None:
        """Inherit the sessions that an earlier gateway left open, and begin to write.

        Of several open rows at one provider the newest is inherited; rows of providers that are not
        configured any more are closed, with an alarm. If the ledger cannot be read now, this is done as soon
        as it can.
        """
        self._providers = providers
        self._writer = Supervised(self._write_for_ever, "ledger:writer", on_crash=self._on_crash)
        try:
            await self._inherit()
        except LedgerError as error:
            self._set_problem(error.detail)
            self._wake.set()

    async def _inherit(self) -> None:
        """Take over what an earlier gateway left, once. Raises LedgerError."""
        async with self._inheriting:
            if not self._has_inherited:
                left, ended = await self._ledger.open_sessions(), await self._ledger.last_ended()
                self._has_inherited = True
                removed = [row for row in left if row.pod not in self._pods]
                others = set(self._pods) - {self._pod}
                for row in (*ended, *removed):
                    if row.pod not in others:
                        self._note_end(row, row.ended_at or row.last_known_at)
                if self._pod == self._pods[0]:
                    for row in removed:
                        self._close_unconfigured(row)
                self._take_over([row for row in left if row.pod == self._pod])

    def _take_over(self, left: Sequence[Session]) -> None:
        newest = {row.provider: row for row in left}
        for row in left:
            if row is not newest[row.provider]:
                self._end(row, row.last_known_at, "never seen again")
            elif row.provider not in self._providers:
                self._close_unconfigured(row)
            elif not self._continue_late(row):
                self._open[row.provider] = row
                self._inherited_until[row.provider] = paid_at_least_until(row)

    def _continue_late(self, left: Session) -> bool:
        """Join a row that was left open with that of the pod which was adopted before the ledger could be
        read; return whether the provider has such a pod.
        """
        provider = left.provider
        here = (self._pod, provider)
        since = [row for row in self._unsaved_sessions.values() if (row.pod, row.provider) == here]
        first = min(since, key=lambda row: row.began_at, default=None)
        if first is None:
            return False
        known_until = left.last_known_at + timedelta(seconds=2 * LAST_SEEN_INTERVAL_S)
        no_start_time = first.asked_at - first.began_at < _NO_PROVIDER_START
        same_pod = None in (left.pod_id, first.pod_id) or left.pod_id == first.pod_id
        if not same_pod or not (no_start_time or first.began_at <= known_until):
            self._end(left, left.last_known_at, "found stopped" if left.started_at else "failed start")
            return True
        row = evolve(
            first,
            **{
                name: getattr(left, name)
                for name in ("id", "asked_at", "started_by", "start_reason", "request_id")
            },
            started_at=left.started_at or first.started_at,
            running_at=left.running_at or first.running_at,
            ready_at=left.ready_at or first.ready_at,
            clock_anchor=left.clock_anchor if left.started_at else first.clock_anchor,
        )
        del self._unsaved_sessions[first.id]
        for key in [key for key in self._unsaved_usage if key[0] == first.id]:
            use = evolve(self._unsaved_usage.pop(key), session_id=row.id)
            self._unsaved_usage[use.session_id, use.id] = use
        if first.ended_at is not None:
            self._end(row, first.ended_at, first.end_reason)
        else:
            self._open[provider] = row
            self._queue_write(row)
        return True

    def _close_unconfigured(self, row: Session) -> None:
        """Close the session of a pod that can neither be inspected nor stopped any more."""
        self._end(row, row.last_known_at, "not configured any more")
        pod = f"its pod {row.pod_id}" if row.pod_id else "its pod"
        of_pod = f" of the pod {row.pod!r}" if len(self._pods) > 1 else ""
        missing = f"the provider {row.provider!r}{of_pod} is not configured any more, and {pod}"
        if row.pod != self._pod:
            place = " ".join(filter(None, (row.provider, row.pod_id)))
            missing = f"the pod {row.pod!r} is not configured any more, and what ran for it at {place}"
        self._alarm(
            f"{missing} was not seen to stop: check it there;"
            f" its session counts until {row.last_known_at:%F %T} UTC"
        )

    async def aclose(self) -> None:
        """Write what is left within `CLOSE_LIMIT_S`; an alarm says what could not be written."""
        self._collect_usage()
        await self._writer.aclose()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self._write()
        if self._unsaved_sessions or self._unsaved_usage:
            self._alarm(
                f"not written to the ledger: {len(self._unsaved_sessions)} sessions,"
                f" {len(self._unsaved_usage)} usage rows"
            )

    # --- called by the lifecycle ----------------------------------------------------------------

    async def record_start_intent(self, provider: str, origin: StartOrigin) -> None:
        """See `Recorder`."""
        self._origins[provider] = origin
        try:
            await self._inherit()
            row = self._open.get(provider) or self._new_session(provider, origin)
            await self._ledger.put(row)
        except LedgerError as error:
            self._set_problem(error.detail)
            raise
        self._open.setdefault(provider, row)

    # 1. A start that waits in the provider's queue costs nothing: its row is an intent, as of now.
    # 2. An inherited session is over if the pod is off, queued again or not billed, or if another one runs:
    #    it is closed when it ended by the provider's word, else when it was last surely billed, unless a stop
    #    is pending: `on_stops_changed` closes it.
    # 3. A price that the row lacks is taken from any report on its pod.
    # 4. A pod that lives confirms an inherited session.
    # 5. A pod that lives although its start call failed is billed, from the intent on.
    def on_report(self, provider: str, report: PodReport) -> None:
        """Continue or close the provider's open session; called for every inspection's report."""
        row = self._open.get(provider)
        if row is None:
            return
        inherited = provider in self._inherited_until
        if report.phase is Phase.QUEUED and row.running_at is None and (row.started_at is None or inherited):
            self._inherited_until.pop(provider, None)  # 1
            self._to_intent(row)
            return
        same = self._is_same_session(row, report)
        if same and report.ended_at is not None:
            self._told_ends[row.id] = report.ended_at
        unbilled = report.phase in _UNBILLED or not report.billed
        over = unbilled or (report.phase in _ALIVE and not same)
        if same and row.rate_source != "provider" and report.price is not None:  # 3
            row = self._with_price(row, report)
            self._update(row)
        if over and inherited and provider not in self._stopping:  # 2
            at = max(row.last_known_at, self._inherited_until[provider] or row.last_known_at)
            at = self._told_ends.get(row.id, at)
            self._close(row, at, "found stopped" if row.started_at else "failed start")
        elif report.phase in _ALIVE and report.billed and (same or inherited):
            if inherited and same:  # 4
                self._inherited_until[provider] = None
            if row.started_at is None and provider in self._stopping:  # 5
                self._failed_starts[provider] = self._reasons.get(provider, "refused")
                row = evolve(row, started_at=row.asked_at)
            self._update(self._with_report(row, report))

    def on_stops_changed(self, providers: frozenset[str]) -> None:
        """Note when a stop was first sent; at its confirmation close failed starts and inherited sessions."""
        was, self._stopping = self._stopping, providers
        for name in providers - was:
            if (row := self._open.get(name)) is not None and row.stop_asked_at is None:
                self._update(evolve(row, stop_asked_at=self._now(row)))
        for name in was - providers:
            row = self._open.get(name)
            if row is not None and (
                row.started_at is None or name in self._inherited_until or name in self._failed_starts
            ):
                failed = self._failed_starts.get(name, self._reasons.get(name, "refused"))
                paid = row.started_at is not None and name not in self._failed_starts
                reason = "restart" if paid else f"failed start: {failed}"
                self._close(row, self._inherited_until.get(name) or self._now(row), reason)

    def start_time_bound(self, provider: str, report: PodReport) -> StartTimeBound:
        """Return the end of the provider's last session, or when its open session began if that is later."""
        mine, elsewhere = self._last_ends.get(provider), self._last_ends.get((provider, report.pod_id or ""))
        end = max((at for at in (mine, elsewhere) if at is not None), default=None)
        ended = "" if end is None else f"its last session in the ledger ended at {end:%F %T} UTC"
        bound = StartTimeBound(earliest=end, source=ended)
        row = self._open.get(provider)
        if row is None or (None not in (row.pod_id, report.pod_id) and row.pod_id != report.pod_id):
            return bound
        instead = row.began_at if end is None else max(row.began_at, end)
        adopted = row.start_reason == "adopted"
        if provider not in self._inherited_until:
            return bound if adopted or row.started_at else evolve(bound, fallback=instead)
        if adopted and row.asked_at - row.began_at < _NO_PROVIDER_START:
            return bound  # it began before it was found; its provider had not reported when
        earliest = row.began_at if adopted else min(row.asked_at - _MAX_INSPECTION_AGE, row.began_at)
        if end is not None and end > earliest:
            return evolve(bound, fallback=instead)
        began = f"its open session in the ledger began at {row.began_at:%F %T} UTC"
        return StartTimeBound(earliest=earliest, fallback=instead, source=began)

    def inherited_sessions(self) -> frozenset[str]:
        """See `Recorder`."""
        return frozenset(self._inherited_until)

    def age_s(self, provider: str, report: PodReport) -> float | None:
        """See `Recorder`."""
        row = self._open.get(provider)
        if row is None or not self._is_same_session(row, report):
            return None
        failing = row.started_at is None and provider in self._stopping
        return self._age_s(row) if failing or provider in self._inherited_until else None

    def on_event(self, news: LifecycleEvent) -> None:
        """See `Recorder`."""
        match news:
            case SessionStarted():
                self._on_session_started(news)
            case SessionEnded():
                self._on_session_ended(news)
            case StateChanged():
                self._on_state_changed(news)
            case ProviderProblem():
                self._reasons[news.provider] = news.reason

    def _on_session_started(self, news: SessionStarted) -> None:
        provider = news.provider
        row = self._open.get(provider)
        if row is not None and provider in self._inherited_until and not self._is_same_pod(row, news.report):
            self._close(row, self._inherited_until[provider] or row.last_known_at, "found stopped")
            row = None
        self._inherited_until.pop(provider, None)
        origin = StartOrigin(reason=news.cause)
        if news.cause in _OUR_STARTS:
            self._failed_starts.pop(provider, None)
            origin = self._origins.get(provider, origin)
        row = row or self._new_session(provider, origin)
        up_s = max(0.0, (self._wall() - news.at).total_seconds())
        if row.started_at is None or up_s > self._age_s(row) + 1.0:
            row = evolve(row, started_at=news.at, clock_anchor=self._clock_anchor(up_s))
        if self._serving == provider:  # it is billed again, or the provider has replaced its pod
            row = evolve(row, ready_at=row.ready_at or news.at)
        self._update(self._with_report(row, news.report))

    def _on_session_ended(self, news: SessionEnded) -> None:
        if self._serving == news.provider:
            self._collect_usage(whole=True)
        if (row := self._open.get(news.provider)) is None:
            return
        if not news.billed and row.running_at is None:
            self._to_intent(row)
            return
        failed = self._failed_starts.get(news.provider)
        at = min(self._now(row), self._told_ends.get(row.id, self._now(row)))
        self._close(row, at, f"failed start: {failed}" if failed else news.cause)

    def _to_intent(self, row: Session) -> None:
        """Take back the beginning of a row whose start waits in the provider's queue: not before now."""
        anchor = self._clock_anchor(0.0)
        self._update(evolve(row, asked_at=self._now(row), started_at=None, clock_anchor=anchor))

    def _on_state_changed(self, news: StateChanged) -> None:
        if news.was in _SERVES and news.now not in _SERVES:
            self._collect_usage(whole=True)
            self._serving = None
        elif self._serving not in (
            None,
            news.provider,
        ):  # handed over: answers that go on count for the new pod
            self._collect_usage()
        row = self._open.get(news.provider or "")
        if row is None:
            return
        if news.now is StateName.WARMING and row.running_at is None:
            row = evolve(row, running_at=self._now(row))
        if news.now is StateName.READY:
            self._serving = row.provider
            row = evolve(row, ready_at=row.ready_at or self._now(row))
        self._update(row)

    # --- rows -----------------------------------------------------------------------------------

    def _new_session(self, provider: str, origin: StartOrigin) -> Session:
        now = self._wall()
        return Session(
            id=f"{now.astimezone(UTC):%Y%m%dT%H%M%S.%f}-{secrets.token_hex(3)}",
            pod=self._pod,
            provider=provider,
            asked_at=now,
            currency=self._fallback.currency,
            started_by=origin.user or BY_HAND,
            start_reason=origin.reason,
            request_id=origin.request_id,
            clock_anchor=self._clock_anchor(0.0),
        )

    def _with_report(self, row: Session, report: PodReport) -> Session:
        """Return the row with the report's pod, GPU and price, and with `seen_at` if that is too old."""
        row = self._with_price(row, report)
        now = self._now(row)
        limit_s = LAST_SEEN_INTERVAL_S if row.stop_asked_at is None else LAST_SEEN_INTERVAL_STOPPING_S
        stale = row.seen_at is None or (now - row.seen_at).total_seconds() >= limit_s
        running = report.phase is Phase.RUNNING and row.running_at is None
        return evolve(
            row,
            pod_id=report.pod_id or row.pod_id,
            gpu=report.gpu or row.gpu,
            running_at=now if running else row.running_at,
            seen_at=now if stale else row.seen_at,
        )

    # With replicas that come and go the row's rate is the mean of the whole session: times its length it is
    # the cost, for the sums over open rows, too. A gateway that takes over such a row knows the mean only.
    def _with_price(self, row: Session, report: PodReport) -> Session:
        """Return the row with this price; where it has no rate, with the one known before or configured."""
        price, costs, age_s = report.price or Price(), self._replica_costs.get(row.id), self._age_s(row)
        rate, source, currency = price.running_per_hour, "provider", price.currency
        if rate is None and row.rate_source == "provider":
            rate, currency = row.hourly_rate if costs is None else costs.rate, row.currency
        if rate is None and self._fallback.running_per_hour is not None:
            rate, source, currency = (
                self._fallback.running_per_hour * report.replicas,
                "configured",
                row.currency,
            )
        if rate is None:
            source, currency = "unknown", row.currency
        was_mean = row.provider in self._inherited_until and row.hourly_rate not in (None, rate)
        if costs is None and (was_mean or report.replicas > 1):
            costs = ReplicaCost(0 if row.hourly_rate else report.replicas, row.hourly_rate)
            self._replica_costs[row.id] = costs
        if costs is not None:
            costs.change(report.replicas, rate, age_s)
            rate = costs.mean_rate(age_s)
        stopped = row.stopped_rate if price.stopped_per_hour is None else price.stopped_per_hour
        return evolve(row, hourly_rate=rate, rate_source=source, stopped_rate=stopped, currency=currency)

    def _update(self, row: Session) -> None:
        if row != self._open.get(row.provider):
            self._open[row.provider] = row
            self._queue_write(row)

    def _close(self, row: Session, at: datetime, reason: str) -> None:
        """End a session; one that never began costs nothing."""
        self._open.pop(row.provider, None)
        self._inherited_until.pop(row.provider, None)
        self._failed_starts.pop(row.provider, None)
        self._end(row, at, reason)

    def _end(self, row: Session, at: datetime, reason: str) -> None:
        """Write down a session's end and cost; it ends no earlier than it began."""
        self._told_ends.pop(row.id, None)
        at = max(at, row.began_at)
        self._note_end(row, at)
        seconds = max(0.0, (at - row.began_at).total_seconds())
        if costs := self._replica_costs.pop(row.id, None):
            row = evolve(row, hourly_rate=costs.mean_rate(seconds))
        rate = row.hourly_rate
        cost = None if rate is None else rate * Decimal(str(seconds)) / SECONDS_PER_HOUR
        self._queue_write(evolve(row, ended_at=at, end_reason=reason, cost=cost if row.started_at else ZERO))

    def _note_end(self, row: Session, at: datetime) -> None:
        """Remember when a billed session ended. A removed pod's counts for its pod id: it may be renamed."""
        key = row.provider if row.pod == self._pod else (row.provider, row.pod_id or "")
        if row.started_at is not None:
            self._last_ends[key] = max(at, self._last_ends.get(key, at))

    def _queue_write(self, row: Session) -> None:
        self._unsaved_sessions[row.id] = row
        self._wake.set()

    @staticmethod
    def _is_same_pod(row: Session, report: PodReport) -> bool:
        return None in (row.pod_id, report.pod_id) or row.pod_id == report.pod_id

    def _is_same_session(self, row: Session, report: PodReport) -> bool:
        """Return whether the report is about this session: the same pod, not started again since."""
        if not self._is_same_pod(row, report):
            return False
        if report.started_at is None or report.started_at > self._wall():  # a clock is wrong
            return True
        return report.started_at <= row.last_known_at + timedelta(seconds=2 * LAST_SEEN_INTERVAL_S)

    # --- time -----------------------------------------------------------------------------------

    def _clock_anchor(self, up_s: float) -> str:
        return f"{self._boot}:{self._boottime() - up_s:.6f}"

    def _age_s(self, row: Session) -> float:
        """Return the session's age: by the monotonic clock unless the machine was booted since."""
        boot, _, at = row.clock_anchor.rpartition(":")
        if boot == self._boot and at:
            with suppress(ValueError):  # a damaged row
                return max(0.0, self._boottime() - float(at))
        return max(0.0, (self._wall() - row.began_at).total_seconds())

    def _now(self, row: Session) -> datetime:
        """Return the present as a wall clock time that fits the session's beginning and its real length."""
        return row.began_at + timedelta(seconds=self._age_s(row))

    # --- writing --------------------------------------------------------------------------------

    def _collect_usage(self, *, whole: bool = False) -> None:
        """Turn what the usage tracker has collected into rows to be written."""
        now = asyncio.get_running_loop().time()
        spent = self.usage.collect(now, run_ended=whole)
        row = self._open.get(self._serving or "")
        if row is None or not spent:
            return
        here = self._now(row)
        for entry in spent:
            use = pod_usage(row.id, f"{self._run}-{entry.number}", entry, here, now)
            self._unsaved_usage[use.session_id, use.id] = use
        if self.usage.last_finished_at is not None:
            last = here - timedelta(seconds=now - self.usage.last_finished_at)
            self._update(evolve(row, last_used_at=max(last, row.last_used_at or last)))
        self._wake.set()

    async def _write_for_ever(self) -> None:
        while True:
            try:
                # not `wait_for`: Python 3.11's swallows a cancellation that comes together with the event
                async with asyncio.timeout(self._flush_s if self._serving else None):
                    await self._wake.wait()
            except TimeoutError:  # sessions are written at once, usage every `flush_s`
                self._collect_usage()
            self._wake.clear()
            if not await self._write():
                await asyncio.sleep(RETRY_S)
                self._wake.set()

    async def flush(self) -> None:
        """See `Recorder`; called before the ledger is read."""
        self._collect_usage()
        await self._write()

    async def _write(self) -> bool:
        """Write what has changed; return False if that failed, and keep it."""
        async with self._writing:  # of two versions of a row the newer must be written last
            if self._has_inherited and not (self._unsaved_sessions or self._unsaved_usage):
                return True
            return await self._write_pending()

    async def _write_pending(self) -> bool:
        try:
            await self._inherit()
        except LedgerError as error:
            self._set_problem(error.detail)
            return False
        rows, self._unsaved_sessions = self._unsaved_sessions, {}
        spent, self._unsaved_usage = self._unsaved_usage, {}
        try:
            for row_id, row in list(rows.items()):
                await self._ledger.put(row)
                del rows[row_id]
            if spent:
                await self._ledger.put_usage(list(spent.values()))
                spent = {}
        except LedgerError as error:
            self._set_problem(f"{error.detail}; {len(rows)} sessions wait to be written")
            return False
        finally:  # also when cancelled
            self._unsaved_sessions = {**rows, **self._unsaved_sessions}
            self._unsaved_usage = {**spent, **self._unsaved_usage}
        self._set_problem("")
        return True

    def _set_problem(self, trouble: str) -> None:
        if bool(trouble) != bool(self._problem):
            self._alarm(trouble or "the ledger can be written again")
        self._problem = trouble


def paid_at_least_until(row: Session) -> datetime:
    """Return until when the pod was surely billed: it may have ended at any time after its stop was sent."""
    return max(row.last_known_at, row.stop_asked_at or row.last_known_at)


def pod_usage(session_id: str, name: str, spent: UsageSlice, here: datetime, now: float) -> PodUsage:
    return PodUsage(
        session_id=session_id,
        id=name,
        request_id=spent.request_id,
        user=spent.user,
        began_at=here - timedelta(seconds=now - spent.started_at),
        ended_at=here - timedelta(seconds=now - spent.finished_at),
        seconds=Decimal(f"{spent.seconds:.6f}"),
        requests=spent.requests,
    )
