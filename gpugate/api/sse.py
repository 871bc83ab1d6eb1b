"""Server-Sent Events for the services: an answer that begins with its first event; knows no service."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from aiohttp_sse import EventSourceResponse

from gpugate.errors import GateError
from gpugate.lifecycle.lease import Lease, ServingPod
from gpugate.proxy.error_format import dump
from gpugate.proxy.request_context import RequestContext
from gpugate.proxy.server import SERVER_HEADER

PING_S = 15.0
SEND_S = 120.0
"""A client that takes nothing for so long is as good as gone; the pod it holds costs money."""


class SseResponse:
    """One answer; `async with` ends it.

    Before the first event nothing has left and a failure is a plain error (docs/api.md#service-events);
    unless the pod is waited for with a heartbeat of `beat_s` seconds (0: none).
    """

    def __init__(self, call: RequestContext, beat_s: float = 0.0) -> None:
        self._call = call
        self._beat_s = beat_s
        self._response: EventSourceResponse | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._response is not None:
            self._response.stop_streaming()
            await self._response.wait()

    async def send(self, event: str, data: object) -> None:
        """Send one event; `data` is anything JSON."""
        response = await self._begun()
        try:
            await response.send(dump(data).decode(), event=event)
        except TimeoutError as error:  # the client takes nothing: it is as good as gone
            raise ConnectionResetError("the client reads nothing") from error

    async def wait_for_pod(self, lease: Lease) -> ServingPod:
        """Wait for the pod; with `beat_s` a comment says now and then that it is waited for.

        Raises:
            GateError: the request was refused.
        """
        while True:
            try:
                async with asyncio.timeout(self._beat_s or None):
                    return await lease.wait_admitted()
            except TimeoutError:
                response = await self._begun()
                await response.write(b": waiting\n\n")

    async def _begun(self) -> EventSourceResponse:
        if self._response is None:
            lines = self._call.extra_head.decode("ascii").split("\r\n")
            headers = {"Server": SERVER_HEADER, **dict(line.split(": ", 1) for line in lines if line)}
            response = EventSourceResponse(
                headers=headers,
                sep="\n",
                allow_all_methods=True,
                ping_interval=PING_S,
                send_timeout=SEND_S,
            )
            await response.prepare(self._call.request)
            self._response = response
        return self._response

    async def finish_with_error(self, error: GateError) -> None:
        """End with an error event. Raises the error itself while nothing has been sent."""
        if self._response is None:
            raise error
        await self.send("error", {"code": error.code, "message": " ".join(error.message.split())})

    @property
    def response(self) -> EventSourceResponse:
        """The answer, once its first event is out."""
        assert self._response is not None
        return self._response


def wants_only_events(accept: str | None) -> bool:
    """Whether a client accepts Server-Sent Events and nothing else."""
    ranges = [part.partition(";")[0].strip().lower() for part in (accept or "").split(",")]
    return {one for one in ranges if one} == {"text/event-stream"}
