"""Questions with a Yes and a No button: each is answered once, within five minutes, in its own chat."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

from attrs import define, field, frozen

from gpugate.bot.messenger import Button, Chat, IncomingMessage

TTL_S = 300.0
"""How long a button works: later the pod may be in another state than the question describes."""

MAX_PENDING = 200

Action = Callable[[IncomingMessage, Chat], Awaitable[None]]
"""What Yes does; called with the press."""


@frozen
class _Question:
    chat: str
    expires_at: float
    action: Action = field(repr=False)


@define
class Confirmations:
    """The pending questions. A `callback_id` is "yes:" or "no:" and a random key."""

    _pending: dict[str, _Question] = field(factory=dict)

    def create(self, chat: str, yes: str, no: str, action: Action) -> tuple[Button, Button]:
        """Return the two buttons of a new question."""
        now = asyncio.get_running_loop().time()
        for key in [key for key, question in self._pending.items() if question.expires_at <= now]:
            del self._pending[key]
        while len(self._pending) >= MAX_PENDING:
            del self._pending[next(iter(self._pending))]
        key = secrets.token_urlsafe(12)
        self._pending[key] = _Question(chat, now + TTL_S, action)
        return Button(text=yes, callback_id=f"yes:{key}"), Button(text=no, callback_id=f"no:{key}")

    def resolve(self, chat: str, callback_id: str) -> tuple[bool, Action] | None:
        """Return whether the press was Yes, and the action; None if the question is not pending any more."""
        answer, _, key = callback_id.partition(":")
        question = self._pending.get(key)
        if question is None or question.chat != chat or answer not in ("yes", "no"):
            return None
        del self._pending[key]
        if question.expires_at <= asyncio.get_running_loop().time():
            return None
        return answer == "yes", question.action
