"""Processes of the benchmark: on their core, seen through /proc, ended for sure; knows none by name."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from attrs import define, field

PR_SET_PDEATHSIG = 1
PAGE = resource.getpagesize()
END_WAIT_S = 3.0

libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """Something cannot be measured here; the message is one line that says why."""


def cores() -> tuple[set[int], set[int]]:
    """The core of the candidate and the core of everything else; the same set where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        return set(usable), set(usable)
    return {usable[0]}, {usable[1]}


def raise_open_files() -> int:
    """Lift the soft limit of open files to the hard one; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@define
class Running:
    """One process that this benchmark started, with its children."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def pids(self) -> list[int]:
        """Itself and its children, grandchildren included."""
        found, todo = [], [self.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                todo += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def rss_bytes(self) -> int:
        """Resident memory, children included."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        return total

    def forget_peak(self) -> None:
        """Let the peak of resident memory begin anew; where the kernel cannot, the old peak counts on."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """Peak of resident memory, children included."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                total += int(status.split("VmHWM:")[1].split()[0]) * 1024
        return total

    def cpu_s(self) -> float:
        """CPU time spent so far by every thread, children included."""
        total = 0
        for pid in self.pids():
            for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    total += int(task.read_text().split()[0])
        return total / 1e9

    def uses(self, library: str) -> bool:
        """Whether a file with this in its name is mapped into the process."""
        try:
            return library in Path(f"/proc/{self.pid}/maps").read_text()
        except OSError:
            return False

    def last_words(self) -> str:
        """The last line of its log, or how it ended."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1][:300] if lines else f"exit status {self.popen.poll()}"

    def alive(self) -> bool:
        return self.popen.poll() is None

    def stop(self) -> None:
        """End it and all of its group: politely, then not."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(END_WAIT_S)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


@define
class Processes:
    """Everything that was started, with its logs in the folder `place`; leaving the block ends it all."""

    place: Path
    _started: list[Running] = field(factory=list)
    _count: int = 0

    def start(
        self,
        name: str,
        argv: Sequence[str],
        cpus: set[int],
        *,
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
    ) -> Running:
        """Start `argv` on `cpus` in a group of its own, its output in a file (stdout too, unless taken)."""
        self._count += 1
        log = self.place / f"{self._count:03d}-{name}.log"
        with log.open("wb") as out:
            popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=out,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                preexec_fn=_on_core(cpus),  # this program has one thread when it starts processes
            )
        running = Running(name, popen, log)
        self._started.append(running)
        return running

    def stop(self, *running: Running) -> None:
        """End these, now."""
        for one in running:
            if one in self._started:
                self._started.remove(one)
            one.stop()

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._started:
            self._started.pop().stop()


def _on_core(cpus: set[int]) -> Callable[[], None]:
    def prepare() -> None:
        os.sched_setaffinity(0, cpus)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # even if the benchmark itself is killed

    return prepare


def until(what: str, true: Callable[[], bool], limit_s: float, every_s: float = 0.02) -> None:
    """Wait until `true()`; Unavailable after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > deadline:
            raise Unavailable(f"{what}: not within {limit_s:g} s")
        time.sleep(every_s)
