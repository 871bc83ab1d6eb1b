"""The command line: `main` runs one command and turns whatever goes wrong into one line; no more.

Nothing heavy is imported here: each command brings what it needs when it is called.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from gpugate.cli.errors import FAILED, OK, WRONG, Failure
from gpugate.cli.parser import parse
from gpugate.errors import GateError, ProviderError, SettingsError
from gpugate.signals import ENDING, heard

__all__ = ["main"]

# Commands that run until they are told to stop: a signal is how they end well (docs/api.md#exit-status).
_LASTING = {"serve", "demo", "events"}

# Of these the gateway itself hears signals, once it can: it lets them through then (`running.py`).
_GATEWAYS = {"serve", "demo"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 refused or failed, 2 wrong usage."""
    with _signals_as_interrupt():
        args = parse(argv)
        try:
            command = _command(args.run)
            if args.command not in _GATEWAYS:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            status = command(args)
            sys.stdout.flush()
        except KeyboardInterrupt:
            status = OK if args.command in _LASTING else FAILED
        except BrokenPipeError:
            status = OK  # whoever read has read enough, such as `| head`
        except Exception as error:
            status = _tell(error)
        _let_go_of_stdout()
    return status


def _command(place: str | Callable[..., int]) -> Callable[..., int]:
    if not isinstance(place, str):  # of another distribution, which was imported to parse its arguments
        return place
    module, _, function = place.partition(":")
    command: Callable[..., int] = getattr(importlib.import_module(module), function)
    return command


def _tell(error: Exception) -> int:
    """Print what went wrong, a line a mistake, and return the exit status."""
    if isinstance(error, SettingsError):
        lines, status = list(error.complaints), WRONG
    elif isinstance(error, Failure):
        lines, status = [f"gpugate: {error.message}"], error.status
    elif isinstance(error, GateError | ProviderError):
        lines, status = [f"gpugate: {error.message}"], FAILED
    elif isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        lines, status = [f"gpugate: {error.strerror}{where}"], FAILED
    else:
        lines, status = [_unforeseen(error)], FAILED
    for line in lines:
        with contextlib.suppress(OSError, ValueError):  # the terminal is closed
            print(" ".join(line.splitlines()), file=sys.stderr)
    return status


def _unforeseen(error: Exception) -> str:
    """Return a line for a fault of ours: its place, but not its words, which may hold a secret."""
    if os.environ.get("GPUGATE_TRACEBACK"):
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"gpugate: unforeseen {type(error).__name__}{place}: a bug; GPUGATE_TRACEBACK=1 shows more of it"


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Let every signal of `ENDING` end a command as Ctrl-C does, until a command's own handler takes over.

    None is heard before the command lets them through: an exception out of the middle of an import can
    crash what is written in C, or be lost there.
    """
    numbers = heard() - {signal.SIGINT}  # that one raises already
    interrupted = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # it is ending: a second one must not spoil the status
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, interrupt)
    except ValueError:  # not in the main thread: signals are not this command's to hear
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if not interrupted:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)


def _let_go_of_stdout() -> None:
    """Flush now, so that the interpreter's own flush at exit has nothing to complain about."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
