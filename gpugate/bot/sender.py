"""Sends messages to chats: split to Telegram's limits, in order, repeated where that may help.

A message that cannot be sent is a log line and no error: the caller could do nothing about it. aiogram's and
aiohttp's error texts may hold a URL with the bot's token, so `describe` names only the kind of those errors
(docs/telegram-comfyui.md#aiogram).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import structlog
from aiogram import Bot
from aiogram.exceptions import (
    AiogramError,
    ClientDecodeError,
    TelegramAPIError,
    TelegramBadRequest,
    TelegramConflictError,
    TelegramMigrateToChat,
    TelegramNetworkError,
    TelegramNotFound,
    TelegramRetryAfter,
    TelegramServerError,
    TelegramUnauthorizedError,
)
from aiogram.methods import SendChatAction, SendDocument, SendMessage, SendPhoto, TelegramMethod
from aiogram.types import BufferedInputFile, InlineKeyboardButton, InlineKeyboardMarkup
from attrs import define, field, frozen

from gpugate.bot.messenger import Button
from gpugate.bot.moved_chats import MovedChats

TEXT_UNITS = 4096  # of one message, in UTF-16 code units; docs/telegram-comfyui.md#telegram-limits
CAPTION_UNITS = 1024

_SEAMS = ("\n\n", "\n", ". ", " ")


def units(text: str) -> int:
    """A text's length as Telegram counts it: in UTF-16 code units."""
    return len(text) + sum(character > "\uffff" for character in text)


def sane(text: str) -> str:
    """The text without what cannot be sent: halves of surrogate pairs, and NUL."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.replace("\0", "").strip()


def split(text: str, limit: int = TEXT_UNITS) -> list[str]:
    """Cut a text into pieces of at most `limit` units, at paragraphs, lines, sentences or words.

    A word is cut only where it is longer than half a piece; a character (a surrogate pair) never is.
    """
    rest = sane(text)
    pieces: list[str] = []
    while rest:
        end = _fitting(rest, limit)
        if end < len(rest):
            end = _seam(rest, end)
        pieces.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return pieces


def _fitting(text: str, limit: int) -> int:
    """How many characters of `text` have room."""
    room = limit
    for at, character in enumerate(text[:limit]):
        room -= 2 if character > "\uffff" else 1
        if room < 0:
            return at
    return min(len(text), limit)


def _seam(text: str, end: int) -> int:
    """Where to cut at or before `end`: what is behind it goes to the next piece."""
    for seam in _SEAMS:
        at = text.rfind(seam, end // 2, end + 1)
        if at > 0:
            return min(at + len(seam.rstrip()), end)
    return end


ATTEMPTS = 4
FIRST_RETRY_S = 0.5
MAX_RETRY_AFTER_S = 120.0
"""A 429 that asks for more than this is given up: the text would be stale."""

MAX_PHOTO_BYTES = 10 * 1024 * 1024  # larger pictures only as files; docs/telegram-comfyui.md#telegram-limits

TRANSIENT = (TelegramServerError, TelegramNetworkError, ClientDecodeError, TelegramRetryAfter)

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


def describe(error: AiogramError) -> str:
    """Say in one line what went wrong, without a secret."""
    match error:
        case TelegramUnauthorizedError() | TelegramNotFound():
            return f"Telegram does not know this bot ({error.message}): is bot.token right?"
        case TelegramConflictError():
            return f"another program uses this bot ({error.message})"
        case TelegramMigrateToChat():
            return f"the group has become chat {error.migrate_to_chat_id}: put that into bot.allowed_chats"
        case TelegramNetworkError():
            return f"no connection to Telegram ({type(error.__cause__ or error).__name__})"
        case ClientDecodeError():
            return "what answers is not Telegram, or is out of order"
        case TelegramAPIError():
            return f"Telegram says: {error.message}"
    return type(error).__name__


@define
class OutageLog:
    """Logs a failure that repeats only once, and its end.

    Attributes:
        action: what fails, for the log line.
    """

    action: str
    _logged: str = ""

    def failed(self, error: AiogramError) -> None:
        """Log the failure, unless the line before said the same."""
        if (text := describe(error)) != self._logged:
            self._logged = text
            structlog.get_logger().warning(
                f"bot: {self.action} failed; tried again until it works", error=text
            )

    def worked(self) -> None:
        """Log the end of an outage."""
        if self._logged:
            structlog.get_logger().info(f"bot: {self.action} works again")
        self._logged = ""


@define
class MessageSender:
    """Calls the Bot API.

    Attributes:
        sleep: for tests.
        moved: chats whose ids have changed; what is for the old id goes to the new one.
        on_moved: called with the old and the new id when Telegram tells of another one.
    """

    bot: Bot
    sleep: Sleep = asyncio.sleep
    moved: MovedChats = field(factory=MovedChats)
    on_moved: Callable[[int, int], None] = lambda old, new: None
    _chat_locks: dict[int, asyncio.Lock] = field(factory=dict)
    _is_closed: bool = False

    async def call(self, method: TelegramMethod[T], *, quiet: bool = False) -> T | None:
        """Call a method like `call_or_raise`; log a failure and return None.

        Args:
            method: to call.
            quiet: make one attempt only and do not log its failure.
        """
        try:
            return await self.call_or_raise(method, attempts=1 if quiet else ATTEMPTS)
        except AiogramError as error:
            if not quiet:
                _log_failure(method, error)
            return None

    async def call_or_raise(self, method: TelegramMethod[T], *, attempts: int = ATTEMPTS) -> T | None:
        """Call a method, again after a 429 or a failure that may pass. None once the sender is closed.

        Raises:
            AiogramError: the last attempt failed, or another attempt cannot help.
        """
        for attempt in range(attempts):
            if self._is_closed:  # aiogram would open a new session, and leave it open
                return None
            try:
                return await self._call_once(method)
            except TRANSIENT as error:
                pause_s = FIRST_RETRY_S * 2.0**attempt
                if isinstance(error, TelegramRetryAfter):
                    pause_s = float(error.retry_after)
                if attempt + 1 == attempts or pause_s > MAX_RETRY_AFTER_S:
                    raise
            await self.sleep(pause_s)
        return None

    async def _call_once(self, method: TelegramMethod[T]) -> T:
        """Call a method once; once more with the new id if the group has become a supergroup."""
        chat = getattr(method, "chat_id", None)
        if not isinstance(chat, int):
            return await self.bot(method)
        try:
            return await self.bot(_for_chat(method, self.moved.current_id(chat)))
        except TelegramMigrateToChat as error:
            self.on_moved(chat, error.migrate_to_chat_id)
            return await self.bot(_for_chat(method, error.migrate_to_chat_id))

    def chat(
        self, chat: int, answered: Callable[[], None] = lambda: None, *, topic: int | None = None
    ) -> TelegramChat:
        """Return what sends to this chat, or to a topic of it.

        `answered` is called after each text and picture.
        """
        lock = self._chat_locks.setdefault(chat, asyncio.Lock())  # only as many chats as are allowed
        return TelegramChat(self, chat, topic, lock, answered)

    async def aclose(self) -> None:
        """Close the connections; later calls do nothing."""
        self._is_closed = True
        await self.bot.session.close()


@frozen
class TelegramChat:
    """Implements `bot.messenger.Chat`. The lock keeps the parts of one text together."""

    _sender: MessageSender
    _chat: int
    _topic: int | None
    _lock: asyncio.Lock
    _answered: Callable[[], None]

    async def send_text(self, text: str, buttons: Sequence[Button] = ()) -> None:
        """Send a text of any length; the buttons are under its last part."""
        async with self._lock:
            await self._send_text(text, buttons)
        self._answered()

    async def send_image(self, png: bytes, caption: str) -> None:
        """Send a picture; a caption that does not fit follows as text."""
        caption = sane(caption)
        fits = units(caption) <= CAPTION_UNITS
        async with self._lock:
            await self._send_image(png, caption if fits and caption else None)
            if not fits:
                await self._send_text(caption)
        self._answered()

    async def show_typing(self) -> None:
        """Show that the bot types, for about 5 s."""
        action = SendChatAction(chat_id=self._chat, message_thread_id=self._topic, action="typing")
        await self._sender.call(action, quiet=True)

    async def _send_text(self, text: str, buttons: Sequence[Button] = ()) -> None:
        parts = split(text)
        for number, part in enumerate(parts, 1):
            markup = _keyboard(buttons) if buttons and number == len(parts) else None
            message = SendMessage(
                chat_id=self._chat, message_thread_id=self._topic, text=part, reply_markup=markup
            )
            if await self._sender.call(message) is None:
                return

    async def _send_image(self, png: bytes, caption: str | None) -> None:
        file = BufferedInputFile(png, "picture.png")
        chat, topic = self._chat, self._topic
        document = SendDocument(chat_id=chat, message_thread_id=topic, document=file, caption=caption)
        if len(png) > MAX_PHOTO_BYTES:
            await self._sender.call(document)
            return
        photo = SendPhoto(chat_id=chat, message_thread_id=topic, photo=file, caption=caption)
        try:
            await self._sender.call_or_raise(photo)
        except TelegramBadRequest:  # a width or height that Telegram's photos cannot have
            await self._sender.call(document)
        except AiogramError as error:
            _log_failure(photo, error)


def _for_chat(method: TelegramMethod[T], chat: int) -> TelegramMethod[T]:
    return method.model_copy(update={"chat_id": chat})


def _log_failure(method: TelegramMethod[Any], error: AiogramError) -> None:
    chat = getattr(method, "chat_id", None)
    structlog.get_logger().warning(f"bot: {method.__api_method__} failed", chat=chat, error=describe(error))


def _keyboard(buttons: Sequence[Button]) -> InlineKeyboardMarkup:
    row = [InlineKeyboardButton(text=button.text, callback_data=button.callback_id) for button in buttons]
    return InlineKeyboardMarkup(inline_keyboard=[row])
