"""Telegram's updates in the messenger port's words; knows nothing of who may speak, or what is done."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from aiogram.methods import AnswerCallbackQuery, EditMessageReplyMarkup, TelegramMethod
from aiogram.types import CallbackQuery, Message, Update
from attrs import define, field, frozen

from gpugate.bot.messenger import IncomingMessage
from gpugate.bot.photos import fetch, picture_of
from gpugate.bot.sender import MessageSender

ALLOWED_UPDATES = ["message", "callback_query"]
_KEPT = 200
_COMMAND = re.compile(r"(/\w+)@(\w+)")
_OTHER_KINDS = ("voice", "audio", "video", "video_note", "document", "sticker", "animation", "location")


@frozen(kw_only=True)
class ParsedUpdate:
    """What an update means.

    Attributes:
        incoming: None for a press of buttons that were used: nothing but acknowledgements follows from it.
        acknowledgements: what a press deserves: it is answered, and its buttons go.
    """

    chat: int
    incoming: IncomingMessage | None
    acknowledgements: tuple[TelegramMethod[Any], ...] = ()


@define
class UpdateParser:
    """Makes sense of updates.

    Attributes:
        username: the bot's own, once known; groups write `/status@gpu_bot`.
    """

    sender: MessageSender
    username: str = ""
    _albums: OrderedDict[Hashable, None] = field(factory=OrderedDict)
    _used: OrderedDict[Hashable, None] = field(factory=OrderedDict)

    def chat_of(self, update: Update) -> int | None:
        """Whose update it is; None for kinds that are not for us."""
        message = update.message or (update.callback_query and update.callback_query.message)
        return message.chat.id if message else None

    def said(self, update: Update, chat: int) -> ParsedUpdate | None:
        """What was said; None where that is nothing."""
        if update.callback_query is not None:
            return self._pressed(update.callback_query, chat)
        if update.message is not None:
            return self._written(update.message, chat)
        return None

    def _pressed(self, press: CallbackQuery, chat: int) -> ParsedUpdate:
        message = press.message
        answer = AnswerCallbackQuery(callback_query_id=press.id)
        if message is None or not press.data or not _first((chat, message.message_id), self._used):
            return ParsedUpdate(chat=chat, incoming=None, acknowledgements=(answer,))
        acknowledgements = (answer, EditMessageReplyMarkup(chat_id=chat, message_id=message.message_id))
        return ParsedUpdate(
            chat=chat,
            incoming=IncomingMessage(user=_user(chat), chat=str(chat), pressed=press.data),
            acknowledgements=acknowledgements,
        )

    def _written(self, message: Message, chat: int) -> ParsedUpdate | None:
        if message.media_group_id and not _first((chat, message.media_group_id), self._albums):
            return None  # of an album only the first picture is looked at
        text = self._for_us(message.text or message.caption or "")
        picture = picture_of(message)
        if text is None or not (text or picture or _is_something(message)):
            return None

        async def photo() -> bytes:
            assert picture is not None
            return await fetch(self.sender, *picture)

        return ParsedUpdate(
            chat=chat,
            incoming=IncomingMessage(
                user=_user(chat),
                chat=str(chat),
                text=text,
                photo=photo if picture is not None else None,
            ),
        )

    def _for_us(self, text: str) -> str | None:
        """The text without our name behind its command; None if another bot is meant."""
        found = _COMMAND.match(text)
        if found is None or not self.username:
            return text
        if found[2].casefold() != self.username.casefold():
            return None
        return found[1] + text[found.end() :]


def _first(key: Hashable, seen: OrderedDict[Hashable, None]) -> bool:
    if key in seen:
        return False
    seen[key] = None
    while len(seen) > _KEPT:
        seen.popitem(last=False)
    return True


def _user(chat: int) -> str:
    return f"telegram:{chat}"  # docs/api.md#manners


def _is_something(message: Message) -> bool:
    """Whether a person sent something that deserves an answer: no pinned message, no newcomer."""
    return message.chat.type == "private" and any(getattr(message, kind) for kind in _OTHER_KINDS)
