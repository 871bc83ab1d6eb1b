"""Parses Telegram's messages and button presses to the values of `bot.messenger`; downloads pictures."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Hashable
from contextlib import aclosing

import aiohttp
from aiogram.exceptions import AiogramError
from aiogram.methods import GetFile
from aiogram.types import CallbackQuery, MaybeInaccessibleMessageUnion, Message
from attrs import define, field

from gpugate.bot.messenger import IncomingMessage, PhotoError
from gpugate.bot.sender import MessageSender

MAX_REMEMBERED = 200
"""Albums and used buttons."""

MAX_PICTURE_BYTES = 20 * 1024 * 1024
"""What Telegram lets a bot download; docs/telegram-comfyui.md#telegram-limits."""

GENERAL_TOPIC = 1
DOWNLOAD_TIMEOUT_S = 60
DOWNLOAD_ATTEMPTS = 2

TOO_LARGE = "That picture is larger than 20 MB, which is the most that Telegram lets a bot fetch."
NOT_HAD = "I could not fetch that picture from Telegram. Please send it again."

_COMMAND = re.compile(r"(/\w+)@(\w+)")
_OTHER_KINDS = ("voice", "audio", "video", "video_note", "document", "sticker", "animation", "location")


@define
class UpdateParser:
    """Parses updates of allowed chats.

    Attributes:
        username: the bot's own, once known; in groups people write `/status@gpu_bot`.
    """

    sender: MessageSender
    username: str = ""
    _albums: OrderedDict[Hashable, None] = field(factory=OrderedDict)
    _used_buttons: OrderedDict[Hashable, None] = field(factory=OrderedDict)

    def parse_press(self, press: CallbackQuery) -> IncomingMessage | None:
        """Parse a press of a button; None if a button of its message was pressed before."""
        message = press.message
        if message is None or not press.data:
            return None
        chat = message.chat.id
        if not _is_first((chat, message.message_id), self._used_buttons):
            return None
        return IncomingMessage(user=_user(chat), chat=str(chat), pressed=press.data)

    def parse_message(self, message: Message) -> IncomingMessage | None:
        """Parse a message; None for one that needs no answer, such as the second picture of an album."""
        chat = message.chat.id
        if message.media_group_id and not _is_first((chat, message.media_group_id), self._albums):
            return None
        text = self._without_username(message.text or message.caption or "")
        picture = _picture_of(message)
        if text is None or not (text or picture or _deserves_answer(message)):
            return None

        async def photo() -> bytes:
            assert picture is not None
            return await _download_picture(self.sender, *picture)

        return IncomingMessage(
            user=_user(chat), chat=str(chat), text=text, photo=photo if picture is not None else None
        )

    def _without_username(self, text: str) -> str | None:
        """Remove the bot's name behind a command; None if the command is for another bot."""
        found = _COMMAND.match(text)
        if found is None or not self.username:
            return text
        if found[2].casefold() != self.username.casefold():
            return None
        return found[1] + text[found.end() :]


def topic_of(message: MaybeInaccessibleMessageUnion | None) -> int | None:
    """Return the forum topic that a message stands in.

    None where there is none, and for the general topic, which an answer must not name
    (docs/telegram-comfyui.md#telegram-limits). In a group without topics the number is a thread of replies.
    """
    if not isinstance(message, Message) or not message.is_topic_message:
        return None
    return message.message_thread_id if message.message_thread_id != GENERAL_TOPIC else None


def _is_first(key: Hashable, seen: OrderedDict[Hashable, None]) -> bool:
    if key in seen:
        return False
    seen[key] = None
    while len(seen) > MAX_REMEMBERED:
        seen.popitem(last=False)
    return True


def _user(chat: int) -> str:
    return f"telegram:{chat}"  # docs/api.md#manners


def _deserves_answer(message: Message) -> bool:
    """Whether a message without text or picture was sent by a person; a group's title change was not."""
    return message.chat.type == "private" and any(getattr(message, kind) for kind in _OTHER_KINDS)


def _picture_of(message: Message) -> tuple[str, int] | None:
    """Return file id and announced size (0: unknown) of the largest version of a message's picture."""
    if message.photo:
        best = message.photo[-1]
        return best.file_id, best.file_size or 0
    document = message.document
    if document is not None and (document.mime_type or "").startswith("image/"):
        return document.file_id, document.file_size or 0
    return None


async def _download_picture(sender: MessageSender, file_id: str, size: int) -> bytes:
    """Download a picture.

    Raises:
        PhotoError: with a text for the chat, and without its cause: the cause's text holds the bot's token.
    """
    if size > MAX_PICTURE_BYTES:
        raise PhotoError(TOO_LARGE)
    try:
        file = await sender.call_or_raise(GetFile(file_id=file_id))
    except AiogramError as error:
        raise PhotoError(TOO_LARGE if "too big" in str(error) else NOT_HAD) from None
    if file is None or not file.file_path:
        raise PhotoError(NOT_HAD)
    url = sender.bot.session.api.file_url(sender.bot.token, file.file_path)
    for _ in range(DOWNLOAD_ATTEMPTS):
        try:
            return await _download(sender, url)
        except (aiohttp.ClientError, OSError, TimeoutError):
            continue
    raise PhotoError(NOT_HAD)


async def _download(sender: MessageSender, url: str) -> bytes:
    content = bytearray()
    stream = sender.bot.session.stream_content(url, timeout=DOWNLOAD_TIMEOUT_S, raise_for_status=True)
    async with aclosing(stream) as chunks:
        async for chunk in chunks:
            content += chunk
            if len(content) > MAX_PICTURE_BYTES:
                raise PhotoError(TOO_LARGE)
    return bytes(content)
