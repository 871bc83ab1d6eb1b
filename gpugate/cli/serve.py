"""`gpugate serve`: runs a gateway until a signal or a failure ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Coroutine
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpugate.cli.errors import CliError
from gpugate.cli.service_manager import ServiceManager
from gpugate.cli.settings import settings_for_serving
from gpugate.config import Settings, SourcedValue
from gpugate.lifecycle.state_dir import StateDirLocked, lock
from gpugate.proxy.addresses import CannotListen
from gpugate.signals import ENDING, handled

if TYPE_CHECKING:
    from gpugate.gateway import Gateway

_FLAGS = {"host": "server.host", "port": "server.port", "provider": "pod.provider"}

HANG_UP_S = 1.0
"""A closed terminal sends SIGHUP twice, from the shell and from the kernel; within this time it is one."""


def serve(args: Namespace) -> int:
    """Run the command; return the exit status."""
    overrides = {
        key: SourcedValue(getattr(args, flag), f"--{flag}", is_text=True)
        for flag, key in _FLAGS.items()
        if getattr(args, flag) is not None
    }
    return run(settings_for_serving(args, overrides), reread=lambda: settings_for_serving(args, overrides))


def run(settings: Settings, greeting: str = "", reread: Callable[[], Settings] | None = None) -> int:
    """Run a gateway until a signal or a failure of its lifecycle ends it.

    Returns 0 after a signal, 1 after a failure or when a stop could not be confirmed. `greeting` is printed
    as soon as the state folder is locked; `reread` reads the configuration again, for a reload.

    Raises:
        CliError: it cannot listen, does not answer its own request, or another gateway has the state folder.
        SettingsError: a provider is not installed, or its section is wrong.
    """
    try:
        with lock(Path(settings.state.dir), _warn):
            if greeting:
                print(greeting, flush=True)
            return _run(settings, reread)
    except StateDirLocked as error:
        raise CliError(error.message) from error


def _warn(text: str) -> None:
    print(f"gpugate: {text}", file=sys.stderr, flush=True)


def _run(settings: Settings, reread: Callable[[], Settings] | None) -> int:
    from gpugate.proxy.listening import SelfCheckFailed  # it imports aiohttp: only now

    try:
        return _run_loop(settings, reread)
    except (CannotListen, SelfCheckFailed) as error:
        raise CliError(str(error)) from error


def _run_loop(settings: Settings, reread: Callable[[], Settings] | None) -> int:
    from gpugate.proxy.listening import raise_file_limit

    raise_file_limit()
    return _runner()(_serve(settings, reread))


def _runner() -> Callable[[Coroutine[Any, Any, int]], int]:
    """Return uvloop's `run` where it is installed (the extra `uvloop`), else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


async def _serve(settings: Settings, reread: Callable[[], Settings] | None) -> int:
    from gpugate.app import build

    asked_to_end = asyncio.Event()
    gateway: Gateway | None = None
    loop = asyncio.get_running_loop()
    hung_up_at = -inf

    def on_signal(number: int) -> None:
        nonlocal hung_up_at
        now, last = loop.time(), hung_up_at
        if number == signal.SIGHUP:
            hung_up_at = now
            if now - last < HANG_UP_S:
                return
        if asked_to_end.is_set() and gateway is not None:
            gateway.abort()
        asked_to_end.set()

    for number in handled():
        loop.add_signal_handler(number, on_signal, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # blocked since the process began
    manager = ServiceManager(os.environ)
    try:
        gateway = await build(settings, on_failure=asked_to_end.set, reread=reread)
        await gateway.open()
        try:
            manager.ready()
            await asked_to_end.wait()
        finally:
            manager.stopping()
            confirmed = await gateway.close()
    finally:
        manager.close()
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # the loop's handlers go: one more must not kill
    return 0 if confirmed and gateway.failure is None else 1
