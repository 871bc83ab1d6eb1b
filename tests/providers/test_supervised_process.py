"""The gateway's side: starting, looking, stopping, and what goes wrong with each."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpugate.errors import Conflict, Misconfigured, Transient
from gpugate.providers.supervised_process import CommandNotFound, ProcessState, ProcessStatus, state_dir
from tests.providers.support import PATIENT, gone


class TestStateDir:
    def test_the_environment_names_it(self, monkeypatch):
        """GPUGATE_STATE_DIR wins over everything."""
        monkeypatch.setenv("GPUGATE_STATE_DIR", "/srv/gpugate")
        monkeypatch.setenv("XDG_STATE_HOME", "/xdg")

        assert Path("/srv/gpugate") == state_dir()

    def test_by_the_xdg_specification(self, monkeypatch):
        """$XDG_STATE_HOME/gpugate comes next."""
        monkeypatch.delenv("GPUGATE_STATE_DIR", raising=False)
        monkeypatch.setenv("XDG_STATE_HOME", "/xdg")

        assert Path("/xdg/gpugate") == state_dir()

    @pytest.mark.parametrize("xdg", ["", "relative/path"])
    def test_without_a_usable_one(self, monkeypatch, xdg):
        """An empty or relative XDG_STATE_HOME is ignored: then it is below the home directory."""
        monkeypatch.delenv("GPUGATE_STATE_DIR", raising=False)
        monkeypatch.setenv("XDG_STATE_HOME", xdg)
        monkeypatch.setenv("HOME", "/home/somebody")

        assert Path("/home/somebody/.local/state/gpugate") == state_dir()


class TestStart:
    async def test_a_command_that_runs(self, keep, sleeper):
        """The answer tells the command's pid, since when it runs, and the meta it was given."""
        before = datetime.now(UTC) - timedelta(seconds=1)

        kept = await keep().start(sleeper.command.split(), meta={"port": 4711})

        assert {kept.pid} == sleeper.pids
        assert ProcessState.RUNNING is kept.state
        assert {"port": 4711} == kept.meta
        assert before < kept.started_at <= datetime.now(UTC)

    async def test_twice(self, keep, sleeper):
        """A second start finds the first one's process, with the first one's meta."""
        pod = keep()
        first = await pod.start(sleeper.command.split(), meta={"port": 1})

        second = await pod.start(sleeper.command.split(), meta={"port": 2})

        assert first == second

    async def test_many_at_once(self, keep, sleeper):
        """Ten starts by ten objects at the same time make one process, and each of them is told of it."""
        answers = await asyncio.gather(*(keep().start(sleeper.command.split()) for _ in range(10)))

        assert 1 == len(sleeper.pids)
        assert {sleeper.pids.pop()} == {kept.pid for kept in answers}

    async def test_cancelled(self, keep, sleeper):
        """A cancelled start may still start, but it cannot be lost: the next look or start finds it."""
        pod = keep()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await pod.start(sleeper.command.split())

        kept = await pod.start(sleeper.command.split())

        assert {kept.pid} == sleeper.pids

    async def test_cancelled_before_the_keeper_is_up(self, keep, sleeper):
        """Whatever was asked meanwhile is answered by it later."""
        pod = keep()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await pod.start(sleeper.command.split())

        await pod.start(sleeper.command.split())

        assert 1 == len(sleeper.pids)

    async def test_no_such_command(self, keep):
        """A command that is not there is said so, and nothing is left of the attempt."""
        pod = keep()

        with pytest.raises(CommandNotFound, match="'no-such-command' cannot be run: No such file"):
            await pod.start(["no-such-command", "serve"])

        assert await pod.inspect() is None

    async def test_a_file_that_is_no_program(self, keep, tmp_path):
        """A file that may not be executed is the same mistake."""
        (tmp_path / "notes.txt").write_text("not a program")

        with pytest.raises(CommandNotFound, match="Permission denied"):
            await keep().start([str(tmp_path / "notes.txt")])

    async def test_a_command_that_ends_at_once(self, keep):
        """It is a transient failure that tells the exit status and the last line of output."""
        with pytest.raises(Transient, match=r"^'sh' ended with exit status 3$") as failed:
            await keep().start(["sh", "-c", "echo hello; echo 'port is taken' >&2; exit 3"])

        assert "port is taken" == failed.value.output

    async def test_a_command_that_ends_at_once_but_leaves_somebody(self, keep, sleeper):
        """Its offspring is ended with it, and the start does not wait for that."""
        with pytest.raises(Transient, match="exit status 3"):
            await keep(PATIENT).start(["sh", "-c", f"trap '' TERM; {sleeper.command} & exit 3"])

    async def test_a_command_that_is_killed_at_once(self, keep):
        """A signal is named as one."""
        with pytest.raises(Transient, match="'sh' was killed by signal 9"):
            await keep().start(["sh", "-c", "kill -9 $$"])

    async def test_again_after_it_ended(self, keep, sleeper):
        """A command that ended by itself can be started again at once."""
        pod = keep()
        with pytest.raises(Transient):
            await pod.start(["false"])

        kept = await pod.start(sleeper.command.split())

        assert ProcessState.RUNNING is kept.state

    async def test_while_the_last_one_is_stopping(self, keep, sleeper):
        """There is never a second process beside one that is not gone yet."""
        pod = keep()
        await pod.start(["sh", "-c", f"trap '' TERM; {sleeper.command} & wait"])
        await sleeper.count(1)
        await pod.stop()

        with pytest.raises(Conflict, match="still stopping"):
            await pod.start(sleeper.command.split())

        await gone(pod)
        assert set() == sleeper.pids

    async def test_after_a_stop_was_proved(self, keep, sleeper):
        """As soon as a look finds nothing, the next start succeeds: no lock lingers."""
        pod = keep()
        for _ in range(3):
            await pod.start(sleeper.command.split())
            await pod.stop()
            await gone(pod)

        assert set() == sleeper.pids

    async def test_a_state_directory_that_cannot_be(self, keep, tmp_path):
        """A file stands where the directory should be: one line says so, and names the key."""
        (tmp_path / "taken").write_text("")

        with pytest.raises(Misconfigured, match=r"^state.dir: .*taken cannot be used: "):
            await keep(state_dir=tmp_path / "taken").start(["sleep", "9"])

    async def test_a_state_file_that_cannot_be_written(self, keep, tmp_path, sleeper):
        """What fails in the keeper is told as well, and then nothing runs."""
        pod = keep(name="other")
        (tmp_path / "processes" / "other.json").mkdir(parents=True)

        with pytest.raises((Misconfigured, Transient), match="Is a directory"):
            await pod.start(sleeper.command.split())

        (tmp_path / "processes" / "other.json").rmdir()
        assert set() == sleeper.pids

    async def test_a_very_deep_state_directory(self, keep, tmp_path, sleeper):
        """No path is too long for the pipe, as it would be for a socket."""
        deep = tmp_path / ("d" * 100) / ("e" * 100)
        await keep(state_dir=deep).start(sleeper.command.split())

        assert await keep(state_dir=deep).inspect() is not None

    async def test_environment(self, keep, tmp_path, monkeypatch):
        """The command gets this process's environment and its own, without gpugate's, which holds secrets."""
        monkeypatch.setenv("GPUGATE_AUTH__SECRET", "hush")
        monkeypatch.setenv("PLAIN", "yes")
        out = tmp_path / "environment"

        await keep().start(["sh", "-c", f"env > {out}; sleep 9"], env={"OLLAMA_HOST": "127.0.0.1:1"})

        text = out.read_text()
        assert "PLAIN=yes" in text
        assert "OLLAMA_HOST=127.0.0.1:1" in text
        assert "hush" not in text


class TestInspect:
    async def test_before_anything(self, keep, tmp_path):
        """Nothing was ever started: nothing is there, and looking leaves no trace."""
        assert await keep(state_dir=tmp_path / "state").inspect() is None
        assert not (tmp_path / "state").exists()

    async def test_it_ended_by_itself(self, keep):
        """How it ended is told until the next start or stop, also to another object."""
        pod = keep()
        await pod.start(["sh", "-c", "sleep 1; echo bye; exit 7"])
        other = keep()
        async with asyncio.timeout(10):
            while (found := await other.inspect()) is None or found.state is not ProcessState.ENDED:
                await asyncio.sleep(0.01)

        assert (ProcessState.ENDED, 7, "bye") == (found.state, found.exit_status, found.last_line)
        assert await pod.stop() is None
        assert await pod.inspect() is None

    async def test_a_guard_that_is_stuck(self, keep, monkeypatch, sleeper, tmp_path):
        """A stop that the guard does not obey is no success; when it goes on, it obeys."""
        pod = keep()
        await pod.start(sleeper.command.split())
        monkeypatch.setattr("gpugate.providers.supervised_process._ANSWER_S", 0.1)
        guard = json.loads((tmp_path / "processes" / "pod.json").read_text())["guard"]
        os.kill(guard, signal.SIGSTOP)

        try:
            with pytest.raises(Transient, match="does not answer"):
                await pod.stop()
        finally:
            os.kill(guard, signal.SIGCONT)
        monkeypatch.setattr("gpugate.providers.supervised_process._ANSWER_S", 20)
        await gone(pod)
        assert set() == sleeper.pids

    async def test_a_damaged_state_file_after_a_crash(self, keep, tmp_path):
        """A file that makes no sense, and nobody alive behind it: that is nothing, and hinders no start."""
        (tmp_path / "processes").mkdir(mode=0o700)
        (tmp_path / "processes" / "pod.json").write_text('{"status": "runn')
        pod = keep()

        assert await pod.inspect() is None
        assert ProcessState.RUNNING is (await pod.start(["sleep", "9"])).state

    async def test_after_the_machine_was_restarted(self, keep, tmp_path):
        """A state file from before names a pid that somebody else has now: he is not ours, and lives on."""
        stranger = await asyncio.create_subprocess_exec("sleep", "9")
        (tmp_path / "processes").mkdir(mode=0o700)
        state = {"status": "running", "pid": stranger.pid, "guard": 1, "family": {str(stranger.pid): 12.34}}
        (tmp_path / "processes" / "pod.json").write_text(json.dumps(state))
        pod = keep()

        try:
            assert await pod.inspect() is None
            assert await pod.stop() is None
            assert stranger.returncode is None
        finally:
            stranger.kill()
            await stranger.wait()

    async def test_an_answer_nobody_waited_for(self, keep, sleeper):
        """A look that is cancelled leaves no answer behind that the next would take for its own."""
        pod = keep()
        await pod.start(sleeper.command.split())
        looking = asyncio.create_task(pod.inspect())
        await asyncio.sleep(0)
        looking.cancel()

        stopped = await pod.stop()  # None: the command has already ended

        assert stopped is None or ProcessState.STOPPING is stopped.state


class TestStop:
    async def test_nothing_is_there(self, keep):
        """Stopping what is not there is done already."""
        assert await keep().stop() is None

    async def test_it_returns_at_once(self, keep, sleeper):
        """The command ignores SIGTERM; the answer is "stopping" all the same, not an hour later."""
        pod = keep(PATIENT)
        await pod.start(["sh", "-c", f"trap '' TERM; {sleeper.command} & wait"])
        await sleeper.count(1)

        async with asyncio.timeout(15):  # half of what the command is given
            stopping = await pod.stop()

        assert stopping is not None
        assert ProcessState.STOPPING is stopping.state
        assert 1 == len(sleeper.pids)
        os.kill(sleeper.pids.pop(), signal.SIGKILL)

    async def test_twice(self, keep, sleeper):
        """A second stop changes nothing, and the end is proved by a look."""
        pod = keep()
        await pod.start(sleeper.command.split())

        await pod.stop()
        await pod.stop()
        await gone(pod)

        assert set() == sleeper.pids

    async def test_by_another_object_of_this_gateway(self, keep, sleeper):
        """It is the same gateway, so it may."""
        await keep().start(sleeper.command.split())
        other = keep()

        await other.stop()
        await gone(other)

        assert set() == sleeper.pids


class TestTwoGateways:
    """Two gateways on one state directory do not fight, and neither is silent about it."""

    async def test_the_second_looks(self, keep, gateway, sleeper):
        """It sees the process, and who holds it."""
        first = gateway(*sleeper.command.split())

        found = await keep().inspect()

        assert found is not None
        assert (first.kept_pid, first.process.pid) == (found.pid, found.held_by)
        first.kill()

    async def test_the_second_starts_or_stops(self, keep, gateway, sleeper):
        """It is refused, with the pid of the first, and the process goes on."""
        first = gateway(*sleeper.command.split())
        second = keep()

        for attempt in (second.start(["sleep", "9"]), second.stop()):
            with pytest.raises(Conflict, match=f"held by another gpugate .*{first.process.pid}"):
                await attempt

        assert {first.kept_pid} == sleeper.pids
        first.kill()


class TestAclose:
    async def test_unused(self, keep, tmp_path):
        """What holds nothing lets go of nothing, and leaves nothing."""
        await keep().aclose()

        assert [] == list(tmp_path.iterdir())

    async def test_used_again(self, keep, sleeper):
        """After it, a look connects anew."""
        pod = keep()
        started = await pod.start(sleeper.command.split())
        await pod.aclose()

        assert started == await pod.inspect()


def test_how_it_ended():
    """Whatever it said last is not in these words: clients read them."""
    kept = ProcessStatus(ProcessState.ENDED, 1, datetime.now(UTC), exit_status=0, last_line="a prompt")

    assert "ended with exit status 0" == kept.exit_description
