"""A fantasy for a chat: acknowledged at once, then the picture with its story; knows no messenger.

Runs through the same queue and on the same kind of lease as the API's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from attrs import frozen

from gpugate.bot import messages
from gpugate.bot.messenger import Chat, IncomingMessage, PhotoError
from gpugate.core.vocabulary import Status
from gpugate.generation import image_format
from gpugate.generation.fantasy import Fantasies, Fantasy
from gpugate.lifecycle.leased_call import LeasedCall
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.tasks import CrashListener, spawn

BUSY_S = 4.5
"""Messengers show "typing" for about five seconds."""


@frozen
class FantasyJob:
    """Tells and illustrates what a photo shows."""

    lifecycle: Lifecycle
    fantasies: Fantasies
    on_crash: CrashListener | None = None

    async def run(self, incoming: IncomingMessage, chat: Chat, prompt: str) -> None:
        """Acknowledge, wait for the pod, send story and picture. Raises GateError."""
        assert incoming.photo is not None
        warm = self.lifecycle.word is Status.READY
        await chat.send_text(messages.ON_IT if warm else messages.ON_IT_COLD)
        try:
            image = image_format.read(await incoming.photo())
        except PhotoError as error:
            await chat.send_text(messages.sentences(str(error)))
        except image_format.NoImage as error:
            await chat.send_text(messages.unusable(str(error)))
        else:
            telling = self.fantasies.telling(image, prompt)
            async with self._busy(chat):
                with self.lifecycle.request(model=telling.model, user=incoming.user) as lease:
                    fantasy = await self.fantasies.dream(Visit(self.lifecycle, lease), telling)
            await _show(fantasy, chat)

    @asynccontextmanager
    async def _busy(self, chat: Chat) -> AsyncIterator[None]:
        """Show meanwhile that something is being worked on."""

        async def show() -> None:
            with suppress(Exception):  # it is only decoration
                while True:
                    await chat.show_typing()
                    await asyncio.sleep(BUSY_S)

        task = spawn(show(), "shows that it is busy", on_crash=self.on_crash)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


async def _show(fantasy: Fantasy, chat: Chat) -> None:
    if fantasy.picture is None:
        await chat.send_text(fantasy.story)
    else:
        await chat.send_image(fantasy.picture.image.data, fantasy.story)
    for warning in fantasy.warnings:
        await chat.send_text(messages.warned(warning))
