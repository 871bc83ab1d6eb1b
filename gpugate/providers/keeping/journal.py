"""What the keeper writes down: the state file and the command's bounded log; knows nothing of processes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

LOG_LIMIT = 1 << 20  # bytes of one log file; one older file is kept beside it

State = dict[str, Any]


def read_state(path: str | Path) -> State | None:
    """What the state file says; None without one, {} if it is damaged. OSError: it could not be read."""
    try:
        text = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        state = json.loads(text)
    except ValueError:
        return {}
    return state if isinstance(state, dict) else {}


def write_state(path: str | Path, state: State) -> None:
    """Replace the state file in one step, readable by its owner only. OSError: it could not be written."""
    new = f"{path}.{os.getpid()}.new"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(state, file)
    os.replace(new, path)


class Log:
    """The command's output: in a file, and its end in memory. A full disk costs output, nothing else."""

    def __init__(self, path: str, limit: int = LOG_LIMIT) -> None:
        self.path, self.limit = path, limit
        self.tail = b""
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size if self._fd is not None else 0

    def _open(self) -> int | None:
        try:
            return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError:
            return None

    def write(self, data: bytes) -> None:
        """Append, and begin a new file where this one is full."""
        self.tail = (self.tail + data)[-4096:]
        if self._fd is None:
            return
        try:
            self._size += os.write(self._fd, data)
            if self._size >= self.limit:
                os.replace(self.path, self.path + ".1")
                self.close()
                self._fd, self._size = self._open(), 0
        except OSError:
            return

    def close(self) -> None:
        """Close the file; writing on costs output."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @property
    def last_line(self) -> str:
        """The last line with something on it, printable, at most 300 characters."""
        lines = [line.strip() for line in self.tail.decode("utf-8", "replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "")
        return "".join(c for c in last if c.isprintable())[:300]
