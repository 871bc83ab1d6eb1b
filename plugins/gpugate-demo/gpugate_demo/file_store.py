"""The files of the simulated ComfyUI: in memory, bounded in size."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict

from attrs import define, field, frozen

KINDS = ("output", "input", "temp")
FileKey = tuple[str, str, str]  # kind, subfolder, file name


@frozen
class StoredFile:
    """One file; `plain` is the same picture without metadata."""

    data: bytes = field(repr=False)
    plain: bytes = field(repr=False)
    written_at: float = field(factory=time.time)

    @property
    def etag(self) -> str:
        """As aiohttp's file answers make it: time and size."""
        return f'"{int(self.written_at * 1e9):x}-{len(self.data):x}"'


@define
class FileStore:
    """Generated and uploaded files; the oldest are dropped when `max_bytes` is exceeded."""

    max_bytes: int = 256 << 20
    _files: OrderedDict[FileKey, StoredFile] = field(factory=OrderedDict)
    _size: int = 0
    _counters: dict[tuple[str, str], int] = field(factory=dict)

    def get(self, kind: str, subfolder: str, name: str) -> StoredFile | None:
        """Return the file, or None."""
        return self._files.get((kind, subfolder, name))

    def input(self, path: str) -> StoredFile | None:
        """An uploaded file as LoadImage names it: "subfolder/name"."""
        subfolder, _, name = path.rpartition("/")
        return self.get("input", subfolder, name)

    def input_digest(self, path: str) -> str:
        """A digest of an uploaded file's bytes, for the cache."""
        stored = self.input(path)
        return hashlib.sha256(stored.data).hexdigest() if stored else ""

    def put(self, key: FileKey, data: bytes, plain: bytes | None = None) -> None:
        """Write a file, over an older one of its name."""
        self.remove(key)
        self._files[key] = StoredFile(data, data if plain is None else plain)
        self._size += len(data)
        while self._size > self.max_bytes and len(self._files) > 1:
            self.remove(next(iter(self._files)))

    def remove(self, key: FileKey) -> None:
        """Delete a file, there or not."""
        stored = self._files.pop(key, None)
        self._size -= len(stored.data) if stored else 0

    def next_name(self, prefix: str, kind: str, ending: str) -> FileKey:
        """The file that a saving node writes next: a running number behind the prefix."""
        subfolder, _, base = prefix.rpartition("/")
        count = self._counters[kind, prefix] = self._counters.get((kind, prefix), 0) + 1
        return kind, subfolder, f"{base}_{count:05d}_{ending}"

    def upload(self, name: str, subfolder: str, kind: str, data: bytes, *, overwrite: bool) -> FileKey:
        """Keep an upload; another file of that name gives it a number (facts 2.2)."""
        stem, dot, ending = name.rpartition(".")
        stem, tail = (stem, dot + ending) if dot else (name, "")
        key, number = (kind, subfolder, name), 0
        while not overwrite and (known := self._files.get(key)) is not None and known.data != data:
            number += 1
            key = (kind, subfolder, f"{stem} ({number}){tail}")
        self.put(key, data)
        return key
