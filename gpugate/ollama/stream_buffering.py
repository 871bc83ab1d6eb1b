"""Asks for a stream where the client wants one response in one piece, so that the connection is never silent.

A provider's proxy gives up on a request that is silent for too long (`Capabilities.first_byte_limit_s`), and
a response that does not stream is silent to its end.
"""

from __future__ import annotations

from collections.abc import Mapping

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
from gpugate.ollama.validation import OllamaBody

_ASSEMBLERS: Mapping[str, type[ResponseAssembler]] = {
    "/api/chat": OllamaAssembler,
    "/api/generate": OllamaAssembler,
    "/v1/chat/completions": OpenAiChatAssembler,
    "/v1/completions": OpenAiCompletionsAssembler,
    "/v1/messages": AnthropicAssembler,
    "/v1/responses": ResponsesAssembler,
}


@frozen
class StreamRewrite:
    """What is sent to the pod instead, and what puts its stream together.

    Attributes:
        body: the client's bytes with `stream` true at the end; OpenAI's also ask for the usage there.
        assembler: its class; each attempt needs an instance of its own.
    """

    body: bytes = field(repr=False)
    assembler: type[ResponseAssembler]


def stream_rewrite(path: str, body: OllamaBody) -> StreamRewrite | None:
    """Return how to ask for this POST's response as a stream; None if it streams already, or cannot.

    The changed members are appended: of two members of one name every decoder in use, Go's among them, takes
    the last. So the body need not be written anew, and every other byte stays as the client wrote it.
    """
    assembler = _ASSEMBLERS.get(path)
    if assembler is None:
        return None
    fields = body.fields
    if fields.error is not None or fields.unload or fields.stream is not False:
        return None
    appended: dict[str, object] = {"stream": True}
    if issubclass(assembler, OpenAiAssembler):
        given = fields.stream_options
        if not isinstance(given, dict | None):
            return None  # Ollama refuses it
        appended["stream_options"] = {**(given or {}), "include_usage": True}
    end = body.raw.rfind(b"}")
    if body.raw[end + 1 :].strip():
        return None  # text behind the object: a brace in it could be the last one
    return StreamRewrite(b"".join((memoryview(body.raw)[:end], b",", orjson.dumps(appended)[1:])), assembler)
