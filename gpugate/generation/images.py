"""Pictures from words: a wish becomes a workflow's graph, and what ComfyUI gives is checked and stripped.

Knows no HTTP; how a job is followed is the painter's business (`generation.image_backend`).
"""

from __future__ import annotations

import asyncio
import secrets

from attrs import evolve, field, frozen

from gpugate.errors import ImageFailed
from gpugate.generation import image_format
from gpugate.generation.image_backend import Graph, ImageBackend, Progress
from gpugate.generation.text_model import PodUnreachable
from gpugate.generation.workflows import ImageRequest, Workflow, Workflows
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.leased_call import LeasedCall

LARGEST_SEED = 2**64 - 1


@frozen
class GeneratedImage:
    """A finished picture, without metadata unless it was asked for."""

    image: image_format.DecodedImage
    filename: str
    seed: int


@frozen
class ImageJob:
    """A wish and the workflow that shall fulfil it, checked before anything wakes.

    Attributes:
        metadata: leave in what ComfyUI writes into the picture: the workflow, the prompt included.
    """

    request: ImageRequest = field(repr=False)
    workflow: Workflow
    metadata: bool = False


async def _nobody(value: int, most: int) -> None:
    return None


@frozen
class ImageService:
    """Draws pictures."""

    backend: ImageBackend
    workflows: Workflows

    def job(self, wish: ImageRequest, workflow: str | None = None, *, metadata: bool = False) -> ImageJob:
        """Check a wish. Raises InvalidRequest: no such workflow, or one that cannot do this."""
        drawing = ImageJob(wish, self.workflows.find(workflow), metadata)
        self._graph(drawing)
        return drawing

    async def generate(
        self, visit: LeasedCall, drawing: ImageJob, progress: Progress = _nobody
    ) -> GeneratedImage:
        """Draw. With the first step told to `progress` the answer has begun.

        Raises:
            ImageFailed: ComfyUI is not there, failed, or was not done in time.
            GateError: the pod could not be had.
        """

        async def tell(value: int, most: int) -> None:
            if progress is not _nobody:
                visit.mark_response_started()
            await progress(value, most)

        async def work(pod: ServingPod) -> GeneratedImage:
            endpoint = pod.endpoints.get("comfyui")
            if endpoint is None:
                raise ImageFailed("the pod has no ComfyUI")
            # A new graph for each try: another mark, another file.
            drawn = await self.backend.generate(endpoint, self._graph(drawing), tell)
            image = await asyncio.to_thread(_checked, drawn.data, drawing.metadata)
            return GeneratedImage(image, drawn.filename, drawing.request.seed)

        try:
            return await visit.run(work, attempts=1)
        except PodUnreachable as error:
            raise ImageFailed(str(error)) from error

    def _graph(self, drawing: ImageJob) -> Graph:
        return drawing.workflow.render(drawing.request, self.workflows.checkpoint, secrets.token_hex(4))


def _checked(data: bytes, metadata: bool) -> image_format.DecodedImage:
    """Only what is a whole picture leaves, and without what ComfyUI wrote into it unless that is wanted."""
    try:
        image = image_format.read_image(data)
        return image if metadata else evolve(image, data=image_format.strip_metadata(data))
    except image_format.InvalidImage as error:
        raise ImageFailed(f"ComfyUI gave something that {error}") from error


def random_seed() -> int:
    """A seed by chance: the same graph twice would be answered from ComfyUI's cache."""
    return secrets.randbelow(LARGEST_SEED + 1)
