"""Decides which requests are asked as streams although their clients want one answer, and how.

A provider's proxy gives up on a request that is silent for too long (`Capabilities.first_byte_limit_s`),
and an answer that does not stream is silent to its end. It must not know pods or connections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import orjson
from attrs import field, frozen

from gpugate.ollama.assemblers import (
    AnthropicAssembler,
    OllamaAssembler,
    OpenAiAssembler,
    OpenAiChatAssembler,
    OpenAiCompletionsAssembler,
    ResponseAssembler,
    ResponsesAssembler,
)
from gpugate.ollama.json_edit import members, set_members
from gpugate.ollama.routes import match_route
from gpugate.ollama.validation import scan_body

_ASSEMBLIES: Mapping[str, type[ResponseAssembler]] = {
    "/api/chat": OllamaAssembler,
    "/api/generate": OllamaAssembler,
    "/v1/chat/completions": OpenAiChatAssembler,
    "/v1/completions": OpenAiCompletionsAssembler,
    "/v1/messages": AnthropicAssembler,
    "/v1/responses": ResponsesAssembler,
}


@frozen
class StreamRewrite:
    """What is asked of the pod instead, and what its stream is put together by.

    Attributes:
        body: the client's, with `stream` true, and nothing else changed but OpenAI's `stream_options`: an
            OpenAI stream tells its usage only if asked.
        assembler: makes one; each try needs its own.
    """

    body: bytes = field(repr=False)
    assembler: Callable[[], ResponseAssembler]


def stream_rewrite(path: str, headers: Mapping[str, str], body: bytes) -> StreamRewrite | None:
    """How to ask for this POST's answer as a stream; None if it streams already, or cannot, or who knows."""
    kind = _ASSEMBLIES.get(path)
    if kind is None:
        return None
    seen = scan_body(match_route("POST", path), headers, body)
    if seen.error is not None or seen.unload or seen.stream is not False:
        return None
    changed = {"stream": b"true"}
    try:
        if issubclass(kind, OpenAiAssembler):
            changed["stream_options"] = _with_usage(body)
        return StreamRewrite(set_members(body, changed), kind)
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
