"""The context of one request that the handlers of the simulated Ollama share, and their responses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from aiohttp import web
from attrs import frozen

from gpugate_demo.base_server import RecordedRequest
from gpugate_demo.chunk_writer import ChunkWriter
from gpugate_demo.dialects import JSON_UTF8, NO_HEADERS, Native
from gpugate_demo.faults import Fault
from gpugate_demo.go_decoder import Refused

if TYPE_CHECKING:
    from gpugate_demo.ollama import SimulatedOllama

TEXT = "text/plain; charset=utf-8"


@frozen
class Call:
    """The argument of every handler.

    Attributes:
        parameter: the last segment of a path that ends in one.
        cors: headers that CORS adds to the answer.
    """

    owner: SimulatedOllama
    request: web.BaseRequest
    seen: RecordedRequest
    fault: Fault | None
    parameter: str
    cors: Mapping[str, str]

    async def body(self) -> bytes:
        """The whole body, recorded."""
        return await self.owner.read_body(self.request, self.seen)

    def outlet(self, content_type: str, headers: Mapping[str, str] = NO_HEADERS) -> ChunkWriter:
        """The writer of a streamed response."""
        return ChunkWriter(self.request, self.seen, self.fault, content_type, {**headers, **self.cors})


Handler = Callable[["SimulatedOllama", Call], Awaitable[web.StreamResponse]]


def answer(body: bytes, content_type: str = JSON_UTF8, status: int = 200) -> web.Response:
    """A whole answer; no content type without a body, as from Go."""
    response = web.Response(status=status, body=body)
    if body:
        response.headers["Content-Type"] = content_type
    return response


def refuse(dialect: Native, refused: Refused) -> web.Response:
    """A refusal in the words of one surface."""
    body, content_type = dialect.refused(refused.status, refused.text)
    return answer(body, content_type, refused.status)


def refuse_early(dialect: Native, refused: Refused) -> web.Response:
    """The same from before its translator has begun: with a charset, and without the newline."""
    body, _ = dialect.refused(refused.status, refused.text)
    return answer(body.removesuffix(b"\n"), JSON_UTF8, refused.status)
