"""The simulated Telegram says no where Telegram does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from gpugate_testing.telegram import TOKEN, Refusal, SimulatedTelegram

ADA = 42


class Bot:
    """A client that checks nothing, so that the server has to."""

    def __init__(self, telegram: SimulatedTelegram, http: aiohttp.ClientSession) -> None:
        self.telegram = telegram
        self._http = http

    async def call(self, method: str, token: str = TOKEN, **params: Any) -> tuple[int, Any]:
        """The status, and the result or the description."""
        url = f"{self.telegram.url}/bot{token}/{method}"
        async with self._http.post(url, json=params) as response:
            answer = await response.json()
            return response.status, answer["result"] if answer["ok"] else answer["description"]


@pytest.fixture
async def bot() -> AsyncIterator[Bot]:
    """A bot that one person knows."""
    async with SimulatedTelegram() as telegram, aiohttp.ClientSession() as http:
        telegram.meet(ADA)
        yield Bot(telegram, http)


def keyboard(data: str) -> dict[str, Any]:
    """One key."""
    return {"inline_keyboard": [[{"text": "Yes", "callback_data": data}]]}


@pytest.mark.parametrize(
    ("method", "params", "expected"),
    [
        ("sendMessage", {"chat_id": ADA, "text": "x" * 4096}, 200),
        ("sendMessage", {"chat_id": ADA, "text": "x" * 4097}, "message is too long"),
        ("sendMessage", {"chat_id": ADA, "text": "🙂" * 2049}, "message is too long"),
        ("sendMessage", {"chat_id": ADA, "text": " "}, "message text is empty"),
        ("sendMessage", {"chat_id": 7, "text": "hi"}, "chat not found"),
        ("sendMessage", {"chat_id": ADA, "text": "hi", "reply_markup": keyboard("x" * 64)}, 200),
        (
            "sendMessage",
            {"chat_id": ADA, "text": "hi", "reply_markup": keyboard("x" * 65)},
            "BUTTON_DATA_INVALID",
        ),
        ("sendPhoto", {"chat_id": ADA, "photo": "attach://nothing"}, "there is no photo in the request"),
        ("sendPhoto", {"chat_id": ADA, "caption": "x" * 1025}, "message caption is too long"),
        ("sendChatAction", {"chat_id": ADA, "action": "dancing"}, "wrong parameter action in request"),
        (
            "answerCallbackQuery",
            {"callback_query_id": "1"},
            "query is too old and response timeout expired or query ID is invalid",
        ),
        ("editMessageReplyMarkup", {"chat_id": ADA, "message_id": 9}, "message to edit not found"),
        (
            "setWebhook",
            {"url": "http://x.org"},
            "bad webhook: An HTTPS URL must be provided for webhook",
        ),
        (
            "setWebhook",
            {"url": "https://x.org", "secret_token": "é"},
            "secret token contains unallowed characters",
        ),
        ("setMyCommands", {"commands": [{"command": "Up", "description": "x"}]}, "BOT_COMMAND_INVALID"),
        ("getFile", {"file_id": "x"}, "invalid file_id"),
    ],
)
async def test_limits(bot: Bot, method: str, params: dict[str, Any], expected: int | str) -> None:
    """Each is Telegram's own, in its words."""
    status, said = await bot.call(method, **params)

    assert expected == (said.removeprefix("Bad Request: ") if status == 400 else status)


@pytest.mark.parametrize(("token", "expected"), [("1:wrong", 401), ("nonsense", 404)])
async def test_a_wrong_token(bot: Bot, token: str, expected: int) -> None:
    """Is nobody's, or no token at all."""
    assert expected == (await bot.call("getMe", token=token))[0]


async def test_a_method_that_is_not_there(bot: Bot) -> None:
    """A mistake is not hidden."""
    assert (404, "Not Found: method not found") == await bot.call("sendMesage")


async def test_polling_while_a_webhook_is_set(bot: Bot) -> None:
    """Is a conflict until the webhook is deleted."""
    await bot.call("setWebhook", url="https://x.org/hook")
    conflict = await bot.call("getUpdates")
    info = (await bot.call("getWebhookInfo"))[1]
    await bot.call("deleteWebhook")

    assert 409 == conflict[0]
    assert "https://x.org/hook" == info["url"]
    assert (200, []) == await bot.call("getUpdates")


@pytest.mark.parametrize(("method", "ends"), [("deleteWebhook", False), ("setWebhook", True)])
async def test_a_webhook_while_somebody_polls(bot: Bot, method: str, ends: bool) -> None:
    """Only one that is set ends the call that waits for updates."""
    poll = asyncio.ensure_future(bot.call("getUpdates", timeout=5))
    await bot.telegram.until(lambda: "getUpdates" in bot.telegram.calls)
    await bot.call(method, url="https://x.org/hook")
    bot.telegram.write(ADA, "hello")

    assert (409 if ends else 200) == (await poll)[0]


async def test_updates(bot: Bot) -> None:
    """Come again until they are confirmed by a higher offset."""
    first = bot.telegram.write(ADA, "one")
    second = bot.telegram.write(ADA, "two")

    async def numbers(**params: int) -> list[int]:
        return [update["update_id"] for update in (await bot.call("getUpdates", **params))[1]]

    assert [first, second] == await numbers()
    assert [first] == await numbers(limit=1)
    assert [second] == await numbers(offset=second)
    assert [] == await numbers(offset=second + 1)


async def test_a_second_poller(bot: Bot) -> None:
    """Sends the first one away."""
    first = asyncio.ensure_future(bot.call("getUpdates", timeout=5))
    await bot.telegram.until(lambda: "getUpdates" in bot.telegram.calls)
    await bot.call("getUpdates")

    assert 409 == (await first)[0]


async def test_a_bad_day(bot: Bot) -> None:
    """Happens once for each that is ordered."""
    bot.telegram.fail("sendMessage", Refusal(429, "Too Many Requests: retry after 3", 3))
    said = [await bot.call("sendMessage", chat_id=ADA, text="hi") for _ in range(2)]

    assert [429, 200] == [status for status, _ in said]


async def test_a_file_that_is_too_large(bot: Bot) -> None:
    """Cannot be had by a bot."""
    bot.telegram.photo(ADA, b"x", claimed=20 * 1024 * 1024 + 1)

    assert (400, "Bad Request: file is too big") == await bot.call("getFile", file_id="file0-large")
