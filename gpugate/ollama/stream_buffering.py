"""Decides which requests are asked as streams although their clients want one answer, and how.

A provider's proxy gives up on a request that is silent for too long (`Capabilities.first_byte_limit_s`),
and an answer that does not stream is silent to its end. It must not know pods or connections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import orjson
from attrs import field, frozen

from gpugate.ollama.assemblers import (
    Anthropic,
    Assembly,
    Native,
    OpenAi,
    OpenAiChat,
    OpenAiCompletions,
    Responses,
)
from gpugate.ollama.json_edit import members, with_members
from gpugate.ollama.routes import classify
from gpugate.ollama.validation import peek

_ASSEMBLIES: Mapping[str, type[Assembly]] = {
    "/api/chat": Native,
    "/api/generate": Native,
    "/v1/chat/completions": OpenAiChat,
    "/v1/completions": OpenAiCompletions,
    "/v1/messages": Anthropic,
    "/v1/responses": Responses,
}


@frozen
class Aggregation:
    """What is asked of the pod instead, and what its stream is put together by.

    Attributes:
        body: the client's, with `stream` true, and nothing else changed but OpenAI's `stream_options`: an
            OpenAI stream tells its usage only if asked.
        assembly: makes one; each try needs its own.
    """

    body: bytes = field(repr=False)
    assembly: Callable[[], Assembly]


def aggregation(path: str, headers: Mapping[str, str], body: bytes) -> Aggregation | None:
    """How to ask for this POST's answer as a stream; None if it streams already, or cannot, or who knows."""
    kind = _ASSEMBLIES.get(path)
    if kind is None:
        return None
    seen = peek(classify("POST", path), headers, body)
    if seen.refused is not None or seen.unload or seen.stream is not False:
        return None
    changed = {"stream": b"true"}
    try:
        if issubclass(kind, OpenAi):
            changed["stream_options"] = _with_usage(body)
        return Aggregation(with_members(body, changed), kind)
    except ValueError:  # a text that only Ollama can make sense of
        return None


def _with_usage(body: bytes) -> bytes:
    """The client's `stream_options`, with the usage asked for."""
    given: object = None
    for member in members(body):
        if member.key.lower() == "stream_options":
            given = orjson.loads(body[member.begin : member.end])
    if not isinstance(given, dict | None):
        raise ValueError("no stream options")
    return orjson.dumps({**(given or {}), "include_usage": True})
