"""The API dialects of the simulated Ollama: how native events, refusals and failures are written in each.

`Native` is Ollama's own. The others do what Ollama's middleware does to it, its habit of losing an
error in mid-stream included (docs/ollama.md#errors-in-mid-stream).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

import orjson

from gpugate_demo.generation import Event, text_of

JSON_UTF8 = "application/json; charset=utf-8"
JSON_PLAIN = "application/json"
SSE = "text/event-stream"
NO_HEADERS: Mapping[str, str] = {}


def data_frame(value: Any) -> bytes:
    """One unnamed SSE event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def named_frame(name: str, value: Any) -> bytes:
    """One named SSE event."""
    return b"event: " + name.encode() + b"\n" + data_frame(value)


def openai_error(status: int, text: str) -> bytes:
    """OpenAI's error object, as Ollama fills it."""
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    return orjson.dumps({"error": {"message": text, "type": kind, "param": None, "code": None}})


def usage_of(event: Event) -> dict[str, int]:
    """OpenAI's counts of one finished event."""
    asked, said = int(event.get("prompt_eval_count", 0)), int(event.get("eval_count", 0))
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


class Native:
    """Ollama's own: NDJSON, or one JSON object."""

    stream_type: ClassVar[str] = "application/x-ndjson"
    whole_type: ClassVar[str] = JSON_UTF8
    stream_headers: ClassVar[Mapping[str, str]] = NO_HEADERS

    def chunk(self, event: Event) -> bytes:
        """The bytes of one event in a stream."""
        return orjson.dumps(event) + b"\n"

    def whole(self, event: Event) -> bytes:
        """The body of an answer that does not stream."""
        return orjson.dumps(event)

    def refused(self, status: int, text: str) -> tuple[bytes, str]:
        """Body and content type of a refusal."""
        return orjson.dumps({"error": text}), JSON_UTF8

    def failed(self, text: str) -> bytes:
        """What a stream gets when the model fails under way; a clean end follows."""
        return orjson.dumps({"error": text}) + b"\n"


NATIVE = Native()


class OpenAiChat(Native):
    """/v1/chat/completions."""

    stream_type = SSE
    whole_type = JSON_PLAIN

    def __init__(self, model: str, number: int, *, include_usage: bool = False) -> None:
        self._model = model
        self._id = f"chatcmpl-{number % 999}"
        self._include_usage = include_usage

    def _head(self, kind: str) -> dict[str, Any]:
        created = int(time.time())
        return {
            "id": self._id,
            "object": kind,
            "created": created,
            "model": self._model,
            "system_fingerprint": "fp_ollama",
        }

    def _chunk(self, text: str, reason: str | None) -> dict[str, Any]:
        delta = {"role": "assistant", "content": text}
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def chunk(self, event: Event) -> bytes:
        """One frame; the last event brings the usage, if asked for, and [DONE]."""
        frame = data_frame(self._chunk(text_of(event), event.get("done_reason")))
        return frame + self._ending(event, self._head("chat.completion.chunk"))

    def _ending(self, event: Event, head: dict[str, Any]) -> bytes:
        if not event["done"]:
            return b""
        usage = data_frame({**head, "choices": [], "usage": usage_of(event)}) if self._include_usage else b""
        return usage + b"data: [DONE]\n\n"

    def whole(self, event: Event) -> bytes:
        """A chat.completion; Go's encoder ends it with a newline."""
        message = {"role": "assistant", "content": text_of(event)}
        choice = {"index": 0, "message": message, "finish_reason": event.get("done_reason")}
        answer = {**self._head("chat.completion"), "choices": [choice], "usage": usage_of(event)}
        return orjson.dumps(answer) + b"\n"

    def refused(self, status: int, text: str) -> tuple[bytes, str]:
        """OpenAI's error object."""
        return openai_error(status, text) + b"\n", JSON_PLAIN

    def failed(self, text: str) -> bytes:
        """An empty chunk: the error is lost in translation."""
        return data_frame({**self._chunk("", None), "model": ""})


class OpenAiCompletions(OpenAiChat):
    """/v1/completions."""

    def __init__(self, model: str, number: int, *, include_usage: bool = False) -> None:
        super().__init__(model, number, include_usage=include_usage)
        self._id = f"cmpl-{number % 999}"

    def _chunk(self, text: str, reason: str | None) -> dict[str, Any]:
        choice = {"text": text, "index": 0, "finish_reason": reason}
        return {**self._head("text_completion"), "choices": [choice]}

    def chunk(self, event: Event) -> bytes:
        """One frame; the last event brings the usage, if asked for, and [DONE]."""
        frame = data_frame(self._chunk(text_of(event), event.get("done_reason")))
        return frame + self._ending(event, self._head("text_completion"))

    def whole(self, event: Event) -> bytes:
        """A text_completion."""
        answer = self._chunk(text_of(event), event.get("done_reason"))
        return orjson.dumps({**answer, "usage": usage_of(event)}) + b"\n"


class Anthropic(Native):
    """/v1/messages."""

    stream_type = SSE
    whole_type = JSON_PLAIN
    stream_headers: ClassVar[Mapping[str, str]] = {"Cache-Control": "no-cache", "Connection": "keep-alive"}

    _KINDS: ClassVar[Mapping[int, str]] = {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
        503: "overloaded_error",
        529: "overloaded_error",
    }

    def __init__(self, model: str, number: int) -> None:
        self._model = model
        self._number = number
        self._begun = False

    def _message(self, content: list[Any], reason: str | None, usage: Mapping[str, int]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._number:024x}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": dict(usage),
        }

    @staticmethod
    def _usage(event: Event) -> dict[str, int]:
        counts = usage_of(event)
        return {"input_tokens": counts["prompt_tokens"], "output_tokens": counts["completion_tokens"]}

    @staticmethod
    def _reason(event: Event) -> str:
        return "max_tokens" if event.get("done_reason") == "length" else "end_turn"

    def _beginning(self) -> bytes:
        message = self._message([], None, {"input_tokens": 0, "output_tokens": 0})
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        return named_frame("message_start", {"type": "message_start", "message": message}) + named_frame(
            "content_block_start", block
        )

    def chunk(self, event: Event) -> bytes:
        """The named events that one native event becomes."""
        frames = b"" if self._begun else self._beginning()
        self._begun = True
        if text := text_of(event):
            delta = {"type": "text_delta", "text": text}
            frames += named_frame(
                "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}
            )
        if event["done"]:
            frames += named_frame("content_block_stop", {"type": "content_block_stop", "index": 0})
            stop = {"stop_reason": self._reason(event), "stop_sequence": None}
            ending = {"type": "message_delta", "delta": stop, "usage": self._usage(event)}
            frames += named_frame("message_delta", ending)
            frames += named_frame("message_stop", {"type": "message_stop"})
        return frames

    def whole(self, event: Event) -> bytes:
        """A message."""
        content = [{"type": "text", "text": text_of(event)}]
        return orjson.dumps(self._message(content, self._reason(event), self._usage(event))) + b"\n"

    def refused(self, status: int, text: str) -> tuple[bytes, str]:
        """Anthropic's error object."""
        error = {"type": self._KINDS.get(status, "api_error"), "message": text}
        answer = {"type": "error", "error": error, "request_id": f"req_{self._number:024x}"}
        return orjson.dumps(answer) + b"\n", JSON_PLAIN

    def failed(self, text: str) -> bytes:
        """Nothing at all: the error is lost in translation."""
        return b""
