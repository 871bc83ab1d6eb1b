"""Keeps the ledger: each session's row is on disk before the provider is called, and at every step after.

It listens to the lifecycle and decides nothing of the pod. Rows live here while they are open; one task
writes what has changed, and goes on trying while the disk fails: only the intent to start is waited for.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Protocol

from attrs import evolve

from gpugate.billing.ledger import Ledger
from gpugate.billing.model import BY_HAND, PodUsage, Session, StartOrigin, StartTimeBound
from gpugate.billing.usage import UsageSlice, UsageTracker
from gpugate.core.states import StateName
from gpugate.errors import LedgerError
from gpugate.lifecycle.event_bus import News, ProviderTrouble, SessionBegan, SessionEnded, Transition
from gpugate.lifecycle.status import SECONDS_PER_HOUR
from gpugate.provider_api import Phase, PodReport, Price
from gpugate.tasks import CrashListener, Supervised

FLUSH_S = 2.0
"""How often the uses of a pod that serves are written: a crash may lose so much of them."""
LAST_SEEN_INTERVAL_S = 60.0
"""How old `seen_at` may get."""
LAST_SEEN_INTERVAL_STOPPING_S = 2.0
"""The same once a stop was sent: it may come to its end while nobody looks."""
RETRY_S = 5.0
"""Between two tries of a write that failed."""
CLOSE_LIMIT_S = 5.0
"""Longest that the last writes may hold up the end of the gateway."""
_MAX_INSPECTION_AGE = timedelta(minutes=10)
"""How old the look that showed the pod off may have been when its start was intended: it may have been
started since by other hands."""
_NO_PROVIDER_START = timedelta(seconds=1)
"""An adopted row that began so shortly before it was found has its beginning from no provider."""
NOTHING = Decimal(0)
_OFF = frozenset({Phase.STOPPED, Phase.GONE})
_ALIVE = frozenset({Phase.PROVISIONING, Phase.STARTING, Phase.RUNNING, Phase.STOPPING})
_SERVES = frozenset({StateName.READY, StateName.DRAINING})


class Books(Protocol):
    """Sessions and their uses."""

    @property
    def usage(self) -> UsageTracker:
        """Where the requests that use the pod are noted."""

    async def record_start_intent(self, provider: str, starter: StartOrigin) -> None:
        """Write down that this provider is about to be asked for a pod.

        Raises:
            LedgerError: it could not be written, so the provider must not be asked.
        """

    def on_report(self, provider: str, report: PodReport) -> None:
        """The provider said what its pod is doing."""

    def on_stops_changed(self, providers: frozenset[str]) -> None:
        """The providers at which a stop is under way, whenever they change."""

    async def flush(self) -> None:
        """Write what is known by now, as far as the disk lets itself be written."""

    def start_time_bound(self, provider: str, report: PodReport) -> StartTimeBound:
        """What the ledger knows of the beginning of the run in this report."""

    def age_s(self, provider: str, report: PodReport) -> float | None:
        """How long this pod has been paid for by the books of an earlier gateway; None: not in them."""

    def on_event(self, news: News) -> None:
        """Listen to the lifecycle."""


class SessionRecorder:
    """The open sessions of one gateway, and the writer of all of them.

    Args:
        fallback: the price where a provider tells none, and the currency.
        wall: the calendar.
        steady: a clock that no calendar moves, in seconds, sleep of the machine included.
        boot: names the run of that clock.
        flush_s: how often the uses of a pod that serves are written.
        alarm: hears of a ledger that fails, once for each trouble, and of its recovery.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        fallback: Price,
        wall: Callable[[], datetime],
        steady: Callable[[], float],
        boot: str,
        flush_s: float = FLUSH_S,
        alarm: Callable[[str], None],
        on_crash: CrashListener | None = None,
    ) -> None:
        self.usage = UsageTracker()
        self._ledger = ledger
        self._fallback = fallback
        self._wall = wall
        self._steady = steady
        self._boot = boot
        self._flush_s = flush_s
        self._alarm = alarm
        self._on_crash = on_crash
        self._open: dict[str, Session] = {}
        # Of providers whose row is an earlier gateway's and not confirmed yet: until when that one is sure
        # to have paid; None once the pod was seen alive by this one.
        self._inherited_until: dict[str, datetime | None] = {}
        self._last_ends: dict[str, datetime] = {}  # of billed sessions, by provider
        self._failed_starts: dict[str, str] = {}  # why; the pod is started all the same, and is being stopped
        self._stopping: frozenset[str] = frozenset()
        self._reasons: dict[str, str] = {}
        self._serving: str | None = None
        self._unsaved_sessions: dict[str, Session] = {}  # to be written; the newest of each
        self._unsaved_usage: dict[tuple[str, str], PodUsage] = {}
        self._run = secrets.token_hex(4)  # keeps its uses apart from those of a session's earlier gateways
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._problem = ""

    @property
    def open_rows(self) -> Mapping[str, Session]:
        """The open sessions by provider, as they are now."""
        return MappingProxyType(self._open)

    async def open(self, providers: Collection[str]) -> None:
        """Read what an earlier gateway left open at the configured providers, and begin to write."""
        try:
            left = await self._ledger.open_sessions()
            self._last_ends = dict(await self._ledger.last_ends())
        except LedgerError as error:
            self._set_problem(str(error))
            left = []
        for row in left:
            if (older := self._open.get(row.provider)) is not None:
                self._close(older, older.last_known_at, "never seen again")
            self._open[row.provider] = row
        for row in [row for row in left if row.provider not in providers and row is self._open[row.provider]]:
            self._close_unconfigured(row)
        self._inherited_until = {name: paid_at_least_until(row) for name, row in self._open.items()}
        self._writer = Supervised(self._write_for_ever, "ledger:writer", on_crash=self._on_crash)

    def _close_unconfigured(self, row: Session) -> None:
        """Nobody can look at this pod any more, or stop it."""
        self._close(row, row.last_known_at, "not configured any more")
        pod = f"its pod {row.pod_id}" if row.pod_id else "its pod"
        self._alarm(
            f"the provider {row.provider!r} is not configured any more, and {pod}"
            f" was not seen to stop: see to it there; its session counts until {row.last_known_at:%F %T} UTC"
        )

    async def aclose(self) -> None:
        """Write what is left; what cannot be written in time is told."""
        self._collect_usage()
        await self._writer.aclose()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self._write()
        if self._unsaved_sessions or self._unsaved_usage:
            self._alarm(
                f"the ledger lacks {len(self._unsaved_sessions)} sessions and {len(self._unsaved_usage)} uses"
            )

    # --- what the lifecycle says ----------------------------------------------------------------

    async def record_start_intent(self, provider: str, starter: StartOrigin) -> None:
        """Write down that this provider is about to be asked; LedgerError if that fails."""
        row = self._open.get(provider) or self._new_session(provider, starter)
        await self._ledger.put(row)
        self._open.setdefault(provider, row)

    def on_report(self, provider: str, report: PodReport) -> None:
        """The provider said what its pod is doing."""
        row = self._open.get(provider)
        if row is None:
            return
        over = report.phase in _OFF or (report.phase in _ALIVE and not self._is_same_session(row, report))
        if over and provider in self._inherited_until and provider not in self._stopping:
            at = max(row.last_known_at, self._inherited_until[provider] or row.last_known_at)
            self._close(row, at, "found stopped" if row.started_at else "failed start")
        elif report.phase in _ALIVE:
            if provider in self._inherited_until and not over:
                self._inherited_until[provider] = None
            if row.started_at is None and provider in self._stopping:
                self._failed_starts[provider] = self._reasons.get(provider, "refused")
                row = evolve(row, started_at=row.asked_at)
            self._update(self._with_report(row, report))

    def on_stops_changed(self, providers: frozenset[str]) -> None:
        """Stops began, or have come to their end."""
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
        """The end of the last session there, and of a row that is open what was written when it began."""
        end = self._last_ends.get(provider)
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
            return bound  # it began before it was found, and its provider had not yet told when
        earliest = row.began_at if adopted else min(row.asked_at - _MAX_INSPECTION_AGE, row.began_at)
        if end is not None and end > earliest:
            return evolve(bound, fallback=instead)
        began = f"its open session in the ledger began at {row.began_at:%F %T} UTC"
        return StartTimeBound(earliest=earliest, fallback=instead, source=began)

    def age_s(self, provider: str, report: PodReport) -> float | None:
        """How long this pod has been paid for by an earlier gateway's row; None: there is none."""
        row = self._open.get(provider)
        if row is None or provider not in self._inherited_until or not self._is_same_session(row, report):
            return None
        return self._age_s(row)

    def on_event(self, news: News) -> None:
        """Listen to the lifecycle."""
        match news:
            case SessionBegan():
                self._on_session_started(news)
            case SessionEnded():
                self._on_session_ended(news)
            case Transition():
                self._on_state_changed(news)
            case ProviderTrouble():
                self._reasons[news.provider] = news.reason

    def _on_session_started(self, news: SessionBegan) -> None:
        self._inherited_until.pop(news.provider, None)
        self._failed_starts.pop(news.provider, None)
        row = self._open.get(news.provider) or self._new_session(
            news.provider, StartOrigin(reason=news.cause)
        )
        up_s = max(0.0, (self._wall() - news.at).total_seconds())
        if row.started_at is None or up_s > self._age_s(row) + 1.0:
            row = evolve(row, started_at=news.at, clock_anchor=self._clock_anchor(up_s))
        self._update(self._with_report(row, news.report))

    def _on_session_ended(self, news: SessionEnded) -> None:
        if self._serving == news.provider:
            self._collect_usage(whole=True)
        if (row := self._open.get(news.provider)) is not None:
            self._close(row, row.began_at + max(timedelta(0), news.at - news.began_at), news.cause)

    def _on_state_changed(self, news: Transition) -> None:
        if news.was in _SERVES and news.now not in _SERVES:
            self._collect_usage(whole=True)
            self._serving = None
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

    def _new_session(self, provider: str, starter: StartOrigin) -> Session:
        now = self._wall()
        return Session(
            id=f"{now.astimezone(UTC):%Y%m%dT%H%M%S.%f}-{secrets.token_hex(3)}",
            provider=provider,
            asked_at=now,
            currency=self._fallback.currency,
            started_by=starter.user or BY_HAND,
            start_reason=starter.reason,
            request_id=starter.request_id,
            clock_anchor=self._clock_anchor(0.0),
        )

    def _with_report(self, row: Session, report: PodReport) -> Session:
        """The row with what the provider says of its pod."""
        price = report.price or Price()
        rate, source = price.running_per_hour, "provider"
        if rate is None:
            rate, source = (row.hourly_rate, row.rate_source) if row.rate_source == "provider" else (None, "")
        if rate is None:
            rate = self._fallback.running_per_hour
            source = "unknown" if rate is None else "configured"
        now = self._now(row)
        limit_s = LAST_SEEN_INTERVAL_S if row.stop_asked_at is None else LAST_SEEN_INTERVAL_STOPPING_S
        stale = row.seen_at is None or (now - row.seen_at).total_seconds() >= limit_s
        running = report.phase is Phase.RUNNING and row.running_at is None
        return evolve(
            row,
            pod_id=report.pod_id or row.pod_id,
            gpu=report.gpu or row.gpu,
            hourly_rate=rate,
            rate_source=source,
            stopped_rate=row.stopped_rate if price.stopped_per_hour is None else price.stopped_per_hour,
            currency=price.currency if source == "provider" and report.price else row.currency,
            running_at=now if running else row.running_at,
            seen_at=now if stale else row.seen_at,
        )

    def _update(self, row: Session) -> None:
        if row != self._open.get(row.provider):
            self._open[row.provider] = row
            self._queue_write(row)

    def _close(self, row: Session, at: datetime, reason: str) -> None:
        """This row is over; the seconds before an accepted start cost nothing."""
        self._open.pop(row.provider, None)
        self._inherited_until.pop(row.provider, None)
        self._failed_starts.pop(row.provider, None)
        if row.started_at is not None:
            self._last_ends[row.provider] = max(at, self._last_ends.get(row.provider, at))
        seconds = Decimal(str(max(0.0, (at - row.began_at).total_seconds())))
        cost = None if row.hourly_rate is None else row.hourly_rate * seconds / SECONDS_PER_HOUR
        self._queue_write(
            evolve(row, ended_at=at, end_reason=reason, cost=cost if row.started_at else NOTHING)
        )

    def _queue_write(self, row: Session) -> None:
        self._unsaved_sessions[row.id] = row
        self._wake.set()

    def _is_same_session(self, row: Session, report: PodReport) -> bool:
        """What is seen is the stretch of this row: its pod, and not started since its last sign of life."""
        if row.pod_id is not None and report.pod_id is not None and row.pod_id != report.pod_id:
            return False
        if report.started_at is None or report.started_at > self._wall():  # one of the clocks is wrong
            return True
        return report.started_at <= row.last_known_at + timedelta(seconds=2 * LAST_SEEN_INTERVAL_S)

    # --- time -----------------------------------------------------------------------------------

    def _clock_anchor(self, up_s: float) -> str:
        return f"{self._boot}:{self._steady() - up_s:.6f}"

    def _age_s(self, row: Session) -> float:
        """How long ago the row began: by the steady clock if it is the same one, else by the calendar."""
        boot, _, at = row.clock_anchor.rpartition(":")
        if boot == self._boot and at:
            return max(0.0, self._steady() - float(at))
        return max(0.0, (self._wall() - row.began_at).total_seconds())

    def _now(self, row: Session) -> datetime:
        """Now, as far from the row's beginning as it really is."""
        return row.began_at + timedelta(seconds=self._age_s(row))

    # --- writing --------------------------------------------------------------------------------

    def _collect_usage(self, *, whole: bool = False) -> None:
        """Bring what was used into the rows of uses."""
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
            except TimeoutError:  # steps of a session are written at once, uses now and then
                self._collect_usage()
            self._wake.clear()
            if not await self._write():
                await asyncio.sleep(RETRY_S)
                self._wake.set()

    async def flush(self) -> None:
        """Bring the disk up to date, as far as it lets itself, for somebody who reads it now."""
        self._collect_usage()
        await self._write()

    async def _write(self) -> bool:
        """Write what is new; False if the disk would not have it, and then it is kept."""
        async with self._writing:  # of two versions of a row the newer must come last
            return not (self._unsaved_sessions or self._unsaved_usage) or await self._write_pending()

    async def _write_pending(self) -> bool:
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
            self._set_problem(f"{error}; rows that wait to be written: {len(rows)}")
            return False
        finally:  # cancelled, too: what has not been written is not forgotten
            self._unsaved_sessions = {**rows, **self._unsaved_sessions}
            self._unsaved_usage = {**spent, **self._unsaved_usage}
        self._set_problem("")
        return True

    def _set_problem(self, trouble: str) -> None:
        if bool(trouble) != bool(self._problem):
            self._alarm(trouble or "the ledger can be written again")
        self._problem = trouble


def paid_at_least_until(row: Session) -> datetime:
    """A stop that was asked for may have come to its end while nobody looked."""
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
