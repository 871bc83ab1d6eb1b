"""Generates images: renders a request into a workflow, runs it, checks the result and strips its metadata."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from attrs import evolve, field, frozen

from gpugate.errors import ImageFailed
from gpugate.generation import image_format
from gpugate.generation.comfyui import ComfyUIBackend, Graph, Progress
from gpugate.generation.workflows import ImageRequest, Workflow, Workflows
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.leased_call import LeasedCall, PodUnreachable
from gpugate.tasks import spawn

MAX_SEED = 2**64 - 1
MAX_RANDOM_SEED = 2**31 - 1
"""Many nodes take no larger seed, and JavaScript changes those above 2**53
(docs/telegram-comfyui.md#comfyui-hints-for-users)."""

STEADY_FILLER_S = 15.0
"""Least pause between two fillers once ComfyUI's steps come, as between the pings of an event stream."""


@frozen
class GeneratedImage:
    """A generated image, without metadata unless it was requested."""

    image: image_format.DecodedImage
    filename: str
    seed: int


@frozen
class ImageJob:
    """A request and its workflow, checked before a pod is started.

    Attributes:
        metadata: keep what ComfyUI writes into the image: the workflow with the prompt.
    """

    request: ImageRequest = field(repr=False)
    workflow: Workflow
    metadata: bool = False


async def _no_progress(value: float, most: float) -> None:
    return None


@frozen
class ImageService:
    """Generates images."""

    backend: ComfyUIBackend
    workflows: Workflows

    def job(self, wish: ImageRequest, workflow: str | None = None, *, metadata: bool = False) -> ImageJob:
        """Check a request. Raises InvalidRequest: no such workflow, or it lacks what the request sets."""
        image_job = ImageJob(wish, self.workflows.find(workflow), metadata)
        self._graph(image_job)
        return image_job

    async def generate(
        self, leased: LeasedCall, image_job: ImageJob, progress: Progress = _no_progress
    ) -> GeneratedImage:
        """Generate an image. The response counts as started with the first call of `progress`.

        Raises:
            ImageFailed: ComfyUI is not there, failed, or took too long.
            GateError: the pod is not available.
        """

        begun = asyncio.Event()

        async def tell(value: float, most: float) -> None:
            begun.set()
            if progress is not _no_progress:
                leased.mark_response_started()
            await progress(value, most)

        async def work(pod: ServingPod) -> GeneratedImage:
            endpoint = pod.endpoints.get("comfyui")
            if endpoint is None:
                raise ImageFailed("the pod has no ComfyUI")
            # A new graph for each attempt, so that its file has another name.
            async with _filler(leased, begun):
                drawn = await self.backend.generate(endpoint, self._graph(image_job), tell)
            image = await asyncio.to_thread(_checked_image, drawn.data, image_job.metadata)
            return GeneratedImage(image, drawn.filename, image_job.request.seed)

        try:
            return await leased.run(work, attempts=1, service="comfyui")
        except PodUnreachable as error:
            raise ImageFailed(str(error)) from error

    def _graph(self, image_job: ImageJob) -> Graph:
        return image_job.workflow.render(image_job.request, self.workflows.checkpoint, secrets.token_hex(4))


@asynccontextmanager
async def _filler(leased: LeasedCall, begun: asyncio.Event) -> AsyncIterator[None]:
    """Send filler, if it is configured, while ComfyUI comes up, queues the job, loads and draws."""
    if leased.send_filler is None:
        yield
        return
    task = spawn(_send_filler(leased.send_filler, leased.filler_s, begun), "images: filler")
    try:
        yield
    finally:
        task.cancel()


async def _send_filler(send: Callable[[], Awaitable[None]], pause_s: float, begun: asyncio.Event) -> None:
    with suppress(ConnectionError):  # the client is gone
        await asyncio.sleep(pause_s)
        while not begun.is_set():
            await send()
            await asyncio.sleep(pause_s)
        while True:
            await asyncio.sleep(max(pause_s, STEADY_FILLER_S))
            await send()


def _checked_image(data: bytes, metadata: bool) -> image_format.DecodedImage:
    """Return a complete image, without metadata unless it is requested. Raises ImageFailed."""
    try:
        image = image_format.read_image(data)
        return image if metadata else evolve(image, data=image_format.strip_metadata(data))
    except image_format.InvalidImage as error:
        raise ImageFailed(f"ComfyUI returned something that {error}") from error


def random_seed() -> int:
    """Return a random seed: ComfyUI would answer the same graph from its cache."""
    return secrets.randbelow(MAX_RANDOM_SEED + 1)
