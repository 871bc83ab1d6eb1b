"""The bot against a strict Telegram, by webhook and by polling alike."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
import structlog
from gpugate_testing.telegram import TOKEN, Key, Refusal, SimulatedTelegram

from gpugate.api.telegram_webhook import PATH
from gpugate.bot.handlers import BROKEN, CUT_SHORT
from gpugate.bot.intents.commands import COMMANDS
from gpugate.bot.messenger import Button, Chat, IncomingMessage
from gpugate.tasks import TaskDied
from tests.bot.support import ADA, GROUP, MODES, PUBLIC, SECRET, STRANGER, Line, line
from tests.bot.test_sender import png

YES, NO = Button(text="Yes", callback_id="stop:1:yes"), Button(text="No", callback_id="stop:1:no")


async def test_a_message(talk: Line) -> None:
    """Comes with the user for the ledger, and is answered in its chat."""
    talk.telegram.write(ADA, "is it on?")
    answer = await talk.telegram.said()

    assert IncomingMessage(user="telegram:42", chat="42", text="is it on?") == talk.assistant.received[0]
    assert (ADA, "heard is it on?") == (answer.chat, answer.text)


async def test_a_group(talk: Line) -> None:
    """It is a chat like others; a command may name the bot, and one for another bot is none for us."""
    talk.telegram.write(GROUP, "/status@other_bot")
    talk.telegram.write(GROUP, "/status@gpu_bot now")
    answer = await talk.telegram.said()

    assert (GROUP, "heard /status now") == (answer.chat, answer.text)


async def test_a_stranger(talk: Line) -> None:
    """Gets nothing; the owner gets one line with the chat's id, however often it writes."""
    with structlog.testing.capture_logs() as logs:
        for text in ("hello?", "HELLO?", "let me in"):
            talk.telegram.write(STRANGER, text)
        talk.telegram.write(ADA, "hi")
        await talk.telegram.said()

    assert ["hi"] == talk.assistant.texts
    assert [STRANGER] == [entry["chat"] for entry in logs if "not allowed" in entry["event"]]
    assert [] == talk.telegram.texts(STRANGER)


@pytest.mark.parametrize("mode", MODES)
async def test_nobody_is_allowed(mode: str) -> None:
    """An empty list means nobody."""
    async with line(mode, allowed=()) as talk:
        talk.telegram.write(ADA, "hi")
        await talk.settled()

        assert [] == talk.assistant.received


async def test_the_order_of_a_chat(talk: Line) -> None:
    """A message is handled after the first answer to the one before it; a long job blocks no chat."""
    go, ends = asyncio.Event(), asyncio.Event()

    async def answer(incoming: IncomingMessage, chat: Chat) -> None:
        if incoming.text == "start":
            await go.wait()
            await chat.send_text("starting")
            await ends.wait()
        await chat.send_text(f"done: {incoming.text}")

    talk.assistant.answer = answer
    talk.telegram.write(ADA, "start")
    talk.telegram.write(ADA, "stop")
    talk.telegram.write(GROUP, "status")
    await talk.telegram.said()
    before = list(talk.telegram.texts(ADA))
    go.set()
    await talk.telegram.said(3)
    ends.set()
    await talk.telegram.said(4)

    assert [] == before
    assert ["starting", "done: stop", "done: start"] == talk.telegram.texts(ADA)
    assert ["done: status"] == talk.telegram.texts(GROUP)


async def test_buttons(talk: Line) -> None:
    """Only the first press counts and removes the buttons; each press is acknowledged."""

    async def ask(incoming: IncomingMessage, chat: Chat) -> None:
        if incoming.pressed:
            await chat.send_text(f"pressed {incoming.pressed}")
        else:
            await chat.send_text("Really?", (YES, NO))

    talk.assistant.answer = ask
    talk.telegram.write(ADA, "stop")
    question = await talk.telegram.said()
    keys = list(question.keys)
    talk.telegram.press(question, keys[0])
    talk.telegram.press(question, keys[1])
    await talk.telegram.said(2)
    await talk.telegram.until(lambda: 2 == len(talk.telegram.methods.answered) and not question.keys)

    assert [Key("Yes", "stop:1:yes"), Key("No", "stop:1:no")] == keys
    assert ["Really?", "pressed stop:1:yes"] == talk.telegram.texts(ADA)


async def test_an_assistant_that_breaks(talk: Line) -> None:
    """The chat gets a message, the crash is reported, and the next message is handled."""

    async def broken(incoming: IncomingMessage, chat: Chat) -> None:
        raise RuntimeError("oh")

    talk.assistant.answer = broken
    talk.telegram.write(ADA, "hi")
    await talk.telegram.said()

    assert [BROKEN] == talk.telegram.texts(ADA)
    assert ["oh"] == [str(error) for error in talk.crashes]


async def test_updates_that_are_no_message_of_ours(talk: Line) -> None:
    """Kinds that nobody asked for, and shapes that no version of aiogram knows, harm nothing."""
    head = {"message_id": 1, "date": 1, "chat": talk.telegram.meet(ADA)}
    talk.telegram.post.waiting.append({"update_id": 1, "message": {"message_id": "?"}})
    talk.telegram.post.waiting.append({"update_id": 2, "poll_of_the_future": {}})
    talk.telegram.post.waiting.append({"update_id": 3, "message": {**head, "new_chat_title": "x"}})
    talk.telegram.write(ADA, "hi")
    await talk.telegram.said()

    assert ["hi"] == talk.assistant.texts


async def test_an_update_that_breaks_us(talk: Line) -> None:
    """Is reported, and the bot is not deaf afterwards."""
    object.__setattr__(talk.bot.handler, "clock", None)
    talk.telegram.write(STRANGER, "boo")
    talk.telegram.write(ADA, "hi")
    await talk.telegram.said()

    assert [TypeError] == [type(error) for error in talk.crashes]


# --- topics and moves ---------------------------------------------------------------------------


async def test_an_answer_goes_to_its_topic(talk: Line) -> None:
    """Text, buttons, typing and pictures; nothing is named where the general topic or none asked."""

    async def answer(incoming: IncomingMessage, chat: Chat) -> None:
        await chat.show_typing()
        await chat.send_text(f"heard {incoming.text or incoming.pressed}", (YES,))
        await chat.send_image(png(), "a picture")

    talk.assistant.answer = answer
    for topic, thread in ((7, None), (None, None), (None, 12)):
        talk.telegram.write(GROUP, "hi", topic=topic, thread=thread)
        await talk.settled()
    talk.telegram.photo(GROUP, png(), "look", topic=7)
    await talk.telegram.said(8)
    question = next(sent for sent in talk.telegram.sent if sent.topic == 7 and sent.keys)
    talk.telegram.press(question, question.keys[0])
    await talk.telegram.said(10)

    by_topic = [(sent.topic, sent.text) for sent in talk.telegram.sent if sent.method == "sendMessage"]
    general = [(None, "heard hi")] * 2
    assert sorted([(7, "heard hi"), *general, (7, "heard look"), (7, "heard stop:1:yes")], key=str) == sorted(
        by_topic, key=str
    )
    assert [3, 2] == [
        [sent.topic for sent in talk.telegram.sent if sent.method == "sendPhoto"].count(topic)
        for topic in (7, None)
    ]
    assert [3, 2] == [talk.telegram.methods.action_topics.count(topic) for topic in (7, None)]
    assert [] == talk.crashes


async def test_the_order_of_a_topic(talk: Line) -> None:
    """A message waits for the one before it in its topic, and for no other topic of the chat."""
    go = asyncio.Event()

    async def answer(incoming: IncomingMessage, chat: Chat) -> None:
        if incoming.text == "slow":
            await go.wait()
        await chat.send_text(incoming.text)

    talk.assistant.answer = answer
    for text, topic in (("slow", 7), ("behind it", 7), ("elsewhere", 8), ("in general", None)):
        talk.telegram.write(GROUP, text, topic=topic)
    await talk.telegram.said(2)
    before = sorted(talk.telegram.texts(GROUP))
    go.set()
    await talk.telegram.said(4)

    assert ["elsewhere", "in general"] == before
    assert ["slow", "behind it"] == [sent.text for sent in talk.telegram.sent if sent.topic == 7]


@pytest.mark.parametrize("silent", [False, True])
async def test_a_group_that_became_another(talk: Line, silent: bool) -> None:
    """It keeps its news and is heard, and says so once, however the bot learns of it."""
    new = -100_1234
    with structlog.testing.capture_logs() as logs:
        talk.telegram.move(GROUP, new, silent=silent)
        await talk.settled()
        for text in ("one", "two"):
            await talk.bot.notify(GROUP, text)
        talk.telegram.write(new, "hi")
        await talk.telegram.said(4)

    *_, last = talk.telegram.texts(new)
    assert "heard hi" == last
    assert {"one", "two"} < set(talk.telegram.texts(new))
    assert 1 == sum(str(new) in text and str(GROUP) in text for text in talk.telegram.texts(new))
    assert [(GROUP, new)] == [(e["chat"], e["now"]) for e in logs if "supergroup" in e["event"]]
    assert "chat=" + str(new) not in str([e for e in logs if "not allowed" in e["event"]])


async def test_a_move_survives_a_restart(tmp_path: Path) -> None:
    """The next run knows it, and does not say it again; the file is damaged: the bot works without it."""
    file, new = tmp_path / "chats.json", -100_1234
    async with SimulatedTelegram() as telegram:
        async with line("polling", telegram=telegram, moved=file) as talk:
            telegram.move(GROUP, new)
            await telegram.said()
        for _ in range(2):
            async with line("polling", telegram=telegram, moved=file) as talk:
                await talk.bot.notify(GROUP, "news")
                telegram.write(new, "hi")
                await telegram.until(lambda: bool(talk.assistant.texts))
                await talk.settled()
        assert ["news", "heard hi"] * 2 == telegram.texts(new)[1:]
        assert 0o600 == file.stat().st_mode & 0o777

        file.write_text("[[1]]")
        async with line("polling", telegram=telegram, moved=file) as talk:
            await talk.bot.notify(GROUP, "news")
        assert "news" in telegram.texts(new)[-2:]


async def test_a_stranger_that_moved(talk: Line) -> None:
    """A group that was never allowed is not let in by becoming another."""
    talk.telegram.move(-5, -100_5)
    talk.telegram.write(-100_5, "hi")
    talk.telegram.write(ADA, "hello")
    await talk.telegram.said()

    assert ["hello"] == talk.assistant.texts


async def test_news(talk: Line) -> None:
    """Can be told unasked, to allowed chats only."""
    talk.telegram.meet(STRANGER)
    await talk.bot.notify(STRANGER, "secret")
    await talk.bot.notify(ADA, "the pod has stopped")

    assert [(ADA, "the pod has stopped")] == [(sent.chat, sent.text) for sent in talk.telegram.sent]


async def test_the_menu(talk: Line) -> None:
    """Telegram shows the commands."""
    menu = {name: command.description for name, command in COMMANDS.items() if command.description}
    assert menu == talk.telegram.methods.commands


# --- coming and going -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_telegram_is_away_at_the_start(mode: str) -> None:
    """The bot goes on asking, says so once, and works as soon as Telegram does."""
    telegram = SimulatedTelegram()
    page = "<html>bad gateway</html>"
    telegram.fail("getMe", page, page, Refusal(500, "Internal Server Error"))
    with structlog.testing.capture_logs() as logs:
        async with telegram, line(mode, telegram=telegram) as talk:
            telegram.write(ADA, "hi")
            await telegram.said()

            assert ["hi"] == talk.assistant.texts
    told = [entry["error"] for entry in logs if "registering" in entry["event"] and "error" in entry]
    assert [
        "what answers is not Telegram, or is out of order",
        "Telegram says: Internal Server Error",
    ] == told


async def test_a_wrong_token() -> None:
    """Is told in a line that names the key, without the token."""
    telegram = SimulatedTelegram()
    telegram.fail("getMe", *[Refusal(401, "Unauthorized")] * 50)
    with structlog.testing.capture_logs() as logs:
        async with telegram, line("webhook", telegram=telegram, wait=False):
            await telegram.until(lambda: telegram.calls.count("getMe") > 1)

    assert 1 == len(logs)
    assert "bot.token" in logs[0]["error"]
    assert TOKEN not in str(logs)


async def test_the_registration() -> None:
    """Says where and with which secret; it stays when the bot goes, so that Telegram keeps what comes."""
    async with SimulatedTelegram() as telegram:
        async with line("webhook", telegram=telegram):
            pass
        telegram.write(ADA, "while you were away")
        left = telegram.post.url, telegram.post.secret
        async with line("webhook", telegram=telegram) as talk:
            await telegram.said()

            assert ["while you were away"] == talk.assistant.texts
    assert (PUBLIC + PATH, SECRET) == left


async def test_polling_after_a_webhook() -> None:
    """A webhook that is left from before is taken off first, and what waited there is not lost."""
    async with SimulatedTelegram() as telegram:
        await telegram.post.hook("https://old.example.org/hook", "", [])
        telegram.write(ADA, "hi")
        async with line("polling", telegram=telegram) as talk:
            await telegram.said()

            assert ["hi"] == talk.assistant.texts


async def test_a_second_poller() -> None:
    """The conflict is told once, and outlasted."""
    with structlog.testing.capture_logs() as logs:
        async with line("polling") as talk:
            await talk.telegram.until(lambda: "getUpdates" in talk.telegram.calls)
            await talk.telegram.post.poll(0, 1, 0)
            await talk.telegram.until(lambda: talk.telegram.calls.count("getUpdates") > 1)
            talk.telegram.write(ADA, "hi")
            await talk.telegram.said()

    assert 1 == sum("another program" in str(entry.get("error")) for entry in logs)


async def test_polling_that_dies() -> None:
    """Is reported and begun again."""
    async with line("polling") as talk:
        await talk.telegram.until(lambda: "getUpdates" in talk.telegram.calls)
        (connection,) = (task for task in asyncio.all_tasks() if task.get_name() == "telegram connection")
        connection.cancel()
        talk.telegram.write(ADA, "hi")
        await talk.telegram.said()

        assert ["hi"] == talk.assistant.texts
        assert [TaskDied] == [type(error) for error in talk.crashes]


async def test_a_poll_that_hangs_at_the_end() -> None:
    """Does not hold the shutdown up, and leaves no task behind."""
    async with line("polling") as talk:
        await talk.telegram.until(lambda: "getUpdates" in talk.telegram.calls)
        async with asyncio.timeout(15):
            await talk.bot.drain(0)
        names = {task.get_name() for task in asyncio.all_tasks()}

        assert not [name for name in names if name.startswith("telegram ") and "webhook" not in name]


async def test_lines_of_aiogram(talk: Line, caplog: pytest.LogCaptureFixture) -> None:
    """Updates and failed attempts are no lines of the log: an outage is told once, by us."""
    talk.telegram.fail("getUpdates", *[Refusal(502, "Bad Gateway")] * 3)
    talk.telegram.write(ADA, "hi")
    await talk.telegram.said()

    assert [] == [record for record in caplog.records if record.name.startswith("aiogram")]


@pytest.mark.parametrize("mode", MODES)
async def test_a_restart(mode: str, tmp_path: Path) -> None:
    """What was taken is not taken again, even if Telegram never heard that it was; the rest comes."""
    seen = tmp_path / "seen.json"
    async with SimulatedTelegram() as telegram:
        async with line(mode, telegram=telegram, seen=seen) as talk:
            telegram.write(ADA, "one")
            again = telegram.post.waiting[0]
            await telegram.said()
            if mode == "webhook":
                await talk.settled()
        telegram.post.waiting.insert(0, again)
        telegram.write(ADA, "two")
        async with line(mode, telegram=telegram, seen=seen) as talk:
            await telegram.until(lambda: "two" in talk.assistant.texts)

            assert ["two"] == talk.assistant.texts


async def test_a_number_that_comes_back(tmp_path: Path) -> None:
    """Over a restart it is another update if it says something else: Telegram may count anew."""
    for text in ("one", "two"):
        async with line("webhook", seen=tmp_path / "seen.json") as talk:
            talk.telegram.write(ADA, text)
            await talk.telegram.said()

            assert [text] == talk.assistant.texts


@pytest.mark.parametrize("left", ["{", "7", "[1, 2]", "[[1]]", '[["x", "y"]]', "null"])
async def test_a_damaged_memory(tmp_path: Path, left: str) -> None:
    """Is told in a line and counts as none."""
    (tmp_path / "seen.json").write_text(left)
    with structlog.testing.capture_logs() as logs:
        async with line("polling", seen=tmp_path / "seen.json") as talk:
            talk.telegram.write(ADA, "hi")
            await talk.telegram.said()

    assert 1 == sum("it is damaged" in entry["event"] for entry in logs)


async def test_polling_confirms_at_its_end() -> None:
    """Nothing that was taken is left at Telegram."""
    async with SimulatedTelegram() as telegram:
        async with line("polling", telegram=telegram):
            telegram.write(ADA, "one")
            await telegram.said()

        assert [] == telegram.post.waiting


async def test_a_shutdown(talk: Line) -> None:
    """Jobs get the grace; those that need longer are cut, and each chat is told once."""
    at_work = asyncio.Event()

    async def slow(incoming: IncomingMessage, chat: Chat) -> None:
        at_work.set()
        await asyncio.sleep(0.02 if incoming.text == "quick" else 60)
        await chat.send_text(f"done: {incoming.text}")

    talk.assistant.answer = slow
    talk.telegram.write(ADA, "quick")
    talk.telegram.write(GROUP, "slow")
    await at_work.wait()
    await talk.telegram.until(lambda: len(talk.assistant.received) == 2)
    await talk.bot.drain(1.0)

    assert ["done: quick"] == talk.telegram.texts(ADA)
    assert [CUT_SHORT] == talk.telegram.texts(GROUP)
    assert not await talk.bot.submit({"update_id": 9})


async def test_a_second_signal(talk: Line) -> None:
    """Ends the grace at once; the chat is told all the same."""
    at_work = asyncio.Event()

    async def endless(incoming: IncomingMessage, chat: Chat) -> None:
        at_work.set()
        await asyncio.Event().wait()

    talk.assistant.answer = endless
    talk.telegram.write(ADA, "dream")
    await at_work.wait()
    draining = asyncio.ensure_future(talk.bot.drain(3600))
    await asyncio.sleep(0)
    talk.bot.abort()
    await draining

    assert [CUT_SHORT] == talk.telegram.texts(ADA)


# --- the door -------------------------------------------------------------------------------------


async def test_a_second_delivery() -> None:
    """An update that comes again is taken once."""
    async with line("webhook") as talk:
        number = talk.telegram.write(ADA, "start")
        await talk.telegram.said()
        status = await talk.telegram.redeliver(number, "start", ADA)
        talk.telegram.write(ADA, "more")
        await talk.telegram.said(2)

        assert 200 == status
        assert ["start", "more"] == talk.assistant.texts


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({}, b"{}", (401, "INVALID_TOKEN")),
        ({"X-Telegram-Bot-Api-Secret-Token": "wrong"}, b"{}", (401, "INVALID_TOKEN")),
        ({"X-Telegram-Bot-Api-Secret-Token": "sécret"}, b"{}", (401, "INVALID_TOKEN")),
        ({"X-Telegram-Bot-Api-Secret-Token": SECRET}, b"{", (400, "INVALID_REQUEST")),
        ({"X-Telegram-Bot-Api-Secret-Token": SECRET}, b"", (400, "INVALID_REQUEST")),
        ({"X-Telegram-Bot-Api-Secret-Token": SECRET}, b"[1]", (400, "INVALID_REQUEST")),
        ({"X-Telegram-Bot-Api-Secret-Token": SECRET}, b"{}", (400, "INVALID_REQUEST")),
    ],
)
async def test_calls_that_are_not_telegrams(
    headers: dict[str, str], body: bytes, expected: tuple[int, str]
) -> None:
    """The secret comes first, then the shape; errors are in the envelope."""
    async with line("webhook") as talk, aiohttp.ClientSession() as http:
        async with http.post(talk.url + PATH, data=body, headers=headers) as response:
            answer = await response.json()

        assert expected == (response.status, answer["error"]["code"])
        assert [] == talk.assistant.received


async def test_a_body_that_is_too_large_for_an_update() -> None:
    """Is refused by its announced length, in words that blame no setting: none can change it."""
    headers = {"X-Telegram-Bot-Api-Secret-Token": SECRET, "Content-Length": str(1024 * 1024 + 1)}
    async with line("webhook") as talk, aiohttp.ClientSession() as http:
        async with http.post(talk.url + PATH, data=b"{", headers=headers) as response:
            answer = await response.json()

        assert (413, "PAYLOAD_TOO_LARGE") == (response.status, answer["error"]["code"])
        assert "request body is larger than 1048576 bytes" == answer["error"]["message"]
        assert [] == talk.assistant.received


async def test_a_wrong_secret_with_an_endless_body() -> None:
    """The answer comes before the body has: nothing of it is read."""
    async with line("webhook") as talk:
        host, port = talk.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n".encode())
        async with asyncio.timeout(15):
            head = await reader.readline()
        writer.close()
        await writer.wait_closed()

        assert b"HTTP/1.1 401 Unauthorized\r\n" == head


async def test_polling_has_no_door() -> None:
    """Nothing is at the webhook's path, for nobody."""
    headers = {"X-Telegram-Bot-Api-Secret-Token": ""}
    async with line("polling") as talk, aiohttp.ClientSession() as http:
        async with http.post(talk.url + PATH, json={"update_id": 1}, headers=headers) as response:
            answer = await response.json()

        assert (404, "NOT_FOUND") == (response.status, answer["error"]["code"])


async def test_a_call_during_the_shutdown() -> None:
    """Is refused, so that Telegram keeps the update for the next start."""
    async with line("webhook") as talk:
        await talk.bot.drain(0)
        talk.telegram.write(ADA, "hi")
        await talk.telegram.until(lambda: bool(talk.telegram.post.attempts))

        assert 503 == talk.telegram.post.attempts[0]
        assert 1 == len(talk.telegram.post.waiting)


def test_a_gateway_without_a_bot() -> None:
    """Does not import aiogram, which takes 3 s."""
    code = "import gpugate.app, sys; print(int('aiogram' in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )

    assert "0" == done.stdout.strip()
