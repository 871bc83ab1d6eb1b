"""A fantasy for a chat: acknowledged at once, then the picture with its story; knows no messenger.

Runs through the same queue and on the same kind of lease as the API's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from attrs import frozen

from gpugate.bot import messages
from gpugate.bot.messenger import Chat, Heard, PhotoTrouble
from gpugate.core.states import Status
from gpugate.generation import image_format
from gpugate.generation.fantasy import Fantasy, FantasyService
from gpugate.lifecycle.leased_call import LeasedCall
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.tasks import CrashListener, spawn

BUSY_S = 4.5
"""Messengers show "typing" for about five seconds."""


@frozen
class Dreaming:
    """Tells and illustrates what a photo shows."""

    lifecycle: Lifecycle
    fantasies: FantasyService
    on_crash: CrashListener | None = None

    async def dream(self, heard: Heard, chat: Chat, prompt: str) -> None:
        """Acknowledge, wait for the pod, send story and picture. Raises GateError."""
        assert heard.photo is not None
        warm = self.lifecycle.word is Status.READY
        await chat.say(messages.ON_IT if warm else messages.ON_IT_COLD)
        try:
            image = image_format.read_checked_image(await heard.photo())
        except PhotoTrouble as error:
            await chat.say(messages.sentences(str(error)))
        except image_format.InvalidImage as error:
            await chat.say(messages.unusable(str(error)))
        else:
            telling = self.fantasies.story_request(image, prompt)
            async with self._busy(chat):
                with self.lifecycle.acquire(model=telling.model, user=heard.user) as lease:
                    fantasy = await self.fantasies.generate(LeasedCall(self.lifecycle, lease), telling)
            await _show(fantasy, chat)

    @asynccontextmanager
    async def _busy(self, chat: Chat) -> AsyncIterator[None]:
        """Show meanwhile that something is being worked on."""

        async def show() -> None:
            with suppress(Exception):  # it is only decoration
                while True:
                    await chat.busy()
                    await asyncio.sleep(BUSY_S)

        task = spawn(show(), "shows that it is busy", on_crash=self.on_crash)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


async def _show(fantasy: Fantasy, chat: Chat) -> None:
    if fantasy.image is None:
        await chat.say(fantasy.story)
    else:
        await chat.picture(fantasy.image.image.data, fantasy.story)
    for warning in fantasy.warnings:
        await chat.say(messages.warned(warning))
