"""The catalog's file, which outlives the gateway."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gpugate.json_file import CorruptFile, JsonFile

_FORMAT: Final = 1
_MAX_FILE: Final = 64 << 20
"""Bytes; the catalog's own limits keep it well below."""

Sections = Mapping[str, Mapping[str, bytes]]
"""Section -> key -> body, in order: the newest last."""


class CatalogStore:
    """One file; an older snapshot never overwrites a newer one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = JsonFile(path, _MAX_FILE)
        self._written = 0
        self._lock = threading.Lock()

    def read(self) -> dict[str, dict[str, bytes]]:
        """Return what was written last; empty if there is no file.

        Raises:
            CorruptFile: it is not a catalog of this version.
            OSError: it cannot be read.
        """
        try:
            document = self._file.read()
        except FileNotFoundError:
            return {}
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise CorruptFile("it is not a catalog of this version")
        return {name: _bodies(document.get(name)) for name in document if name != "format"}

    def write(self, version: int, sections: Sections) -> None:
        """Replace the file, unless a later `version` is in it already; blocks, so call it in a thread.

        Raises:
            OSError: the disk is full, or the folder is not writable; the old file is untouched.
        """
        with self._lock:
            if version <= self._written:
                return
            document: dict[str, object] = {"format": _FORMAT}
            for name, bodies in sections.items():
                document[name] = {key: body.decode() for key, body in bodies.items()}
            self._file.write(document)
            self._written = version


def _bodies(section: object) -> dict[str, bytes]:
    if not isinstance(section, dict):
        raise CorruptFile("a section is not an object")
    return {key: text.encode() for key, text in section.items() if isinstance(text, str)}
