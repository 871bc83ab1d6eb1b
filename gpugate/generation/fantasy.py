"""A story of a picture and a picture of that story, on one lease; knows no HTTP and no client."""

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
"""Characters of the story in the picture's prompt: image models read 77 tokens (CLIP), style included."""

STYLE = "fantasy illustration, detailed, atmospheric light"
_SYNTAX = re.compile(r"[()\[\]{}<>|\\*_#`\"“”~^]|\bembedding:|\blora:", re.IGNORECASE)
_SENTENCE = re.compile(r".+?(?:[.!?…]+(?=\s|$)|$)")


class FantasyListener(Protocol):
    """Hears of a fantasy under way."""

    async def story(self, delta: str) -> None:
        """The next piece of the story."""

    async def progress(self, stage: str, value: int, most: int) -> None:
        """How far "story" or "image" is."""


@frozen
class Fantasy:
    """What came of it; `image` is None when none was wanted, or with a warning that says why."""

    story: str = field(repr=False)
    image: GeneratedImage | None = None
    warnings: tuple[GateError, ...] = ()


@frozen
class FantasyService:
    """Tells and illustrates."""

    stories: StoryService
    images: ImageService

    def story_request(self, image: DecodedImage, prompt: str) -> StoryRequest:
        """What the vision model is asked."""
        return self.stories.request(prompt, image)

    async def generate(
        self,
        visit: LeasedCall,
        telling: StoryRequest,
        *,
        illustrated: bool = True,
        listener: FantasyListener | None = None,
    ) -> Fantasy:
        """Tell the story, then draw it; a picture that fails is a warning.

        Raises:
            StoryFailed: there is no story.
            GateError: the pod could not be had.
        """
        story = await self._story(visit, telling, listener)
        visit.mark_response_started()  # a pod that is lost now costs the picture, not a second story
        if listener is not None:
            await listener.progress("story", 1, 1)
        if not illustrated:
            return Fantasy(story)
        try:
            return Fantasy(story, await self._picture(visit, story, listener))
        except GateError as error:
            return Fantasy(story, None, (ImageFailed(error.message),))

    async def _story(self, visit: LeasedCall, telling: StoryRequest, listener: FantasyListener | None) -> str:
        if listener is None:
            return await self.stories.generate(visit, telling)
        return await self.stories.generate(visit, telling, listener.story)

    async def _picture(
        self, visit: LeasedCall, story: str, listener: FantasyListener | None
    ) -> GeneratedImage:
        drawing = self.images.job(ImageRequest(image_prompt(story), random_seed()))
        if listener is None:
            return await self.images.generate(visit, drawing)

        async def progress(value: int, most: int) -> None:
            await listener.progress("image", value, most)

        return await self.images.generate(visit, drawing, progress)


def image_prompt(story: str) -> str:
    """A short excerpt fit for an image model: whole sentences from the start, without its syntax."""
    opening = story[: 8 * EXCERPT]  # more is never used, and would only cost time
    plain = " ".join(_SYNTAX.sub(" ", opening).replace(":", ",").split())
    excerpt = ""
    for sentence in _SENTENCE.findall(plain):
        if excerpt and len(excerpt) + len(sentence) > EXCERPT:
            break
        excerpt += sentence
    if len(excerpt) > EXCERPT:
        excerpt = excerpt[:EXCERPT].rsplit(" ", 1)[0]
    return f"{STYLE}, {excerpt.strip()}"
