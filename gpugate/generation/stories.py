"""Generates stories, from a prompt or about an image."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import frozen

from gpugate.errors import InvalidRequest, StoryFailed
from gpugate.generation.image_format import DecodedImage
from gpugate.generation.text_model import GenerationFailed, OllamaTextModel, OnText
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.leased_call import LeasedCall, PodUnreachable

SYSTEM = (
    "You are a storyteller. Tell one short, vivid story of at most three hundred words, in plain prose "
    "without headings or lists, and nothing beside the story."
)
MAX_TOKENS = 2048
"""Limits a model that does not end by itself: each second of it is billed."""

FAILURE = "the story could not be told"
PICTURE_FAILURE = "the story about the picture could not be told"

IMAGE_PROMPT = "Look at the picture and tell a fantasy story that takes place in it."


@frozen
class StoryRequest:
    """A story to generate.

    Attributes:
        model: that generates it.
    """

    model: str
    prompt: str = ""
    image: DecodedImage | None = None

    @property
    def failure(self) -> str:
        """How a message begins that says why there is no story."""
        return FAILURE if self.image is None else PICTURE_FAILURE

    def body(self) -> dict[str, object]:
        """Return the body for `/api/generate`."""
        body: dict[str, object] = {"model": self.model, "system": SYSTEM, "prompt": self._prompt_text()}
        body["options"] = {"num_predict": MAX_TOKENS}
        if self.image is not None:
            body["images"] = [self.image.base64]
        return body

    def _prompt_text(self) -> str:
        if self.image is None:
            return self.prompt
        return f"{IMAGE_PROMPT}\n\nThe listener wishes: {self.prompt}" if self.prompt else IMAGE_PROMPT


async def _ignore(text: str) -> None:
    return None


@frozen
class StoryService:
    """Generates stories.

    Attributes:
        vision: `models.vision`, for stories about an image.
        text: `models.story`, for all others; empty: the vision model.
    """

    texts: OllamaTextModel
    vision: str
    text: str = ""

    def request(self, prompt: str, image: DecodedImage | None) -> StoryRequest:
        """Choose the model. Raises InvalidRequest without a prompt and an image."""
        if image is None and not prompt.strip():
            raise InvalidRequest("prompt or image_base64 is needed")
        model = self.text or self.vision if image is None else self.vision
        return StoryRequest(model, prompt.strip(), image)

    async def generate(self, leased: LeasedCall, request: StoryRequest, on_text: OnText = _ignore) -> str:
        """Generate a story, pass it on piece by piece to `on_text`, and return it.

        The response counts as started with the first call of `on_text`; without it the story is generated
        again when the pod is lost.

        Raises:
            StoryFailed: no story, or an incomplete one.
            GateError: the pod is not available.
        """
        streams = on_text is not _ignore

        async def work(pod: ServingPod) -> str:
            pieces = _StoryText(leased.mark_response_started if streams else None, on_text)
            await self.texts.stream_to(pod.endpoints["ollama"], "/api/generate", request.body(), pieces.add)
            return pieces.whole

        try:
            story = await leased.run(work)
        except (GenerationFailed, PodUnreachable) as error:
            raise StoryFailed(f"{request.failure}: {error}") from error
        if not story:
            raise StoryFailed(f"{request.failure}: the model {request.model!r} returned no text")
        return story


class _StoryText:
    """Collects the pieces; drops leading blanks, so that they do not start the response."""

    def __init__(self, begin: Callable[[], None] | None, on_text: Callable[[str], Awaitable[None]]) -> None:
        self._begin = begin
        self._hear = on_text
        self._parts: list[str] = []

    @property
    def whole(self) -> str:
        """The story so far."""
        return "".join(self._parts).strip()

    async def add(self, text: str) -> None:
        """Keep the next piece and pass it on."""
        if not self._parts:
            text = text.lstrip()
            if not text:
                return
            if self._begin is not None:
                self._begin()
        self._parts.append(text)
        await self._hear(text)
