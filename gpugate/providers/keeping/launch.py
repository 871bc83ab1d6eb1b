"""From a command line to a running process that dies with its keeper; knows nothing of its purpose."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class CommandFailed(OSError):
    """The command cannot be executed."""


def _prctl(option: int, value: int) -> bool:
    words = (ctypes.c_ulong(word) for word in (value, 0, 0, 0))
    return _LIBC is not None and _LIBC.prctl(option, *words) == 0


def become_subreaper() -> bool:
    """Inherit the orphans among our descendants; False where the system cannot do it."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def launch(command: Sequence[str], env: Mapping[str, str]) -> tuple[int, int]:
    """Run `command` in a session of its own; its pid, and the pipe of what it says.

    Raises: CommandFailed, it cannot be executed.
    """
    output, said = os.pipe()
    problem, failing = os.pipe()
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(command, env, said, failing, keeper)
    os.close(said)
    os.close(failing)
    with open(problem, "rb") as file:
        failed = file.read()  # ends at the exec, which closes the other end
    if failed:
        os.waitpid(pid, 0)
        os.close(output)
        raise CommandFailed(int(failed), os.strerror(int(failed)))
    os.set_blocking(output, False)
    return pid, output


def _become(command: Sequence[str], env: Mapping[str, str], said: int, failing: int, keeper: int) -> NoReturn:
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != keeper:  # it died before the line above could matter
            os._exit(127)
        signal.set_wakeup_fd(-1)
        # Python ignores some signals, the keeper others, a background shell more; an exec passes that on.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.execvpe(command[0], list(command), dict(env))
    except OSError as error:
        os.write(failing, str(error.errno).encode())
    finally:
        os._exit(127)
