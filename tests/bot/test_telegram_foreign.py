"""One look at the bot through somebody else's Telegram: the npm package `telegram-test-api`.

It needs Node and npm, and npm's registry; without them there is nothing to see here. Its getUpdates does
not wait, its getMe lacks fields, it knows no photos, no menus (docs/telegram-comfyui.md#telegram-test-api).
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiogram import Bot
from aiogram.methods import GetMe, GetUpdates
from aiogram.types import User

from gpugate.bot.telegram import TelegramBot
from tests.bot.support import ADA, STRANGER, FakeAssistant

PACKAGE = "telegram-test-api@4.2.1"
TOKEN = "123456:token-for-a-foreign-server"
INSTALL_S = 30
SOON_S = 15
RUNNER = """
const TelegramServer = require('telegram-test-api');
process.on('unhandledRejection', () => {});
const server = new TelegramServer({ port: Number(process.argv[2]), host: '127.0.0.1', storeTimeout: 600 });
server.start().then(() => console.log('ready'));
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder where the package is installed."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node and npm are not installed")
    (tmp_path / "package.json").write_text('{"private": true}')
    (tmp_path / "run.js").write_text(RUNNER)
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0", PACKAGE]
    try:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {PACKAGE} within {INSTALL_S} s")
    if done.returncode:
        pytest.skip(f"npm could not install {PACKAGE}: is its registry in reach?")
    return tmp_path


@pytest.fixture
async def foreign(package: Path) -> AsyncIterator[str]:
    """The server's URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    node = await asyncio.create_subprocess_exec(
        "node",
        "run.js",
        str(port),
        cwd=package,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert node.stdout is not None
    try:
        assert b"ready\n" == await asyncio.wait_for(node.stdout.readline(), SOON_S)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            node.kill()
        await node.communicate()


async def said(http: aiohttp.ClientSession, url: str, chat: int) -> list[Any]:
    """What the bot said in a chat since the last look."""
    async with http.post(f"{url}/getUpdates", json={"token": TOKEN, "chatId": chat}) as response:
        return [update["message"]["text"] for update in (await response.json())["result"]]


async def write(http: aiohttp.ClientSession, url: str, chat: int, text: str) -> None:
    """Somebody writes."""
    person = {"id": chat, "is_bot": False, "first_name": "Ada"}
    message = {
        "botToken": TOKEN,
        "date": 1_700_000_000,
        "chat": {"id": chat, "type": "private", "first_name": "Ada"},
        "from": person,
        "text": text,
    }
    async with http.post(f"{url}/sendMessage", json=message) as response:
        response.raise_for_status()


async def fill_in(make_request: Any, bot: Bot, method: Any) -> Any:
    """Middleware of aiogram's session: answers getMe, and waits after getUpdates; the server does neither."""
    if isinstance(method, GetMe):
        return User(id=bot.id, is_bot=True, first_name="gpugate", username="gpu_bot")
    result = await make_request(bot, method)
    if isinstance(method, GetUpdates):
        await asyncio.sleep(0.05)
    return result


async def test_a_text_and_its_answer(foreign: str) -> None:
    """Is handled and answered once, through a server that nobody of us wrote."""
    assistant, answers = FakeAssistant(), list[str]()
    bot = TelegramBot(
        token=TOKEN,
        api_base=foreign,
        webhook=None,
        allowed=(ADA,),
        on_message=assistant.handle_message,
        on_crash=lambda name, error: None,
        first_retry_s=0.05,
    )
    bot.bot.session.middleware(fill_in)
    async with aiohttp.ClientSession() as http:
        await write(http, foreign, STRANGER, "let me in")
        await write(http, foreign, ADA, "is the pod on?")
        bot.start()
        try:
            async with asyncio.timeout(SOON_S):
                while not answers:
                    await asyncio.sleep(0.02)
                    answers += await said(http, foreign, ADA)
        finally:
            await bot.aclose()
        others = await said(http, foreign, STRANGER)

    assert ["heard is the pod on?"] == answers
    assert ["is the pod on?"] == assistant.texts
    assert [] == others
