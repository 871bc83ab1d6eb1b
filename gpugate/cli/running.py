"""Runs a gateway on a loop until a signal ends it; must not know how it is built."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from gpugate.settings import Settings
from gpugate.web.server import raise_file_limit
from gpugate.wiring import Gateway


def serve(settings: Settings) -> int:
    """Run the gateway until a signal ends it; return the exit status (0, or 1 with a stop not proved).

    Raises:
        OSError: the address is taken.
        SettingsError: a provider is not installed, or its section is wrong.
    """
    raise_file_limit()
    return _runner()(_serve(settings))


def _runner() -> Callable[[Coroutine[Any, Any, int]], int]:
    """uvloop's loop where it is installed (the extra `uvloop`), asyncio's otherwise."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


async def _serve(settings: Settings) -> int:
    gateway = Gateway(settings)
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def on_signal() -> None:
        if asked.is_set():
            gateway.cut()
        asked.set()

    ending = {signal.SIGTERM, signal.SIGINT}
    for number in ending:
        loop.add_signal_handler(number, on_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ending)  # the command line has held them back until now
    await gateway.open()
    try:
        await asked.wait()
    finally:
        proved = await gateway.close()
    return 0 if proved else 1
