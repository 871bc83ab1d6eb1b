"""The dead man's switch of a pod: renewals that keep it running; without them its start script stops it.

The start script (examples/pod/README.md) stops the pod when no renewal came for 15 minutes: for the case that
the gateway's machine is gone. A renewal is a blob uploaded to the pod's Ollama whose digest only the gateway
and the script know; the script deletes it when it sees it, every 10 seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress

from gpugate.core.states import Status
from gpugate.lifecycle.status import LifecycleEvent, StateChanged
from gpugate.provider_api import Endpoint
from gpugate.tasks import CrashHandler, Supervised

RENEW_EVERY_S = 30.0
"""Three times the interval of the script."""
UNTAKEN_LIMIT = 3
"""So many renewals in a row that found the one before still there: the script does not run."""
NEW, STILL_THERE = 201, 200

PutRenewal = Callable[[Endpoint, str, bytes], Awaitable[int | str]]
"""Uploads a blob by its digest; returns the status of the answer, or what was seen instead."""


def lease_digest(secret: str) -> str:
    """Return what the pod is told of `pod.lease`: enough to recognise a renewal, not enough to make one."""
    return hashlib.sha256(secret.encode()).hexdigest()


class SwitchRenewer:
    """Renews the switch of the pod that serves.

    Args:
        secret: `pod.lease`.
        put_renewal: `OllamaPodClient.put_renewal`.
        serving: returns the endpoint of the serving pod's Ollama, or None.
        warn: takes one line when renewing fails, and when it works again.
        every_s: between two renewals.
    """

    def __init__(
        self,
        secret: str,
        put_renewal: PutRenewal,
        serving: Callable[[], Endpoint | None],
        warn: Callable[[str], None],
        *,
        every_s: float = RENEW_EVERY_S,
        on_crash: CrashHandler | None = None,
    ) -> None:
        self._content = secret.encode()
        self._digest = lease_digest(secret)
        self._put_renewal = put_renewal
        self._serving = serving
        self._warn = warn
        self._every_s = every_s
        self._on_crash = on_crash
        self._untaken = 0
        self._problem: str | None = None
        self._soon = asyncio.Event()
        self._task: Supervised | None = None

    async def start(self) -> None:
        """Renew from now on, in a task."""
        self._task = Supervised(self._renew_for_ever, "pod:lease", on_crash=self._on_crash)

    def on_event(self, event: LifecycleEvent) -> None:
        """Renew at once when a pod becomes ready."""
        if isinstance(event, StateChanged) and event.status is Status.READY:
            self._untaken = 0
            self._soon.set()

    async def aclose(self) -> None:
        """Renew no more."""
        if self._task is not None:
            await self._task.aclose()

    async def _renew_for_ever(self) -> None:
        while True:
            self._soon.clear()
            if (endpoint := self._serving()) is not None:
                self._judge(await self._put_renewal(endpoint, self._digest, self._content))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._soon.wait()

    def _judge(self, result: int | str) -> None:
        """Take the status of the answer, or what was seen instead."""
        self._untaken = self._untaken + 1 if result == STILL_THERE else 0
        if result not in (NEW, STILL_THERE):
            said = result if isinstance(result, str) else f"its Ollama answered {result}"
            self._set_problem(f"the pod's lease cannot be renewed: {said}")
        elif self._untaken >= UNTAKEN_LIMIT:
            self._set_problem("nobody in the pod takes note of its lease: does its start script run?")
        elif not self._untaken:
            self._set_problem(None)

    def _set_problem(self, problem: str | None) -> None:
        if problem != self._problem:
            self._problem = problem
            self._warn(problem or "the pod's lease is renewed again")
