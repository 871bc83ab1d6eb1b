"""The bot's part of the wiring: settings and the gateway's services in, a bot out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import aiohttp

from gpugate.api.telegram_webhook import TelegramWebhook
from gpugate.bot.assistant import Assistant, CostBook
from gpugate.bot.event_waiter import EventWaiter
from gpugate.bot.fantasy_job import FantasyJob
from gpugate.bot.intents.keywords import classify
from gpugate.bot.intents.ollama_parser import OllamaIntentParser
from gpugate.bot.notifier import DailyCosts, Notifier
from gpugate.config import Settings
from gpugate.errors import SettingsError
from gpugate.generation.fantasy import Fantasies
from gpugate.lifecycle.event_bus import News, ProviderTrouble
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.observability.log import log_crash

SEEN = "telegram-updates.json"
"""Below the state folder: which updates were taken."""


class Costs(CostBook, DailyCosts, Protocol):
    """What was spent: for answers and for the daily summary."""


class TelegramFeature:
    """Telegram, the assistant that answers there, and the news.

    Attributes:
        hook: the webhook's endpoint; refuses everything where the bot polls.

    Args:
        session: for the local Ollama; Telegram's is the bot's own.
        user_of: who wanted the session that is open at this provider; "" where that is not known.

    Raises:
        SettingsError: aiogram is not installed, or does not fit.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        lifecycle: Lifecycle,
        session: aiohttp.ClientSession,
        fantasies: Fantasies,
        costs: Costs,
        state: Path,
        user_of: Callable[[str], str] = lambda provider: "",
    ) -> None:
        try:
            from gpugate.bot.telegram import TelegramBot, WebhookConfig  # aiogram takes 3 s: only now
        except ImportError as error:
            raise SettingsError(
                [f"bot.enabled: {error.name} is missing: pip install 'gpugate[telegram]'"]
            ) from error
        bot = settings.bot
        self._watch = EventWaiter()
        self._intent_parser = OllamaIntentParser(
            session, bot.ollama_url, bot.intent_model, bot.intent_timeout, classify, log_crash
        )
        informed = tuple(map(str, bot.news))
        assistant = Assistant(
            lifecycle=lifecycle,
            watch=self._watch,
            costs=costs,
            fantasy_job=FantasyJob(lifecycle, fantasies, log_crash),
            intent_parser=self._intent_parser,
            currency=settings.cost.currency,
            ask_above_rate=bot.ask_above_rate,
            informed=informed,
            version=version("gpugate"),
            on_crash=log_crash,
        )
        hooked = bot.mode == "webhook"
        self._telegram = TelegramBot(
            token=bot.token,
            api_base=bot.api_base,
            hook=WebhookConfig(public_url=bot.public_url, secret=bot.secret_token) if hooked else None,
            allowed=bot.allowed_chats,
            hearer=assistant,
            on_crash=log_crash,
            seen=state / SEEN,
        )
        self._notifier = Notifier(
            chats=informed,
            tell=self._tell,
            costs=costs,
            currency=settings.cost.currency,
            user_of=user_of,
            on_crash=log_crash,
        )
        self.hook = TelegramWebhook(bot.secret_token if hooked else None, self._telegram.take)

    def open(self) -> None:
        """Begin; neither Telegram nor the local Ollama need be there yet."""
        self._notifier.open()
        self._telegram.open()

    def on_event(self, news: News) -> None:
        """Listen to the lifecycle and the budget."""
        self._watch.on_event(news)
        self._notifier.on_event(news)

    def notify_unconfirmed_stop(self, provider: str) -> None:
        """The gateway ends without having seen the pod stopped."""
        self._notifier.on_event(
            ProviderTrouble(
                provider=provider,
                message="gpugate ends now, and the pod is not seen stopped",
                reason="ambiguous",
                alarm=True,
                at=datetime.now(UTC),
            )
        )

    async def drain(self, grace_s: float) -> None:
        """Hear nothing more; jobs under way have so many seconds, then their chats are told."""
        await self._telegram.drain(grace_s)

    def cut(self) -> None:
        """End the grace now."""
        self._telegram.cut()

    async def aclose(self) -> None:
        """Tell the last news, and let go of everything."""
        await self._notifier.aclose()
        await self._intent_parser.aclose()
        await self._telegram.aclose()

    async def _tell(self, chat: str, text: str) -> None:
        await self._telegram.tell(int(chat), text)


def disabled() -> TelegramWebhook:
    """The endpoint of a gateway without a bot: there is nothing."""
    return TelegramWebhook(None, lambda update: False)
