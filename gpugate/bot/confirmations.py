"""Confirmations with buttons: what a press means, once, for a while, in its own chat; knows no messenger."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

from attrs import define, field, frozen

from gpugate.bot.messenger import Button, Chat, IncomingMessage

OPEN_S = 300.0
"""How long a button means something: what was asked about may be another after that."""

MOST = 200

Action = Callable[[IncomingMessage, Chat], Awaitable[None]]
"""What yes does, for who pressed it."""


@frozen
class _Question:
    chat: str
    until: float
    yes: Action = field(repr=False)


@define
class Confirmations:
    """The confirmations that are open. A callback_id is "yes:" or "no:" and a name that cannot be guessed."""

    _open: dict[str, _Question] = field(factory=dict)

    def create(self, chat: str, yes: str, no: str, action: Action) -> tuple[Button, Button]:
        """The two buttons under a question; `action` is what yes does."""
        now = asyncio.get_running_loop().time()
        for name in [name for name, one in self._open.items() if one.until <= now]:
            del self._open[name]
        while len(self._open) >= MOST:
            del self._open[next(iter(self._open))]
        name = secrets.token_urlsafe(12)
        self._open[name] = _Question(chat, now + OPEN_S, action)
        return Button(text=yes, callback_id=f"yes:{name}"), Button(text=no, callback_id=f"no:{name}")

    def resolve(self, chat: str, callback_id: str) -> tuple[bool, Action] | None:
        """Whether it was yes, and what that does; None for a button that means nothing any more."""
        answer, _, name = callback_id.partition(":")
        question = self._open.get(name)
        if question is None or question.chat != chat or answer not in ("yes", "no"):
            return None
        del self._open[name]
        if question.until <= asyncio.get_running_loop().time():
            return None
        return answer == "yes", question.yes
