"""A pseudo terminal in which a command runs, to be closed like a window."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from attrs import define, field


@define
class Terminal:
    """A pseudo terminal and the session that runs in it."""

    process: asyncio.subprocess.Process
    master: int
    shown: bytearray = field(factory=bytearray)

    def close(self) -> None:
        """Close the window."""
        if self.master >= 0:
            asyncio.get_running_loop().remove_reader(self.master)
            os.close(self.master)
            self.master = -1

    def _read(self) -> None:
        with suppress(OSError):
            self.shown += os.read(self.master, 65536)


@asynccontextmanager
async def in_terminal(*command: str, **env: str) -> AsyncIterator[Terminal]:
    """Run a command as the leader of a session whose terminal all its streams are."""
    master, slave = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, **env},
        preexec_fn=take_terminal,
    )
    os.close(slave)
    terminal = Terminal(process, master)
    asyncio.get_running_loop().add_reader(master, terminal._read)
    try:
        yield terminal
    finally:
        terminal.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
