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
from gpugate.config import Settings, SourcedValue, provider_config
from gpugate.lifecycle.state_dir import StateDirLocked, lock
from gpugate.proxy.addresses import CannotListen
from gpugate.signals import ENDING, handled

if TYPE_CHECKING:
    from gpugate.gateway import Gateway
    from gpugate.provider_api import ActiveRole

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
    as soon as the state folder is locked; `reread` reads the configuration again, for a reload. Where a
    provider keeps a role for one of several gateways, this one stands by until it has it.

    Raises:
        CliError: it cannot listen, does not answer its own request, or another gateway has the state folder.
        SettingsError: a provider is not installed, or its section is wrong.
    """
    role = _active_role(settings)
    if role is not None:
        return _run(settings, reread, role)
    try:
        with lock(Path(settings.state.dir), _warn):
            if greeting:
                print(greeting, flush=True)
            return _run(settings, reread)
    except StateDirLocked as error:
        raise CliError(error.message) from error


def _active_role(settings: Settings) -> ActiveRole | None:
    """Return the role that one of several gateways has, if a provider's section names one."""
    from gpugate.providers.registry import find

    for pod in settings.pods:
        for name in pod.pod.provider:
            provider = find(name)
            role = provider.active_role(provider_config(settings, name, provider.Config, pod))
            if role is not None:
                return role
    return None


def _warn(text: str) -> None:
    print(f"gpugate: {text}", file=sys.stderr, flush=True)


def _run(settings: Settings, reread: Callable[[], Settings] | None, role: ActiveRole | None = None) -> int:
    from gpugate.proxy.listening import SelfCheckFailed, raise_file_limit  # it imports aiohttp: only now

    raise_file_limit()
    try:
        return _runner()(_serve(settings, reread, role))
    except (CannotListen, SelfCheckFailed) as error:
        raise CliError(str(error)) from error


def _runner() -> Callable[[Coroutine[Any, Any, int]], int]:
    """Return uvloop's `run` where it is installed (the extra `uvloop`), else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


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


async def _serve(settings: Settings, reread: Callable[[], Settings] | None, role: ActiveRole | None) -> int:
    ending = Ending()
    for number in handled():
        asyncio.get_running_loop().add_signal_handler(number, ending.on_signal, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # blocked since the process began
    manager = ServiceManager(os.environ)
    try:
        if role is None:
            return await _serve_alone(settings, reread, ending, manager)
        from gpugate.cli.turns import serve_in_turn

        return await serve_in_turn(settings, reread, role, ending, manager)
    finally:
        manager.close()
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # the loop's handlers go: one more must not kill


async def _serve_alone(
    settings: Settings, reread: Callable[[], Settings] | None, ending: Ending, manager: ServiceManager
) -> int:
    from gpugate.app import build

    gateway = ending.gateway = await build(settings, on_failure=ending.asked.set, reread=reread)
    await gateway.open()
    try:
        manager.ready()
        await ending.asked.wait()
    finally:
        manager.stopping()
        confirmed = await gateway.close()
    return 0 if confirmed and gateway.failure is None else 1
