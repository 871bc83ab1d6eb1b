"""Unproved stops on disk: kept whole, kept private, and never in the way of a stop."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gpugate.lifecycle.pending_stop_store import PendingStopStore


def never(text: str) -> None:
    raise AssertionError(text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "unproved-stops.json"


def test_written_and_read(path: Path) -> None:
    """The next gateway reads what the last one wrote; a debt that is paid is gone."""
    debts = PendingStopStore(path, never)

    assert frozenset() == debts.load()
    debts.save(["vastai", "runpod"])
    assert frozenset({"runpod", "vastai"}) == PendingStopStore(path, never).load()
    debts.save([])
    assert frozenset() == PendingStopStore(path, never).load()


def test_whose_it_is(path: Path) -> None:
    """The owner's alone, over whatever a gateway that was killed has left."""
    path.parent.mkdir()
    for left in (path, path.with_suffix(".new")):
        left.write_text("[")
        left.chmod(0o644)

    PendingStopStore(path, never).save(["runpod"])

    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert [path.name] == os.listdir(path.parent)


def test_a_folder_that_is_missing(path: Path) -> None:
    """It is made, the owner's alone too."""
    PendingStopStore(path, never).save(["runpod"])

    assert 0o700 == stat.S_IMODE(path.parent.stat().st_mode)


@pytest.mark.parametrize("text", ["", "[", "{}", "[1]", '"runpod"', "null", "[" * 5000, "\udcff"])
def test_a_damaged_file(path: Path, text: str) -> None:
    """It is told, counts as empty, and the next save mends it."""
    path.parent.mkdir()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    told: list[str] = []
    debts = PendingStopStore(path, told.append)

    assert frozenset() == debts.load()
    assert [f"cannot read {path}: it is damaged"] == told
    debts.save(["runpod"])
    assert frozenset({"runpod"}) == debts.load()


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    """It is told, and raises nothing: the stop itself goes on."""
    (tmp_path / "file").write_text("")
    told: list[str] = []
    debts = PendingStopStore(tmp_path / "file" / "unproved-stops.json", told.append)

    debts.save(["runpod"])
    assert frozenset() == debts.load()
    assert ["File exists", "Not a directory"] == [line.rpartition(": ")[2] for line in told]


def test_a_write_that_fails_halfway(path: Path) -> None:
    """What was known stays known."""
    told: list[str] = []
    debts = PendingStopStore(path, told.append)
    debts.save(["runpod"])
    path.with_suffix(".new").mkdir()

    debts.save(["vastai"])

    assert frozenset({"runpod"}) == debts.load()
    assert 1 == len(told)
