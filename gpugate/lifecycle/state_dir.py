"""The folder of `state.dir`: whether it can be used, and the lock that keeps a second gateway out."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_NAME = "gateway.lock"

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class StateDirLocked(Exception):
    """Another gateway holds the folder; two on one folder would adopt and stop each other's pod.

    Attributes:
        message: one line with the folder and, if it is known, the other gateway's process id.
    """

    def __init__(self, folder: Path, holder: str) -> None:
        other = f"another gateway (process {holder})" if holder else "another gateway"
        self.message = f"state.dir: {folder} is in use by {other}: stop that one, or give this one its own"
        super().__init__(self.message)


def check(folder: Path) -> str | None:
    """Create the folder, for its owner only, if it is missing; return why it cannot be used, or None."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(_open_lock(folder))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        return f"cannot be used: {reason}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "cannot be used: it is not writable"
    return None


@contextmanager
def lock(folder: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Lock the folder while the block runs; the kernel releases the lock when the process ends in any way.

    A full disk or a file system without locks only leads to a warning: a gateway that does not start cannot
    stop a pod that is running.

    Raises:
        StateDirLocked: another gateway holds it.
        OSError: the folder cannot be used at all (see `check`).
    """
    lock = _open_lock(folder)
    try:
        _take(lock, folder, warn)
        yield
    finally:
        os.close(lock)


def _open_lock(folder: Path) -> int:
    # Python opens with O_CLOEXEC: a child that inherited the lock would hold it for longer than the gateway.
    return os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)


def _take(lock: int, folder: Path, warn: Callable[[str], None]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StateDirLocked(folder, _holder(lock)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warn(f"state.dir: {folder} knows no locks ({error.strerror}): a second gateway on it goes unnoticed")
    try:
        os.ftruncate(lock, os.pwrite(lock, f"{os.getpid()}\n".encode(), 0))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        warn(f"state.dir: {folder} cannot be written: {error.strerror}; what happens now may be forgotten")


def _holder(lock: int) -> str:
    """Return the process id that the holder wrote into the file; empty if there is none."""
    text = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
    return text if text.isascii() and text.isdigit() else ""
