"""A bot between a simulated Telegram and a fake assistant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from attrs import define, field
from gpugate_testing.telegram import SimulatedTelegram

from gpugate.api.telegram_webhook import TelegramWebhook
from gpugate.bot.messenger import Chat, IncomingMessage
from gpugate.bot.moved_chats import MovedChats
from gpugate.bot.telegram import TelegramBot, WebhookConfig
from gpugate.proxy.auth import Verifier
from gpugate.proxy.cors import Cors
from gpugate.proxy.dispatcher import RequestDispatcher
from gpugate.proxy.server import GatewayServer

SECRET = "a-secret-of-the-webhook"
PUBLIC = "https://gate.example.org"
ADA, GROUP, STRANGER = 42, -1007, 666
MODES = ("webhook", "polling")
SOON = 5.0

Answering = Callable[[IncomingMessage, Chat], Awaitable[None]]


async def echo(incoming: IncomingMessage, chat: Chat) -> None:
    """Say what was heard."""
    await chat.send_text(f"heard {incoming.text or incoming.pressed}")


@define
class FakeAssistant:
    """Keeps what it hears, and answers as the test says."""

    answer: Answering = echo
    received: list[IncomingMessage] = field(factory=list)

    async def handle_message(self, incoming: IncomingMessage, chat: Chat) -> None:
        """See `gpugate.bot.assistant.Assistant.handle_message`."""
        self.received.append(incoming)
        await self.answer(incoming, chat)

    @property
    def texts(self) -> list[str]:
        """What was written, in the order in which it was heard."""
        return [one.text for one in self.received]


@define
class Pauses:
    """A sleep that only notes for how long."""

    seconds: list[float] = field(factory=list)

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


class NoLog:
    """A request log that nobody reads."""

    def request(self, **_: Any) -> None:
        """See `gpugate.proxy.dispatcher.RequestLog`."""


@define
class Line:
    """A bot with all its neighbours."""

    telegram: SimulatedTelegram
    bot: TelegramBot
    assistant: FakeAssistant
    url: str
    pauses: Pauses
    crashes: list[BaseException]

    async def settled(self) -> None:
        """Wait until Telegram is rid of all updates."""
        await self.telegram.until(lambda: not self.telegram.post.waiting)


def ignore_crash(name: str, error: BaseException) -> None:
    """For tests in which nothing crashes."""


@asynccontextmanager
async def front(webhook: TelegramWebhook) -> AsyncIterator[str]:
    """The gateway's server with nothing behind it but this endpoint; yields its URL."""
    verifier = Verifier(
        secret="s" * 40,
        algorithms=("HS256",),
        issuer="",
        audience="",
        leeway_s=0,
        require_exp=True,
        jwks=None,
    )
    gate = RequestDispatcher(
        verifier=verifier,
        ollama=None,  # type: ignore[arg-type]
        own=webhook.routes(),
        cors=Cors(()),
        log=NoLog(),
        path_tokens=False,
        on_crash=ignore_crash,
    )
    runner = web.ServerRunner(
        GatewayServer(gate.handle, gate.answer_malformed, ignore_crash), shutdown_timeout=0.1
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def line(
    mode: str,
    *,
    telegram: SimulatedTelegram | None = None,
    answer: Answering = echo,
    seen: Path | None = None,
    moved: Path | None = None,
    allowed: tuple[int, ...] = (ADA, GROUP),
    wait: bool = True,
) -> AsyncIterator[Line]:
    """A bot at work; `wait`: until Telegram knows of it."""
    if telegram is None:
        async with (
            SimulatedTelegram() as fresh,
            line(
                mode,
                telegram=fresh,
                answer=answer,
                seen=seen,
                moved=moved,
                allowed=allowed,
                wait=wait,
            ) as one,
        ):
            yield one
        return
    assistant, pauses, crashes = FakeAssistant(answer), Pauses(), list[BaseException]()
    for chat in (ADA, GROUP):
        telegram.meet(chat)
    bot = TelegramBot(
        token=telegram.token,
        api_base=telegram.url,
        webhook=WebhookConfig(public_url=PUBLIC, secret=SECRET) if mode == "webhook" else None,
        allowed=allowed,
        on_message=assistant.handle_message,
        on_crash=lambda name, error: crashes.append(error),
        seen=seen,
        moved=MovedChats(moved),
        first_retry_s=0.01,
        sleep=pauses,
    )
    async with front(TelegramWebhook(SECRET if mode == "webhook" else None, bot.submit)) as url:
        telegram.post.roads[PUBLIC] = url
        bot.start()
        try:
            if wait:
                await telegram.until(lambda: "setMyCommands" in telegram.calls)
            yield Line(telegram, bot, assistant, url, pauses, crashes)
        finally:
            await bot.aclose()
