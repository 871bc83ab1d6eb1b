"""Generates a story about an image and an illustration of the story, under one lease."""

from __future__ import annotations

import re
from typing import Protocol

from attrs import field, frozen

from gpugate.errors import GateError, ImageFailed
from gpugate.generation.image_format import DecodedImage
from gpugate.generation.images import GeneratedImage, ImageService, random_seed
from gpugate.generation.stories import StoryRequest, StoryService
from gpugate.generation.workflows import ImageRequest
from gpugate.lifecycle.leased_call import LeasedCall

EXCERPT = 320
"""Characters of the story in the image prompt: image models read 77 tokens (CLIP), with the style."""

STYLE = "fantasy illustration, detailed, atmospheric light"
_SYNTAX = re.compile(r"[()\[\]{}<>|\\*_#`\"“”~^]|\bembedding:|\blora:", re.IGNORECASE)
_SENTENCE = re.compile(r".+?(?:[.!?…]+(?=\s|$)|$)")


class FantasyListener(Protocol):
    """Takes the progress of a fantasy."""

    async def story(self, delta: str) -> None:
        """Take the next piece of the story."""

    async def progress(self, stage: str, value: float, most: float) -> None:
        """Take the progress of the stage "story" or "image"."""


@frozen
class Fantasy:
    """What came of it; `image` is None when none was wanted, or with a warning that says why."""

    story: str = field(repr=False)
    image: GeneratedImage | None = None
    warnings: tuple[GateError, ...] = ()


@frozen
class FantasyService:
    """Generates a story and its illustration."""

    stories: StoryService
    images: ImageService

    def story_request(self, image: DecodedImage, prompt: str) -> StoryRequest:
        """Return the request to the vision model."""
        return self.stories.request(prompt, image)

    async def generate(
        self,
        leased: LeasedCall,
        request: StoryRequest,
        *,
        illustrated: bool = True,
        listener: FantasyListener | None = None,
        pictures: LeasedCall | None = None,
    ) -> Fantasy:
        """Generate the story, then the illustration; if that fails, the result has a warning instead.

        Args:
            pictures: the use of the pod with ComfyUI, where that is another one.

        Raises:
            StoryFailed: no story could be generated.
            GateError: the pod is not available.
        """
        story = await self._story(leased, request, listener)
        leased.mark_response_started()  # from here a lost pod costs the illustration only
        if listener is not None:
            await listener.progress("story", 1, 1)
        if not illustrated:
            return Fantasy(story)
        try:
            return Fantasy(story, await self._illustrate(pictures or leased, story, listener))
        except GateError as error:
            return Fantasy(story, None, (ImageFailed(error.message),))

    async def _story(
        self, leased: LeasedCall, request: StoryRequest, listener: FantasyListener | None
    ) -> str:
        if listener is None:
            return await self.stories.generate(leased, request)
        return await self.stories.generate(leased, request, listener.story)

    async def _illustrate(
        self, leased: LeasedCall, story: str, listener: FantasyListener | None
    ) -> GeneratedImage:
        job = self.images.job(ImageRequest(image_prompt(story), random_seed()))
        if listener is None:
            return await self.images.generate(leased, job)

        async def progress(value: float, most: float) -> None:
            await listener.progress("image", value, most)

        return await self.images.generate(leased, job, progress)


def image_prompt(story: str) -> str:
    """Return the first sentences of a story as an image prompt, without prompt syntax."""
    opening = story[: 8 * EXCERPT]  # more is never used
    plain = " ".join(_SYNTAX.sub(" ", opening).replace(":", ",").split())
    excerpt = ""
    for sentence in _SENTENCE.findall(plain):
        if excerpt and len(excerpt) + len(sentence) > EXCERPT:
            break
        excerpt += sentence
    if len(excerpt) > EXCERPT:
        excerpt = excerpt[:EXCERPT].rsplit(" ", 1)[0]
    return f"{STYLE}, {excerpt.strip()}"
