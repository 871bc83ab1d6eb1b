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
from gpugate.lifecycle.report_sanitizer import Plausible
from gpugate.provider_api import PodReport, Provider
from gpugate.tasks import CrashListener, Supervised, report_crash

CALL_LIMIT_S = 120.0
"""Longest a provider may take over one call; plugins have shorter limits of their own."""

STOP_NOTE_LIMIT_S = 1.0
"""Longest a stop waits for its note in the ledger: what is known of it costs less than what runs on."""

HANDOVER_LIMIT_S = 1.0
"""Longest that a call which is out may hold up a stop past the queue, once it is cancelled."""

CLOSE_LIMIT_S = 5.0
"""Longest a plugin may hold up the end of the gateway."""

Order = StartPod | StopPod | InspectPod | CleanUpOrphans
Intent = Callable[[], Awaitable[None]]
"""Writes down what the provider is about to be asked; `LedgerError` forbids to ask it for a pod."""


@frozen
class NamedProvider:
    """A provider under the name it has in the configuration."""

    name: str
    provider: Provider


def _whole(error: ProviderError) -> ProviderError:
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


class CommandLine:
    """The queue of commands to one provider."""

    def __init__(
        self,
        named: NamedProvider,
        tell: Callable[[Event], None],
        age_s: Callable[[PodReport], float],
        plausible: Plausible,
        on_crash: CrashListener | None = None,
    ) -> None:
        self._named = named
        self._tell = tell
        self._age_s = age_s
        self._plausible = plausible
        self._orders: asyncio.Queue[tuple[Order, Intent | None]] = asyncio.Queue()
        self._on_crash = on_crash
        self._out: Order | None = None  # what the worker is carrying out
        self._look_limit: asyncio.Timeout | None = None  # of the look that is out
        self._stops = 0  # that are queued
        self._worker = Supervised(self._work, self._name, on_crash=on_crash)

    @property
    def _name(self) -> str:
        return f"provider:{self._named.name}"

    def send(self, order: Order, intent: Intent | None = None) -> None:
        """Queue a command behind those that are out; a start after its intent, a stop if it can be.

        Looks before a stop are given up for it: a provider that does not answer must not hold it up.
        """
        self._orders.put_nowait((order, intent))
        if isinstance(order, StopPod):
            self._stops += 1
            if self._look_limit is not None:
                self._look_limit.reschedule(asyncio.get_running_loop().time())

    async def stop_now(self, limit_s: float, pause_s: float) -> bool:
        """Stop the pod past the queue, which ends: for a lifecycle that has failed.

        Sends stops and looks, `pause_s` apart, until a look proves the stop; False: not within `limit_s`.
        """
        provider = self._named.provider
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
            await self._named.provider.aclose()

    async def _work(self) -> None:
        if self._out is not None:  # the worker before this one died over it
            self._answer(self._out, Ambiguous("the command was interrupted by a fault of the gateway"))
        while True:
            order, intent = await self._orders.get()
            self._out = order
            self._stops -= isinstance(order, StopPod)
            try:
                answer = await self._carry_out(order, intent)
            except Exception as error:
                report_crash(self._name, error, self._on_crash)
                answer = Ambiguous(f"the gateway failed with {type(error).__name__} over it")
            self._answer(order, answer)

    def _answer(self, order: Order, answer: Event | ProviderError | None) -> None:
        """Tell what came of a command; of a sweep, the next look shows it."""
        self._out = None
        if isinstance(order, CleanUpOrphans) or answer is None:
            return
        try:
            self._tell(_failed(order, answer) if isinstance(answer, ProviderError) else answer)
        except Exception as error:  # whatever is wrong with one answer, the next command goes out
            report_crash(self._name, error, self._on_crash)

    async def _note(self, intent: Intent) -> None:
        """Try to write this down first; what comes after it must be done in any case."""
        try:
            async with asyncio.timeout(STOP_NOTE_LIMIT_S):
                await intent()
        except (LedgerError, TimeoutError):
            return
        except Exception as error:
            report_crash(self._name, error, self._on_crash)

    async def _carry_out(self, order: Order, intent: Intent | None) -> Event | ProviderError | None:
        provider = self._named.provider
        match order:
            case StartPod(op):
                try:
                    if intent is not None:
                        await intent()
                except LedgerError as error:  # nothing is paid for that is not on record
                    return StartCallFailed(op, Misconfigured(str(error)))
                seen = await self._call(provider.start)
                if isinstance(seen, PodReport):
                    seen = self._plausible.said(seen)
                    return StartAccepted(op, seen, self._age_s(seen))
                return seen
            case StopPod(op):
                if intent is not None:
                    await self._note(intent)
                seen = await self._call(provider.stop)
                return StopAccepted(op) if isinstance(seen, PodReport) else seen
            case InspectPod(op, index):
                seen = await self._look()
                if isinstance(seen, PodReport):
                    seen = self._plausible.seen(seen)
                    return PodInspected(op, index, seen, self._age_s(seen))
                return seen
            case CleanUpOrphans():
                await self._call(provider.sweep)
                return None

    async def _look(self) -> PodReport | ProviderError:
        limit = self._look_limit = asyncio.timeout(0 if self._stops else CALL_LIMIT_S)
        try:
            seen = await self._call(self._named.provider.inspect, limit)
        finally:
            self._look_limit = None
        if limit.expired() and self._stops:
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
            return _whole(error)
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
