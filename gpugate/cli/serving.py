"""`gpugate serve`: loads the settings, locks the state folder and runs the gateway."""

from __future__ import annotations

import errno
import socket
import sys
from argparse import Namespace
from pathlib import Path

from gpugate.cli.errors import CliError
from gpugate.cli.settings import settings_for_serving
from gpugate.config import Settings, SourcedValue
from gpugate.lifecycle.state_dir import StateDirLocked, lock

_FLAGS = {"host": "server.host", "port": "server.port", "provider": "pod.provider"}


def serve(args: Namespace) -> int:
    """Run the gateway until a signal stops it; return its exit status."""
    overrides = {
        key: SourcedValue(getattr(args, flag), f"--{flag}", is_text=True)
        for flag, key in _FLAGS.items()
        if getattr(args, flag) is not None
    }
    return run(settings_for_serving(args, overrides))


def run(settings: Settings, greeting: str = "") -> int:
    """Run a gateway that is alone on its state folder; `greeting` is printed once that is known.

    Raises:
        CliError: it cannot listen, or another gateway has the state folder.
    """
    try:
        with lock(Path(settings.state.dir), _warn):
            if greeting:
                print(greeting, flush=True)
            return _run(settings)
    except StateDirLocked as taken:
        raise CliError(taken.message) from taken


def _warn(text: str) -> None:
    print(f"gpugate: {text}", file=sys.stderr, flush=True)


def _run(settings: Settings) -> int:
    from gpugate.cli.running import serve as run_gateway  # it imports everything, so not before it is needed

    try:
        return run_gateway(settings)
    except OSError as error:
        if problem := listening_problem(error, settings):
            raise CliError(problem) from error
        raise


def listening_problem(error: OSError, settings: Settings) -> str | None:
    """Return what keeps the gateway from listening, or None for an error of another kind."""
    host, port = settings.server.host, settings.server.port
    if isinstance(error, socket.gaierror):
        return f"server.host: there is no address for {host!r}"
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is already in use: stop what listens there or use another (--port)"
        case errno.EADDRNOTAVAIL:
            return f"server.host: {host} is no address of this machine"
        case errno.EACCES if error.filename is None:
            return f"port {port} on {host} may not be used: ports below 1024 are for root"
    return None
