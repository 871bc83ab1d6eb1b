"""The state folder: made, refused, and held by one gateway at a time."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gpugate.lifecycle.state_dir import LOCK_NAME, StateDirLocked, check, lock

_HOLDER = """
import sys, pathlib
from gpugate.lifecycle.state_dir import lock
with lock(pathlib.Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


def never(text: str) -> None:
    raise AssertionError(text)


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    """It is made, for its owner's eyes only, and so is the lock in it."""
    folder = tmp_path / "a" / "b"

    assert None is check(folder)
    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    assert 0o600 == stat.S_IMODE((folder / LOCK_NAME).stat().st_mode)


def test_a_folder_that_is_there(tmp_path: Path) -> None:
    """It stays as it is."""
    tmp_path.chmod(0o755)

    assert None is check(tmp_path)
    assert 0o755 == stat.S_IMODE(tmp_path.stat().st_mode)


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("/proc/gpugate", "No such file or directory"),
        ("/dev/null/gpugate", "Not a directory"),
        ("/dev/null", "File exists"),
        ("nul\0", "ValueError"),
    ],
)
def test_a_folder_that_cannot_be(folder: str, reason: str) -> None:
    """It is said in one line why."""
    assert f"cannot be used: {reason}" == check(Path(folder))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    """One that may only be read is of no use, also with a lock in it from better days."""
    folder = tmp_path / "state"
    check(folder)
    folder.chmod(0o500)

    assert "cannot be used: it is not writable" == check(folder)
    (folder / LOCK_NAME).chmod(0)
    assert "cannot be used: Permission denied" == check(folder)
    folder.chmod(0o700)


def test_two_gateways(tmp_path: Path) -> None:
    """The second is refused with the first one's process id, and let in when that is gone."""
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with other:
        assert other.stdout is not None
        assert b"held\n" == other.stdout.readline()
        with pytest.raises(StateDirLocked) as refused, lock(tmp_path, never):
            pass
        said = f"state.dir: {tmp_path} is in use by another gateway (process {other.pid})"
        assert refused.value.message.startswith(said)
        other.kill()

    with lock(tmp_path, never):
        assert f"{os.getpid()}\n" == (tmp_path / LOCK_NAME).read_text()


def test_one_after_the_other(tmp_path: Path) -> None:
    """It is let go of at the end, also at a bad one."""
    with pytest.raises(KeyError), lock(tmp_path, never):
        raise KeyError
    with lock(tmp_path, never):
        pass


def test_a_child(tmp_path: Path) -> None:
    """What a gateway starts does not inherit the lock: it may outlive the gateway."""
    with lock(tmp_path, never):
        child = subprocess.Popen(["sleep", "9"], close_fds=False)
    try:
        with lock(tmp_path, never):
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_a_lock_that_says_nothing(tmp_path: Path) -> None:
    """Without the other one's process id the line is a little shorter."""
    with lock(tmp_path, never):
        (tmp_path / LOCK_NAME).write_bytes(b"\xffgarbage")
        with pytest.raises(StateDirLocked, match="in use by another gateway: stop"), lock(tmp_path, never):
            pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    """That is told and no more: a gateway that did not start would forget a pod that runs."""
    (tmp_path / LOCK_NAME).symlink_to("/dev/full")
    told: list[str] = []

    assert None is check(tmp_path)
    with lock(tmp_path, told.append):
        pass

    (line,) = told
    assert f"state.dir: {tmp_path} cannot be written: No space left on device" in line
