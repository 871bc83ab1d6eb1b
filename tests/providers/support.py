"""Real processes for the tests of kept ones: quick timeouts, tagged sleepers, other gateways."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from gpugate.providers.supervised_process import SupervisedProcess, SupervisorTimeouts

QUICK = SupervisorTimeouts(settle_s=0.05, orphan_grace_s=0.2, orphan_kill_s=0.2, stop_kill_s=0.2)
PATIENT = SupervisorTimeouts(settle_s=0.05, orphan_grace_s=30, orphan_kill_s=30, stop_kill_s=30)


class Sleeper:
    """Processes that sleep, recognised by an argument nobody else has."""

    def __init__(self) -> None:
        self.tag = f"86400.{secrets.randbelow(10**12):012d}"
        self.command = f"sleep {self.tag}"

    @property
    def pids(self) -> set[int]:
        """Those that are alive, of whatever session and parent; not the shells that mention them."""
        return {int(entry) for entry in os.listdir("/proc") if entry.isdigit() and self._is_one(entry)}

    def _is_one(self, pid: str) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return words[:2] == [b"sleep", self.tag.encode()]

    async def count(self, expected: int, within_s: float = 10) -> None:
        """Wait until there are so many."""
        await until(lambda: len(self.pids) == expected, within_s)


async def until(condition: Callable[[], bool], within_s: float = 10) -> None:
    """Wait until the condition holds; TimeoutError if it does not come to it."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


async def gone(kept: SupervisedProcess, within_s: float = 10) -> None:
    """Wait until nobody of a kept process is left."""
    async with asyncio.timeout(within_s):
        while await kept.inspect() is not None:
            await asyncio.sleep(0.01)


_GATEWAY = """
import asyncio, sys
from pathlib import Path
from gpugate.providers.supervised_process import SupervisedProcess, SupervisorTimeouts

async def main(name, state_dir, times, *command):
    timeouts = SupervisorTimeouts(*map(float, times.split(",")))
    kept = SupervisedProcess(name, state_dir=Path(state_dir), timeouts=timeouts)
    found = await kept.start(command) if command else await kept.inspect()
    print(found.pid, flush=True)
    if await asyncio.to_thread(sys.stdin.readline):
        await kept.aclose()
        print("left", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


class Gateway:
    """Another gateway: a process that starts or adopts, and then leaves cleanly or is killed."""

    def __init__(
        self, state_dir: Path, *command: str, timeouts: SupervisorTimeouts = QUICK, name: str = "pod"
    ) -> None:
        times = (
            f"{timeouts.settle_s},{timeouts.orphan_grace_s},{timeouts.orphan_kill_s},{timeouts.stop_kill_s}"
        )
        arguments = [sys.executable, "-c", _GATEWAY, name, str(state_dir), times, *command]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if not said:
            self.process.communicate()
            raise AssertionError("it ended before it had a process")
        self.kept_pid = int(said)

    def leave(self) -> None:
        """End as a gateway does that is told to keep its pod."""
        self.process.communicate("leave\n")

    def kill(self) -> None:
        """End as kill -9 does it."""
        self.process.kill()
        if self.process.stdout is not None and not self.process.stdout.closed:
            self.process.communicate()
