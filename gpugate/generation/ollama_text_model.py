"""Text of the pod's models, token by token; implements `generation.text_model.TextModel`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import aiohttp
import orjson
from attrs import frozen

from gpugate.generation.text_model import GenerationFailed, OnText, PodUnreachable
from gpugate.provider_api import Endpoint
from gpugate.proxy.error_format import is_edge_error, is_edge_timeout
from gpugate.relay.pod_http import CALL_ERRORS, ssl_option, url_of

SILENCE_S = 600.0
"""Longest silence of a model; a large one loads for minutes before its first token."""

CONNECT_S = 10.0
LONGEST_LINE = 8 * 1024 * 1024


@frozen
class OllamaTextModel:
    """Streams `/api/generate` and `/api/chat`; what a model "thinks" is left out."""

    session: aiohttp.ClientSession
    silence_s: float = SILENCE_S

    async def stream_to(
        self, endpoint: Endpoint, path: str, body: Mapping[str, object], hear: OnText
    ) -> None:
        """See `TextModel.stream_to`."""
        model = str(body["model"])
        answer = await self._ask(endpoint, path, body)
        try:
            if answer.status != 200:
                raise _error_for_status(answer.status, answer.content_type, model)
            async with aclosing(_lines(answer.content)) as lines:
                async for line in lines:
                    said = _parse_line(line, model)
                    if text := _text(said):
                        await hear(text)
                    if said.get("done") is True:
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
            raise PodUnreachable("the pod's Ollama cannot be reached") from error


async def _lines(content: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    """Whole lines as they come; the last one may lack its newline.

    Raises:
        PodUnreachable: the connection broke.
        GenerationFailed: silence, or a line that never ends.
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
        if len(rest) > LONGEST_LINE:
            raise GenerationFailed("the model's answer is no stream of lines")
    if rest:
        yield rest


def _parse_line(line: bytes, model: str) -> Mapping[str, Any]:
    if not line.strip():
        return {}
    try:
        said = orjson.loads(line)
    except orjson.JSONDecodeError:
        said = None
    if not isinstance(said, dict):
        raise GenerationFailed(f"the model {model!r} answered something that is no JSON")
    if "error" in said:  # its text may name files of the pod, so it is not passed on
        raise GenerationFailed(f"the model {model!r} failed in the middle of its answer")
    return said


def _text(said: Mapping[str, Any]) -> str:
    """Of `/api/generate` or of `/api/chat`."""
    message = said.get("message")
    text = message.get("content") if isinstance(message, dict) else said.get("response")
    return text if isinstance(text, str) else ""


def _error_for_status(status: int, content_type: str, model: str) -> GenerationFailed | PodUnreachable:
    if is_edge_error(status, content_type, proxied=True):
        if is_edge_timeout(status):
            return GenerationFailed(f"the model {model!r} did not answer in time", timed_out=True)
        return PodUnreachable(f"the pod's Ollama cannot be reached ({status})")
    return GenerationFailed(status_error(status, model))


def _timed_out(error: BaseException, model: str) -> GenerationFailed | PodUnreachable:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return PodUnreachable("the pod's Ollama cannot be reached in time")
    return GenerationFailed(f"the model {model!r} did not answer in time", timed_out=True)


def status_error(status: int, model: str) -> str:
    """One line about a model that answered with an error status."""
    return f"the pod has no model {model!r}" if status == 404 else f"the model {model!r} answered {status}"
