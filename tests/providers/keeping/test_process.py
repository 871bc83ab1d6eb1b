"""Keeper or guard or both are killed: nobody is forgotten."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from gpugate.providers.supervised_process import KeptStatus
from tests.providers.support import QUICK, gone, until

FAMILY = "trap '' TERM; {0} & setsid {0} & wait"


def _state(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "processes" / "pod.json").read_text())


class TestKilled:
    async def test_the_keeper(self, keep, sleeper, tmp_path):
        """Its guard inherits the family and ends it; until then it is "stopping"."""
        pod = keep()
        await pod.start(["sh", "-c", FAMILY.format(sleeper.command)])
        await sleeper.count(2)

        os.kill(_state(tmp_path)["keeper"], signal.SIGKILL)

        found = await pod.inspect()
        assert found is not None
        assert KeptStatus.STOPPING is found.status
        await gone(pod)
        assert set() == sleeper.pids

    async def test_the_keeper_and_the_gateway(self, gateway, sleeper, tmp_path):
        """Nobody looks, and the family ends all the same."""
        first = gateway("sh", "-c", FAMILY.format(sleeper.command))
        await sleeper.count(2)

        first.kill()
        os.kill(_state(tmp_path)["keeper"], signal.SIGKILL)

        await sleeper.count(0)
        await until(lambda: not (tmp_path / "processes" / "pod.json").exists())

    async def test_the_keeper_of_one_who_wiped_his_traces(self, keep, sleeper, tmp_path):
        """The guard needs no mark: who loses his parents becomes its child."""
        pod = keep()
        await pod.start(
            ["sh", "-c", f"env -i setsid -f /usr/bin/env {sleeper.command}; exec {sleeper.command}"]
        )
        await sleeper.count(2)

        os.kill(_state(tmp_path)["keeper"], signal.SIGKILL)

        await gone(pod)
        assert set() == sleeper.pids

    async def test_the_guard(self, keep, sleeper, tmp_path):
        """The keeper does its work without it."""
        pod = keep()
        started = await pod.start(sleeper.command.split())

        os.kill(_state(tmp_path)["guard"], signal.SIGKILL)

        assert started == await pod.inspect()
        await pod.stop()
        await gone(pod)
        assert set() == sleeper.pids

    @pytest.mark.parametrize("damaged", [False, True], ids=["with the state file", "with a damaged one"])
    async def test_both(self, keep, sleeper, tmp_path, damaged):
        """A gateway that looks finds the family by its mark, and has it ended."""
        pod = keep()
        await pod.start(["sh", "-c", FAMILY.format(sleeper.command)])
        await sleeper.count(2)
        _kill_both(tmp_path)
        if damaged:
            (tmp_path / "processes" / "pod.json").write_text("{")

        found = await pod.inspect()

        assert found is not None
        assert KeptStatus.STOPPING is found.status
        await gone(pod)
        assert set() == sleeper.pids

    async def test_both_and_the_command_is_well_behaved(self, gateway, sleeper, tmp_path):
        """The kernel tells the command, even if no gateway ever comes back."""
        first = gateway(*sleeper.command.split())
        first.kill()

        _kill_both(tmp_path)

        await sleeper.count(0)

    async def test_both_and_a_start(self, keep, sleeper, tmp_path):
        """The next start waits for the last one's end, and leaves one process."""
        pod = keep()
        await pod.start(["sh", "-c", FAMILY.format(sleeper.command)])
        await sleeper.count(2)
        _kill_both(tmp_path)
        await gone(pod)

        kept = await pod.start(sleeper.command.split())

        assert {kept.pid} == sleeper.pids

    async def test_both_and_a_stop(self, keep, sleeper, tmp_path):
        """A stop finds them as a look does."""
        pod = keep()
        await pod.start(["sh", "-c", FAMILY.format(sleeper.command)])
        await sleeper.count(2)
        _kill_both(tmp_path)

        stopping = await pod.stop()

        assert stopping is not None
        assert KeptStatus.STOPPING is stopping.status
        await gone(pod)
        assert set() == sleeper.pids


async def test_signals_for_the_gateways_terminal(gateway, sleeper):
    """Control-C and a closed terminal end the gateway's group; the keeper is not of it."""
    first = gateway(*sleeper.command.split(), timing=QUICK)

    assert os.getsid(first.kept_pid) == first.kept_pid
    assert os.getsid(first.kept_pid) != os.getsid(first.process.pid)
    first.kill()
    await sleeper.count(0)


async def test_the_state_directory_vanishes(keep, sleeper, tmp_path):
    """Somebody removes it under a running process: the lease still ends it."""
    pod = keep(QUICK)
    await pod.start(sleeper.command.split())
    for file in (tmp_path / "processes").iterdir():
        file.unlink()

    await pod.stop()

    await sleeper.count(0)


async def test_keepers_are_buried(keep, sleeper):
    """A gateway that starts and stops all day gathers no zombies."""
    pod = keep()
    for _ in range(3):
        await pod.start(sleeper.command.split())
        await pod.stop()
        await gone(pod)
    async with asyncio.timeout(5):
        while _zombies():
            await pod.inspect()
            await asyncio.sleep(0.01)


def _zombies() -> int:
    found = 0
    for entry in os.listdir("/proc"):
        try:
            words = (
                Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split() if entry.isdigit() else []
            )
        except OSError:
            continue
        found += bool(words) and words[:2] == ["Z", str(os.getpid())]
    return found


def _kill_both(tmp_path: Path) -> None:
    state = _state(tmp_path)
    os.kill(state["guard"], signal.SIGKILL)
    os.kill(state["keeper"], signal.SIGKILL)
