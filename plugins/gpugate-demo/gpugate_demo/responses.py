"""The /v1/responses dialect: turns native events into named response events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

import orjson

from gpugate_demo.dialects import JSON_PLAIN, SSE, Native, named_frame, openai_error, usage_of
from gpugate_demo.generation import Event, text_of


class Responses(Native):
    """One answer; `chunk` numbers its events."""

    stream_type = SSE
    whole_type = JSON_PLAIN
    stream_headers: ClassVar[Mapping[str, str]] = {"Cache-Control": "no-cache", "Connection": "keep-alive"}

    def __init__(self, model: str, number: int, instructions: str | None = None) -> None:
        self._model = model
        self._id = f"resp_{number % 999999}"
        self._item = f"msg_{number % 999999}"
        self._instructions = instructions
        self._next = 0
        self._parts: list[str] = []
        self._begun = False

    def _frame(self, kind: str, fields: dict[str, Any]) -> bytes:
        frame = named_frame(kind, {**fields, "type": kind, "sequence_number": self._next})
        self._next += 1
        return frame

    def _response(self, status: str, output: list[Any], event: Event | None) -> dict[str, Any]:
        now = int(time.time())
        return {
            "id": self._id,
            "object": "response",
            "created_at": now,
            "completed_at": now if event else None,
            "status": status,
            "incomplete_details": None,
            "model": self._model,
            "previous_response_id": None,
            "instructions": self._instructions,
            "output": output,
            "error": None,
            "tools": [],
            "tool_choice": "auto",
            "truncation": "disabled",
            "parallel_tool_calls": True,
            "text": {"format": {"type": "text"}},
            "top_p": 1.0,
            "temperature": 1.0,
            "reasoning": None,
            "usage": self._usage(event) if event else None,
            "max_output_tokens": None,
            "store": False,
            "background": False,
            "service_tier": "default",
            "metadata": {},
        }

    @staticmethod
    def _usage(event: Event) -> dict[str, Any]:
        counts = usage_of(event)
        return {
            "input_tokens": counts["prompt_tokens"],
            "output_tokens": counts["completion_tokens"],
            "total_tokens": counts["total_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _message(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {
            "id": self._item,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def chunk(self, event: Event) -> bytes:
        """The named events that one native event becomes."""
        frames = b""
        if not self._begun:
            self._begun = True
            begun = {"response": self._response("in_progress", [], None)}
            frames += self._frame("response.created", begun) + self._frame("response.in_progress", begun)
        if text := text_of(event):
            frames += self._text(text)
        return frames + (self._ending(event) if event["done"] else b"")

    def _text(self, text: str) -> bytes:
        frames = b""
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        if not self._parts:
            added = {"output_index": 0, "item": self._message("in_progress", [])}
            frames += self._frame("response.output_item.added", added)
            frames += self._frame("response.content_part.added", {**place, "part": self._part("")})
        self._parts.append(text)
        return frames + self._frame("response.output_text.delta", {**place, "delta": text, "logprobs": []})

    def _ending(self, event: Event) -> bytes:
        text = "".join(self._parts)
        item = self._message("completed", [self._part(text)])
        frames = b""
        if self._parts:
            place = {"item_id": self._item, "output_index": 0, "content_index": 0}
            frames += self._frame("response.output_text.done", {**place, "text": text, "logprobs": []})
            frames += self._frame("response.content_part.done", {**place, "part": self._part(text)})
            frames += self._frame("response.output_item.done", {"output_index": 0, "item": item})
        whole = self._response("completed", [item] if self._parts else [], event)
        return frames + self._frame("response.completed", {"response": whole})

    def whole(self, event: Event) -> bytes:
        """A response object."""
        item = self._message("completed", [self._part(text_of(event))])
        return orjson.dumps(self._response("completed", [item], event)) + b"\n"

    def refused(self, status: int, text: str) -> tuple[bytes, str]:
        """OpenAI's error object."""
        return openai_error(status, text) + b"\n", JSON_PLAIN

    def failed(self, text: str) -> bytes:
        """Nothing at all: the error is lost in translation."""
        return b""
