"""The catalogue's file: read once, replaced as a whole; knows nothing of what the bodies in it mean."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import orjson
from attrs import define, field

_FORMAT: Final = 1
_MAX_FILE: Final = 64 << 20
"""Bytes; the catalogue's own bounds keep it well below, so a larger file is not ours."""

Sections = Mapping[str, Mapping[str, bytes]]
"""Section -> key -> body, in order: the newest last."""


class CorruptFile(Exception):
    """The file, or a part of it, is not what was written."""


@define
class CatalogStore:
    """One file, replaced atomically; older snapshots never overwrite newer ones."""

    path: Path
    _written: int = field(default=0, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False, repr=False)

    def read(self) -> dict[str, dict[str, bytes]]:
        """Return what was written last; nothing if there is no file.

        Raises:
            CorruptFile: the file is not readable as a catalogue.
            OSError: the file cannot be read.
        """
        try:
            if self.path.stat().st_size > _MAX_FILE:
                raise CorruptFile("it is too large")
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        try:
            document = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise CorruptFile("it is no JSON") from error
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise CorruptFile("it is no catalogue of this version")
        return {name: _bodies(document.get(name)) for name in document if name != "format"}

    def write(self, version: int, sections: Sections) -> None:
        """Replace the file, unless a later `version` is in it already; blocks, so call it in a thread.

        Raises:
            OSError: the disk is full, the directory not writable; the old file is untouched.
        """
        with self._lock:
            if version <= self._written:
                return
            document: dict[str, object] = {"format": _FORMAT}
            for name, bodies in sections.items():
                document[name] = {key: body.decode() for key, body in bodies.items()}
            self._replace(orjson.dumps(document))
            self._written = version

    def _replace(self, content: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.new")
        try:
            with open(draft, "wb", opener=_private) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self.path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        _sync_directory(self.path.parent)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_directory(path: Path) -> None:
    """Make the rename itself last through a power cut."""
    with suppress(OSError):  # some network file systems cannot; the file is complete all the same
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _bodies(section: object) -> dict[str, bytes]:
    if not isinstance(section, dict):
        raise CorruptFile("a section is no object")
    return {key: text.encode() for key, text in section.items() if isinstance(text, str)}
