"""What the services ask of the pod's ComfyUI: one picture of one graph; it must not know HTTP or leases."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from attrs import field, frozen

from gpugate.provider_api import Endpoint

Graph = Mapping[str, Any]
"""A ComfyUI graph in API format: node id to `{"class_type", "inputs", "_meta"?}`."""

Progress = Callable[[int, int], Awaitable[None]]
"""Gets (value, max) of the node that is at work."""


@frozen
class RawImage:
    """A picture as ComfyUI gave it, its metadata still in it.

    Attributes:
        filename: the bare name, without a folder.
    """

    data: bytes = field(repr=False)
    filename: str


class ImageBackend(Protocol):
    """A ComfyUI."""

    async def generate(self, endpoint: Endpoint, graph: Graph, progress: Progress) -> RawImage:
        """Submit a graph, follow the job, fetch its picture; cancelled, it cancels the job too.

        Raises:
            PodUnreachable: ComfyUI answered, and then no more (`gpugate.generation.text_model`).
            ImageFailed: every other failure, the timeout included, in one readable line.
        """
