"""The lifecycle's two files: whole, private, and never in the way of a stop."""

from __future__ import annotations

import json
import os
import stat
from math import inf
from pathlib import Path

import pytest

from gpugate.core.idle_policy import IdleHistory
from gpugate.lifecycle.state_files import IdleHistoryFile, PendingStopFile


def never(text: str) -> None:
    raise AssertionError(text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "unproved-stops.json"


def test_written_and_read(path: Path) -> None:
    """The next gateway reads what the last one wrote; a debt that is paid is gone."""
    debts = PendingStopFile(path, never)

    assert frozenset() == debts.load()
    debts.save(["vastai", "runpod"])
    assert frozenset({"runpod", "vastai"}) == PendingStopFile(path, never).load()
    debts.save([])
    assert frozenset() == PendingStopFile(path, never).load()


def test_whose_it_is(path: Path) -> None:
    """The owner's alone, over whatever a gateway that was killed has left."""
    path.parent.mkdir()
    for left in (path, path.with_suffix(".new")):
        left.write_text("[")
        left.chmod(0o644)

    PendingStopFile(path, never).save(["runpod"])

    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert [path.name] == os.listdir(path.parent)


def test_a_folder_that_is_missing(path: Path) -> None:
    """It is made, the owner's alone too."""
    PendingStopFile(path, never).save(["runpod"])

    assert 0o700 == stat.S_IMODE(path.parent.stat().st_mode)


@pytest.mark.parametrize("text", ["", "[", "{}", "[1]", '"runpod"', "null", "[" * 5000, "\udcff"])
def test_a_damaged_file(path: Path, text: str) -> None:
    """It is told, counts as empty, and the next save mends it."""
    path.parent.mkdir()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    told: list[str] = []
    debts = PendingStopFile(path, told.append)

    assert frozenset() == debts.load()
    assert [f"cannot read {path}: it is damaged"] == told
    debts.save(["runpod"])
    assert frozenset({"runpod"}) == debts.load()


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    """It is told, and raises nothing: the stop itself goes on."""
    (tmp_path / "file").write_text("")
    told: list[str] = []
    debts = PendingStopFile(tmp_path / "file" / "unproved-stops.json", told.append)

    debts.save(["runpod"])
    assert frozenset() == debts.load()
    assert ["File exists", "Not a directory"] == [line.rpartition(": ")[2] for line in told]


def test_a_write_that_fails_halfway(path: Path) -> None:
    """What was known stays known."""
    told: list[str] = []
    debts = PendingStopFile(path, told.append)
    debts.save(["runpod"])
    path.with_suffix(".new").mkdir()

    debts.save(["vastai"])

    assert frozenset({"runpod"}) == debts.load()
    assert 1 == len(told)


LEARNT = IdleHistory((70.5, 3400.0), (88.0,), 1234.5, 100.0)


def place(folder: Path, told: list[str], wall: float = 1_000_000.0) -> IdleHistoryFile:
    """The file, at this wall clock."""
    return IdleHistoryFile(folder / "habits.json", told.append, lambda: wall)


def test_what_was_learnt_is_there_after_a_restart(tmp_path: Path) -> None:
    """With the time that went by in between; nobody else may read it."""
    told: list[str] = []
    place(tmp_path / "state", told).save(LEARNT)
    later = place(tmp_path / "state", told, wall=1_000_050.0).load()
    assert IdleHistory((70.5, 3400.0), (88.0,), 1234.5, 150.0) == later
    assert (tmp_path / "state" / "habits.json").stat().st_mode & 0o777 == 0o600
    assert [] == told


def test_the_clock_was_set_back(tmp_path: Path) -> None:
    """Then it was wanted just now; a time is never negative."""
    place(tmp_path, []).save(LEARNT)
    assert place(tmp_path, [], wall=5.0).load().last_demand_ago_s == 0.0


def test_nothing_was_saved_yet(tmp_path: Path) -> None:
    """That is no trouble."""
    told: list[str] = []
    assert IdleHistory() == place(tmp_path, told).load()
    place(tmp_path, told).save(IdleHistory())
    assert IdleHistory() == place(tmp_path, told).load()
    assert place(tmp_path, told).load().last_demand_ago_s == inf
    assert [] == told


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 30_000,
        b'{"version": 2, "pauses": [], "starts": []}',
        b'{"version": 1, "pauses": [], "starts": null}',
        b'{"version": 1, "pauses": [true], "starts": []}',
        b'{"version": 1, "pauses": ["70"], "starts": []}',
        b'{"version": 1, "pauses": [NaN], "starts": []}',
        b'{"version": 1, "pauses": [-1], "starts": []}',
        b'{"version": 1, "pauses": [], "starts": [], "credit": "much"}',
        b'{"version": 1, "pauses": [], "starts": [], "wanted_at": Infinity}',
        b'{"version": 1, "pauses": [' + b"100," * IdleHistoryFile.MAX_BYTES,
    ],
)
def test_a_damaged_history(tmp_path: Path, content: bytes) -> None:
    """It is told in one line and counts as empty; the next save mends it."""
    (tmp_path / "habits.json").write_bytes(content)
    told: list[str] = []
    store = place(tmp_path, told)
    assert IdleHistory() == store.load()
    assert [f"cannot read {tmp_path}/habits.json: it is damaged; the idle policy learns anew"] == told
    store.save(LEARNT)
    assert LEARNT == store.load()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """It is told, and nothing is raised."""
    (tmp_path / "file").write_text("")
    told: list[str] = []
    place(tmp_path / "file", told).save(LEARNT)
    assert 1 == len(told)
    assert told[0].startswith("cannot write")


def test_the_file_stays_small(tmp_path: Path) -> None:
    """All that is ever remembered fits well below what is read."""
    habits = IdleHistory(tuple(1e6 + number for number in range(256)), (1e5,) * 9, 1e5, 1.0)
    place(tmp_path, []).save(habits)
    content = (tmp_path / "habits.json").read_text()
    assert len(content) < IdleHistoryFile.MAX_BYTES / 4
    assert {"version", "pauses", "starts", "credit", "wanted_at"} == set(json.loads(content))


def test_pending_stops_survive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When `save` returns, the file, its name and a new state folder are synced: no pod is forgotten."""
    synced: list[str] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store = PendingStopFile(tmp_path / "state" / "unproved-stops.json", print)
    store.save(["runpod"])
    assert [tmp_path.name, "unproved-stops.new", "state"] == synced
    store.save([])
    assert ["unproved-stops.new", "state"] == synced[3:]
