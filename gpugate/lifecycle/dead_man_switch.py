"""Renews the lease of the pod that serves, so that its dead man's switch leaves it running.

The pod's start script stops the pod when nothing has renewed the lease for some minutes
(examples/pod/README.md). A renewal is a letter left with the pod's Ollama: a blob that nobody else can
name, and that the script takes out again. What a blob is over HTTP is the mailbox's business.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from gpugate.provider_api import Endpoint
from gpugate.tasks import CrashHandler, Supervised

RENEW_EVERY_S = 30.0
"""Three looks of the pod's script, which takes a letter out at each; thirty renewals in its 15 minutes."""
UNTAKEN_LIMIT = 3
"""So many letters in a row that found the last one still there: nobody takes them out."""
NEW, STILL_THERE = 201, 200


class RenewalStore(Protocol):
    """The pod's Ollama, as far as the lease cares."""

    async def put_renewal(self, endpoint: Endpoint, digest: str, content: bytes) -> int | str:
        """Leave a blob; the status of the answer (201 new, 200 it was there), or what was seen instead."""


def lease_digest(secret: str) -> str:
    """What the pod is told of the lease, 64 hexadecimal digits: enough to see a renewal, not to make one."""
    return hashlib.sha256(secret.encode()).hexdigest()


class SwitchRenewer:
    """The lease of whichever pod serves; silent while none does.

    Args:
        secret: `pod.lease`.
        serving: where the Ollama of the pod that serves is, or None.
        tell: hears of a lease that cannot be renewed, once for each trouble, and of its end.
        every_s: between two renewals.
    """

    def __init__(
        self,
        secret: str,
        mailbox: RenewalStore,
        serving: Callable[[], Endpoint | None],
        tell: Callable[[str], None],
        *,
        every_s: float = RENEW_EVERY_S,
        on_crash: CrashHandler | None = None,
    ) -> None:
        self._content = secret.encode()
        self._digest = lease_digest(secret)
        self._mailbox = mailbox
        self._serving = serving
        self._tell = tell
        self._every_s = every_s
        self._untaken = 0
        self._trouble: str | None = None
        self._soon = asyncio.Event()
        self._task = Supervised(self._renew_for_ever, "pod:lease", on_crash=on_crash)

    def renew_soon(self) -> None:
        """A pod has become ready: do not wait for the next round."""
        self._untaken = 0
        self._soon.set()

    async def aclose(self) -> None:
        """Renew no more."""
        await self._task.aclose()

    async def _renew_for_ever(self) -> None:
        while True:
            self._soon.clear()
            if (endpoint := self._serving()) is not None:
                self._judge(await self._mailbox.put_renewal(endpoint, self._digest, self._content))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._soon.wait()

    def _judge(self, came: int | str) -> None:
        self._untaken = self._untaken + 1 if came == STILL_THERE else 0
        if came not in (NEW, STILL_THERE):
            self._complain(f"the pod's lease cannot be renewed: {_words(came)}")
        elif self._untaken >= UNTAKEN_LIMIT:
            self._complain("nobody in the pod takes note of its lease: does its start script run?")
        elif not self._untaken:
            self._complain(None)

    def _complain(self, trouble: str | None) -> None:
        if trouble == self._trouble:
            return
        self._trouble = trouble
        self._tell(trouble or "the pod's lease is renewed again")


def _words(came: int | str) -> str:
    return came if isinstance(came, str) else f"its Ollama answered {came}"
