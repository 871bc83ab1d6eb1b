"""How a JSON file of the state folder is read and written: as a whole, atomically, synced to the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import orjson

T = TypeVar("T")


class CorruptFile(ValueError):
    """The content of a file is not what was written."""


class JsonFile:
    """A file that is read and replaced as a whole, readable by its owner only.

    Args:
        path: its folder is created by the first `write`.
        max_bytes: a larger file is corrupt.
    """

    def __init__(self, path: Path, max_bytes: int = 1 << 20) -> None:
        self.path = path
        self._max_bytes = max_bytes

    def read(self) -> object:
        """Return the content.

        Raises:
            CorruptFile: it is too large or not JSON.
            FileNotFoundError: there is none.
            OSError: it cannot be read.
        """
        with self.path.open("rb") as file:
            raw = file.read(self._max_bytes + 1)
        if len(raw) > self._max_bytes:
            raise CorruptFile("it is too large")
        try:
            content: object = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise CorruptFile("it is not JSON") from error
        return content

    # The order of the steps makes the file complete at any time, after a power cut, too:
    #
    # 1. Write a file beside it, opened with O_EXCL: one that a killed process left would keep its mode.
    # 2. Sync its bytes, so that the rename cannot reach the disk before them.
    # 3. Rename it over the old one.
    # 4. Sync the folder: without this a power cut brings back the old file.
    def write(self, content: object) -> None:
        """Replace the file; blocks for as long as the disk needs.

        Raises:
            OSError: the disk is full, or the folder is not writable; the old file is untouched.
        """
        if not self.path.parent.is_dir():
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_folder(self.path.parent.parent)  # a power cut must not take the new folder away
        draft = self.path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # 1
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(orjson.dumps(content))
                file.flush()
                os.fsync(file.fileno())  # 2
            os.replace(draft, self.path)  # 3
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        _sync_folder(self.path.parent)  # 4

    def load(self, parse: Callable[[object], T], default: T, warn: Callable[[str], None]) -> T:
        """Return the parsed content, or `default` if there is no file or it cannot be used; warns of the
        latter.

        Args:
            parse: raises ValueError (or TypeError, OverflowError) for a content that is not its own.
        """
        try:
            return parse(self.read())
        except FileNotFoundError:
            return default
        except (OSError, ValueError, TypeError, OverflowError) as error:
            warn(f"cannot read {self.path}: {getattr(error, 'strerror', None) or 'it is damaged'}")
            return default

    def save(self, content: object, warn: Callable[[str], None]) -> bool:
        """Replace the file; warn and return False if the disk fails."""
        try:
            self.write(content)
        except OSError as error:
            warn(f"cannot write {self.path}: {error.strerror}")
            return False
        return True


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some network file systems cannot; the file is complete all the same
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
