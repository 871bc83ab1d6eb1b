"""The JSON file of the state folder: whole, private, and on the disk when `write` returns."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gpugate.json_file import CorruptFile, JsonFile


def test_synced_before_and_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes before the file takes the old one's name, the folder after it."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def rename(draft: Path, path: Path) -> None:
        done.append("rename")
        replace(draft, path)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    JsonFile(tmp_path / "state.json").write([1])

    assert ["file", "rename", "folder"] == done
    assert [1] == JsonFile(tmp_path / "state.json").read()


def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems cannot: the file is written all the same."""
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    JsonFile(tmp_path / "state.json").write({"a": 1})

    assert {"a": 1} == JsonFile(tmp_path / "state.json").read()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old content stays, and no draft is left."""
    file = JsonFile(tmp_path / "state.json")
    file.write(["old"])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    warnings: list[str] = []

    assert not file.save(["new"], warnings.append)
    assert ["old"] == file.read()
    assert [file.path] == list(tmp_path.iterdir())
    assert [f"cannot write {file.path}: No space left on device"] == warnings


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 5000, b"[" + b"1," * 100 + b"1]"])
def test_a_corrupt_file(tmp_path: Path, content: bytes) -> None:
    """What is not JSON, or too large, is told; `load` goes on with the default."""
    file = JsonFile(tmp_path / "state.json", max_bytes=100)
    file.path.write_bytes(content)
    warnings: list[str] = []

    with pytest.raises(CorruptFile):
        file.read()
    assert "default" == file.load(str, "default", warnings.append)
    assert [f"cannot read {file.path}: it is damaged"] == warnings


def test_no_file(tmp_path: Path) -> None:
    """That is no problem: the default."""
    assert 7 == JsonFile(tmp_path / "none.json").load(int, 7, pytest.fail)  # type: ignore[arg-type]
