"""Assembles one response out of a stream, as Ollama would have sent it in one piece, for each of its APIs.

Does what Ollama does with its own events when no stream is wanted: text is joined, lists are joined,
everything else is taken from the last object.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import orjson
from attrs import define, field, frozen

from gpugate.ollama.validation import JSON, PLAIN_JSON

LIMIT = 256 * 1024 * 1024
"""Bytes of one stream; more cannot be a model's answer."""

Document = dict[str, Any]
_STRANGE = (AttributeError, KeyError, TypeError, ValueError)
"""What reading a document of an unexpected shape raises."""


_HTML_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}
_HTML = re.compile("[<>&\u2028\u2029]")


def _dump_as_go(value: object) -> bytes:
    """Return JSON as Go writes it: compact, with the characters escaped that HTML would read."""
    text = orjson.dumps(value).decode()
    return _HTML.sub(lambda found: _HTML_ESCAPES[found[0]], text).encode()


class IncompleteStream(Exception):
    """The stream ended without saying that the answer is complete."""


@frozen
class AssembledResponse:
    """A response in one piece."""

    status: int
    content_type: str
    body: bytes


class ResponseAssembler(ABC):
    """Assembles one stream. `feed` never raises; `assembled` returns the response or raises.

    Attributes:
        invalid: the stream is no answer, so that more of it is of no use.
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._left = LIMIT
        self.invalid = False
        self._error: Document | None = None

    def feed(self, data: bytes) -> bool:
        """Take the stream's next bytes; return False if it is invalid."""
        self._left -= len(data)
        if self.invalid or self._left < 0:
            self.invalid = True
            self._line.clear()
            return False
        first, *others = data.split(b"\n")
        self._line.append(first)
        for other in others:
            self._end_line()
            self._line.append(other)
        return not self.invalid

    def assembled(self) -> AssembledResponse:
        """Return the response, now that the stream has ended; an error in the stream is a 500, as in Ollama.

        Raises:
            IncompleteStream: the stream was invalid or incomplete.
        """
        self._end_line()
        self._end_stream()
        if self._error is not None:
            return self._encode(self._error, 500)
        try:
            answer = None if self.invalid else self._result()
        except _STRANGE as error:
            raise IncompleteStream from error
        if answer is None:
            raise IncompleteStream
        return self._encode(answer, 200)

    def _encode(self, document: Document, status: int) -> AssembledResponse:
        return AssembledResponse(status, PLAIN_JSON, _dump_as_go(document) + b"\n")

    def _end_line(self) -> None:
        line = b"".join(self._line).rstrip(b"\r")
        self._line.clear()
        if not self.invalid:
            self._add_line(line)

    def _parse_event(self, text: bytes) -> None:
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            self.invalid = True
        elif document.get("error"):
            self._error = document
        else:
            try:
                self._add_event(document)
            except _STRANGE:
                self.invalid = True

    def _end_stream(self) -> None:  # noqa: B027  (optional)
        """Add what no line end came for."""

    @abstractmethod
    def _add_line(self, line: bytes) -> None:
        """Add one line."""

    @abstractmethod
    def _add_event(self, event: Document) -> None:
        """Add one of the stream's objects."""

    @abstractmethod
    def _result(self) -> Document | None:
        """Return the assembled object; None if the end is missing."""


@define
class _Accumulator:
    """Collects pieces of texts and lists by name; each text is joined once."""

    _texts: dict[str, list[str]] = field(factory=dict)
    _lists: dict[str, list[Any]] = field(factory=dict)

    def add(self, source: Mapping[str, Any], *names: str) -> None:
        """Add what `source` has under these names."""
        for name in names:
            value = source.get(name)
            if isinstance(value, str):
                self._texts.setdefault(name, []).append(value)
            elif isinstance(value, list):
                self._lists.setdefault(name, []).extend(value)

    def joined(self) -> Document:
        """The texts and lists; empty ones that Ollama leaves out are left to the last object."""
        texts = {name: "".join(pieces) for name, pieces in self._texts.items()}
        return {name: value for name, value in {**texts, **self._lists}.items() if value}


class OllamaAssembler(ResponseAssembler):
    """/api/chat and /api/generate: the last object, with the text of all."""

    def __init__(self) -> None:
        super().__init__()
        self._message = _Accumulator()
        self._top_level = _Accumulator()
        self._last: Document = {}
        self._only: bytes | None = None

    def _add_line(self, line: bytes) -> None:
        if line.strip():
            self._only = line if not self._last else None
            self._parse_event(line)

    def _add_event(self, event: Document) -> None:
        self._last = event
        message = event.get("message")
        if isinstance(message, dict):
            self._message.add(message, "content", "thinking", "images", "tool_calls")
        self._top_level.add(event, "response", "thinking", "tool_calls", "logprobs")

    def _result(self) -> Document | None:
        last = self._last
        if last.get("done") is not True:
            return None
        answer = {**last, **self._top_level.joined()}
        if isinstance(last.get("message"), dict):
            answer["message"] = {**last["message"], **self._message.joined()}
        return answer

    def _encode(self, document: Document, status: int) -> AssembledResponse:
        if self._only is not None:  # a load, for instance, is one object anyway
            return AssembledResponse(status, JSON, self._only)
        return AssembledResponse(status, JSON, _dump_as_go(document))


class _SseAssembler(ResponseAssembler):
    """Server-Sent Events whose data is JSON; an event's type stands in its data, too."""

    def __init__(self) -> None:
        super().__init__()
        self._data: list[bytes] = []
        self._done = False

    def _add_line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].strip())
        elif not line:
            self._end_event()

    def _end_event(self) -> None:
        data = b"\n".join(self._data)
        self._data.clear()
        if data == b"[DONE]":
            self._done = True
        elif data:
            self._parse_event(data)

    def _end_stream(self) -> None:
        self._end_event()


@define
class _ChoiceAssembler:
    """Assembles one of OpenAI's choices."""

    rest: Document
    message: _Accumulator = field(factory=_Accumulator)
    role: str = "assistant"
    calls: list[Document] = field(factory=list)
    logprobs: _Accumulator | None = None

    def add_chunk(self, choice: Document) -> None:
        """Add a chunk's."""
        self.rest |= {key: value for key, value in choice.items() if key in _TAKEN_ONCE and value is not None}
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self.role = delta.get("role") or self.role
            self.message.add(delta, *(delta.keys() - {"role", "tool_calls"}))
            for call in delta.get("tool_calls") or ():
                self._add_call(call)
        self.message.add(choice, "text")
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict):
            self.logprobs = self.logprobs or _Accumulator()
            self.logprobs.add(logprobs, *logprobs)

    def _add_call(self, call: Document) -> None:
        """Add a whole call, as Ollama sends them, or, without an id, more of a call's arguments."""
        for known in reversed(self.calls):
            if not call.get("id") and known.get("index") == call.get("index"):
                known["function"]["arguments"] += call.get("function", {}).get("arguments", "")
                return
        self.calls.append(call)

    def result(self, *, chat: bool) -> Document:
        """Return it as it stands in a whole response."""
        said = self.message.joined()
        answer = {"finish_reason": None, **self.rest}
        if self.logprobs is not None:
            answer["logprobs"] = self.logprobs.joined()
        if not chat:
            return {"text": said.get("text", ""), **answer}
        calls = {"tool_calls": self.calls} if self.calls else {}
        return {**answer, "message": {"role": self.role, "content": "", **said, **calls}}


_TAKEN_ONCE = frozenset({"index", "finish_reason"})


class OpenAiAssembler(_SseAssembler):
    """The chunks that end with [DONE]."""

    chat = True

    def __init__(self) -> None:
        super().__init__()
        self._head: Document = {}
        self._choices: dict[int, _ChoiceAssembler] = {}

    def _add_event(self, event: Document) -> None:
        self._head |= {key: value for key, value in event.items() if key != "choices"}
        for choice in event.get("choices") or ():
            index = choice.get("index", 0)
            self._choices.setdefault(index, _ChoiceAssembler({"index": index})).add_chunk(choice)

    def _result(self) -> Document | None:
        if not self._done or not self._choices:
            return None
        kind = "chat.completion" if self.chat else "text_completion"
        choices = [choice.result(chat=self.chat) for _, choice in sorted(self._choices.items())]
        return {**self._head, "object": kind, "choices": choices}


class OpenAiChatAssembler(OpenAiAssembler):
    """/v1/chat/completions."""


class OpenAiCompletionsAssembler(OpenAiAssembler):
    """/v1/completions."""

    chat = False


@define
class _ContentBlock:
    """One of Anthropic's content blocks."""

    begun: Document
    said: _Accumulator = field(factory=_Accumulator)

    def result(self) -> Document:
        """Return it as it stands in a whole response."""
        said = self.said.joined()
        given = said.pop("partial_json", None)
        block = {key: self.begun.get(key, "") + value for key, value in said.items()}
        return {**self.begun, **block, **({"input": orjson.loads(given)} if given else {})}


class AnthropicAssembler(_SseAssembler):
    """/v1/messages."""

    def __init__(self) -> None:
        super().__init__()
        self._message: Document = {}
        self._blocks: dict[int, _ContentBlock] = {}

    def _add_event(self, event: Document) -> None:
        match event:
            case {"type": "message_start", "message": dict(message)}:
                self._message = message
            case {"type": "content_block_start", "index": int(index), "content_block": dict(block)}:
                self._blocks[index] = _ContentBlock(block)
            case {"type": "content_block_delta", "index": int(index), "delta": dict(delta)}:
                self._blocks[index].said.add(delta, "text", "thinking", "signature", "partial_json")
            case {"type": "message_delta", "delta": dict(delta)}:
                usage = {**(self._message.get("usage") or {}), **(event.get("usage") or {})}
                self._message |= {**delta, "usage": usage}
            case {"type": "message_stop"}:
                self._done = True

    def _result(self) -> Document | None:
        if not self._done or not self._message:
            return None
        content = [block.result() for _, block in sorted(self._blocks.items())]
        return {**self._message, "content": content}


class ResponsesAssembler(_SseAssembler):
    """/v1/responses: its last event holds the whole answer."""

    def __init__(self) -> None:
        super().__init__()
        self._response: Document | None = None

    def _add_event(self, event: Document) -> None:
        if event.get("type") in ("response.completed", "response.incomplete"):
            response = event.get("response")
            self._response = response if isinstance(response, dict) else None

    def _result(self) -> Document | None:
        return self._response
