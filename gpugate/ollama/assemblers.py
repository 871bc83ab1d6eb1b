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

HELD_LIMIT = 64 * 1024 * 1024
"""Bytes of memory, as estimated, that one answer may take while it is put together."""

HELD_LIMIT_OF_ALL = 256 * 1024 * 1024
"""The same for all answers at one time."""

MAX_CHOICES = 128
"""Of OpenAI's choices in one answer."""

_MAX_NAMES = 64  # different members of an object that is put together
_LARGE = 16 * 1024  # bytes of an event that is counted as held to the end, whatever is kept of it
_PART = 1024  # bytes that an empty choice, content block or tool call takes
_LEAST_LINE = 16  # bytes of a line on the average: shorter ones would cost more work than text

Document = dict[str, Any]
_STRANGE = (AttributeError, KeyError, TypeError, ValueError)
"""What reading a document of an unexpected shape raises."""


_HTML_ESCAPES = {
    b"<": b"\\u003c",
    b">": b"\\u003e",
    b"&": b"\\u0026",
    "\u2028".encode(): b"\\u2028",
    "\u2029".encode(): b"\\u2029",
}
_HTML = re.compile(b"[<>&]|\xe2\x80[\xa8\xa9]")


def _dump_as_go(value: object) -> bytes:
    """Return JSON as Go writes it: compact, with the characters escaped that HTML would read."""
    return _HTML.sub(lambda found: _HTML_ESCAPES[found[0]], orjson.dumps(value))


def _weight(text: bytes) -> int:
    """Estimate the memory that parsed JSON takes: an empty object has 64 bytes, one with a member 200."""
    return len(text) + 256 * text.count(b"{") + 64 * (text.count(b"[") + text.count(b","))


class _TooMuch(ValueError):
    """More would be held than an answer may take."""


class _Holdings:
    """Counts the memory that one answer takes while it is put together, and that of all answers."""

    of_all = 0

    def __init__(self) -> None:
        self._own = 0

    def add(self, size: int) -> None:
        """Count `size` bytes, below 0 for what is not held any more. Raises _TooMuch."""
        self._own += size
        _Holdings.of_all += size
        if size > 0 and (self._own > HELD_LIMIT or _Holdings.of_all > HELD_LIMIT_OF_ALL):
            raise _TooMuch

    def release(self) -> None:
        """Count nothing any more."""
        _Holdings.of_all -= self._own
        self._own = 0


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
        self.invalid = False
        self._held = _Holdings()
        self._line = bytearray()
        self._left = LIMIT
        self._spare = 1024 * _LEAST_LINE  # bytes that may be missing to lines of `_LEAST_LINE`
        self._error: Document | None = None

    def feed(self, data: bytes) -> bool:
        """Take the stream's next bytes; return False if it is invalid."""
        first, *others = data.split(b"\n") if not self.invalid else [b""]
        self._left -= len(data)
        self._spare += len(data) - len(others) * _LEAST_LINE
        try:
            if self._left < 0 or self._spare < 0:
                raise _TooMuch
            self._held.add(len(data) - len(others))
            self._line += first
            for other in others:
                self._end_line()
                self._line += other
        except _TooMuch:
            self.invalid = True
        if self.invalid:
            self._line.clear()
        return not self.invalid

    def close(self) -> None:
        """Count what is held as free for other answers. To be called when the answer is no longer needed."""
        self._held.release()

    def assembled(self) -> AssembledResponse:
        """Return the response, now that the stream has ended; an error in the stream is a 500, as in Ollama.

        Raises:
            IncompleteStream: the stream was invalid or incomplete.
        """
        try:
            self._end_line()
            self._end_stream()
            if self._error is not None:
                return self._encode(self._error, 500)
            answer = None if self.invalid else self._result()
        except _STRANGE as error:
            raise IncompleteStream from error
        if answer is None:
            raise IncompleteStream
        return self._encode(answer, 200)

    def _encode(self, document: Document, status: int) -> AssembledResponse:
        return AssembledResponse(status, PLAIN_JSON, _dump_as_go(document) + b"\n")

    def _end_line(self) -> None:
        self._held.add(-len(self._line))
        line = bytes(self._line).rstrip(b"\r")
        self._line.clear()
        if not self.invalid:
            self._add_line(line)

    def _parse_event(self, text: bytes) -> None:
        weight = _weight(text)
        self._held.add(weight)
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
        if len(text) <= _LARGE:
            self._held.add(-weight)

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


def _update(known: Document, new: Document) -> None:
    """Add members to an object that is kept. Raises _TooMuch."""
    known |= new
    if len(known) > _MAX_NAMES:
        raise _TooMuch


@define
class _Accumulator:
    """Collects pieces of texts and lists by name: as UTF-8 and JSON, which takes the least memory."""

    _held: _Holdings
    _texts: dict[str, bytearray] = field(factory=dict)
    _lists: dict[str, bytearray] = field(factory=dict)

    def add(self, source: Mapping[str, Any], *names: str) -> None:
        """Add what `source` has under these names. Raises _TooMuch."""
        for name in names:
            value = source.get(name)
            if isinstance(value, str):
                self._append(self._texts, name, value.encode())
            elif isinstance(value, list) and value:
                items = orjson.dumps(value)[1:-1]
                self._append(self._lists, name, b"," + items if name in self._lists else items)

    def _append(self, pieces: dict[str, bytearray], name: str, piece: bytes) -> None:
        self._held.add(len(piece))
        pieces.setdefault(name, bytearray()).extend(piece)
        if len(pieces) > _MAX_NAMES:
            raise _TooMuch

    def joined(self) -> Document:
        """The texts and lists; empty ones that Ollama leaves out are left to the last object."""
        texts = {name: pieces.decode() for name, pieces in self._texts.items() if pieces}
        lists = {name: orjson.Fragment(b"[" + items + b"]") for name, items in self._lists.items()}
        return {**texts, **lists}


class OllamaAssembler(ResponseAssembler):
    """/api/chat and /api/generate: the last object, with the text of all."""

    def __init__(self) -> None:
        super().__init__()
        self._message = _Accumulator(self._held)
        self._top_level = _Accumulator(self._held)
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
        self._data = bytearray()
        self._done = False

    def _add_line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            data = (b"\n" if self._data else b"") + line[5:].strip()
            self._held.add(len(data))
            self._data += data
        elif not line:
            self._end_event()

    def _end_event(self) -> None:
        data = bytes(self._data)
        self._held.add(-len(data))
        self._data.clear()
        if data == b"[DONE]":
            self._done = True
        elif data:
            self._parse_event(data)

    def _end_stream(self) -> None:
        self._end_event()


@define
class _ToolCall:
    """One of OpenAI's calls: as it began, and more of its arguments."""

    begun: Document
    more: bytearray | None = None

    def result(self) -> Document:
        """Return it as it stands in a whole response."""
        if self.more is None:
            return self.begun
        function = self.begun["function"]
        arguments = function["arguments"] + self.more.decode()
        return {**self.begun, "function": {**function, "arguments": arguments}}


class _ChoiceAssembler:
    """Assembles one of OpenAI's choices."""

    def __init__(self, index: object, held: _Holdings) -> None:
        held.add(_PART)
        self._held = held
        self._rest: Document = {"index": index}
        self._message = _Accumulator(held)
        self._role = "assistant"
        self._calls: list[_ToolCall] = []
        self._open_calls: dict[object, _ToolCall] = {}
        self._logprobs: _Accumulator | None = None

    def add_chunk(self, choice: Document) -> None:
        """Add a chunk's."""
        self._rest |= {
            key: value for key, value in choice.items() if key in _TAKEN_ONCE and value is not None
        }
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._role = delta.get("role") or self._role
            self._message.add(delta, *(delta.keys() - {"role", "tool_calls"}))
            for call in delta.get("tool_calls") or ():
                self._add_call(call)
        self._message.add(choice, "text")
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict):
            self._logprobs = self._logprobs or _Accumulator(self._held)
            self._logprobs.add(logprobs, *logprobs)

    def _add_call(self, call: Document) -> None:
        """Add a whole call, as Ollama sends them, or, without an id, more of a call's arguments."""
        known = self._open_calls.get(call.get("index"))
        if known is not None and not call.get("id"):
            more = call.get("function", {}).get("arguments", "").encode()
            self._held.add(len(more))
            if known.more is None:
                known.more = bytearray()
            known.more += more
            return
        self._held.add(_PART + _weight(orjson.dumps(call)))
        self._calls.append(_ToolCall(call))
        self._open_calls[call.get("index")] = self._calls[-1]

    def result(self, *, chat: bool) -> Document:
        """Return it as it stands in a whole response."""
        said = self._message.joined()
        answer = {"finish_reason": None, **self._rest}
        if self._logprobs is not None:
            answer["logprobs"] = self._logprobs.joined()
        if not chat:
            return {"text": said.get("text", ""), **answer}
        calls = {"tool_calls": [call.result() for call in self._calls]} if self._calls else {}
        return {**answer, "message": {"role": self._role, "content": "", **said, **calls}}


_TAKEN_ONCE = frozenset({"index", "finish_reason"})


class OpenAiAssembler(_SseAssembler):
    """The chunks that end with [DONE]."""

    chat = True

    def __init__(self) -> None:
        super().__init__()
        self._head: Document = {}
        self._choices: dict[int, _ChoiceAssembler] = {}

    def _add_event(self, event: Document) -> None:
        _update(self._head, {key: value for key, value in event.items() if key != "choices"})
        for choice in event.get("choices") or ():
            index = choice.get("index", 0)
            if index not in self._choices:
                if len(self._choices) == MAX_CHOICES:
                    raise _TooMuch
                self._choices[index] = _ChoiceAssembler(index, self._held)
            self._choices[index].add_chunk(choice)

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
    said: _Accumulator

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
                self._held.add(_PART + _weight(orjson.dumps(block)))
                self._blocks[index] = _ContentBlock(block, _Accumulator(self._held))
            case {"type": "content_block_delta", "index": int(index), "delta": dict(delta)}:
                self._blocks[index].said.add(delta, "text", "thinking", "signature", "partial_json")
            case {"type": "message_delta", "delta": dict(delta)}:
                usage = {**(self._message.get("usage") or {}), **(event.get("usage") or {})}
                _update(self._message, {**delta, "usage": usage})
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
