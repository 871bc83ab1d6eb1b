"""The Telegram feature: builds bot, assistant and notifier. aiogram is imported only if it is enabled."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path

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
from gpugate.errors import SettingsError
from gpugate.generation.fantasy import FantasyService
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.status import LifecycleEvent
from gpugate.observability.log import log_crash

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
        user_of: the user who caused the session that is open at this provider; "" if unknown.

    Raises:
        SettingsError: aiogram is not installed.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        lifecycle: Lifecycle,
        session: aiohttp.ClientSession,
        fantasies: FantasyService,
        costs: CostQueries,
        state: Path,
        user_of: Callable[[str], str] = lambda provider: "",
        require: Callable[[str | None, str], None] = lambda model, failure: None,
    ) -> None:
        try:
            from gpugate.bot.telegram import TelegramBot, WebhookConfig  # importing aiogram takes 3 s
        except ImportError as error:
            raise SettingsError(
                [f"bot.enabled: {error.name} is missing: pip install 'gpugate[telegram]'"]
            ) from error
        bot = settings.bot
        notified = tuple(map(str, bot.news))
        moved = MovedChats(state / MOVED_FILE, _log.warning)
        has_webhook = bot.mode == "webhook"
        self._waiter = EventWaiter()
        self._intent_parser = OllamaIntentParser(
            session, bot.ollama_url, bot.intent_model, bot.intent_timeout, KeywordIntentParser(), log_crash
        )
        assistant = Assistant(
            lifecycle=lifecycle,
            waiter=self._waiter,
            costs=costs,
            fantasy_job=FantasyJob(lifecycle, fantasies, log_crash, require),
            intent_parser=self._intent_parser,
            currency=settings.cost.currency,
            ask_above_rate=bot.ask_above_rate,
            notified=NewsChats(bot.news, moved),
            version=version("gpugate"),
            on_crash=log_crash,
        )
        self._bot = TelegramBot(
            token=bot.token,
            api_base=bot.api_base,
            webhook=WebhookConfig(public_url=bot.public_url, secret=bot.secret_token)
            if has_webhook
            else None,
            allowed=bot.allowed_chats,
            on_message=assistant.handle_message,
            on_crash=log_crash,
            seen=state / DEDUP_FILE,
            moved=moved,
        )
        self._notifier = Notifier(
            chats=notified,
            send=self._send,
            costs=costs,
            currency=settings.cost.currency,
            user_of=user_of,
            on_crash=log_crash,
        )
        self._webhook = TelegramWebhook(bot.secret_token if has_webhook else None, self._bot.submit)

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
        self._bot.start()

    async def drain(self, grace_s: float) -> None:
        """Take no more messages; let running answers have `grace_s` seconds, then tell their chats.

        A second call with 0 ends the grace of the first.
        """
        if grace_s:
            await self._bot.drain(grace_s)
        else:
            self._bot.abort()

    async def aclose(self) -> None:
        """Send the last notifications and close all connections."""
        await self._notifier.aclose()
        await self._intent_parser.aclose()
        await self._bot.aclose()

    async def _send(self, chat: str, text: str) -> None:
        await self._bot.notify(int(chat), text)
