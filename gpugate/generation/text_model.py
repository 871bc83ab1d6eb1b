"""What the services ask of the pod's models: tokens; it must not know HTTP, leases or clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from gpugate.lifecycle.leased_call import AttemptFailed
from gpugate.provider_api import Endpoint

OnText = Callable[[str], Awaitable[None]]
"""Gets each piece of text as it comes."""


class PodUnreachable(AttemptFailed):
    """A service of the pod could not be reached, or hung up: perhaps the pod is no more.

    The message is one line for people.
    """


class GenerationFailed(Exception):
    """The model refused, broke off, or ended without saying so; the message is one line for people.

    Attributes:
        timed_out: a proxy in front of the pod gave up waiting; the job may still run.
    """

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class TextModel(Protocol):
    """A model that answers in pieces."""

    async def stream_to(
        self, endpoint: Endpoint, path: str, body: Mapping[str, object], hear: OnText
    ) -> None:
        """Ask, and hand each piece of text to `hear`; return only after an answer that ended in order.

        Args:
            endpoint: the pod's Ollama.
            path: "/api/generate" or "/api/chat".
            body: the request; its `model` is named in complaints.

        Raises:
            PodUnreachable: the connection was refused or broke.
            GenerationFailed: anything else that is no whole answer.
        """
