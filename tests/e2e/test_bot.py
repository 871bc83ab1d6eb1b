"""The bot in a whole gateway: a simulated Telegram in front, a fake cloud behind."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from gpugate_demo.ollama import SimulatedOllama
from gpugate_demo.picture import draw
from gpugate_testing.fakes import FakeCloud
from gpugate_testing.telegram import TOKEN, SimulatedTelegram

from gpugate.billing.model import Session
from gpugate.billing.sqlite_ledger import SqliteLedger
from gpugate.bot.notifier import Notifier
from gpugate.operation.reload import Reloader
from tests.e2e.support import SECRET, SOON, House, open_house, part_of, words

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

        async def opener(mode: str = "webhook", cloud: FakeCloud | None = None, **overrides: object) -> House:
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
                open_house(tmp_path, ollama, cloud or FakeCloud(boot_s=0.02), **settings)
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
    async with asyncio.timeout(SOON):
        house = await opened(bot__news=(ADA,))
        await house.warm()
        await telegram.said()
        await house.gateway.close()

    assert 2 == len(telegram.texts(ADA)), telegram.texts(ADA)


async def test_other_chats_after_a_reload(opened: Opener, telegram: SimulatedTelegram) -> None:
    """Who was let in is answered and gets the news; who was put out is not heard any more."""
    house = await opened()
    bot = evolve(house.gateway.settings.bot, allowed_chats=(STRANGER,), news=(STRANGER,))
    changed = evolve(house.gateway.settings, bot=bot)
    part_of(house.gateway, Reloader).read = lambda: changed
    answer = await house.ask("POST", "/api/v1/reload")
    assert {"applied": ["bot.allowed_chats", "bot.news"], "restart": []} == answer.json["data"]

    telegram.write(ADA, "/status")
    telegram.write(STRANGER, "/start_pod")
    await telegram.until(lambda: house.gateway.lifecycle.serving is not None)
    await telegram.until(lambda: len(telegram.texts(STRANGER)) >= 3)
    assert [] == telegram.texts(ADA)


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


async def spend(state: Path, dollars: int) -> None:
    """A session of this instant, in the ledger of a gateway that is still to come."""
    now = datetime.now(UTC)
    ledger = await SqliteLedger.open(state / "ledger.sqlite3")
    await ledger.put(
        Session(
            id="earlier",
            provider="fake",
            asked_at=now,
            started_at=now,
            ended_at=now + timedelta(microseconds=36),
            hourly_rate=Decimal(dollars * 10**8),
        )
    )
    await ledger.aclose()


async def test_costs_by_the_ledger(tmp_path: Path, opened: Opener, telegram: SimulatedTelegram) -> None:
    """What was spent is told to who asks, as a sum of the real ledger."""
    await spend(tmp_path, 7)
    await opened()
    telegram.write(ADA, "/cost")
    await telegram.said()
    telegram.write(ADA, "how much did we spend today")
    await telegram.said(2)

    month, today = telegram.texts(ADA)
    assert month.startswith("This month you have run 1 session totalling")
    assert month.endswith("estimated cost is $7.00.")
    assert today.startswith("Today you have spent about $7.00.")


async def test_news_of_the_budget(tmp_path: Path, opened: Opener, telegram: SimulatedTelegram) -> None:
    """Each threshold once, over a restart too, by the real ledger; a start is then refused in the chat."""
    month = f"{datetime.now(UTC):%Y-%m}"
    await spend(tmp_path, 20)
    for _ in range(2):
        house = await opened(bot__news=(ADA,), cost__monthly_budget=20.0)
        await telegram.said(3)
        await house.gateway.close()

    assert [
        f"50 % of the budget for {month} is spent: $20.00 of $20.00.",
        f"80 % of the budget for {month} is spent: $20.00 of $20.00.",
        f"The budget for {month} is spent: $20.00 of $20.00. No new pod starts until the month is over.",
    ] == telegram.texts(ADA)

    house = await opened(cost__monthly_budget=20.0)
    telegram.write(ADA, "/start_pod")
    refusal = await telegram.said(4)
    assert refusal.text.startswith(f"The budget of 20 USD for {month} is spent")
    assert 0 == house.cloud.starts


async def test_daily_summary(
    tmp_path: Path, opened: Opener, telegram: SimulatedTelegram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comes at its hour, by the real ledger."""
    ahead = timedelta(0)
    monkeypatch.setattr("gpugate.bot.notifier.CLOCK_CHECK_S", 0.02)
    monkeypatch.setattr(
        "gpugate.bot.feature.Notifier", partial(Notifier, wall=lambda: datetime.now(UTC) + ahead)
    )
    await spend(tmp_path, 3)
    await opened(bot__news=(ADA,))
    await telegram.until(lambda: "setMyCommands" in telegram.calls)
    assert [] == telegram.texts(ADA)
    ahead = timedelta(days=2)

    summary = await telegram.said()
    assert (
        "In the last 24 hours there was 1 session, estimated cost is $3.00. "
        "This month so far: 1 session, $3.00."
    ) == summary.text


async def test_a_stop_that_the_gateways_end_does_not_see(opened: Opener, telegram: SimulatedTelegram) -> None:
    """Alarms with its last word; the next gateway, which sees it, tells that it is over."""
    house = await opened(bot__news=(ADA,), server__stop_wait=0.1)
    await house.warm()
    house.cloud.ignore_stops = 10**6
    assert not await house.gateway.close()
    assert telegram.texts(ADA)[-1] == (
        "ALARM from fake: gpugate ends now, and the pod is not seen stopped. "
        "The pod may still be billing; please look into the provider's console."
    )

    house.cloud.ignore_stops = 0
    await opened(bot__news=(ADA,), cloud=house.cloud)
    await telegram.until(lambda: "The pod at fake is seen stopped now." == telegram.texts(ADA)[-1])


# --- the start ---------------------------------------------------------------------------------


async def test_listens_before_the_bot_is_there(
    opened: Opener, telegram: SimulatedTelegram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While aiogram is imported the gateway serves; an update that comes meanwhile is handled afterwards."""
    go = threading.Event()

    def slow_import(name: str) -> Any:
        go.wait(SOON)
        return import_module(name)

    monkeypatch.setattr("gpugate.bot.feature.import_module", slow_import)
    house = await opened()
    assert 200 == (await house.ask("GET", "/api/v1/health", headers={})).status
    message = {"message_id": 1, "date": 1, "chat": telegram.meet(ADA), "text": "/help"}
    update = {"update_id": 5, "message": message}
    early = asyncio.ensure_future(house.ask("POST", PATH, json=update, headers={HEADER: HOOK_SECRET}))
    await house.ask("GET", "/api/v1/health", headers={})
    assert not early.done()

    go.set()
    answer = await early
    await telegram.said()
    assert (200, ADA) == (answer.status, telegram.sent[0].chat)


async def test_a_bot_that_cannot_start(
    opened: Opener, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said; the gateway serves without it, and Telegram keeps the updates."""

    def broken_import(name: str) -> Any:
        raise ImportError("no module named 'aiogram.oh'")

    monkeypatch.setattr("gpugate.bot.feature.import_module", broken_import)
    house = await opened()
    answer = await house.ask("POST", PATH, json={"update_id": 5}, headers={HEADER: HOOK_SECRET})

    assert 503 == answer.status
    assert 200 == (await house.chat()).status
    (said,) = [text for text in map(str, (one.msg for one in caplog.records)) if "it cannot start" in text]
    assert "ImportError: no module named 'aiogram.oh'" in said


def test_feature_without_aiogram() -> None:
    """What is imported before the gateway listens does not import it."""
    check = "import sys, gpugate.app, gpugate.bot.feature; sys.exit('aiogram' in sys.modules)"

    assert 0 == subprocess.run([sys.executable, "-c", check], check=False).returncode
