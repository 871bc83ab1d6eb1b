"""The guard is killed: no process is forgotten."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest

from gpugate.providers.supervised_process import ProcessState
from tests.providers.support import QUICK, gone, until

FAMILY = "trap '' TERM; {0} & setsid {0} & wait"


def _state(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "processes" / "pod.json").read_text())


def _kill_guard(tmp_path: Path) -> None:
    guard = psutil.Process(_state(tmp_path)["guard"])
    guard.kill()
    guard.wait(10)


class TestTheGuardIsKilled:
    @pytest.mark.parametrize("call", ["inspect", "stop"])
    async def test_the_gateway_looks(self, keep, sleeper, tmp_path, call):
        """A look or a stop has the processes on record ended; until then they are "stopping"."""
        pod = keep()
        await pod.start(["sh", "-c", FAMILY.format(sleeper.command)])
        await sleeper.count(2)

        _kill_guard(tmp_path)
        found = await getattr(pod, call)()

        assert found is not None
        assert ProcessState.STOPPING is found.state
        await gone(pod)
        assert set() == sleeper.pids

    async def test_the_gateway_is_killed_as_well(self, keep, gateway, sleeper, tmp_path):
        """The next gateway ends a command that ignores the kernel's SIGTERM."""
        first = gateway("sh", "-c", FAMILY.format(sleeper.command))
        await sleeper.count(2)
        first.kill()
        _kill_guard(tmp_path)

        await gone(keep())

        assert set() == sleeper.pids

    async def test_no_gateway_comes_back(self, gateway, sleeper, tmp_path):
        """The kernel sends the command SIGTERM."""
        first = gateway(*sleeper.command.split())
        first.kill()

        _kill_guard(tmp_path)

        await sleeper.count(0)

    async def test_a_process_that_lost_its_parents(self, keep, sleeper, tmp_path):
        """A daemon without any trace of the command is on record, with its start time."""
        pod = keep()
        await pod.start(
            ["sh", "-c", f"env -i setsid -f /usr/bin/env {sleeper.command}; exec {sleeper.command}"]
        )
        await sleeper.count(2)
        await until(lambda: {str(pid) for pid in sleeper.pids} <= set(_state(tmp_path)["family"]))

        _kill_guard(tmp_path)

        await gone(pod)
        assert set() == sleeper.pids

    async def test_a_start(self, keep, sleeper, tmp_path):
        """The next start waits for the end of the last process, and leaves one."""
        pod = keep()
        await pod.start(["sh", "-c", FAMILY.format(sleeper.command)])
        await sleeper.count(2)
        _kill_guard(tmp_path)
        await gone(pod)

        kept = await pod.start(sleeper.command.split())

        assert {kept.pid} == sleeper.pids


async def test_signals_for_the_gateways_terminal(gateway, sleeper):
    """Control-C and a closed terminal end the gateway's group; the guard is not in it."""
    first = gateway(*sleeper.command.split(), timeouts=QUICK)

    assert os.getsid(first.kept_pid) == first.kept_pid
    assert os.getsid(first.kept_pid) != os.getsid(first.process.pid)
    first.kill()
    await sleeper.count(0)


async def test_the_state_directory_vanishes(keep, sleeper, tmp_path):
    """It is deleted under a running process, which is stopped all the same."""
    pod = keep(QUICK)
    await pod.start(sleeper.command.split())
    for file in (tmp_path / "processes").iterdir():
        file.unlink()

    await pod.stop()

    await sleeper.count(0)


async def test_no_zombies(keep, sleeper):
    """A gateway that starts and stops all day has no dead children."""
    pod = keep()
    for _ in range(3):
        await pod.start(sleeper.command.split())
        await pod.stop()
        await gone(pod)

    assert [] == [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]
