"""The bot as a whole: how it comes to its updates, and how it goes; answers are the hearer's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

import structlog
from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import AiogramError
from aiogram.methods import SetMyCommands, SetWebhook, TelegramMethod
from aiogram.types import BotCommand
from aiohttp import ClientSession
from attrs import frozen

from gpugate.bot.dedup import UpdateDeduplicator
from gpugate.bot.polling import Poller
from gpugate.bot.sender import MessageSender, Sleep
from gpugate.bot.telegram_errors import FIRST_PAUSE_S, RetryBackoff
from gpugate.bot.update_parser import ALLOWED_UPDATES, UpdateParser
from gpugate.bot.updates import Hearer, Inbox
from gpugate.tasks import CrashListener, Supervised

PATH = "/api/v1/bot/telegram"
COMMANDS: Mapping[str, str] = {
    "status": "is the pod running, and what has it cost",
    "start_pod": "start the pod",
    "stop_pod": "stop the pod",
    "cost": "what was spent: today, month or session",
    "health": "is everything well",
    "help": "what I parse",
}


@frozen(kw_only=True)
class WebhookConfig:
    """Webhook mode: where Telegram shall call, and the secret that it brings."""

    public_url: str
    secret: str


class RawMe(TelegramMethod[dict[str, Any]]):
    """`getMe`, as JSON: servers that stand in for Telegram leave out what aiogram asks for."""

    __returning__ = dict[str, Any]
    __api_method__ = "getMe"


class _Session(AiohttpSession):
    """aiogram's session, which closes without its quarter of a second of sleep: aiohttp waits itself."""

    _opened: ClientSession | None = None

    async def create_session(self) -> ClientSession:
        self._opened = await super().create_session()
        return self._opened

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()


class TelegramBot:
    """A bot: `open`, then `take` (webhook mode) or nothing (polling); `drain` and `aclose` end it.

    Args:
        token: from @BotFather.
        api_base: Telegram, or a Bot API server of one's own.
        hook: None polls.
        allowed: chats that are heard and may be told things.
        hearer: answers.
        seen: the file that remembers which updates were taken.
        first_pause_s: between attempts to reach Telegram; doubles.
        sleep: for pauses between attempts to send.

    Raises:
        aiogram.utils.token.TokenValidationError: no token.
    """

    def __init__(
        self,
        *,
        token: str,
        api_base: str,
        hook: WebhookConfig | None,
        allowed: Iterable[int],
        hearer: Hearer,
        on_crash: CrashListener,
        seen: Path | None = None,
        first_pause_s: float = FIRST_PAUSE_S,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._bot = Bot(token, session=_Session(api=TelegramAPIServer.from_base(api_base)))
        self._hook = hook
        self._on_crash = on_crash
        self._first_pause_s = first_pause_s
        self._log = structlog.get_logger()
        self._allowed = frozenset(allowed)
        self.sender = MessageSender(self._bot, sleep)
        self._translator = UpdateParser(self.sender)
        self._seen = UpdateDeduplicator(seen, self._log.warning)
        self.inbox = Inbox(
            allowed=self._allowed,
            hearer=hearer,
            sender=self.sender,
            translator=self._translator,
            seen=self._seen,
            on_crash=on_crash,
        )
        self._poller = Poller(self._bot, self.inbox.take, ALLOWED_UPDATES, first_pause_s)
        self._tasks: list[Supervised] = []
        self._is_open = False

    def open(self) -> None:
        """Begin; Telegram need not be there yet: it is asked until it answers."""
        self._seen.load()
        self._is_open = True
        if not self._allowed:
            self._log.warning("bot: bot.allowed_chats is empty, so nobody is heard")
        self._keep(self._introduce, "introduction")
        if self._hook is None:
            self._keep(self._poller.run, "polling")

    def take(self, update: Mapping[str, Any]) -> bool:
        """Take an update that came by webhook; False: not any more, it has to come again."""
        if self._is_open:
            self.inbox.take(update)
        return self._is_open

    async def tell(self, chat: int, text: str) -> None:
        """Say something unasked. A chat that is not allowed is told nothing."""
        if chat in self._allowed:
            await self.sender.send_text(chat, text)

    async def drain(self, grace_s: float) -> None:
        """Hear nothing more; what is under way has so many seconds, then its chat is told."""
        self._is_open = False
        await asyncio.gather(*(task.aclose() for task in self._tasks))
        if self._hook is None:
            await self._poller.confirm()
        await self.inbox.drain(grace_s)

    def cut(self) -> None:
        """End the grace of `drain` now: somebody asked a second time."""
        self.inbox.cut()

    async def aclose(self) -> None:
        """Let go of all connections; the webhook stays registered, so Telegram keeps what comes."""
        if self._is_open:
            await self.drain(0)
        await self.sender.aclose()

    def _keep(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._tasks.append(Supervised(work, f"telegram {name}", on_crash=self._on_crash))

    async def _introduce(self) -> None:
        """Learn the own name, register the webhook, show the menu; until it works."""
        patience = RetryBackoff("registering with Telegram", self._first_pause_s)
        while True:
            try:
                self._translator.username = str((await self._bot(RawMe())).get("username") or "")
                if self._hook is not None:
                    await self._bot(_webhook(self._hook))
                break
            except AiogramError as error:
                await asyncio.sleep(patience.failed(error))
        patience.worked()
        mode = "polling" if self._hook is None else "webhook"
        self._log.info("bot: at work", bot=self._translator.username, mode=mode)
        menu = [BotCommand(command=name, description=about) for name, about in COMMANDS.items()]
        await self.sender.call(SetMyCommands(commands=menu), quiet=True)


def _webhook(hook: WebhookConfig) -> SetWebhook:
    return SetWebhook(
        url=hook.public_url.rstrip("/") + PATH,
        secret_token=hook.secret,
        allowed_updates=ALLOWED_UPDATES,
        drop_pending_updates=False,
        max_connections=1,  # one after the other, so in order; each is answered at once
    )
