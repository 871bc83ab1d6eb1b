"""The connection to Telegram: registration, polling or webhook, and shutdown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import structlog
from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import AiogramError, ClientDecodeError, TelegramConflictError, TelegramRetryAfter
from aiogram.methods import DeleteWebhook, GetUpdates, SetMyCommands, SetWebhook, TelegramMethod
from aiogram.methods.base import TelegramType
from aiogram.types import BotCommand, Update
from aiogram.utils.backoff import Backoff, BackoffConfig
from attrs import frozen

from gpugate.api.telegram_webhook import PATH
from gpugate.bot.dedup import UpdateDeduplicator
from gpugate.bot.handlers import OnMessage, UpdateHandler, parse_update
from gpugate.bot.intents.commands import COMMANDS
from gpugate.bot.moved_chats import MovedChats
from gpugate.bot.sender import MessageSender, OutageLog, Sleep
from gpugate.bot.update_parser import UpdateParser
from gpugate.tasks import CrashHandler, Supervised, spawn

POLL_TIMEOUT_S = 25
"""How long Telegram holds a call of `getUpdates` that has no updates."""

CONFIRM_TIMEOUT_S = 3
FIRST_RETRY_S = 1.0
MAX_REGISTER_RETRY_S = 300.0
MAX_POLL_RETRY_S = 60.0


MOVED = (
    "This group has become a supergroup, and its id is {new} now (it was {old}). I go on answering here, and "
    "news come here as before. In gpugate's configuration the new id may take the place of the old one."
)


@frozen(kw_only=True)
class WebhookConfig:
    """Webhook mode: the gateway's public URL, and the secret that Telegram sends with each call."""

    public_url: str
    secret: str


class TelegramSession(AiohttpSession):
    """aiogram's session, with three additions to `getUpdates`, which aiogram's polling repeats for ever.

    An outage is logged once, not with each attempt. A webhook that is in the way is deleted (409). An update
    that aiogram cannot read becomes an empty one, else the whole batch would fail again and again.
    """

    def __init__(self, api_base: str) -> None:
        super().__init__(api=TelegramAPIServer.from_base(api_base))
        self._outage = OutageLog("long polling")

    async def make_request(
        self, bot: Bot, method: TelegramMethod[TelegramType], timeout: int | None = None
    ) -> TelegramType:
        """Call a method of the Bot API. Raises AiogramError."""
        if not isinstance(method, GetUpdates):
            return await super().make_request(bot, method, timeout)
        try:
            updates = await super().make_request(bot, method, timeout)
        except AiogramError as error:
            readable = _readable_updates(error, bot)
            if readable is None:
                await self._polling_failed(error, bot)
                raise
            updates = readable
        self._outage.worked()
        return cast(TelegramType, updates)

    async def _polling_failed(self, error: AiogramError, bot: Bot) -> None:
        self._outage.failed(error)
        if isinstance(error, TelegramConflictError):
            with suppress(AiogramError):
                await bot(DeleteWebhook(drop_pending_updates=False))
        if isinstance(error, TelegramRetryAfter):
            await asyncio.sleep(error.retry_after)


def _readable_updates(error: AiogramError, bot: Bot) -> list[Update] | None:
    """The updates of an answer that aiogram refused as a whole; None if the answer has none."""
    body = error.data if isinstance(error, ClientDecodeError) else None
    result = body.get("result") if isinstance(body, dict) else None
    if not isinstance(result, list):
        return None
    return [
        parse_update(raw, bot)
        for raw in result
        if isinstance(raw, dict) and isinstance(raw.get("update_id"), int)
    ]


class TelegramBot:
    """A bot: `start`, `submit` for each webhook call (none when polling), `drain`, `aclose`.

    Args:
        token: from @BotFather.
        api_base: Telegram, or a Bot API server of one's own.
        webhook: None polls.
        allowed: chats that are answered and may get notifications.
        on_message: answers a message.
        seen: the file of updates that were handled.
        moved: chats whose ids have changed.
        first_retry_s: first pause between attempts to reach Telegram; doubles.
        sleep: for pauses between attempts to send.

    Raises:
        aiogram.utils.token.TokenValidationError: the token has not the form of one.
    """

    def __init__(
        self,
        *,
        token: str,
        api_base: str,
        webhook: WebhookConfig | None,
        allowed: Iterable[int],
        on_message: OnMessage,
        on_crash: CrashHandler,
        seen: Path | None = None,
        moved: MovedChats | None = None,
        first_retry_s: float = FIRST_RETRY_S,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.bot = Bot(token, session=TelegramSession(api_base))
        self._webhook = webhook
        self._on_crash = on_crash
        self._first_retry_s = first_retry_s
        self._log = structlog.get_logger()
        self._moved = moved or MovedChats()
        self.sender = MessageSender(self.bot, sleep, self._moved, self._follow)
        self._parser = UpdateParser(self.sender)
        self.handler = UpdateHandler(
            allowed=frozenset(allowed),
            on_message=on_message,
            sender=self.sender,
            parser=self._parser,
            dedup=UpdateDeduplicator(seen, self._log.warning),
            on_crash=on_crash,
            on_moved=self._follow,
        )
        self._dispatcher = self.handler.dispatcher()
        self._connection: Supervised | None = None
        self._is_running = False

    def start(self) -> None:
        """Begin in the background; Telegram need not be reachable yet: it is tried until it answers."""
        self.handler.dedup.load()
        self._moved.load()
        self._is_running = True
        if not self.handler.allowed:
            self._log.warning("bot: bot.allowed_chats is empty, so nobody is heard")
        # Failures are logged here, once; aiogram would log each update and each failed attempt.
        logging.getLogger("aiogram.event").setLevel(logging.WARNING)
        logging.getLogger("aiogram.dispatcher").setLevel(logging.CRITICAL)
        self._connection = Supervised(self._connect, "telegram connection", on_crash=self._on_crash)

    async def submit(self, raw: Mapping[str, Any]) -> bool:
        """Handle an update that came by webhook; False: the bot shuts down, Telegram has to send it again."""
        if self._is_running:
            await self._dispatcher.feed_update(self.bot, parse_update(raw, self.bot))
        return self._is_running

    async def notify(self, chat: int, text: str) -> None:
        """Send a text unasked; nothing to a chat that is not allowed."""
        if chat in self.handler.allowed:
            await self.sender.chat(chat).send_text(text)

    async def drain(self, grace_s: float) -> None:
        """Take no more updates; let running answers have `grace_s` seconds, then cancel them."""
        self._is_running = False
        if self._connection is not None:
            await self._connection.aclose()
        if self._webhook is None and self.handler.last_update_id is not None:
            await self._confirm(self.handler.last_update_id)
        await self.handler.drain(grace_s)

    def abort(self) -> None:
        """End the grace of `drain` now, after a second signal."""
        self.handler.abort()

    async def aclose(self) -> None:
        """Close all connections. The webhook stays registered, so Telegram keeps what comes meanwhile."""
        if self._is_running:
            await self.drain(0)
        await self.sender.aclose()

    # --------------------------------------------------------------------------------------------

    def _follow(self, old: int, new: int) -> None:
        """A group has become a supergroup: it keeps what it had, and is told so once."""
        if self._moved.note(old, new):
            self._log.warning("bot: a group has become a supergroup and keeps what it may", chat=old, now=new)
            told = self.sender.chat(new).send_text(MOVED.format(old=old, new=new))
            spawn(told, "telegram: a group has moved", on_crash=self._on_crash)

    async def _connect(self) -> None:
        """Register with Telegram, then poll if there is no webhook; polls until cancelled."""
        await self._register()
        if self._webhook is None:
            await self._poll()

    async def _register(self) -> None:
        """Learn the bot's name, set or delete the webhook, show the commands; repeat until it works."""
        outage = OutageLog("registering with Telegram")
        backoff = Backoff(self._backoff_config(MAX_REGISTER_RETRY_S))
        while True:
            try:
                self._parser.username = (await self.bot.me()).username or ""
                if self._webhook is not None:
                    await self.bot(self._set_webhook(self._webhook))
                else:
                    await self.bot(DeleteWebhook(drop_pending_updates=False))
                break
            except AiogramError as error:
                outage.failed(error)
                if isinstance(error, TelegramRetryAfter):
                    await asyncio.sleep(error.retry_after)
                await backoff.asleep()
        outage.worked()
        mode = "polling" if self._webhook is None else "webhook"
        self._log.info("bot: at work", bot=self._parser.username, mode=mode)
        menu = [
            BotCommand(command=name, description=command.description)
            for name, command in COMMANDS.items()
            if command.description
        ]
        await self.sender.call(SetMyCommands(commands=menu), quiet=True)

    async def _poll(self) -> None:
        """Run aiogram's polling until cancelled. Handlers return at once, so updates keep their order."""
        polling = spawn(
            self._dispatcher.start_polling(
                self.bot,
                polling_timeout=POLL_TIMEOUT_S,
                handle_as_tasks=False,
                backoff_config=self._backoff_config(MAX_POLL_RETRY_S),
                handle_signals=False,
                close_bot_session=False,
            ),
            "telegram polling",
            on_crash=lambda name, error: None,  # reported by Supervised
        )
        try:
            await asyncio.shield(polling)
        finally:  # a cancelled start_polling would leave aiogram's own task running
            try:
                await self._dispatcher.stop_polling()
            except RuntimeError:  # it has not begun, or it has ended
                polling.cancel()
            await asyncio.wait([polling])

    async def _confirm(self, update_id: int) -> None:
        """Tell Telegram which updates were handled, so that it does not send them again."""
        with suppress(AiogramError, TimeoutError):
            farewell = GetUpdates(offset=update_id + 1, limit=1, timeout=0)
            await self.bot(farewell, request_timeout=CONFIRM_TIMEOUT_S)

    def _set_webhook(self, config: WebhookConfig) -> SetWebhook:
        return SetWebhook(
            url=config.public_url.rstrip("/") + PATH,
            secret_token=config.secret,
            allowed_updates=self._dispatcher.resolve_used_update_types(),
            drop_pending_updates=False,
            max_connections=1,  # one call after the other keeps the order; each is answered at once
        )

    def _backoff_config(self, max_s: float) -> BackoffConfig:
        return BackoffConfig(min_delay=self._first_retry_s, max_delay=max_s, factor=2.0, jitter=0.0)
