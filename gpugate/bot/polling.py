"""Long polling, for a home without a public address; hands on what comes, knows nothing of what is in it.

An update is confirmed by the next call, so what a crash interrupts comes again, and what was taken is
known by its number (`seen.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from aiogram import Bot
from aiogram.exceptions import AiogramError, TelegramConflictError
from aiogram.methods import DeleteWebhook, TelegramMethod
from attrs import define

from gpugate.bot.telegram_errors import RetryBackoff

WAIT_S = 25
"""How long Telegram holds a call that has nothing to tell."""

EMPTY_S = 0.5
"""A server that answers nothing sooner than this does not hold calls: it is not asked as fast as it can."""

_MARGIN_S = 15
_FAREWELL_S = 3


class RawUpdates(TelegramMethod[list[dict[str, Any]]]):
    """`getUpdates`, as JSON: aiogram's own fails as a whole when one update of many is not understood."""

    __returning__ = list[dict[str, Any]]
    __api_method__ = "getUpdates"

    offset: int | None = None
    limit: int | None = None
    timeout: int | None = None
    allowed_updates: list[str] | None = None


@define
class Poller:
    """Asks for updates until it is cancelled."""

    bot: Bot
    take: Callable[[Mapping[str, Any]], None]
    allowed: list[str]
    first_pause_s: float
    _next: int | None = None

    async def run(self) -> None:
        """Poll for ever."""
        patience = RetryBackoff("long polling", self.first_pause_s, longest_s=60.0)
        hooked = True
        while True:
            try:
                if hooked:
                    await self.bot(DeleteWebhook(drop_pending_updates=False))
                    hooked = False
                await self._poll()
                patience.worked()
            except AiogramError as error:
                hooked = hooked or isinstance(error, TelegramConflictError)
                await asyncio.sleep(patience.failed(error))

    async def confirm(self) -> None:
        """Tell Telegram what was taken, so that it does not come again."""
        if self._next is not None:
            with suppress(AiogramError, TimeoutError):
                farewell = RawUpdates(offset=self._next, limit=1, timeout=0)
                await self.bot(farewell, request_timeout=_FAREWELL_S)

    async def _poll(self) -> None:
        call = RawUpdates(offset=self._next, timeout=WAIT_S, allowed_updates=self.allowed)
        began = asyncio.get_running_loop().time()
        updates = await self.bot(call, request_timeout=WAIT_S + _MARGIN_S)
        if not updates and asyncio.get_running_loop().time() - began < EMPTY_S:
            await asyncio.sleep(EMPTY_S)
        for update in updates:
            self.take(update)
            if isinstance(number := update.get("update_id"), int):
                self._next = number + 1
