"""Carries provider commands out: one at a time per provider, in order, bounded, never lost.

Knows how to call a provider and how to name what went wrong; nothing of when or why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from attrs import frozen

from gpugate.core.commands import CleanUpOrphans, InspectPod, StartPod, StopPod
from gpugate.core.events import (
    Event,
    InspectFailed,
    PodInspected,
    StartAccepted,
    StartCallFailed,
    StopAccepted,
    StopCallFailed,
)
from gpugate.core.pending_stops import STOPPED_PHASES
from gpugate.errors import Ambiguous, LedgerError, Misconfigured, ProviderError, Transient
from gpugate.lifecycle.report_sanitizer import ReportSanitizer
from gpugate.provider_api import PodReport, Provider
from gpugate.tasks import CrashHandler, Supervised, report_crash

CALL_LIMIT_S = 120.0
"""Longest a provider may take over one call; plugins have shorter limits of their own."""

BEFORE_STOP_LIMIT_S = 1.0
"""Longest a stop waits for its note in the ledger: what is known of it costs less than what runs on."""

HANDOVER_LIMIT_S = 1.0
"""Longest that a call which is out may hold up a stop past the queue, once it is cancelled."""

CLOSE_LIMIT_S = 5.0
"""Longest a plugin may hold up the end of the gateway."""

ProviderCommand = StartPod | StopPod | InspectPod | CleanUpOrphans
BeforeCall = Callable[[], Awaitable[None]]
"""Writes down what the provider is about to be asked; `LedgerError` forbids to ask it for a pod."""


@frozen
class ConfiguredProvider:
    """A provider under the name it has in the configuration."""

    name: str
    provider: Provider


def _with_message(error: ProviderError) -> ProviderError:
    """A plugin's own error class may have forgotten to call ours."""
    if not isinstance(getattr(error, "message", None), str):
        error.message = str(error) or type(error).__name__
    return error


def _failed(order: StartPod | StopPod | InspectPod, error: ProviderError) -> Event:
    """The answer to a command that failed."""
    match order:
        case StartPod(op):
            return StartCallFailed(op, error)
        case StopPod(op):
            return StopCallFailed(op, error)
        case InspectPod(op, index):
            return InspectFailed(op, index, error)


class ProviderWorker:
    """The queue of commands to one provider."""

    def __init__(
        self,
        named: ConfiguredProvider,
        tell: Callable[[Event], None],
        age_s: Callable[[PodReport], float],
        plausible: ReportSanitizer,
        on_crash: CrashHandler | None = None,
    ) -> None:
        self._configured = named
        self._on_event = tell
        self._age_s = age_s
        self._sanitizer = plausible
        self._commands: asyncio.Queue[tuple[ProviderCommand, BeforeCall | None]] = asyncio.Queue()
        self._on_crash = on_crash
        self._current: ProviderCommand | None = None  # what the worker is carrying out
        self._inspect_limit: asyncio.Timeout | None = None  # of the look that is out
        self._queued_stops = 0  # that are queued
        self._worker = Supervised(self._run, self._name, on_crash=on_crash)

    @property
    def _name(self) -> str:
        return f"provider:{self._configured.name}"

    def send(self, order: ProviderCommand, intent: BeforeCall | None = None) -> None:
        """Queue a command behind those that are out; a start after its intent, a stop if it can be.

        Looks before a stop are given up for it: a provider that does not answer must not hold it up.
        """
        self._commands.put_nowait((order, intent))
        if isinstance(order, StopPod):
            self._queued_stops += 1
            if self._inspect_limit is not None:
                self._inspect_limit.reschedule(asyncio.get_running_loop().time())

    async def stop_now(self, limit_s: float, pause_s: float) -> bool:
        """Stop the pod past the queue, which ends: for a lifecycle that has failed.

        Sends stops and looks, `pause_s` apart, until a look proves the stop; False: not within `limit_s`.
        """
        provider = self._configured.provider
        await self._worker.aclose(HANDOVER_LIMIT_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(limit_s, CLOSE_LIMIT_S)):
                while True:
                    await self._call(provider.stop)
                    seen = await self._call(provider.inspect)
                    if isinstance(seen, PodReport) and seen.phase in STOPPED_PHASES:
                        return True
                    await asyncio.sleep(max(pause_s, provider.capabilities.min_poll_s))
        return False

    async def aclose(self) -> None:
        """Drop what has not been sent, and let the provider go."""
        await self._worker.aclose(CLOSE_LIMIT_S)
        async with asyncio.timeout(CLOSE_LIMIT_S):
            await self._configured.provider.aclose()

    async def _run(self) -> None:
        if self._current is not None:  # the worker before this one died over it
            self._report(self._current, Ambiguous("the command was interrupted by a fault of the gateway"))
        while True:
            order, intent = await self._commands.get()
            self._current = order
            self._queued_stops -= isinstance(order, StopPod)
            try:
                answer = await self._execute(order, intent)
            except Exception as error:
                report_crash(self._name, error, self._on_crash)
                answer = Ambiguous(f"the gateway failed with {type(error).__name__} over it")
            self._report(order, answer)

    def _report(self, order: ProviderCommand, answer: Event | ProviderError | None) -> None:
        """Tell what came of a command; of a sweep, the next look shows it."""
        self._current = None
        if isinstance(order, CleanUpOrphans) or answer is None:
            return
        try:
            self._on_event(_failed(order, answer) if isinstance(answer, ProviderError) else answer)
        except Exception as error:  # whatever is wrong with one answer, the next command goes out
            report_crash(self._name, error, self._on_crash)

    async def _try_before_stop(self, intent: BeforeCall) -> None:
        """Try to write this down first; what comes after it must be done in any case."""
        try:
            async with asyncio.timeout(BEFORE_STOP_LIMIT_S):
                await intent()
        except (LedgerError, TimeoutError):
            return
        except Exception as error:
            report_crash(self._name, error, self._on_crash)

    async def _execute(
        self, order: ProviderCommand, intent: BeforeCall | None
    ) -> Event | ProviderError | None:
        provider = self._configured.provider
        match order:
            case StartPod(op):
                try:
                    if intent is not None:
                        await intent()
                except LedgerError as error:  # nothing is paid for that is not on record
                    return StartCallFailed(op, Misconfigured(str(error)))
                seen = await self._call(provider.start)
                if isinstance(seen, PodReport):
                    seen = self._sanitizer.sanitize(seen)
                    return StartAccepted(op, seen, self._age_s(seen))
                return seen
            case StopPod(op):
                if intent is not None:
                    await self._try_before_stop(intent)
                seen = await self._call(provider.stop)
                return StopAccepted(op) if isinstance(seen, PodReport) else seen
            case InspectPod(op, index):
                seen = await self._inspect()
                if isinstance(seen, PodReport):
                    seen = self._sanitizer.sanitize_inspection(seen)
                    return PodInspected(op, index, seen, self._age_s(seen))
                return seen
            case CleanUpOrphans():
                await self._call(provider.sweep)
                return None

    async def _inspect(self) -> PodReport | ProviderError:
        limit = self._inspect_limit = asyncio.timeout(0 if self._queued_stops else CALL_LIMIT_S)
        try:
            seen = await self._call(self._configured.provider.inspect, limit)
        finally:
            self._inspect_limit = None
        if limit.expired() and self._queued_stops:
            return Ambiguous("the look was given up for a stop, which goes first")
        return seen

    async def _call(
        self, method: Callable[[], Awaitable[object]], limit: asyncio.Timeout | None = None
    ) -> PodReport | ProviderError:
        """One try. Whatever a plugin does wrong becomes a `ProviderError`; only cancellation passes."""
        limit = limit or asyncio.timeout(CALL_LIMIT_S)
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
        if isinstance(report, PodReport):
            return report
        return Transient(f"the plugin returned {type(report).__name__}, not a PodReport")
