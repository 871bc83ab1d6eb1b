"""The keeper itself: one command, the leases on it, and how it is ended; knows not how it came to be."""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import socket
import stat
import time
from pathlib import Path

from .family import MARK, POLL_S, birth, descendants, mark_of, processes, signal_all
from .journal import Log, State, write_state
from .launch import launch

_LINE_LIMIT = 65536  # bytes of one request


class Lease:
    """One connection. `who` names the gateway behind it, once it has spoken."""

    def __init__(self, sock: socket.socket, who: str = "", pid: int = 0) -> None:
        self.sock, self.who, self.pid = sock, who, pid
        self.starter = bool(who)
        self.since = time.monotonic()
        self.buffer = b""
        self.leaves = False


class Keeper:
    """Runs the command and answers the leases; `run` returns when nobody of the family is left."""

    def __init__(self, order: State, first: socket.socket, guard: int, *, subreaper: bool) -> None:
        self.order, self.timing, self.subreaper = order, order["timing"], subreaper
        self.selector = selectors.DefaultSelector()
        self.log = Log(order["log"])
        self.leases: dict[socket.socket, Lease] = {}
        self.first: Lease | None = Lease(first, order["who"], order["gateway"])  # until start() is answered
        self.left = False  # a gateway said that it wants the command kept without a lease
        self.unleased_at: float | None = None
        self.kill_at: float | None = None  # set while the family is being ended
        self.by_itself = False  # the command ended, and nobody had asked for it
        self.terminated = False  # somebody sent us SIGTERM
        self.ended = False
        table = processes()
        self.state: State = {
            "status": "running", "pid": 0, "born": "", "started_at": time.time(),
            "keeper": os.getpid(), "guard": guard, "guard_born": birth(table, guard),
            "command": order["command"], "meta": order["meta"], "exit_status": None, "last_line": "",
        }  # fmt: skip

    # -- starting

    def start(self) -> None:
        """Start the command, after all else that may fail. CommandFailed, OSError: nothing runs."""
        self._listen()
        self._hear_signals()
        write_state(self.order["state"], self.state)  # before there is anything to be found
        assert self.first is not None
        self._watch(self.first)
        env = {**self.order["env"], MARK: mark_of(self.order["state"])}
        pid, self.output = launch(self.order["command"], env)
        self.selector.register(self.output, selectors.EVENT_READ, self._read_output)
        self.settle_at = time.monotonic() + self.timing["settle_s"]
        self.state.update(pid=pid, born=birth(processes(), pid))
        self._save()

    def _listen(self) -> None:
        self.door = socket.socket(socket.AF_UNIX)
        self.state["socket"] = self._bind()
        self._door_inode = os.stat(self.state["socket"]).st_ino
        self.door.listen(16)
        self.door.setblocking(False)
        self.selector.register(self.door, selectors.EVENT_READ, self._accept)

    def _bind(self) -> str:
        problem: OSError | None = None
        for path in self.order["sockets"]:
            try:
                _make_private(os.path.dirname(path))
                Path(path).unlink(missing_ok=True)  # we hold the lock: whoever listened there is dead
                self.door.bind(path)
                return str(path)
            except OSError as error:  # a path that is too long, a file system without sockets
                problem = error
        raise problem or OSError("no place for a socket")

    def _hear_signals(self) -> None:
        wake, self._waker = socket.socketpair()
        for end in (wake, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_term)
        self.selector.register(wake, selectors.EVENT_READ, lambda: _drain(wake))

    def _on_term(self, *_: object) -> None:
        self.terminated = True

    # -- running

    def run(self) -> None:
        """Serve until the family is gone."""
        while not self.ended:
            for key, _ in self.selector.select(self._pause()):
                key.data()
            if self.terminated:
                self._end_family(self.timing["orphan_kill_s"])
            if self._reap() and self.state["exit_status"] is not None:
                self._on_command_ended()
            self._look_at_leases(time.monotonic())
            self._look_at_family(time.monotonic())
        self._close()

    def _pause(self) -> float | None:
        """How long nothing is to be done, in seconds; None: until something happens."""
        if self.kill_at is not None:
            return POLL_S
        due = [self.settle_at] if self.first else []
        if self.unleased_at is not None:
            due.append(self.unleased_at + self.timing["grace_s"])
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _reap(self) -> bool:
        """Bury the dead; True if there were any."""
        any_dead = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return any_dead
            if pid == 0:
                return any_dead
            any_dead = True
            if pid == self.state["pid"]:
                self.state["exit_status"] = os.waitstatus_to_exitcode(status)

    def _on_command_ended(self) -> None:
        """A clean end with offspring left is a command that went to the background; any other is the end."""
        if self.kill_at is None and not (self.state["exit_status"] == 0 and self._family()):
            self.by_itself = True
            self._end_family(self.timing["orphan_kill_s"])

    def _look_at_leases(self, now: float) -> None:
        if self.leases or (self.left and self.kill_at is None):
            self.unleased_at = None
            return
        if self.unleased_at is None:
            self.unleased_at = now
        over = self.unleased_at + self.timing["grace_s"]
        if self.kill_at is not None:  # the promise for a gateway that died holds for a stop under way as well
            self.kill_at = min(self.kill_at, over + self.timing["orphan_kill_s"])
        elif now >= over:
            self._end_family(self.timing["orphan_kill_s"])

    def _look_at_family(self, now: float) -> None:
        if self.first and now >= self.settle_at:
            self._answer_start()
        if self.kill_at is None:
            return
        if not (family := self._family()):
            self._finish()
        elif now >= self.kill_at:
            signal_all(family, signal.SIGKILL)

    def _family(self) -> set[int]:
        sessions = () if self.subreaper else (self.state["pid"],)
        return descendants(processes(), (os.getpid(),), sessions)

    # -- talking

    def _accept(self) -> None:
        try:
            sock, _ = self.door.accept()
        except OSError:  # hung up before we came
            return
        self._watch(Lease(sock))

    def _watch(self, lease: Lease) -> None:
        lease.sock.setblocking(False)
        self.leases[lease.sock] = lease
        self.selector.register(lease.sock, selectors.EVENT_READ, lambda: self._read(lease))

    def _read(self, lease: Lease) -> None:
        try:
            data = lease.sock.recv(_LINE_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, lease.buffer = (lease.buffer + data).split(b"\n")
        try:
            for line in lines:
                self._obey(lease, json.loads(line))
        except (ValueError, TypeError, KeyError):  # no gateway talks like that
            data = b""
        if not data or len(lease.buffer) > _LINE_LIMIT:
            self._drop(lease)

    def _obey(self, lease: Lease, request: State) -> None:
        lease.who, lease.pid = request["who"], request["gateway"]
        if request["do"] == "leave":
            lease.leaves = True
            return
        holder = next(other for other in self.leases.values() if other.who)
        held_by = holder.pid if holder.who != lease.who else None
        if request["do"] == "stop" and held_by is None:
            self.by_itself = False  # whatever it was before, it is wanted now
            self._end_family(self.timing["stop_kill_s"])
        self._send(lease, held_by, request["n"])

    def _send(self, lease: Lease, held_by: int | None, number: int) -> None:
        answer = {**self.state, "held_by": held_by, "n": number}
        try:
            lease.sock.sendall(json.dumps(answer).encode() + b"\n")
        except BlockingIOError:  # half a line is out: it has not read for ages, and shall come anew
            lease.sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # gone; the selector will tell
            return

    def _drop(self, lease: Lease) -> None:
        """Who vanishes starts the countdown. Who leaves had the time to mean it, or only looked in."""
        self.selector.unregister(lease.sock)
        del self.leases[lease.sock]
        lease.sock.close()
        if not lease.leaves:
            self.left = False
        elif lease.starter or time.monotonic() - lease.since >= self.timing["grace_s"]:
            self.left = True

    def _answer_start(self) -> None:
        if self.first is not None and self.first.sock in self.leases:
            self._send(self.first, None, 0)
        self.first = None

    def _read_output(self) -> bool:
        """Take what the command says; True if there may be more."""
        try:
            data = os.read(self.output, 65536)
        except BlockingIOError:
            return False
        self.log.write(data)
        if not data:  # everybody closed it
            self.selector.unregister(self.output)
        return bool(data)

    # -- ending

    def _end_family(self, kill_after_s: float) -> None:
        """SIGTERM to all, once; SIGKILL comes from the clock."""
        if self.kill_at is not None:
            return
        self.kill_at = time.monotonic() + kill_after_s
        self.state["status"] = "stopping"
        self._save()
        signal_all(self._family(), signal.SIGTERM)

    def _finish(self) -> None:
        while self.output in self.selector.get_map() and self._read_output():
            continue
        self.state.update(status="ended", last_line=self.log.last_line)
        if self.by_itself:
            self._save()
        else:
            Path(self.order["state"]).unlink(missing_ok=True)
        self._answer_start()
        self.ended = True

    def _close(self) -> None:
        """Go; the state file is right by now, so whoever sees the connection end may read it."""
        self.remove_socket()
        for sock in (self.door, *self.leases):
            sock.close()

    def remove_socket(self) -> None:
        """Take our socket away, unless somebody else's stands there by now."""
        path = Path(self.state.get("socket", ""))
        if path.is_socket() and path.stat().st_ino == self._door_inode:
            path.unlink()

    def _save(self) -> None:
        try:
            write_state(self.order["state"], self.state)
        except OSError:  # a full disk must not keep us from ending the family
            return


def _make_private(folder: str) -> None:
    """See to it that nobody else can put a socket in there: the fallback's place is open to all."""
    os.makedirs(folder, 0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(errno.EACCES, "not a folder of ours alone", folder)


def _drain(sock: socket.socket) -> None:
    try:
        while sock.recv(4096):
            continue
    except BlockingIOError:
        return
