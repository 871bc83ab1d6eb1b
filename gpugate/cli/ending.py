"""What asks a running gateway to end: signals, and its own failure."""

from __future__ import annotations

import asyncio
import signal
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpugate.gateway import Gateway

HANG_UP_S = 1.0
"""A closed terminal sends SIGHUP twice, from the shell and from the kernel; within this time it is one."""


class Ending:
    """What signals ask for.

    Attributes:
        asked: set by a signal, and by a failure of the gateway.
        gateway: the one that runs; a second signal ends its grace.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.gateway: Gateway | None = None
        self._loop = asyncio.get_running_loop()
        self._hung_up_at = -inf

    def on_signal(self, number: int) -> None:
        """Take a signal."""
        now, last = self._loop.time(), self._hung_up_at
        if number == signal.SIGHUP:
            self._hung_up_at = now
            if now - last < HANG_UP_S:
                return
        if self.asked.is_set() and self.gateway is not None:
            self.gateway.abort()
        self.asked.set()
