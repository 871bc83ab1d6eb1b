"""Which updates were taken already, over a restart too; knows their numbers and nothing else.

Telegram sends an update again until it has heard that it came. A gateway that was killed between the
work and that word must not do the work twice. Numbers are compared one by one, not by size: after a
quiet week Telegram goes on with any number. So over a restart what was sent is compared, too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field

KEPT = 1000
ON_DISK = 200


@define
class UpdateDeduplicator:
    """The latest numbers.

    Attributes:
        path: of the file that keeps them; None: none does.
        warn: hears of a disk that cannot be read or written; that stops nobody.
    """

    path: Path | None
    warn: Callable[[str], None]
    _numbers: OrderedDict[int, str] = field(factory=OrderedDict)
    _before: frozenset[tuple[int, str]] = frozenset()
    _told: bool = False

    def load(self) -> None:
        """Take up what the last gateway left."""
        if self.path is None:
            return
        try:
            left = json.loads(self.path.read_text(encoding="utf-8"))
            self._before = frozenset((int(number), str(mark)) for number, mark in left)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
            self.warn(f"cannot read {self.path}: {getattr(error, 'strerror', None) or 'it is damaged'}")

    def is_new(self, number: int, update: Mapping[str, Any]) -> bool:
        """Whether this update is new; from now on its number is not."""
        mark = _mark(update)
        if number in self._numbers or (number, mark) in self._before:
            return False
        self._numbers[number] = mark
        while len(self._numbers) > KEPT:
            self._numbers.popitem(last=False)
        if self.path is not None:
            self._save(self.path)
        return True

    def _save(self, path: Path) -> None:
        fresh = path.with_suffix(".new")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump([*sorted(self._before), *self._numbers.items()][-ON_DISK:], file)
            os.replace(fresh, path)
        except OSError as error:
            if not self._told:
                self._told = True
                self.warn(f"cannot write {path}: {error.strerror}")


def _mark(update: Mapping[str, Any]) -> str:
    """Tells two updates of one number apart; says nothing of what is in them."""
    return hashlib.blake2b(json.dumps(update, sort_keys=True).encode(), digest_size=8).hexdigest()
