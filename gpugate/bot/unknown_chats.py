"""Chats that are not allowed: silence for them, a line for the owner, and not too many of those."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from attrs import define, field

AGAIN_S = 3600.0
"""A chat that keeps writing is told once in this time."""

MOST = 20
"""So many chats are told in that time: anybody can find a bot, and write from many accounts."""


@define
class UnknownChats:
    """Who wrote without being allowed to."""

    clock: Callable[[], float] = time.monotonic
    _told: dict[int, float] = field(factory=dict)

    def note(self, chat: int) -> None:
        """A stranger wrote."""
        now = self.clock()
        self._told = {known: at for known, at in self._told.items() if now - at < AGAIN_S}
        if chat in self._told or len(self._told) >= MOST:
            return
        self._told[chat] = now
        structlog.get_logger().warning(
            "bot: a chat that is not allowed wrote; add it to bot.allowed_chats to let it in", chat=chat
        )
