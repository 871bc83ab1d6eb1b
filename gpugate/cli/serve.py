"""`gpugate serve`: runs a gateway until a signal or a failure ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpugate.cli.ending import Ending
from gpugate.cli.errors import CliError
from gpugate.cli.service_manager import ServiceManager
from gpugate.cli.settings import settings_for_serving
from gpugate.config import Settings, SourcedValue, provider_config
from gpugate.errors import SettingsError
from gpugate.lifecycle.state_dir import StateDirLocked, lock
from gpugate.proxy.addresses import CannotListen
from gpugate.signals import ENDING, handled

if TYPE_CHECKING:
    from gpugate.provider_api import ActiveRole

_FLAGS = {"host": "server.host", "port": "server.port", "provider": "pod.provider"}


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
            try:
                provider = find(name)
                role = provider.active_role(provider_config(settings, name, provider.Config, pod))
            except SettingsError:
                continue  # told when the gateway is built
            if role is not None:
                return role
    return None


def _warn(text: str) -> None:
    print(f"gpugate: {text}", file=sys.stderr, flush=True)


def _run(settings: Settings, reread: Callable[[], Settings] | None, role: ActiveRole | None = None) -> int:
    from gpugate.proxy.listening import SelfCheckFailed  # it imports aiohttp: only now

    try:
        return _run_loop(settings, reread, role)
    except (CannotListen, SelfCheckFailed) as error:
        raise CliError(str(error)) from error


def _run_loop(settings: Settings, reread: Callable[[], Settings] | None, role: ActiveRole | None) -> int:
    from gpugate.proxy.listening import raise_file_limit

    raise_file_limit()
    return _runner()(_serve(settings, reread, role))


def _runner() -> Callable[[Coroutine[Any, Any, int]], int]:
    """Return uvloop's `run` where it is installed (the extra `uvloop`), else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


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
