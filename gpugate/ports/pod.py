"""What the lifecycle asks of the pod itself: is its Ollama healthy, and load this model."""

from __future__ import annotations

from typing import Protocol

from gpugate.ports.provider import Endpoint


class Pod(Protocol):
    """The pod's Ollama, as far as the lifecycle cares."""

    async def check(self, endpoint: Endpoint) -> str | None:
        """Ask for health; None when healthy, else one line that says what was seen instead."""

    async def preload(self, endpoint: Endpoint, model: str, embeds: bool) -> str | None:
        """Have a model loaded; return when it is, or one line that says why not."""
