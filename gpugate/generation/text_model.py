"""Text of the pod's models, streamed from its Ollama."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any

import aiohttp
import orjson
from attrs import frozen

from gpugate.errors import EdgeOutage, UpstreamTimeout
from gpugate.lifecycle.leased_call import PodUnreachable
from gpugate.provider_api import Endpoint
from gpugate.proxy.error_format import edge_error
from gpugate.relay.transport import CALL_ERRORS, ssl_option, url_of

OnText = Callable[[str], Awaitable[None]]
"""Takes each piece of text as it comes."""
SILENCE_S = 600.0
"""How long a model may send nothing; a large one loads for minutes before its first token."""
CONNECT_S = 10.0
MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
MAX_REASON = 300
"""Characters of a model's own reason that are passed on."""
_FOLDERS = re.compile(r"(?<![\w/:])(?:/[\w.@+-]+)+/(?=[\w.@+-])")
"""Of the pod's files, whose names are enough."""


class GenerationFailed(Exception):
    """The model returned an error or an incomplete response; the message is one line.

    Attributes:
        timed_out: it was silent for too long, or a proxy in front of the pod timed out; it may still run.
    """

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


@frozen
class OllamaTextModel:
    """Streams `/api/generate` and `/api/chat`; a model's thinking is left out."""

    session: aiohttp.ClientSession
    silence_s: float = SILENCE_S

    async def stream_to(
        self, endpoint: Endpoint, path: str, body: Mapping[str, object], on_text: OnText
    ) -> None:
        """Send a request, and pass each piece of text to `on_text`; return when the stream has ended
        properly.

        Args:
            endpoint: the pod's Ollama.
            path: "/api/generate" or "/api/chat".
            body: the request; errors name its `model`.

        Raises:
            PodUnreachable: the connection was refused or broke.
            GenerationFailed: any other failure.
        """
        model = str(body["model"])
        answer = await self._ask(endpoint, path, body)
        try:
            if answer.status != 200:
                said = b""
                with suppress(*CALL_ERRORS):
                    said = await answer.content.read(MAX_ERROR_BYTES)
                raise _error_for_status(answer.status, answer.content_type, model, said)
            async with aclosing(_lines(answer.content)) as lines:
                async for line in lines:
                    parsed = _parse_line(line, model)
                    if text := _text(parsed):
                        await on_text(text)
                    if parsed.get("done") is True:
                        return
        finally:
            answer.close()
        raise GenerationFailed(f"the model {model!r} stopped before its end")

    async def _ask(self, endpoint: Endpoint, path: str, body: Mapping[str, object]) -> aiohttp.ClientResponse:
        headers = {**endpoint.headers, "Content-Type": "application/json"}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self.silence_s)
        try:
            return await self.session.post(
                url_of(endpoint, path),
                data=orjson.dumps({**body, "stream": True}),
                headers=headers,
                ssl=ssl_option(endpoint),
                allow_redirects=False,
                timeout=limits,
            )
        except aiohttp.ServerTimeoutError as error:
            raise _timed_out(error, str(body["model"])) from error
        except CALL_ERRORS as error:
            connected = not isinstance(error, aiohttp.ClientConnectorError)
            raise PodUnreachable("the pod's Ollama cannot be reached", connected=connected) from error


async def _lines(content: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    """Yield whole lines as they come; the last one may lack its newline.

    Raises:
        PodUnreachable: the connection broke.
        GenerationFailed: silence, or a line that is too long.
    """
    rest = b""
    while True:
        try:
            piece = await content.readany()
        except aiohttp.ServerTimeoutError as error:
            raise GenerationFailed("the model fell silent", timed_out=True) from error
        except CALL_ERRORS as error:
            raise PodUnreachable("the pod's Ollama broke the connection") from error
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line
        if not piece:
            break
        if len(rest) > MAX_LINE_BYTES:
            raise GenerationFailed("the model's answer is no stream of lines")
    if rest:
        yield rest


def _parse_line(line: bytes, model: str) -> Mapping[str, Any]:
    if not line.strip():
        return {}
    try:
        parsed = orjson.loads(line)
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise GenerationFailed(f"the model {model!r} answered something that is no JSON")
    if "error" in parsed:
        raise GenerationFailed(failure(model, "in the middle of its answer", line))
    return parsed


def _text(parsed: Mapping[str, Any]) -> str:
    """Return the text of a line of `/api/generate` or `/api/chat`."""
    message = parsed.get("message")
    text = message.get("content") if isinstance(message, dict) else parsed.get("response")
    return text if isinstance(text, str) else ""


def _error_for_status(
    status: int, content_type: str, model: str, body: bytes
) -> GenerationFailed | PodUnreachable:
    edge = edge_error(status, content_type, body, proxied=True)
    if isinstance(edge, EdgeOutage):
        return PodUnreachable(edge.message)
    if isinstance(edge, UpstreamTimeout):
        return GenerationFailed(f"the model {model!r} did not answer in time", timed_out=True)
    if edge is not None:
        return GenerationFailed(edge.message)
    return GenerationFailed(status_error(status, model, body))


def _timed_out(error: BaseException, model: str) -> GenerationFailed | PodUnreachable:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return PodUnreachable("the pod's Ollama cannot be reached in time", connected=False)
    return GenerationFailed(f"the model {model!r} did not answer in time", timed_out=True)


def status_error(status: int, model: str, body: bytes) -> str:
    """Return one line about a model's error: its status and body."""
    return f"the pod has no model {model!r}" if status == 404 else failure(model, f"with {status}", body)


def failure(model: str, how: str, body: bytes) -> str:
    """Return one line that says how a model failed, and why in its own words if `body` has any."""
    try:
        told = orjson.loads(body).get("error")
    except (orjson.JSONDecodeError, AttributeError):
        told = None
    if isinstance(told, dict):
        told = told.get("message")
    words = " ".join(_FOLDERS.sub("", told).split()) if isinstance(told, str) else ""
    if len(words) > MAX_REASON:
        words = words[:MAX_REASON].rstrip() + "…"
    return f"the model {model!r} failed {how}" + (f": {words}" if words else "")
