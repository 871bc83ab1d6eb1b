"""Makes a fantasy for a chat: acknowledges at once, then sends the picture with its story."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress

from attrs import frozen

from gpugate.bot import messages
from gpugate.bot.messenger import Chat, IncomingMessage, PhotoError
from gpugate.core.states import Status
from gpugate.generation import image_format
from gpugate.generation.fantasy import Fantasy, FantasyService
from gpugate.generation.stories import PICTURE_FAILURE
from gpugate.lifecycle.lease import WakeRequest
from gpugate.lifecycle.leased_call import LeasedCall
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.tasks import CrashHandler, spawn

TYPING_INTERVAL_S = 4.5
"""Messengers show "typing" for about five seconds."""

FANTASY_PATH = "/api/v1/fantasy/generate"
"""The path that wake rules see for a fantasy that a chat asks for."""


@frozen
class FantasyJob:
    """Generates story and illustration, under the same kind of lease as the API.

    Attributes:
        lifecycle: of the pod that tells the story.
        require: raises ModelNotFound for a model that the pod, which is off, is known not to have.
        pictures: of the pod with ComfyUI, where that is another one.
    """

    lifecycle: Lifecycle
    fantasies: FantasyService
    on_crash: CrashHandler | None = None
    require: Callable[[str | None, str], None] = lambda model, failure: None
    pictures: Lifecycle | None = None

    @property
    def lifecycles(self) -> tuple[Lifecycle, ...]:
        """The pods that a fantasy needs."""
        return (self.lifecycle,) if self.pictures is None else (self.lifecycle, self.pictures)

    async def run(self, incoming: IncomingMessage, chat: Chat, prompt: str) -> None:
        """Acknowledge, wait for the pod, send story and picture. Raises GateError."""
        assert incoming.photo is not None
        self.require(self.fantasies.stories.vision, PICTURE_FAILURE)
        warm = self.lifecycle.current_status is Status.READY
        await chat.send_text(messages.ON_IT if warm else messages.ON_IT_COLD)
        try:
            image = image_format.read_checked_image(await incoming.photo())
        except PhotoError as error:
            await chat.send_text(messages.sentences(str(error)))
        except image_format.InvalidImage as error:
            await chat.send_text(messages.unusable(str(error)))
        else:
            story = self.fantasies.story_request(image, prompt)
            async with self._typing(chat):
                size = len(image.data)
                asks = WakeRequest(user=incoming.user, model=story.model, path=FANTASY_PATH, agent="telegram")
                with ExitStack() as leases:

                    def call(pod: Lifecycle, model: str | None, held: int) -> LeasedCall:
                        lease = pod.acquire(
                            model=model,
                            user=incoming.user,
                            purpose="fantasy",
                            body_bytes=held,
                            asks=lambda: asks,
                        )
                        return LeasedCall(pod, leases.enter_context(lease))

                    leased = call(self.lifecycle, story.model, size)
                    pictures = leased if self.pictures is None else call(self.pictures, None, 0)
                    fantasy = await self.fantasies.generate(leased, story, pictures=pictures)
            await _send(fantasy, chat)

    @asynccontextmanager
    async def _typing(self, chat: Chat) -> AsyncIterator[None]:
        async def repeat() -> None:
            with suppress(Exception):  # a failure here must not end the job
                while True:
                    await chat.show_typing()
                    await asyncio.sleep(TYPING_INTERVAL_S)

        task = spawn(repeat(), "bot: shows typing", on_crash=self.on_crash)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


async def _send(fantasy: Fantasy, chat: Chat) -> None:
    if fantasy.image is None:
        await chat.send_text(fantasy.story)
    else:
        await chat.send_image(fantasy.image.image.data, fantasy.story)
    for warning in fantasy.warnings:
        await chat.send_text(messages.warned(warning))
