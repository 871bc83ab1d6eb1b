"""Who is alive and belongs to a kept command: the process table, read and signalled; knows no leases."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

MARK = "GPUGATE_KEPT"
POLL_S = 0.05  # between two looks at a family that is being ended

Table = Mapping[int, "Process"]


class Process(NamedTuple):
    """One row of the process table; `start` tells two bearers of the same pid apart."""

    parent: int
    session: int
    start: str
    alive: bool


def processes() -> dict[int, Process]:
    """The process table: from /proc, elsewhere from ps."""
    if not Path("/proc/self/stat").exists():
        return processes_of_ps()
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (row := _row_of_proc(int(entry))):
            table[int(entry)] = row
    return table


def _row_of_proc(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in brackets may hold anything, brackets and blanks included.
            words = file.read().rpartition(b")")[2].split()
    except OSError:  # gone meanwhile
        return None
    return Process(int(words[1]), int(words[3]), words[19].decode(), words[0] not in b"ZXx")


def processes_of_ps() -> dict[int, Process]:
    """The process table where there is no /proc (macOS); the group stands in for the session there."""
    import subprocess

    command = ["ps", "-axo", "pid=,ppid=,pgid=,stat=,lstart="]
    rows = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}
    )
    table = {}
    for pid, parent, group, stat, start in (row.split(None, 4) for row in rows.stdout.splitlines()):
        table[int(pid)] = Process(int(parent), int(group), start, not stat.startswith("Z"))
    return table


def descendants(table: Table, roots: Collection[int], sessions: Collection[int] = ()) -> set[int]:
    """Who is alive and descends from `roots`, themselves left out, or from the members of `sessions`."""
    known = set(roots) | {pid for pid, row in table.items() if row.session in sessions}
    while more := {pid for pid, row in table.items() if row.parent in known} - known:
        known |= more
    return {pid for pid in known.difference(roots) if pid in table and table[pid].alive}


def mark_of(state_file: str) -> str:
    """What everything started under this state file carries in its environment."""
    return hashlib.sha256(os.fsencode(state_file)).hexdigest()[:32]


def birth(table: Table, pid: int) -> str:
    """When this process began, told apart from other boots of the machine; "" if there is none."""
    if pid not in table:
        return ""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + table[pid].start
    except OSError:
        return table[pid].start


def is_same(table: Table, pid: int, born: str) -> bool:
    """Is this pid alive, and the process it was? A pid alone proves nothing: it may have been given away."""
    return pid in table and table[pid].alive and birth(table, pid) == born


def leftovers(state_file: str, state: Mapping[str, Any]) -> set[int]:
    """Who is alive of a family without a keeper: the marked, the command itself, and all that is theirs."""
    table = processes()
    mark = f"{MARK}={mark_of(state_file)}".encode()
    ours = {pid for pid in table if mark in _environment(pid)}
    if is_same(table, state.get("pid", 0), state.get("born", "")):
        ours.add(state["pid"])
    # The command began a session of its own, so whoever shares one of theirs is of the family.
    sessions = {table[pid].session for pid in ours} - {0, os.getsid(0)}
    family = ours | descendants(table, ours) | descendants(table, (), sessions)
    return {pid for pid in family if table[pid].alive} - {os.getpid()}


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:  # gone, not ours to read, or no Linux
        return []


def signal_all(pids: Collection[int], number: int) -> None:
    """Send a signal to whoever is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            # Gone, or it changed its user: then it stays in the family, and is never reported gone.
            continue


def sweep(find: Callable[[], set[int]], kill_after_s: float) -> None:
    """End whom `find` finds and return when nobody is left: SIGTERM once, SIGKILL after `kill_after_s`."""
    signal_all(find(), signal.SIGTERM)
    kill_at = time.monotonic() + kill_after_s
    while left := find():
        if time.monotonic() >= kill_at:
            signal_all(left, signal.SIGKILL)
        time.sleep(POLL_S)
