"""Runs a gateway on a loop until a signal ends it; must not know how it is built."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any

from gpugate.app import Gateway
from gpugate.cli.errors import CliError
from gpugate.config import Settings
from gpugate.proxy.server import SelfCheckFailed, raise_file_limit
from gpugate.signals import ENDING, heard

HANG_UP_S = 1.0
"""A closed terminal sends SIGHUP from the shell and from the kernel: both together are one."""


def serve(settings: Settings) -> int:
    """Run the gateway until a signal or a failure of its lifecycle ends it; return the exit status.

    It is 0 after a signal, 1 after a failure and where a stop is not proved.

    Raises:
        CliError: it does not answer its own request.
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


async def _open(gateway: Gateway) -> None:
    try:
        await gateway.open()
    except SelfCheckFailed as error:
        raise CliError(str(error)) from error


async def _serve(settings: Settings) -> int:
    asked = asyncio.Event()
    gateway = Gateway(settings, on_failure=asked.set)
    loop = asyncio.get_running_loop()
    hung_up_at = -inf

    def on_signal(number: int) -> None:
        nonlocal hung_up_at
        now, last = loop.time(), hung_up_at
        if number == signal.SIGHUP:
            hung_up_at = now
            if now - last < HANG_UP_S:
                return
        if asked.is_set():
            gateway.cut()
        asked.set()

    for number in heard():
        loop.add_signal_handler(number, on_signal, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # the command line has held them back until now
    try:
        await _open(gateway)
        try:
            await asked.wait()
        finally:
            proved = await gateway.close()
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # the loop's handlers go: one more must not kill
    return 0 if proved and gateway.failure is None else 1
