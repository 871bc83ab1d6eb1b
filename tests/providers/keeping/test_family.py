"""Who belongs to a family, by tables made up and by the real one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

import pytest

from gpugate.providers.keeping.family import (
    MARK,
    Process,
    birth,
    descendants,
    is_same,
    leftovers,
    mark_of,
    processes,
    processes_of_ps,
    signal_all,
    sweep,
)

TABLE = {
    1: Process(0, 1, "0", True),
    10: Process(1, 10, "5", True),
    11: Process(10, 10, "6", True),
    12: Process(11, 12, "7", True),
    13: Process(12, 12, "8", False),
    14: Process(13, 12, "9", True),
    20: Process(1, 20, "5", True),
}


def test_descendants():
    """Down to the last generation, also through a dead one; neither the root nor the dead are told."""
    assert {11, 12, 14} == descendants(TABLE, (10,))


def test_descendants_of_a_session():
    """Its members and what descends from them."""
    assert {12, 14} == descendants(TABLE, (), (12,))
    assert {10, 11, 12, 14} == descendants(TABLE, (), (10,))


def test_a_pid_that_was_given_away():
    """The same number is another process if it began at another time."""
    assert is_same(TABLE, 10, birth(TABLE, 10))
    assert not is_same(TABLE, 10, birth({10: Process(1, 10, "4", True)}, 10))
    assert not is_same(TABLE, 13, birth(TABLE, 13))
    assert not is_same(TABLE, 99, birth(TABLE, 99))


def test_the_real_table():
    """This process is in it, under its parent."""
    row = processes()[os.getpid()]

    assert (os.getppid(), os.getsid(0), True) == (row.parent, row.session, row.alive)


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
def test_the_table_of_ps():
    """Where there is no /proc, ps tells the same."""
    row = processes_of_ps()[os.getpid()]

    assert (os.getppid(), os.getpgrp(), True) == (row.parent, row.session, row.alive)


def test_a_process_with_an_odd_name(tmp_path):
    """A name of brackets and blanks does not confuse the reader."""
    odd = tmp_path / "a) Z (1 2"
    shutil.copy(shutil.which("sleep") or "", odd)
    with subprocess.Popen([odd, "9"]) as process:
        row = processes()[process.pid]
        process.kill()

    assert (os.getpid(), True) == (row.parent, row.alive)


def test_leftovers_by_their_mark():
    """A marked process and what it started are found; those with another's mark are not."""
    env = {**os.environ, MARK: mark_of("/state/a.json")}
    script = ["sh", "-c", "echo up; sleep 9 & wait"]
    with subprocess.Popen(script, env=env, start_new_session=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the kernel shows its environment a moment after the call returns
        found = leftovers("/state/a.json", {})
        other = leftovers("/state/b.json", {})
        os.killpg(process.pid, signal.SIGKILL)

    assert process.pid in found
    assert 2 >= len(found)
    assert set() == other


def test_leftovers_of_a_command_that_hides_its_environment():
    """The command itself is known by pid and time of birth, and nobody else by his pid alone."""
    with subprocess.Popen(["sleep", "9"], start_new_session=True) as process:
        born = birth(processes(), process.pid)
        known = leftovers("/state/a.json", {"pid": process.pid, "born": born})
        stranger = leftovers("/state/a.json", {"pid": process.pid, "born": born + "0"})
        process.kill()

    assert {process.pid} == known
    assert set() == stranger


def test_signals_for_the_dead():
    """Who is gone already needs none."""
    with subprocess.Popen(["true"]) as process:
        process.wait()

        signal_all({process.pid}, signal.SIGTERM)


def test_sweeping_nobody():
    """It is done at once."""
    sweep(set, 60)
