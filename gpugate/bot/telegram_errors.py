"""Telegram's errors in words without a secret, and the patience with them; knows no method.

aiogram's and aiohttp's own words may hold a URL, and with it the bot's token, so of those only the kind
is told (docs/telegram-comfyui.md#aiogram).
"""

from __future__ import annotations

import structlog
from aiogram.exceptions import (
    AiogramError,
    ClientDecodeError,
    TelegramAPIError,
    TelegramConflictError,
    TelegramMigrateToChat,
    TelegramNetworkError,
    TelegramNotFound,
    TelegramRetryAfter,
    TelegramServerError,
    TelegramUnauthorizedError,
)
from attrs import define

PASSING = (TelegramServerError, TelegramNetworkError, ClientDecodeError, TelegramRetryAfter)
"""Errors that may be gone at the next attempt."""

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0


def words(error: AiogramError) -> str:
    """Say what went wrong in one line."""
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
class RetryBackoff:
    """How long to wait after a failure; a trouble is told once, and its end.

    Attributes:
        what: is done, for the log line.
        first_s: the first pause; doubles.
    """

    what: str
    first_s: float = FIRST_PAUSE_S
    longest_s: float = LONGEST_PAUSE_S
    _told: str = ""
    _failures: int = 0

    def failed(self, error: AiogramError) -> float:
        """Note a failure; return how long to wait, in seconds."""
        if (text := words(error)) != self._told:
            self._told = text
            structlog.get_logger().warning(f"bot: {self.what} failed; tried again until it works", error=text)
        pause = min(self.longest_s, self.first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return max(pause, error.retry_after) if isinstance(error, TelegramRetryAfter) else pause

    def worked(self) -> None:
        """Note that it works."""
        if self._told:
            structlog.get_logger().info(f"bot: {self.what} works again")
        self._told, self._failures = "", 0
