"""Which processes belong to a command, looked up in the real process table."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpugate.providers.supervisor import find_family, recorded_processes, start_times


@contextmanager
def running(*command: str, **more) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own; the whole session is killed at the end."""
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, **more) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def record_of(pid: int) -> dict[int, float]:
    return start_times([find_family({}, os.getpid())[pid]])


def test_descendants():
    """Children and their children, without the parent itself."""
    with running("sh", "-c", "(echo $$; sleep 86400 & wait) & wait") as process:
        assert process.stdout is not None
        process.stdout.readline()
        family = find_family({}, os.getpid())

        assert process.pid in family
        assert os.getpid() not in family


def test_a_recorded_process_and_its_session():
    """A child that lost its parent is found by the session that it shares with a recorded process."""
    with running("sh", "-c", "(sleep 86400 & echo $!) ; exec sleep 86400") as process:
        assert process.stdout is not None
        orphan = int(process.stdout.readline())

        assert {process.pid, orphan} == set(find_family(record_of(process.pid)))


def test_a_recycled_pid():
    """A process with a recorded pid and another start time is not the command, nor is its session."""
    with running("sleep", "86400") as process:
        (start,) = record_of(process.pid).values()

        assert {process.pid} == set(find_family({process.pid: start}))
        assert {} == find_family({process.pid: start - 1})
        assert {} == find_family({process.pid: start + 1})


def test_a_process_with_an_odd_name(tmp_path):
    """A name of brackets and blanks does not confuse the reader."""
    odd = tmp_path / "a) Z (1 2"
    shutil.copy(shutil.which("sleep") or "", odd)
    with running(str(odd), "86400") as process:
        assert process.pid in find_family({}, os.getpid())


def test_zombies():
    """A process that has ended and is not reaped yet is not alive."""
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

        assert process.pid not in find_family({}, os.getpid())


@pytest.mark.parametrize("family", ['{"7": "soon"}', "[]", "7", '{"seven": 1.5}', "null"])
def test_a_damaged_record(family):
    """It names no process."""
    assert {} == recorded_processes({"family": json.loads(family)})
