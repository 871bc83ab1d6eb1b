"""Messages to chats: sizes, order, bad days of Telegram."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest
import structlog
from gpugate_testing.telegram import TOKEN, Refusal

from gpugate.bot.messenger import Button
from gpugate.bot.sender import ATTEMPTS
from tests.bot.support import ADA, GROUP, STRANGER, Line, line


def png(width: int = 64, height: int = 64, size: int = 0) -> bytes:
    """The head of a picture, and so many bytes."""
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\x02\0\0\0"
    return head + bytes(max(0, size - len(head)))


@pytest.fixture
async def out() -> AsyncIterator[Line]:
    """A bot at work; what it sends is all that counts."""
    async with line("polling") as one:
        yield one


async def test_a_long_text(out: Line) -> None:
    """Comes in pieces that Telegram takes, in order and together; the buttons are under the last."""
    text = " ".join(f"word{number} 🙂" for number in range(1000))
    await asyncio.gather(
        out.bot.sender.chat(ADA).send_text(text, [Button(text="Yes", callback_id="y")]),
        out.bot.sender.chat(ADA).send_text("short"),
    )
    *pieces, last = out.telegram.texts(ADA)

    assert (text, "short") == (" ".join(pieces), last)
    assert [0] * (len(pieces) - 1) + [1, 0] == [len(sent.keys) for sent in out.telegram.sent]


async def test_a_text_that_cannot_be_sent_as_it_is(out: Line) -> None:
    """Half characters and NUL are mended, and nothing at all is not sent."""
    for text in ("a\ud800b\0c", "  ", ""):
        await out.bot.sender.chat(ADA).send_text(text)

    assert ["a\ufffdbc"] == out.telegram.texts(ADA)


async def test_a_picture(out: Line) -> None:
    """Has its caption where that fits; a longer one follows whole."""
    await out.bot.sender.chat(ADA).send_image(png(), "short")
    await out.bot.sender.chat(ADA).send_image(png(), "x" * 1025)
    await out.bot.sender.chat(ADA).send_image(png(), "")

    assert [
        ("sendPhoto", "short"),
        ("sendPhoto", ""),
        ("sendMessage", "x" * 1025),
        ("sendPhoto", ""),
    ] == [(sent.method, sent.text) for sent in out.telegram.sent]
    assert png() == out.telegram.sent[0].content


@pytest.mark.parametrize("content", [png(10_000, 1), png(9000, 9000), png(size=10 * 1024 * 1024 + 1)])
async def test_a_picture_that_is_no_photo(out: Line, content: bytes) -> None:
    """One that is too large, or of odd sides, goes as a file."""
    await out.bot.sender.chat(ADA).send_image(content, "look")

    assert [("sendDocument", "look")] == [(sent.method, sent.text) for sent in out.telegram.sent]


async def test_too_many_requests(out: Line) -> None:
    """The message is sent when Telegram said, and what follows it in the chat comes after it."""
    out.telegram.fail("sendMessage", Refusal(429, "Too Many Requests: retry after 7", 7))
    await asyncio.gather(out.bot.sender.chat(ADA).send_text("one"), out.bot.sender.chat(ADA).send_text("two"))

    assert [7.0] == out.pauses.seconds
    assert ["one", "two"] == out.telegram.texts(ADA)


async def test_a_long_flood_control(out: Line) -> None:
    """Is not waited for: the text would be stale."""
    out.telegram.fail("sendMessage", Refusal(429, "Too Many Requests", 3600))
    await out.bot.sender.chat(ADA).send_text("one")

    assert ([], []) == (out.pauses.seconds, out.telegram.texts(ADA))


async def test_a_bad_moment(out: Line) -> None:
    """A cut connection, a page and a 5xx are outlasted."""
    out.telegram.fail("sendMessage", None, "<html>", Refusal(500, "Internal Server Error"))
    await out.bot.sender.chat(ADA).send_text("one")

    assert ["one"] == out.telegram.texts(ADA)


async def test_a_bad_hour(out: Line) -> None:
    """Is given up after a few attempts, with a line that has no token in it."""
    out.telegram.fail("sendMessage", *[None] * ATTEMPTS)
    with structlog.testing.capture_logs() as logs:
        await out.bot.sender.chat(ADA).send_text("one")

    assert [("bot: sendMessage failed", ADA)] == [(entry["event"], entry["chat"]) for entry in logs]
    assert TOKEN not in str(logs)
    assert [] == out.telegram.sent


async def test_a_chat_that_has_had_enough(out: Line) -> None:
    """Is given up at once, with a line; others are not touched."""
    out.telegram.methods.blocked.add(ADA)
    with structlog.testing.capture_logs() as logs:
        await out.bot.sender.chat(ADA).send_text("x" * 9000)
        await out.bot.sender.chat(STRANGER).send_text("never met")
        await out.bot.sender.chat(GROUP).send_text("hi")

    assert [
        "Telegram says: Forbidden: bot was blocked by the user",
        "Telegram says: Bad Request: chat not found",
    ] == [entry["error"] for entry in logs]
    assert ["hi"] == out.telegram.texts(GROUP)


async def test_a_closed_outbox(out: Line) -> None:
    """Opens no new connection."""
    await out.bot.aclose()
    await out.bot.sender.chat(ADA).send_text("late")

    assert [] == out.telegram.sent


async def test_typing(out: Line) -> None:
    """Is shown, and a failure of it is nobody's business."""
    out.telegram.fail("sendChatAction", None)
    with structlog.testing.capture_logs() as logs:
        await out.bot.sender.chat(ADA).show_typing()
        await out.bot.sender.chat(ADA).show_typing()

    assert ([ADA], []) == (out.telegram.methods.actions, logs)
