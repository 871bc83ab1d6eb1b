"""gpugate/ollama/catalog_cache.py: the catalogue's file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gpugate.json_file import CorruptFile
from gpugate.ollama.catalog_cache import CatalogStore

SECTIONS = {"answers": {"tags": b'{"models":[ ]}', "version": '{"é":1}'.encode()}, "shows": {"x": b"{}"}}


@pytest.fixture
def sections() -> dict[str, dict[str, bytes]]:
    return SECTIONS


def test_no_file(tmp_path: Path) -> None:
    """Without a file nothing is remembered."""
    expected: dict[str, dict[str, bytes]] = {}
    assert expected == CatalogStore(tmp_path / "none.json").read()


def test_written_and_read(tmp_path: Path, sections: dict[str, dict[str, bytes]]) -> None:
    """Bytes and their order come back as they were, and nobody else may read them."""
    path = tmp_path / "state" / "catalog.json"
    CatalogStore(path).write(1, sections)
    read = CatalogStore(path).read()
    assert sections == read
    assert list(sections["answers"]) == list(read["answers"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [path] == list(path.parent.iterdir())


def test_an_older_snapshot_comes_late(tmp_path: Path, sections: dict[str, dict[str, bytes]]) -> None:
    """Threads may finish in any order: the newest snapshot stays."""
    store = CatalogStore(tmp_path / "catalog.json")
    store.write(2, sections)
    store.write(1, {"answers": {}})
    assert sections == store.read()


def test_a_disk_that_fails(
    tmp_path: Path, sections: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed write leaves the old file whole, no draft behind, and is tried again."""
    store = CatalogStore(tmp_path / "catalog.json")
    store.write(1, sections)

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", full)
        with pytest.raises(OSError):
            store.write(2, {"answers": {}})
    assert sections == store.read()
    assert [store.path] == list(tmp_path.iterdir())
    store.write(2, {"answers": {}})
    expected: dict[str, dict[str, bytes]] = {"answers": {}}
    assert expected == store.read()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"format":99}', b'{"answers":{}}', b'{"format":1,"answers":[]}', b"\x00" * 100],
)
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    """What is not what was written is said to be damaged."""
    path = tmp_path / "catalog.json"
    path.write_bytes(content)
    with pytest.raises(CorruptFile):
        CatalogStore(path).read()


def test_a_file_far_too_large(tmp_path: Path) -> None:
    """A file that cannot be ours is not read into memory."""
    path = tmp_path / "catalog.json"
    with path.open("wb") as file:
        file.truncate(65 << 20)  # sparse
    with pytest.raises(CorruptFile):
        CatalogStore(path).read()
