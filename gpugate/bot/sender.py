"""Messages to chats: cut to size, in order, tried again where that may help; never raises for Telegram.

A chat that cannot be reached is a log line: whoever speaks to it could do nothing about it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog
from aiogram import Bot
from aiogram.exceptions import AiogramError, TelegramBadRequest, TelegramRetryAfter
from aiogram.methods import SendChatAction, SendDocument, SendMessage, SendPhoto, TelegramMethod
from aiogram.types import BufferedInputFile, InlineKeyboardButton, InlineKeyboardMarkup
from attrs import define, field

from gpugate.bot.messenger import Button
from gpugate.bot.telegram_errors import PASSING, words
from gpugate.bot.text_split import CAPTION_UNITS, sane, split, units

ATTEMPTS = 4
FIRST_PAUSE_S = 0.5
LONGEST_FLOOD_S = 120.0
"""A 429 that asks for more than this is given up: the text would be stale."""

PHOTO_BYTES = 10 * 1024 * 1024  # docs/telegram-comfyui.md#telegram-limits: larger pictures go as files

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


@define
class MessageSender:
    """What sends.

    Attributes:
        bot: aiogram's.
        sleep: for tests.
    """

    bot: Bot
    sleep: Sleep = asyncio.sleep
    _turns: dict[int, asyncio.Lock] = field(factory=dict)
    _is_closed: bool = False

    async def call(self, method: TelegramMethod[T], *, quiet: bool = False) -> T | None:
        """Call Telegram, again after a 429 or a failure that may pass; None once given up.

        Args:
            method: what to call.
            quiet: a failure is not worth a line, nor another attempt.
        """
        try:
            return await self.call_or_raise(method, attempts=1 if quiet else ATTEMPTS)
        except AiogramError as error:
            if not quiet:
                chat = getattr(method, "chat_id", None)
                structlog.get_logger().warning(
                    f"bot: {method.__api_method__} failed", chat=chat, error=words(error)
                )
            return None

    async def call_or_raise(self, method: TelegramMethod[T], *, attempts: int = ATTEMPTS) -> T | None:
        """Like `call`, but a failure is the caller's; None only once closed.

        Raises:
            AiogramError: given up.
        """
        for attempt in range(attempts):
            if self._is_closed:  # aiogram would open a new session, and leave it open
                return None
            try:
                return await self.bot(method)
            except PASSING as error:
                pause = FIRST_PAUSE_S * 2.0**attempt
                if isinstance(error, TelegramRetryAfter):
                    pause = float(error.retry_after)
                if attempt + 1 == attempts or pause > LONGEST_FLOOD_S:
                    raise
            await self.sleep(pause)
        return None

    async def send_text(self, chat: int, text: str, buttons: Sequence[Button] = ()) -> None:
        """Send a text of any length; the buttons are under its last piece."""
        async with self._turn(chat):
            await self._send_text(chat, text, buttons)

    async def send_image(self, chat: int, content: bytes, caption: str) -> None:
        """Send a picture; a caption that does not fit follows as text."""
        caption = sane(caption)
        fits = units(caption) <= CAPTION_UNITS
        async with self._turn(chat):
            await self._send_image(chat, content, caption if fits and caption else None)
            if not fits:
                await self._send_text(chat, caption)

    async def show_typing(self, chat: int) -> None:
        """Show that the bot types, for some 5 s."""
        await self.call(SendChatAction(chat_id=chat, action="typing"), quiet=True)

    async def aclose(self) -> None:
        """Send nothing any more."""
        self._is_closed = True
        await self.bot.session.close()

    def _turn(self, chat: int) -> asyncio.Lock:
        """Pieces of one text stay together. There are as many chats as are allowed: few."""
        return self._turns.setdefault(chat, asyncio.Lock())

    async def _send_text(self, chat: int, text: str, buttons: Sequence[Button] = ()) -> None:
        pieces = split(text)
        for number, piece in enumerate(pieces, 1):
            markup = _keyboard(buttons) if buttons and number == len(pieces) else None
            if await self.call(SendMessage(chat_id=chat, text=piece, reply_markup=markup)) is None:
                return

    async def _send_image(self, chat: int, content: bytes, caption: str | None) -> None:
        file = BufferedInputFile(content, "picture.png")
        document = SendDocument(chat_id=chat, document=file, caption=caption)
        if len(content) > PHOTO_BYTES:
            await self.call(document)
            return
        try:
            await self.call_or_raise(SendPhoto(chat_id=chat, photo=file, caption=caption))
        except TelegramBadRequest:  # sides that Telegram's photos cannot have
            await self.call(document)
        except AiogramError as error:
            structlog.get_logger().warning("bot: sendPhoto failed", chat=chat, error=words(error))


@define
class TelegramChat:
    """Implements `bot.messenger.Chat` for one message that was heard.

    Attributes:
        answered: called when the first answer is out.
    """

    chat: int
    sender: MessageSender
    answered: Callable[[], None]

    async def send_text(self, text: str, buttons: Sequence[Button] = ()) -> None:
        """See `bot.messenger.Chat`."""
        await self.sender.send_text(self.chat, text, buttons)
        self.answered()

    async def send_image(self, png: bytes, caption: str) -> None:
        """See `bot.messenger.Chat`."""
        await self.sender.send_image(self.chat, png, caption)
        self.answered()

    async def show_typing(self) -> None:
        """See `bot.messenger.Chat`."""
        await self.sender.show_typing(self.chat)


def _keyboard(buttons: Sequence[Button]) -> InlineKeyboardMarkup:
    row = [InlineKeyboardButton(text=button.text, callback_data=button.callback_id) for button in buttons]
    return InlineKeyboardMarkup(inline_keyboard=[row])
