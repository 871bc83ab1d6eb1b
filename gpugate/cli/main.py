"""Runs one command and turns every error into one line on standard error and an exit status.

Nothing slow to import is imported here: each command's module is imported when the command runs.
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

from gpugate.cli.errors import FAILED, OK, WRONG, CliError
from gpugate.cli.parser import parse
from gpugate.errors import GateError, ProviderError, SettingsError
from gpugate.signals import ENDING, handled

__all__ = ["main"]

# Commands that run until a signal ends them: the exit status is then 0 (docs/api.md#exit-status).
_LASTING = {"serve", "demo", "events", "top"}

# Commands that run the gateway, which unblocks signals itself once its handlers are installed (serve.py).
_GATEWAYS = {"serve", "demo"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 refused or failed, 2 wrong usage."""
    with _signals_as_interrupt():
        args = parse(argv)
        try:
            command = _import_command(args.run)
            if args.command not in _GATEWAYS:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            status = command(args)
            sys.stdout.flush()
        except KeyboardInterrupt:
            status = OK if args.command in _LASTING else FAILED
        except BrokenPipeError:
            status = OK  # the reader of the pipe has ended, such as `| head`
        except Exception as error:
            status = _report(error)
        _flush_stdout()
    return status


def _import_command(place: str | Callable[..., int]) -> Callable[..., int]:
    if not isinstance(
        place, str
    ):  # a command of another distribution, imported when its arguments were parsed
        return place
    module, _, function = place.partition(":")
    command: Callable[..., int] = getattr(importlib.import_module(module), function)
    return command


def _report(error: Exception) -> int:
    """Print one line per mistake and return the exit status."""
    if isinstance(error, SettingsError):
        lines, status = list(error.complaints), WRONG
    elif isinstance(error, CliError):
        lines, status = [f"gpugate: {error.message}"], error.status
    elif isinstance(error, GateError | ProviderError):
        lines, status = [f"gpugate: {error.message}"], FAILED
    elif isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        lines, status = [f"gpugate: {error.strerror}{where}"], FAILED
    else:
        lines, status = [_describe_bug(error)], FAILED
    for line in lines:
        with contextlib.suppress(OSError, ValueError):  # the terminal is closed
            print(" ".join(line.splitlines()), file=sys.stderr)
    return status


def _describe_bug(error: Exception) -> str:
    """Return a line about a bug: its type and place, but not its message, which may contain a secret."""
    if os.environ.get("GPUGATE_TRACEBACK"):
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"gpugate: unforeseen {type(error).__name__}{place}: a bug; GPUGATE_TRACEBACK=1 shows more of it"


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Let every signal of `ENDING` end a command as Ctrl-C does, until a command's own handler takes over.

    All are blocked until the command unblocks them: an exception in the middle of an import can crash an
    extension module, or be lost in it.
    """
    numbers = handled() - {signal.SIGINT}  # Python raises KeyboardInterrupt for it already
    interrupted = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # a second one must not change the exit status
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, interrupt)
    except ValueError:  # not in the main thread: signals cannot be handled here
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


def _flush_stdout() -> None:
    """Flush now and ignore errors: the interpreter's own flush at exit would report them."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, sys.stdout.fileno())
            os.close(devnull)
