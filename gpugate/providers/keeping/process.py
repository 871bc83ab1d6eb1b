"""What runs as the keeper's process: take one order from standard input, keep or sweep, be guarded."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
from pathlib import Path

from .family import descendants, leftovers, processes, sweep
from .journal import State, read_state
from .keeper import Keeper
from .launch import CommandFailed, become_subreaper


def main() -> None:
    """Obey the order on standard input, which is a socket to the gateway."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if os.getpid() != os.getsid(0):
        os.setsid()  # what ends the gateway's session or group must not end us
    # What the gateway had inherited itself: whoever waits for the end of such a pipe must not wait for us.
    os.closerange(3, min(os.sysconf("SC_OPEN_MAX"), 65536))
    first = _take_over_stdin()
    if (order := _read_order(first)) is None or (lock := _take_lock(order["lock"])) is None:
        _answer(first, {"error": "busy"})
        return
    if order["do"] == "sweep":
        first.close()
        _end_leftovers(order)
    else:
        _keep(order, first)
    os.close(lock)  # after everything else: who takes it next must not meet us


def _take_over_stdin() -> socket.socket:
    """A socket that the command does not inherit, and nothing in its place."""
    first = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    return first


def _read_order(first: socket.socket) -> State | None:
    line = b""
    while not line.endswith(b"\n"):
        seen = first.recv(65536, socket.MSG_PEEK)  # what comes behind the order is the keeper's to read
        if not seen:  # the gateway died over it
            return None
        line += first.recv(seen.find(b"\n") + 1 or len(seen))
    order: State = json.loads(line)
    return order


def _take_lock(path: str) -> int | None:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _answer(first: socket.socket, answer: State) -> None:
    try:
        first.sendall(json.dumps({**answer, "n": 0}).encode() + b"\n")
    except OSError:  # nobody wants to know any more
        return


def _keep(order: State, first: socket.socket) -> None:
    subreaper = become_subreaper()
    guard = os.getpid()
    keeper = os.fork()
    if keeper:
        first.close()
        _guard(order, keeper)
        return
    become_subreaper()  # is not inherited
    status = 1
    try:
        status = _run(Keeper(order, first, guard, subreaper=subreaper), first)
    finally:
        os._exit(status)


def _run(keeper: Keeper, first: socket.socket) -> int:
    try:
        keeper.start()
    except OSError as error:
        keeper.remove_socket()
        Path(keeper.order["state"]).unlink(missing_ok=True)
        kind = "command" if isinstance(error, CommandFailed) else "state"
        _answer(first, {"error": kind, "text": error.strerror or str(error)})
        return 0
    keeper.run()
    return 0


def _guard(order: State, keeper: int) -> None:
    """Wait for the keeper's end; were it a violent one, the family is ours now: end it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _, status = os.waitpid(keeper, 0)
    if status == 0:
        return
    state = read_state(order["state"]) or {}
    sweep(
        lambda: descendants(processes(), (os.getpid(),)) | leftovers(order["state"], state),
        order["timing"]["orphan_kill_s"],
    )
    Path(order["state"]).unlink(missing_ok=True)


def _end_leftovers(order: State) -> None:
    """Both keeper and guard were killed: end what the mark finds."""
    state = read_state(order["state"])
    if state is None or state.get("status") == "ended":
        return
    sweep(lambda: leftovers(order["state"], state), order["timing"]["orphan_kill_s"])
    Path(order["state"]).unlink(missing_ok=True)
