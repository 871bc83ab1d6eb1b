"""Tells a service manager such as systemd when the gateway is ready, that it ends, and that it is alive.

The protocol is that of sd_notify(3): datagrams to the socket in NOTIFY_SOCKET, and WATCHDOG_USEC for how
often to report. Without these variables nothing is sent. They are taken out of the environment, so that no
child process uses them.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress

from gpugate.observability.log import log_crash
from gpugate.tasks import Supervised


class ServiceManager:
    """The service manager of this process, or none.

    Args:
        env: the environment; its variables for this purpose are taken out.
    """

    def __init__(self, env: MutableMapping[str, str]) -> None:
        self._address = env.pop("NOTIFY_SOCKET", "")
        interval_us, pid = env.pop("WATCHDOG_USEC", ""), env.pop("WATCHDOG_PID", "")
        watched = interval_us.isdigit() and pid in ("", str(os.getpid()))
        self._watchdog_s = int(interval_us) / 1_000_000 if watched else 0.0
        self._watchdog: Supervised | None = None

    def ready(self) -> None:
        """Tell that the gateway listens; from now on report regularly, if that is wanted."""
        self._send("READY=1")
        if self._address and self._watchdog_s:
            self._watchdog = Supervised(self._report, "watchdog", on_crash=log_crash)

    def stopping(self) -> None:
        """Tell that the gateway ends. The reports go on: the end may take a minute."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Report no more."""
        if self._watchdog is not None:
            self._watchdog.cancel()

    async def _report(self) -> None:
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_s / 2)  # sd_watchdog_enabled(3): half the time

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = self._address
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.connect("\0" + address[1:] if address.startswith("@") else address)
            sender.setblocking(False)
            sender.send(message.encode())
