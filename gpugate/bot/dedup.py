"""Remembers which updates were handled, also over a restart.

Telegram sends an update again until it has heard that it came; after a crash in between it must not be
handled twice. Numbers are compared one by one, not by size: after a quiet week Telegram goes on with any
number. For the same reason a number from before the restart counts only together with a hash of its update.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiogram.types import Update
from attrs import define, field

from gpugate.json_file import JsonFile

MAX_IN_MEMORY = 1000
MAX_ON_DISK = 200


@define
class UpdateDeduplicator:
    """The numbers and hashes of the newest updates.

    Attributes:
        path: of the file; None keeps them in memory only.
        warn: called with a text when the file cannot be read or written; the bot works without it.
    """

    path: Path | None
    warn: Callable[[str], None]
    _hashes: OrderedDict[int, str] = field(factory=OrderedDict)
    _before_restart: frozenset[tuple[int, str]] = frozenset()
    _has_warned: bool = False

    def load(self) -> None:
        """Read what the last run wrote."""
        if self.path is None:
            return
        self._before_restart = JsonFile(self.path).load(_parse, self._before_restart, self.warn)

    def is_new(self, update: Update) -> bool:
        """Whether this update was not seen before; remembers it."""
        number, digest = update.update_id, _digest(update)
        if number in self._hashes or (number, digest) in self._before_restart:
            return False
        self._hashes[number] = digest
        while len(self._hashes) > MAX_IN_MEMORY:
            self._hashes.popitem(last=False)
        if self.path is not None:
            self._save(self.path)
        return True

    def _save(self, path: Path) -> None:
        content = [*sorted(self._before_restart), *self._hashes.items()][-MAX_ON_DISK:]
        if not JsonFile(path).save(content, self._warn_once):
            self._has_warned = True

    def _warn_once(self, text: str) -> None:
        if not self._has_warned:
            self.warn(text)


def _parse(content: Any) -> frozenset[tuple[int, str]]:
    return frozenset((int(number), str(digest)) for number, digest in content)


def _digest(update: Update) -> str:
    """Tells two updates of one number apart without revealing what is in them."""
    content = update.model_dump_json(exclude_unset=True).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()
