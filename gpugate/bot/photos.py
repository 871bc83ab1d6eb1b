"""Pictures that people send, fetched within limits; knows nothing of what they are for."""

from __future__ import annotations

from contextlib import aclosing

import aiohttp
from aiogram.exceptions import AiogramError
from aiogram.methods import GetFile
from aiogram.types import Message

from gpugate.bot.messenger import PhotoError
from gpugate.bot.sender import MessageSender

LARGEST = 20 * 1024 * 1024
"""What Telegram lets a bot fetch; docs/telegram-comfyui.md#telegram-limits."""

TIMEOUT_S = 60
ATTEMPTS = 2

TOO_LARGE = "That picture is larger than 20 MB, which is the most that Telegram lets a bot fetch."
NOT_HAD = "I could not fetch that picture from Telegram. Please send it again."


def picture_of(message: Message) -> tuple[str, int] | None:
    """The file's id and announced size (0: unknown) of a message's picture, the largest there is."""
    if message.photo:
        best = message.photo[-1]
        return best.file_id, best.file_size or 0
    document = message.document
    if document is not None and (document.mime_type or "").startswith("image/"):
        return document.file_id, document.file_size or 0
    return None


async def fetch(sender: MessageSender, file_id: str, size: int) -> bytes:
    """The picture's bytes.

    Raises:
        PhotoError: with words for the person; without the error that it came from, since the text of
            that has the bot's token in it.
    """
    if size > LARGEST:
        raise PhotoError(TOO_LARGE)
    try:
        file = await sender.call_or_raise(GetFile(file_id=file_id))
    except AiogramError as error:
        raise PhotoError(TOO_LARGE if "too big" in str(error) else NOT_HAD) from None
    if file is None or not file.file_path:
        raise PhotoError(NOT_HAD)
    url = sender.bot.session.api.file_url(sender.bot.token, file.file_path)
    for _ in range(ATTEMPTS):
        try:
            return await _download(sender, url)
        except (aiohttp.ClientError, OSError, TimeoutError):
            continue
    raise PhotoError(NOT_HAD)


async def _download(sender: MessageSender, url: str) -> bytes:
    content = bytearray()
    stream = sender.bot.session.stream_content(url, timeout=TIMEOUT_S, raise_for_status=True)
    async with aclosing(stream) as pieces:
        async for piece in pieces:
            content += piece
            if len(content) > LARGEST:
                raise PhotoError(TOO_LARGE)
    return bytes(content)
