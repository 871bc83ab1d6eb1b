"""What the lifecycle asks of the pod itself: is its Ollama healthy, load this model, what does it run on."""

from __future__ import annotations

from typing import Protocol

from gpugate.provider_api import Endpoint


class PodClient(Protocol):
    """The pod's Ollama, as far as the lifecycle cares."""

    async def check(self, endpoint: Endpoint) -> str | None:
        """Ask for health; None when healthy, else one line that says what was seen instead."""

    async def preload(self, endpoint: Endpoint, model: str, embeds: bool) -> str | None:
        """Have a model loaded; return when it is, or one line that says why not."""

    async def on_cpu(self, endpoint: Endpoint) -> bool:
        """Whether what is loaded runs on the CPU only; False if nothing is, or if it cannot be told."""
