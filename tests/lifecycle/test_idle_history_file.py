"""What was learnt, on disk: as it was, or empty with a warning."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

import pytest

from gpugate.core.idle_policy import IdleHistory
from gpugate.lifecycle.idle_history_file import MOST_BYTES, IdleHistoryFile

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
        b'{"version": 1, "pauses": [' + b"100," * MOST_BYTES,
    ],
)
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
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
    assert len(content) < MOST_BYTES / 4
    assert {"version", "pauses", "starts", "credit", "wanted_at"} == set(json.loads(content))
