"""Stories: a model that sees a picture, or reads a prompt, tells one; knows no HTTP and no client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import frozen

from gpugate.errors import InvalidRequest, StoryFailed
from gpugate.generation.image_format import DecodedImage
from gpugate.generation.text_model import GenerationFailed, OnText, TextModel
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.leased_call import LeasedCall, PodUnreachable

SYSTEM = (
    "You are a storyteller. Tell one short, vivid story of at most three hundred words, in plain prose "
    "without headings or lists, and nothing beside the story."
)
MOST_TOKENS = 2048
"""A model that finds no end of its own is stopped here: every second of it is paid for."""

OF_IMAGE = "Look at the picture and tell a fantasy story that takes place in it."


@frozen
class StoryRequest:
    """What a story shall be about.

    Attributes:
        model: who tells it.
    """

    model: str
    prompt: str = ""
    image: DecodedImage | None = None

    def body(self) -> dict[str, object]:
        """The request, for `/api/generate`."""
        asked: dict[str, object] = {"model": self.model, "system": SYSTEM, "prompt": self._words()}
        asked["options"] = {"num_predict": MOST_TOKENS}
        if self.image is not None:
            asked["images"] = [self.image.base64]
        return asked

    def _words(self) -> str:
        if self.image is None:
            return self.prompt
        return f"{OF_IMAGE}\n\nThe listener wishes: {self.prompt}" if self.prompt else OF_IMAGE


async def _nobody(text: str) -> None:
    return None


@frozen
class StoryService:
    """Tells stories.

    Attributes:
        vision: `models.vision`, for stories of a picture.
        text: `models.story`, for all others; empty for the vision model.
    """

    texts: TextModel
    vision: str
    text: str = ""

    def request(self, prompt: str, image: DecodedImage | None) -> StoryRequest:
        """Choose the model. Raises InvalidRequest without a prompt and an image."""
        if image is None and not prompt.strip():
            raise InvalidRequest("prompt or image_base64 is needed")
        model = self.text or self.vision if image is None else self.vision
        return StoryRequest(model, prompt.strip(), image)

    async def generate(self, visit: LeasedCall, telling: StoryRequest, hear: OnText = _nobody) -> str:
        """Tell a story, piece by piece to `hear`, and return it whole.

        With the first piece for `hear` the answer has begun; without `hear` it may be told again when
        the pod is lost.

        Raises:
            StoryFailed: no story, or not to its end.
            GateError: the pod could not be had.
        """
        listens = hear is not _nobody

        async def work(pod: ServingPod) -> str:
            pieces = _StoryText(visit.mark_response_started if listens else None, hear)
            await self.texts.stream_to(pod.endpoints["ollama"], "/api/generate", telling.body(), pieces.add)
            return pieces.whole

        try:
            story = await visit.run(work)
        except (GenerationFailed, PodUnreachable) as error:
            raise StoryFailed(str(error)) from error
        if not story:
            raise StoryFailed(f"the model {telling.model!r} told nothing")
        return story


class _StoryText:
    """What came so far; blanks at the beginning are no story, so they begin no answer."""

    def __init__(self, begin: Callable[[], None] | None, hear: Callable[[str], Awaitable[None]]) -> None:
        self._begin = begin
        self._hear = hear
        self._said: list[str] = []

    @property
    def whole(self) -> str:
        """The story."""
        return "".join(self._said).strip()

    async def add(self, text: str) -> None:
        """Take the next piece and pass it on."""
        if not self._said:
            text = text.lstrip()
            if not text:
                return
            if self._begin is not None:
                self._begin()
        self._said.append(text)
        await self._hear(text)
