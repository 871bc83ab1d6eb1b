"""The guard: a small process that runs one command and ends it when no gateway wants it any more.

A script that `gpugate.providers.supervised_process` runs; it does not import gpugate and starts in 70 ms.

Theory of operation. Four files `<state.dir>/processes/<name>.*` connect a guard and the gateways:

- `.json`, written by the guard: what the command is doing. It exists while a process of the command may be
  alive, and after the command ended by itself, until the next start or stop.
- `.lock`, locked (flock) by the guard while it lives: there is never a second guard for the same name.
- `.pipe`, a named pipe, read by the guard. A gateway holds it open for writing, so the guard reads end of
  file when the gateway dies, however it dies. Lines in it are commands: `hold <gateway>`, `stop` and `leave`.
- `.lease`, locked by the gateway that holds the pipe; another gateway may look, but not start or stop.

No gateway for `orphan_grace_s`: every process of the command gets SIGTERM, and SIGKILL `orphan_kill_s` later.
A gateway that writes `leave` before it closes the pipe wants the command kept for its next start.

The processes of the command are all descendants of the guard. On Linux the guard is a subreaper, so a process
that daemonizes becomes its child. If the guard itself is killed, the kernel sends the command SIGTERM, and
the next gateway that looks starts a guard in `sweep` mode. That one ends the processes on record (pid and
start time, refreshed every RECORD_INTERVAL_S), all in their sessions and all descendants of these.

What is not promised: a process that moved to a session of its own and lost its parents is not found if the
guard is killed less than RECORD_INTERVAL_S later, or if the state file is damaged as well; elsewhere than on
Linux it is not found within that time while the guard lives, either.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

LOG_LIMIT = 1 << 20  # bytes of one log file; one older file is kept beside it
TICK_S = 0.1  # the longest pause between two looks at command, gateway and clock
KILL_POLL_S = 0.05  # the same while processes are being ended
RECORD_INTERVAL_S = 5.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_DEAD = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}

State = dict[str, Any]


# -- the process tree


def find_family(recorded: Mapping[int, float], parent: int | None = None) -> dict[int, psutil.Process]:
    """Return the living processes of a command, by pid.

    They are: each recorded process that still has its start time (a recycled pid has another), all processes
    in the sessions of these, and all descendants of these and of `parent`, itself not included.

    Args:
        recorded: pid to start time, as `start_times` returns them.
        parent: the guard that the processes descend from.
    """
    psutil.process_iter.cache_clear()  # it keeps start times that were computed before a change of the clock
    boot_time = psutil.boot_time()
    table = {process.pid: process for process in psutil.process_iter(["ppid", "create_time", "status"])}
    known = {
        pid
        for pid, start in recorded.items()
        if pid in table and abs(_start_time(table[pid], boot_time) - start) < 0.02
    }
    # The command is the leader of its session, and only a descendant can be in it.
    sessions = {_session(pid) for pid in known} - {0, _session(os.getpid())}
    known |= {pid for pid in table if sessions and _session(pid) in sessions}
    known |= {parent} if parent is not None else set()
    while more := {pid for pid, process in table.items() if process.info["ppid"] in known} - known:
        known |= more
    known -= {parent, os.getpid()}
    return {pid: table[pid] for pid in known if table[pid].info["status"] not in _DEAD}


def start_times(processes: Iterable[psutil.Process]) -> dict[int, float]:
    """Return pid to start time for processes that `find_family` returned."""
    boot_time = psutil.boot_time()
    return {process.pid: _start_time(process, boot_time) for process in processes}


def _start_time(process: psutil.Process, boot_time: float) -> float:
    """Return seconds from boot to the start: unlike a time of day it survives a change of the clock."""
    return round((process.info["create_time"] or 0.0) - boot_time, 2)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:  # it has ended
        return 0


def _signal_all(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)  # psutil compares the start time first
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # of another user now: it stays in the family, which is then never reported as gone


# -- what is written down


def read_state(path: str | Path) -> State | None:
    """Return the state file's content; None without one, {} if it is damaged. Raises: OSError, unreadable."""
    try:
        text = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        state = json.loads(text)
    except ValueError:
        return {}
    return state if isinstance(state, dict) else {}


def recorded_processes(state: State) -> dict[int, float]:
    """Return pid to start time of the processes on record; {} if that part of the state is damaged."""
    try:
        return {int(pid): float(start) for pid, start in state.get("family", {}).items()}
    except (AttributeError, TypeError, ValueError):
        return {}


def _write_state(path: str, state: State) -> None:
    """Replace the state file in one step, readable by its owner only. Raises: OSError."""
    new = f"{path}.{os.getpid()}.new"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(state, file)
    os.replace(new, path)


class OutputLog:
    """The command's output: bounded on disk, its end in memory. A full disk loses output and nothing else."""

    def __init__(self, path: str, limit: int = LOG_LIMIT) -> None:
        self.path, self.limit = path, limit
        self._tail = b""
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size if self._fd is not None else 0

    def _open(self) -> int | None:
        try:
            return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError:
            return None

    def write(self, data: bytes) -> None:
        """Append; a full file is renamed to `<path>.1` and a new one begun."""
        self._tail = (self._tail + data)[-4096:]
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
        """Close the file; what is written afterwards is only kept in memory."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @property
    def last_line(self) -> str:
        """The last line that is not blank, printable characters only, at most 300 of them."""
        lines = [line.strip() for line in self._tail.decode("utf-8", "replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "")
        return "".join(char for char in last if char.isprintable())[:300]


# -- the guard


class CommandNotExecutable(OSError):
    """The command cannot be executed."""


class Guard:
    """Runs the command and obeys the pipe; `run` returns when no process of the command is left."""

    def __init__(self, order: State) -> None:
        self.order, self.timeouts = order, order["timeouts"]
        self.selector = selectors.DefaultSelector()
        self.log = OutputLog(order["log"])
        self.pipe = os.open(order["pipe"], os.O_RDONLY | os.O_NONBLOCK)
        self.connected = False  # a gateway has the pipe open
        self.connected_at = self.disconnected_at = time.monotonic()
        self.first_connection = True  # that of the gateway which started the command
        self.holder: bytes | None = None  # the gateway that said `hold`; the lease allows one at a time
        self.leaving = False  # it said `leave` last
        self.kept = False  # a gateway left the command for its next start
        self.kill_at: float | None = None  # set while the processes are being ended
        self.ended_by_itself = False
        self.terminated = False  # the guard got SIGTERM, as at the shutdown of the machine
        self.must_answer = True  # the start waits for its answer
        self.settle_at = self.record_at = 0.0
        self.state: State = {
            "status": "running", "pid": 0, "started_at": time.time(), "guard": os.getpid(), "family": {},
            "meta": order["meta"], "exit_status": None, "last_line": "", "stop_requested": False,
        }  # fmt: skip

    def start(self) -> None:
        """Start the command. Raises: CommandNotExecutable; OSError, the state file cannot be written."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        _write_state(self.order["state"], self.state)
        try:
            self.process = subprocess.Popen(
                self.order["command"],
                env=self.order["env"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_guard,
            )
        except OSError as error:
            Path(self.order["state"]).unlink(missing_ok=True)
            raise CommandNotExecutable(error.errno, error.strerror) from error
        assert self.process.stdout is not None
        self.output = self.process.stdout.fileno()
        os.set_blocking(self.output, False)
        self.selector.register(self.output, selectors.EVENT_READ, self._read_output)
        self.settle_at = self.record_at = time.monotonic() + self.timeouts["settle_s"]
        self.state["pid"] = self.process.pid
        self._record(self._family())

    def run(self) -> None:
        """Serve until no process of the command is left."""
        while True:
            for key, _ in self.selector.select(KILL_POLL_S if self.kill_at is not None else TICK_S):
                key.data()
            if not self.connected:  # a selector does not tell when a gateway opens the pipe
                self._read_pipe()
            reaped, now = self._reap(), time.monotonic()
            if self.terminated:
                self._end_family(self.timeouts["orphan_kill_s"])
            self._check_gateway(now)
            if self._check_family(reaped, now):
                return

    def _on_sigterm(self, *_: object) -> None:
        self.terminated = True

    # -- the gateway's side

    def _read_pipe(self) -> None:
        try:
            data = os.read(self.pipe, 65536)
        except BlockingIOError:  # nothing to read, but a gateway has it open
            data = b"\n"
        if data and not self.connected:
            self.connected, self.connected_at, self.leaving = True, time.monotonic(), False
            self.selector.register(self.pipe, selectors.EVENT_READ, self._read_pipe)
        for line in data.splitlines():
            self._obey(line)
        if not data and self.connected:
            self._on_holder_gone()
            self.connected, self.disconnected_at = False, time.monotonic()
            self.selector.unregister(self.pipe)

    def _obey(self, line: bytes) -> None:
        if line == b"stop" and not self.state["stop_requested"]:
            self.ended_by_itself = False  # even if it was just ending: now it is wanted
            self.state["stop_requested"] = True
            self._end_family(self.timeouts["stop_kill_s"])
            self._save()  # the gateway waits for this answer
        command, _, gateway = line.partition(b" ")
        if command == b"hold":
            if self.holder not in (None, gateway):  # opened before the end of the last holder was seen
                self._on_holder_gone()
            self.holder, self.leaving = gateway, False
        elif command == b"leave":
            self.leaving = True

    def _on_holder_gone(self) -> None:
        """Decide whether the command is kept without a gateway.

        (1) A gateway that vanished does not want it kept. (2) One that said `leave` does, if it started the
        command or held it for `orphan_grace_s`. (3) A shorter connection only looked: nothing changes.
        """
        now = time.monotonic()
        if not self.leaving:  # (1)
            self.kept = False
        elif self.first_connection or now - self.connected_at >= self.timeouts["orphan_grace_s"]:  # (2)
            self.kept = True
        self.first_connection, self.connected_at = False, now
        self.holder = None

    def _check_gateway(self, now: float) -> None:
        if self.connected or (self.kept and self.kill_at is None):
            self.disconnected_at = now
            return
        deadline = self.disconnected_at + self.timeouts["orphan_grace_s"]
        if self.kill_at is not None:  # a stop under way is shortened when the gateway dies
            self.kill_at = min(self.kill_at, deadline + self.timeouts["orphan_kill_s"])
        elif now >= deadline:
            self._end_family(self.timeouts["orphan_kill_s"])

    def _answer(self) -> None:
        if self.must_answer:
            _answer(self.state)
            self.must_answer = False

    # -- the command's side

    def _family(self) -> dict[int, psutil.Process]:
        return find_family(recorded_processes(self.state), os.getpid())

    def _reap(self) -> bool:
        """Reap dead children, adopted ones included; True if there were any."""
        reaped = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return reaped
            if pid == 0:
                return reaped
            reaped = True
            if pid == self.state["pid"]:
                self._drain_output()
                self.state["exit_status"] = os.waitstatus_to_exitcode(status)

    def _check_family(self, reaped: bool, now: float) -> bool:
        """Record, end or kill processes as far as it is due; True if none is left and the guard is done."""
        lost = not os.path.exists(self.order["state"])  # deleted under a running guard
        if self.kill_at is None and (reaped or lost or now >= self.record_at):
            family = self._family()
            self._record(family)
            # A clean exit that leaves a process is a command that went to the background; that is its end.
            if (status := self.state["exit_status"]) is not None and not (status == 0 and family):
                self.ended_by_itself = True
                self._end_family(self.timeouts["orphan_kill_s"])
        if self.kill_at is not None:
            family = self._family()
            self._record(family)
            if not family:
                self._finish()
                return True
            if now >= self.kill_at:
                _signal_all(family.values(), signal.SIGKILL)
        if now >= self.settle_at:
            self._answer()
        return False

    def _record(self, family: Mapping[int, psutil.Process]) -> None:
        self.record_at = time.monotonic() + RECORD_INTERVAL_S
        record = {str(pid): start for pid, start in start_times(family.values()).items()}
        if record != self.state["family"] or not os.path.exists(self.order["state"]):
            self.state["family"] = record
            self._save()

    def _end_family(self, kill_after_s: float) -> None:
        """Send SIGTERM to all, once; SIGKILL follows after `kill_after_s`."""
        if self.kill_at is not None:
            return
        self.kill_at = time.monotonic() + kill_after_s
        self.state["status"] = "stopping"
        self._save()
        _signal_all(self._family().values(), signal.SIGTERM)

    def _finish(self) -> None:
        """Write the final state, then close the pipe: a gateway that finds it closed reads a final state."""
        self._drain_output()
        self.state["status"] = "ended"
        if self.ended_by_itself:
            self._save()
        else:
            Path(self.order["state"]).unlink(missing_ok=True)
        self._answer()
        os.close(self.pipe)

    def _drain_output(self) -> None:
        while self.output in self.selector.get_map() and self._read_output():
            continue
        self.state["last_line"] = self.log.last_line

    def _read_output(self) -> bool:
        """Log what the command wrote; True if there may be more."""
        try:
            data = os.read(self.output, 65536)
        except BlockingIOError:
            return False
        self.log.write(data)
        if not data:  # every process has closed it
            self.selector.unregister(self.output)
        return bool(data)

    def _save(self) -> None:
        try:
            _write_state(self.order["state"], self.state)
        except OSError:  # a full disk must not keep the guard from ending the processes
            return


def _sweep(order: State) -> None:
    """End the processes on record of a guard that was killed."""
    state = read_state(order["state"])
    if state is None or state.get("status") == "ended":
        return
    recorded = recorded_processes(state)
    kill_at = time.monotonic() + order["timeouts"]["orphan_kill_s"]
    _signal_all(find_family(recorded).values(), signal.SIGTERM)
    while family := find_family(recorded):
        recorded |= start_times(family.values())
        if time.monotonic() >= kill_at:
            _signal_all(family.values(), signal.SIGKILL)
        time.sleep(KILL_POLL_S)
    Path(order["state"]).unlink(missing_ok=True)


# -- the process


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, *(ctypes.c_ulong(word) for word in (value, 0, 0, 0)))


def _die_with_guard() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _answer(answer: State) -> None:
    """Write the answer that the starting gateway waits for, and close standard output and error."""
    with contextlib.suppress(OSError):  # the gateway has died
        os.write(1, json.dumps(answer).encode())
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    os.close(nowhere)


def _reset_signals() -> None:
    """Undo what was inherited: a background shell ignores SIGINT, gpugate blocks signals while it starts."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def main() -> None:
    """Read one order from standard input, go to the background and obey it."""
    order: State = json.load(sys.stdin)
    _reset_signals()
    lock = os.open(order["lock"], os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _answer({"error": "busy"})
        return
    if os.fork():  # the gateway is not to be the guard's parent: it would have to reap it
        os._exit(0)
    if order["do"] == "sweep":
        _answer({})
        _sweep(order)
        return
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        guard = Guard(order)
        guard.start()
    except OSError as error:
        kind = "command" if isinstance(error, CommandNotExecutable) else "state"
        _answer({"error": kind, "text": error.strerror or str(error)})
        return
    guard.run()


if __name__ == "__main__":
    main()
