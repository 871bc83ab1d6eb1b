"""The bot in a whole gateway: a simulated Telegram in front, a fake cloud behind."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gpugate.simulated.ollama import SimulatedOllama
from gpugate.simulated.picture import draw
from gpugate.testing.fakes import FakeCloud
from gpugate.testing.telegram import TOKEN, SimulatedTelegram

from .support import SECRET, House, open_house, words

PATH = "/api/v1/bot/telegram"
PUBLIC = "https://gate.example.org"
HOOK_SECRET = "the-secret-of-the-hook"
HEADER = "X-Telegram-Bot-Api-Secret-Token"
ADA, STRANGER = 42, 666
PNG = draw("input", 1, 32, 24)

Opener = Callable[..., Any]


@pytest.fixture
async def telegram() -> AsyncIterator[SimulatedTelegram]:
    """Telegram, with one person."""
    async with SimulatedTelegram() as telegram:
        telegram.meet(ADA)
        yield telegram


@pytest.fixture
async def opened(
    tmp_path: Path, ollama: SimulatedOllama, telegram: SimulatedTelegram
) -> AsyncIterator[Opener]:
    """Opens a gateway with a bot."""
    async with AsyncExitStack() as stack:

        async def opener(mode: str = "webhook", **overrides: object) -> House:
            settings: dict[str, object] = {
                "bot__enabled": True,
                "bot__token": TOKEN,
                "bot__mode": mode,
                "bot__secret_token": HOOK_SECRET,
                "bot__public_url": PUBLIC,
                "bot__allowed_chats": (ADA,),
                "bot__api_base": telegram.url,
                "bot__ollama_url": "http://127.0.0.1:1",
                **overrides,
            }
            house = await stack.enter_async_context(
                open_house(tmp_path, ollama, FakeCloud(boot_s=0.02), **settings)
            )
            telegram.post.roads[PUBLIC] = house.url
            return house

        yield opener


@pytest.mark.parametrize("mode", ["webhook", "polling"])
async def test_a_pod_run_from_a_chat(opened: Opener, telegram: SimulatedTelegram, mode: str) -> None:
    """Started, asked for and stopped by what a person writes; a stranger moves nothing."""
    house = await opened(mode)
    telegram.write(STRANGER, "/start_pod")
    telegram.write(ADA, "please start the pod")
    await telegram.until(lambda: house.gateway.lifecycle.serving is not None)
    await telegram.said(2)
    telegram.write(ADA, "/status")
    status = await telegram.said(len(telegram.sent) + 1)
    telegram.write(ADA, "/stop_pod")
    await house.off()

    assert 1 == house.cloud.starts
    assert "running" in status.text
    assert [] == telegram.texts(STRANGER)


async def test_a_photo(opened: Opener, telegram: SimulatedTelegram, ollama: SimulatedOllama) -> None:
    """Wakes the pod and is answered at once; then the story comes, if need be without a picture."""
    ollama.reply = words()
    house = await opened()
    telegram.photo(ADA, PNG)
    await telegram.said(2)

    assert 1 == house.cloud.starts
    first, story, *_ = telegram.texts(ADA)
    assert first.startswith("On it!")
    assert "word0 word1" in story
    assert base64.b64encode(PNG).decode() in "".join(str(seen.body) for seen in ollama.seen)


async def test_news(opened: Opener, telegram: SimulatedTelegram) -> None:
    """Chats that want them get them, the stop at the gateway's end included."""
    async with asyncio.timeout(10):
        house = await opened(bot__news=(ADA,))
        await house.warm()
        await telegram.said()
        await house.gateway.close()

    assert 2 == len(telegram.texts(ADA)), telegram.texts(ADA)


async def test_a_gateway_without_telegram(opened: Opener, telegram: SimulatedTelegram) -> None:
    """Starts all the same, and serves."""
    house = await opened(bot__api_base="http://127.0.0.1:1")

    assert 200 == (await house.chat()).status


@pytest.mark.parametrize("enabled", [False, True])
async def test_nothing_is_at_the_webhooks_path(opened: Opener, enabled: bool) -> None:
    """Without a bot, and with one that polls, even for who brings a secret, and without a token."""
    house = await opened("polling", bot__enabled=enabled)
    answer = await house.ask("POST", PATH, json={"update_id": 1}, headers={HEADER: HOOK_SECRET})

    assert (404, "NOT_FOUND") == (answer.status, answer.json["error"]["code"])


async def test_the_log(
    capsys: pytest.CaptureFixture[str], opened: Opener, telegram: SimulatedTelegram
) -> None:
    """Has neither token nor secret nor words at any level, whatever goes wrong."""
    telegram.fail("file", None, None, None, None)
    telegram.fail("setMyCommands", None)
    house = await opened(log__level="debug")
    telegram.photo(ADA, PNG, "make a story of this private moment")
    await telegram.said(2)
    await house.ask("POST", PATH, json={}, headers={HEADER: "guess"})

    log = capsys.readouterr().err
    assert '"webhook"' in log
    for secret in (TOKEN, TOKEN.partition(":")[2], HOOK_SECRET, SECRET, "private moment"):
        assert secret not in log


async def test_news_of_who_and_why(opened: Opener, telegram: SimulatedTelegram) -> None:
    """A chat that wants them hears who started the pod, why it stopped and what it cost."""
    house = await opened(bot__news=(ADA,))
    telegram.write(ADA, "/start_pod")
    await telegram.until(lambda: house.gateway.lifecycle.serving is not None)
    telegram.write(ADA, "/stop_pod")
    await telegram.until(lambda: any(text.startswith("Pod stopped at") for text in telegram.texts(ADA)))

    texts = telegram.texts(ADA)
    assert any(f"telegram:{ADA} started it by hand. It costs $0.44 per hour." in text for text in texts), (
        texts
    )
    assert "Shutting down the pod now" in texts
    assert any("somebody stopped it by hand. It ran for 0 seconds and cost" in text for text in texts), texts
