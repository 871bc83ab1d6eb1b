"""Remembers which group has become which supergroup, which changes its id; also over a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import define, field

from gpugate.json_file import JsonFile


@define
class MovedChats:
    """The new ids of chats.

    Attributes:
        path: of the file; None keeps them in memory only.
        warn: called with a text when the file cannot be read or written.
    """

    path: Path | None = None
    warn: Callable[[str], None] = lambda text: None
    _new_ids: dict[int, int] = field(factory=dict)

    def load(self) -> None:
        """Read what was noted before the restart."""
        if self.path is not None:
            self._new_ids = JsonFile(self.path).load(_parse, self._new_ids, self.warn)

    def note(self, old: int, new: int) -> bool:
        """Take note of a chat's new id; False: it is known, or cannot be."""
        if self._new_ids.get(old) == new or new == old or new in self._new_ids:
            return False
        self._new_ids[old] = new
        if self.path is not None:
            JsonFile(self.path).save(list(self._new_ids.items()), self.warn)
        return True

    def current_id(self, chat: int) -> int:
        """Return the id under which a chat can be reached now."""
        return self._new_ids.get(chat, chat)

    def configured_id(self, chat: int) -> int:
        """Return the id that a chat had before it moved, if it did: the one in the configuration."""
        return next((old for old, new in self._new_ids.items() if new == chat), chat)


def _parse(content: object) -> dict[int, int]:
    if not isinstance(content, list):
        raise TypeError
    return {int(old): int(new) for old, new in content}
