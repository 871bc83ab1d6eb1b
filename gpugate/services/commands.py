"""Carries provider commands out: one at a time per provider, in order, bounded, never lost.

Knows how to call a provider and how to name what went wrong; nothing of when or why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from attrs import frozen

from gpugate.core.vocabulary import (
    Event,
    Look,
    Looked,
    LookFailed,
    StartAccepted,
    StartPod,
    StartRefused,
    StopAccepted,
    StopPod,
    StopRefused,
    Sweep,
)
from gpugate.errors import Ambiguous, LedgerError, Misconfigured, ProviderError, Transient
from gpugate.ports.provider import PodReport, Provider
from gpugate.services.plausible import Plausible
from gpugate.services.tasks import CrashListener, report_crash, spawn

CALL_LIMIT_S = 120.0
"""Longest a provider may take over one call; plugins have shorter limits of their own."""

STOP_NOTE_LIMIT_S = 1.0
"""Longest a stop waits for its note in the ledger: what is known of it costs less than what runs on."""

CLOSE_LIMIT_S = 5.0
"""Longest a plugin may hold up the end of the gateway."""

Order = StartPod | StopPod | Look | Sweep
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


async def _noted(intent: Intent) -> None:
    """Try to write this down first; what comes after it must be done in any case."""
    with suppress(LedgerError, TimeoutError):
        async with asyncio.timeout(STOP_NOTE_LIMIT_S):
            await intent()


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
        self._worker = spawn(self._work(), f"provider:{named.name}", on_crash=on_crash)

    def send(self, order: Order, intent: Intent | None = None) -> None:
        """Queue a command behind those that are out; a start after its intent, a stop if it can be."""
        self._orders.put_nowait((order, intent))

    async def aclose(self) -> None:
        """Drop what has not been sent, and let the provider go."""
        self._worker.cancel()
        await asyncio.wait([self._worker], timeout=CLOSE_LIMIT_S)
        async with asyncio.timeout(CLOSE_LIMIT_S):
            await self._named.provider.aclose()

    async def _work(self) -> None:
        while True:
            order, intent = await self._orders.get()
            if isinstance(order, Sweep):
                await self._call(self._named.provider.sweep)  # what came of it, the next look shows
                continue
            event = await self._carry_out(order, intent)
            try:
                self._tell(event)
            except Exception as error:  # whatever is wrong with one answer, the next command goes out
                report_crash(f"provider:{self._named.name}", error, self._on_crash)

    async def _carry_out(self, order: StartPod | StopPod | Look, intent: Intent | None) -> Event:
        provider = self._named.provider
        match order:
            case StartPod(op):
                try:
                    if intent is not None:
                        await intent()
                except LedgerError as error:  # nothing is paid for that is not on record
                    return StartRefused(op, Misconfigured(str(error)))
                seen = await self._call(provider.start)
                if isinstance(seen, PodReport):
                    seen = self._plausible.said(seen)
                    return StartAccepted(op, seen, self._age_s(seen))
                return StartRefused(op, seen)
            case StopPod(op):
                if intent is not None:
                    await _noted(intent)
                seen = await self._call(provider.stop)
                return StopAccepted(op) if isinstance(seen, PodReport) else StopRefused(op, seen)
            case Look(op, index):
                seen = await self._call(provider.inspect)
                if isinstance(seen, PodReport):
                    seen = self._plausible.seen(seen)
                    return Looked(op, index, seen, self._age_s(seen))
                return LookFailed(op, index, seen)

    async def _call(self, method: Callable[[], Awaitable[object]]) -> PodReport | ProviderError:
        """One try. Whatever a plugin does wrong becomes a `ProviderError`; only cancellation passes."""
        limit = asyncio.timeout(CALL_LIMIT_S)
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
        except Exception as error:  # a plugin's bug must not end the lifecycle
            return Transient(f"the plugin failed with {type(error).__name__}")
        if isinstance(report, PodReport):
            return report
        return Transient(f"the plugin returned {type(report).__name__}, not a PodReport")
