"""The Telegram feature: assistant, notifier, and the bot, which is made while the gateway listens already.

Importing aiogram takes 3 s of CPU time, so it is done in a thread once the server listens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import structlog
from attrs import frozen

from gpugate.api.routing import ApiRoutes
from gpugate.api.telegram_webhook import TelegramWebhook
from gpugate.billing.reports import CostQueries
from gpugate.bot.assistant import Assistant, EventWaiter
from gpugate.bot.fantasy_job import FantasyJob
from gpugate.bot.intents.keywords import KeywordIntentParser
from gpugate.bot.intents.ollama_parser import OllamaIntentParser
from gpugate.bot.moved_chats import MovedChats
from gpugate.bot.notifier import Notifier
from gpugate.config import Settings
from gpugate.config.schema import Bot
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.status import LifecycleEvent
from gpugate.observability.log import log_crash
from gpugate.tasks import spawn

if TYPE_CHECKING:
    from gpugate.bot.telegram import TelegramBot

MOVED_FILE = "telegram-chats.json"
DEDUP_FILE = "telegram-updates.json"
"""Both in the state folder."""

_log = structlog.get_logger()


@frozen
class NewsChats:
    """The chats of `bot.news`, by whatever ids they have now."""

    ids: Collection[int]
    moved: MovedChats

    def __contains__(self, chat: object) -> bool:
        return isinstance(chat, str) and self.moved.configured_id(int(chat)) in self.ids


class TelegramFeature:
    """The bot in Telegram, the assistant that answers there, and the notifications.

    Args:
        session: for the local Ollama; the bot has its own for Telegram.
        pods: the lifecycles by name.
        fantasy_job: what makes a picture's story, and on which pods.
        user_of: returns, by pod and provider, who caused the session that is open there; "" if unknown.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        pods: Mapping[str, Lifecycle],
        session: aiohttp.ClientSession,
        fantasy_job: FantasyJob,
        costs: CostQueries,
        state: Path,
        user_of: Callable[[str, str], str] = lambda pod, provider: "",
    ) -> None:
        bot = settings.bot
        notified = tuple(map(str, bot.news))
        moved = MovedChats(state / MOVED_FILE, _log.warning)
        self._waiter = EventWaiter()
        self._intent_parser = OllamaIntentParser(
            session, bot.ollama_url, bot.intent_model, bot.intent_timeout, KeywordIntentParser(), log_crash
        )
        self._assistant = Assistant(
            pods=pods,
            waiter=self._waiter,
            costs=costs,
            fantasy_job=fantasy_job,
            intent_parser=self._intent_parser,
            currency=settings.cost.currency,
            ask_above_rate=bot.ask_above_rate,
            notified=NewsChats(bot.news, moved),
            version=version("gpugate"),
            on_crash=log_crash,
        )
        self._settings = bot
        self._moved, self._seen = moved, state / DEDUP_FILE
        self._bot: TelegramBot | None = None
        self._loading: asyncio.Task[None] | None = None
        self._is_loaded = asyncio.Event()
        self._notifier = Notifier(
            chats=notified,
            send=self._send,
            costs=costs,
            currency=settings.cost.currency,
            user_of=user_of,
            names_pods=len(pods) > 1,
            on_crash=log_crash,
        )
        self._webhook = TelegramWebhook(bot.secret_token if bot.mode == "webhook" else None, self._submit)

    def replace(self, bot: Bot) -> None:
        """Put other chats, news and another `ask_above_rate` in force, after a reload."""
        self._settings = bot
        self._assistant.ask_above_rate = bot.ask_above_rate
        self._assistant.notified = NewsChats(bot.news, self._moved)
        self._notifier.set_chats([*map(str, bot.news)])
        if self._bot is not None:
            self._bot.handler.allowed = frozenset(bot.allowed_chats)

    def routes(self) -> ApiRoutes:
        """The webhook's endpoint; it answers 404 if the bot polls."""
        return self._webhook.routes()

    def on_event(self, event: LifecycleEvent) -> None:
        """Listener of the lifecycle and the budget."""
        self._waiter.on_event(event)
        self._notifier.on_event(event)

    async def start(self) -> None:
        """Begin in the background; neither Telegram nor the local Ollama need be reachable yet."""
        self._notifier.start()
        self._loading = spawn(self._load(), "telegram: loads the bot", on_crash=log_crash)

    async def drain(self, grace_s: float) -> None:
        """Take no more messages; let running answers have `grace_s` seconds, then tell their chats.

        A second call with 0 ends the grace of the first.
        """
        if self._bot is None and self._loading is not None and grace_s:
            await asyncio.wait([self._loading], timeout=grace_s)
        if self._bot is not None and grace_s:
            await self._bot.drain(grace_s)
        elif self._bot is not None:
            self._bot.abort()

    async def aclose(self) -> None:
        """Send the last notifications and close all connections."""
        await self._notifier.aclose()
        await self._intent_parser.aclose()
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        if self._bot is not None:
            await self._bot.aclose()

    async def _load(self) -> None:
        """Import aiogram and start the bot; say so if that fails: the gateway serves without it."""
        try:
            module = await asyncio.to_thread(import_module, "gpugate.bot.telegram")
            bot = self._make_bot(module)
            bot.start()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            _log.error("bot: it cannot start, and nobody is answered in Telegram", error=said)
        else:
            self._bot = bot
        finally:
            self._is_loaded.set()

    def _make_bot(self, module: Any) -> TelegramBot:
        bot, webhook = self._settings, None
        if bot.mode == "webhook":
            webhook = module.WebhookConfig(public_url=bot.public_url, secret=bot.secret_token)
        made: TelegramBot = module.TelegramBot(
            token=bot.token,
            api_base=bot.api_base,
            webhook=webhook,
            allowed=bot.allowed_chats,
            on_message=self._assistant.handle_message,
            on_crash=log_crash,
            seen=self._seen,
            moved=self._moved,
        )
        return made

    async def _submit(self, update: Mapping[str, Any]) -> bool:
        """Hand an update to the bot, once there is one; False: Telegram has to send it again."""
        await self._is_loaded.wait()
        return self._bot is not None and await self._bot.submit(update)

    async def _send(self, chat: str, text: str) -> None:
        await self._is_loaded.wait()
        if self._bot is not None:
            await self._bot.notify(int(chat), text)
