"""Pictures that people send: fetched within limits, and no error has the token in it."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator

import pytest
from gpugate_testing.telegram import TOKEN, Refusal

from gpugate.bot.messenger import PhotoError
from gpugate.bot.update_parser import NOT_HAD, TOO_LARGE
from tests.bot.support import ADA, Line, line
from tests.bot.test_sender import png

LARGE = 21 * 1024 * 1024


@pytest.fixture
async def talk() -> AsyncIterator[Line]:
    """A bot at work."""
    async with line("webhook") as one:
        yield one


async def trouble(talk: Line) -> PhotoError:
    """What fetching the last picture ends with."""
    await talk.telegram.until(lambda: bool(talk.assistant.received))
    photo = talk.assistant.received[-1].photo
    assert photo is not None
    with pytest.raises(PhotoError) as caught:
        await photo()
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    return caught.value


async def test_a_photo(talk: Line) -> None:
    """The largest size is fetched, when it is wanted."""
    talk.telegram.photo(ADA, png(size=100_000), "a story, please")
    await talk.telegram.said()
    incoming = talk.assistant.received[0]
    assert incoming.photo is not None
    before = list(talk.telegram.calls)

    assert ("a story, please", png(size=100_000)) == (incoming.text, await incoming.photo())
    assert "getFile" not in before


async def test_a_picture_sent_as_a_file(talk: Line) -> None:
    """Is a picture."""
    talk.telegram.methods.files["doc"] = png()
    head = {"message_id": 9, "date": 1, "chat": talk.telegram.meet(ADA)}
    document = {"file_id": "doc", "file_unique_id": "udoc", "mime_type": "image/png"}
    talk.telegram.update(message={**head, "document": document})
    await talk.telegram.said()
    photo = talk.assistant.received[0].photo

    assert photo is not None
    assert png() == await photo()


async def test_something_else(talk: Line) -> None:
    """A voice message is a message without text: its chat gets an answer; a group's chatter does not."""
    head = {"message_id": 9, "date": 1, "chat": talk.telegram.meet(ADA)}
    voice = {"file_id": "v", "file_unique_id": "uv", "duration": 1}
    talk.telegram.update(message={**head, "voice": voice})
    await talk.telegram.until(lambda: bool(talk.assistant.received))

    assert ("", None) == (talk.assistant.received[0].text, talk.assistant.received[0].photo)


async def test_an_album(talk: Line) -> None:
    """Is one message: its first picture."""
    talk.telegram.photo(ADA, png(), "look", album="a")
    talk.telegram.photo(ADA, png(), album="a")
    talk.telegram.write(ADA, "hi")
    await talk.telegram.said(2)

    assert ["look", "hi"] == talk.assistant.texts


@pytest.mark.parametrize("claimed", [LARGE, None])
async def test_a_photo_that_is_too_large(talk: Line, claimed: int | None) -> None:
    """Is refused by what is said of it, by Telegram, or while it comes."""
    talk.telegram.photo(ADA, bytes(LARGE) if claimed is None else png(), claimed=claimed)
    if claimed is None:
        talk.telegram.methods.sizes["file0-large"] = 1

    assert TOO_LARGE == str(await trouble(talk))


@pytest.mark.parametrize("fault", [Refusal(404, "Not Found"), "<html>", None])
async def test_a_download_that_fails(talk: Line, fault: Refusal | str | None) -> None:
    """Is tried once more, then told; neither words nor causes have the URL."""
    talk.telegram.fail("file", *[fault] * 4)  # aiohttp itself asks again on a cut connection
    talk.telegram.photo(ADA, png())

    assert NOT_HAD == str(await trouble(talk))


async def test_a_file_that_telegram_does_not_have(talk: Line) -> None:
    """Is told."""
    talk.telegram.photo(ADA, png())
    talk.telegram.methods.files.clear()

    assert NOT_HAD == str(await trouble(talk))
