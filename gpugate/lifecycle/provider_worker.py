"""Executes the commands to one provider: in order, one at a time, each with a time limit.

A report that comes back is sanitized first: start times and prices that cannot be true are removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import inf

from attrs import define, evolve, field, frozen

from gpugate.billing.model import StartTimeBound
from gpugate.core.commands import CleanUpOrphans, InspectPod, ScalePod, StartPod, StopPod
from gpugate.core.events import (
    Event,
    InspectFailed,
    PodInspected,
    ScaleAnswered,
    StartAccepted,
    StartCallFailed,
    StopAccepted,
    StopCallFailed,
)
from gpugate.core.pending_stops import STOPPED_PHASES
from gpugate.errors import Ambiguous, LedgerError, Misconfigured, ProviderError, Transient
from gpugate.provider_api import Phase, PodReport, Price, Provider
from gpugate.tasks import CrashHandler, Supervised, report_crash

CALL_LIMIT_S = 120.0
"""Of one call; a plugin has shorter limits of its own."""

START_LIMIT_BEFORE_STOP_S = 3.0
"""How long a stop waits for a start or a clean-up that is out; the stop and its confirmation need the rest of
the 10 s that `docker stop` gives. A start that is given up may have worked: the stop is sent for that reason,
and an inspection has to confirm it."""

BEFORE_STOP_LIMIT_S = 1.0
"""How long a stop waits for its entry in the ledger: the entry costs less than a pod that runs on."""

HANDOVER_LIMIT_S = 1.0
"""How long `stop_now` waits for the call that is out, which it has cancelled."""

CLOSE_LIMIT_S = 5.0
"""Of a provider's `aclose`, and the least time that `stop_now` has."""

SLOW_CALL_S = 10.0
"""A call that takes longer is told in `last_error` until it returns."""

MAX_RATE_PER_HOUR = Decimal(1_000_000)
"""In any currency; a higher price is a provider's mistake."""

MAX_AGE = timedelta(days=366)
"""A start time that is older counts as unknown, such as second 0 of 1970."""

CLOCK_SKEW = timedelta(seconds=2)
"""A start time that is too early by no more is corrected without a warning: clocks differ by so much, and a
provider may round to whole seconds."""

_BILLED_PHASES = frozenset({Phase.PROVISIONING, Phase.STARTING, Phase.RUNNING, Phase.STOPPING})


@define
class ReportSanitizer:
    """Sanitizes the reports of one provider, and warns once of each fault.

    Attributes:
        wall: the calendar.
        boottime: the clock that is never set, in seconds.
        warn: takes one line for people.
        start_bound: what the ledger knows of the beginning of the run in a report.
    """

    wall: Callable[[], datetime]
    boottime: Callable[[], float]
    warn: Callable[[str], None]
    start_bound: Callable[[PodReport], StartTimeBound] = lambda _: StartTimeBound()
    _seen_off_at: float | None = None
    _known_price: tuple[str | None, Price | None] = (None, None)  # of which pod
    _warned: set[str] = field(factory=set)
    _disbelieved: datetime | None = None

    def sanitize_inspection(self, report: PodReport) -> PodReport:
        """Sanitize the result of an inspection; a stopped pod's next run begins after it."""
        if report.phase in STOPPED_PHASES:
            self._seen_off_at = self.boottime()
        return self.sanitize(report)

    def sanitize(self, report: PodReport) -> PodReport:
        """Return the report of any call without what cannot be true; the pod's last price if it has none."""
        price, started_at = self._price(report.price), self._started_at(report)
        pod_id, known = self._known_price
        if price is not None and price.running_per_hour is not None:
            self._known_price = report.pod_id, price
        elif report.pod_id == pod_id:
            price = known
        if price is report.price and started_at is report.started_at:
            return report
        return evolve(report, price=price, started_at=started_at)

    # A reported start time, in this order:
    #
    # 1. None: unknown.
    # 2. Older than `MAX_AGE`, and the ledger has no bound: unknown.
    # 3. In the future: the provider's clock is ahead and the run is new, so it counts from now (None).
    # 4. Not before the last instant at which the pod is known to have been off (by an inspection or by the
    #    ledger, the later): it is believed.
    # 5. Otherwise it is replaced by the bound, with a warning if the pod is billed and the clocks' skew does
    #    not explain it. The ledger's instant may lie in the future where the calendar was set back.
    def _started_at(self, report: PodReport) -> datetime | None:
        said = report.started_at
        if said is None:  # 1
            return None
        now, bound = self.wall(), self.start_bound(report)
        if bound.earliest is None and now - said > MAX_AGE:  # 2
            self._warn_once("started_at", f"it says that its pod runs since {said:%Y-%m-%d}: not believed")
            return None
        if said > now:  # 3
            return None
        earliest, what = bound.earliest, bound.source
        seen_off = self._seen_off(now)
        if seen_off is not None and (earliest is None or seen_off > earliest):
            earliest, what = seen_off, f"it was seen stopped at {_in_utc(seen_off)}"
        if earliest is None or said >= earliest:  # 4
            return said
        since = min(max(earliest, bound.fallback or earliest), now)  # 5
        if report.phase in _BILLED_PHASES and earliest - said > CLOCK_SKEW and said != self._disbelieved:
            self._disbelieved = said
            self.warn(
                f"it says that its pod runs since {_in_utc(said)}, but {what}:"
                f" not believed, billed from {_in_utc(since)}"
            )
        return since

    def _seen_off(self, now: datetime) -> datetime | None:
        """Return when the last inspection showed the pod off, by today's calendar."""
        if self._seen_off_at is None:
            return None
        return now - timedelta(seconds=max(0.0, self.boottime() - self._seen_off_at))

    def _price(self, said: Price | None) -> Price | None:
        if said is None:
            return None
        running, stopped = self._amount(said.running_per_hour), self._amount(said.stopped_per_hour)
        if running is said.running_per_hour and stopped is said.stopped_per_hour:
            return said
        return None if running is None else evolve(said, running_per_hour=running, stopped_per_hour=stopped)

    def _amount(self, said: Decimal | None) -> Decimal | None:
        if said is None or (said.is_finite() and 0 <= said <= MAX_RATE_PER_HOUR):
            return said
        self._warn_once("price", f"it says that its pod costs {said} an hour: not believed")
        return None

    def _warn_once(self, what: str, line: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self.warn(line)


def _in_utc(at: datetime) -> str:
    return f"{at.astimezone(UTC):%F %T} UTC"


ProviderCommand = StartPod | StopPod | InspectPod | ScalePod | CleanUpOrphans
BeforeCall = Callable[[], Awaitable[None]]
"""Writes down what the provider is about to be asked. A `LedgerError` of it forbids a start, never a stop."""


async def nothing_before() -> None:
    """Write nothing down."""


@frozen
class ConfiguredProvider:
    """A provider, and the name that it has in `pod.provider`."""

    name: str
    provider: Provider


class ProviderWorker:
    """The queue of commands to one provider, and the task that executes them.

    Args:
        on_event: called with the result of each command, except of `CleanUpOrphans`: the next inspection
            shows whether that has worked.
        age_s: for how many seconds the pod of a report has been billed already.
        sanitizer: of the provider's reports.
        on_called: takes each call's name, its outcome ("ok" or the reason of its error) and its seconds.
    """

    def __init__(
        self,
        configured: ConfiguredProvider,
        on_event: Callable[[Event], None],
        age_s: Callable[[PodReport], float],
        sanitizer: ReportSanitizer,
        on_crash: CrashHandler,
        on_called: Callable[[str, str, float], None] = lambda *_: None,
    ) -> None:
        self._configured = configured
        self._on_event = on_event
        self._age_s = age_s
        self._sanitizer = sanitizer
        self._on_crash = on_crash
        self._on_called = on_called
        self._commands: asyncio.Queue[tuple[ProviderCommand, BeforeCall]] = asyncio.Queue()
        self._current: ProviderCommand | None = None
        self._limit: asyncio.Timeout | None = None  # of the call that is out, unless that is a stop
        self._limit_before_stop_s = 0.0  # what is left of it when a stop is queued
        self._queued_stops = 0
        self._calling: tuple[str, float] | None = None  # the call that is out, and since when
        self._may_change_at = -inf
        self._worker = Supervised(self._run, self._name, on_crash=on_crash)

    @property
    def _name(self) -> str:
        return f"provider:{self._configured.name}"

    def send(self, command: ProviderCommand, before: BeforeCall = nothing_before) -> None:
        """Queue a command; returns at once.

        A provider that does not answer must not delay a stop: an inspection or a `scale` that is out or
        queued before the stop ends at once, a start or a clean-up after `START_LIMIT_BEFORE_STOP_S`.
        """
        self._commands.put_nowait((command, before))
        if isinstance(command, StopPod):
            self._queued_stops += 1
            if self._limit is not None:
                at = asyncio.get_running_loop().time() + self._limit_before_stop_s
                if at < (self._limit.when() or inf):
                    self._limit.reschedule(at)

    def slow_call(self) -> str | None:
        """Return which call has not returned for `SLOW_CALL_S`, for people; None if none."""
        if self._calling is None:
            return None
        what, since = self._calling
        waited = asyncio.get_running_loop().time() - since
        if waited < SLOW_CALL_S:
            return None
        return f"{self._configured.name}: waiting for the answer to {what} for {waited:.0f} s"

    async def stop_now(self, limit_s: float, pause_s: float) -> bool:
        """Stop the pod without the queue, which ends here; called when the lifecycle has failed.

        Sends a stop and an inspection every `pause_s` seconds; returns True as soon as an inspection shows
        the pod stopped, False after `limit_s`.
        """
        provider = self._configured.provider
        await self._worker.aclose(HANDOVER_LIMIT_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(limit_s, CLOSE_LIMIT_S)):
                while True:
                    await self._call(self._stop)
                    seen = await self._call(provider.inspect)
                    if isinstance(seen, PodReport) and seen.phase in STOPPED_PHASES:
                        return True
                    await asyncio.sleep(max(pause_s, provider.capabilities.min_poll_s))
        return False

    async def aclose(self) -> None:
        """Drop the commands that are queued, and close the provider."""
        await self._worker.aclose(CLOSE_LIMIT_S)
        async with asyncio.timeout(CLOSE_LIMIT_S):
            await self._configured.provider.aclose()

    async def _run(self) -> None:
        if self._current is not None:  # the worker task before this one died while it executed this
            self._report(self._current, Ambiguous("the command was interrupted by a fault of the gateway"))
        while True:
            command, before = await self._commands.get()
            self._current = command
            self._queued_stops -= isinstance(command, StopPod)
            try:
                result = await self._execute(command, before)
            except Exception as error:
                report_crash(self._name, error, self._on_crash)
                result = Ambiguous(f"the gateway failed with {type(error).__name__} over it")
            self._report(command, result)

    def _report(self, command: ProviderCommand, result: Event | ProviderError | None) -> None:
        self._current = None
        if isinstance(command, CleanUpOrphans) or result is None:
            return
        event = _failure_event(command, result) if isinstance(result, ProviderError) else result
        try:
            self._on_event(event)
        except Exception as error:  # the next command must go out all the same
            report_crash(self._name, error, self._on_crash)

    async def _execute(self, command: ProviderCommand, before: BeforeCall) -> Event | ProviderError | None:
        provider = self._configured.provider
        match command:
            case StartPod(op):
                try:
                    await before()
                except LedgerError as error:  # no pod is started that is not in the ledger
                    return StartCallFailed(op, Misconfigured(str(error)))
                seen = await self._call_before_stop(self._start, START_LIMIT_BEFORE_STOP_S)
                if isinstance(seen, PodReport):
                    seen = self._sanitizer.sanitize(seen)
                    return StartAccepted(op, seen, self._age_s(seen))
                return seen
            case StopPod(op):
                await self._try_before_stop(before)
                seen = await self._call(self._stop)
                return StopAccepted(op) if isinstance(seen, PodReport) else seen
            case InspectPod(op, index):
                seen = await self._call_before_stop(provider.inspect, 0.0)
                if isinstance(seen, PodReport):
                    seen = self._sanitizer.sanitize_inspection(seen)
                    return PodInspected(op, index, seen, self._age_s(seen))
                return seen
            case ScalePod(op, _, replicas):
                if self._queued_stops:
                    return ScaleAnswered(op, Ambiguous("not called: the pod is being stopped"))

                async def scale() -> PodReport:
                    return await provider.scale(replicas)

                seen = await self._call_before_stop(scale, 0.0)
                return ScaleAnswered(
                    op, self._sanitizer.sanitize(seen) if isinstance(seen, PodReport) else seen
                )
            case CleanUpOrphans():
                await self._call_before_stop(provider.sweep, START_LIMIT_BEFORE_STOP_S)
                return None

    async def _start(self) -> PodReport:
        return await self._change(self._configured.provider.start)

    async def _stop(self) -> PodReport:
        return await self._change(self._configured.provider.stop)

    async def _change(self, method: Callable[[], Awaitable[PodReport]]) -> PodReport:
        """Call `start` or `stop` as soon as the provider takes another change."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._may_change_at - loop.time())
        try:
            return await method()
        finally:
            self._may_change_at = loop.time() + self._configured.provider.capabilities.min_change_s

    async def _try_before_stop(self, before: BeforeCall) -> None:
        """Write the stop down if that is possible in time; the stop is sent in any case."""
        try:
            async with asyncio.timeout(BEFORE_STOP_LIMIT_S):
                await before()
        except (LedgerError, TimeoutError):
            return
        except Exception as error:
            report_crash(self._name, error, self._on_crash)

    async def _call_before_stop(
        self, method: Callable[[], Awaitable[object]], limit_before_stop_s: float
    ) -> PodReport | ProviderError:
        """Call a method that is given up `limit_before_stop_s` after a stop was queued."""
        limit = self._limit = asyncio.timeout(limit_before_stop_s if self._queued_stops else CALL_LIMIT_S)
        self._limit_before_stop_s = limit_before_stop_s
        try:
            seen = await self._call(method, limit)
        finally:
            self._limit = None
        if limit.expired() and self._queued_stops:
            return Ambiguous("the call was given up for a stop, which goes first")
        return seen

    async def _call(
        self, method: Callable[[], Awaitable[object]], limit: asyncio.Timeout | None = None
    ) -> PodReport | ProviderError:
        """Call a method of the provider once; whatever it does wrong is returned as a `ProviderError`.

        Only a cancellation of the worker itself passes through.
        """
        loop = asyncio.get_running_loop()
        name = method.__name__.removeprefix("_")
        began = loop.time()
        self._calling = name, began
        seen = await self._try(method, limit or asyncio.timeout(CALL_LIMIT_S))
        self._on_called(name, seen.reason if isinstance(seen, ProviderError) else "ok", loop.time() - began)
        return seen

    async def _try(
        self, method: Callable[[], Awaitable[object]], limit: asyncio.Timeout
    ) -> PodReport | ProviderError:
        try:
            async with limit:
                report = await method()
        except ProviderError as error:
            return _with_message(error)
        except TimeoutError:
            waited = f" within {CALL_LIMIT_S:g} s" if limit.expired() else " in time"
            return Ambiguous(f"no answer{waited}")
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return Ambiguous("the plugin cancelled its own call")
        except (Exception, SystemExit) as error:  # a plugin's bug must not end the lifecycle
            return Transient(f"the plugin failed with {type(error).__name__}")
        finally:
            self._calling = None
        if isinstance(report, PodReport):
            return report
        return Transient(f"the plugin returned {type(report).__name__}, not a PodReport")


def _with_message(error: ProviderError) -> ProviderError:
    """Return the error with a `message`; a plugin's own class may not have called our constructor."""
    if not isinstance(getattr(error, "message", None), str):
        error.message = str(error) or type(error).__name__
    return error


def _failure_event(command: StartPod | StopPod | InspectPod | ScalePod, error: ProviderError) -> Event:
    match command:
        case StartPod(op):
            return StartCallFailed(op, error)
        case StopPod(op):
            return StopCallFailed(op, error)
        case InspectPod(op, index):
            return InspectFailed(op, index, error)
        case ScalePod(op):
            return ScaleAnswered(op, error)
