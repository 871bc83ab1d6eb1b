"""The one answer out of a stream: equal to what Ollama sends when nobody wants a stream."""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
from gpugate_demo.dialects import NATIVE, Anthropic, OpenAiChat, OpenAiCompletions
from gpugate_demo.dialects import Native as Dialect
from gpugate_demo.responses import Responses
from hypothesis import given
from hypothesis import strategies as st

from gpugate.ollama import assemblers, stream_buffering
from gpugate.ollama.assemblers import AssembledResponse, IncompleteStream, ResponseAssembler

STATS = {
    "total_duration": 5191566416,
    "load_duration": 2154458,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 383809000,
    "eval_count": 298,
    "eval_duration": 4799921000,
}


def told(kind: type[ResponseAssembler], *pieces: bytes) -> AssembledResponse:
    """What these pieces come to."""
    made = kind()
    for piece in pieces:
        made.feed(piece)
    return made.assembled()


def lines(*events: object) -> bytes:
    """NDJSON."""
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def frames(*events: object, done: bool = True) -> bytes:
    """Server-Sent Events."""
    text = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return text + b"data: [DONE]\n\n" * done


def chat(number: int, *, done: bool = False, **message: object) -> dict[str, Any]:
    """A native chat event."""
    said = {"role": "assistant", "content": "", **message}
    event = {"model": "m", "created_at": f"2026-11-20T12:00:0{number}Z", "message": said, "done": done}
    return {**event, "done_reason": "stop", **STATS} if done else event


CALL = {"id": "call_1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}}
OTHER = {"id": "call_2", "function": {"index": 1, "name": "time", "arguments": {"zone": "CET"}}}


class TestNative:
    """/api/chat and /api/generate."""

    def test_thinking_text_calls_and_pictures(self) -> None:
        """Texts and lists are joined, all else is the last object's."""
        events = [
            chat(1, thinking="Hm, "),
            chat(2, thinking="Paris."),
            chat(3, content="Let me "),
            chat(4, content="look: <b>\u2028ü"),
            chat(5, tool_calls=[CALL], images=["AAAA"]),
            chat(6, tool_calls=[OTHER]),
            chat(7, done=True),
        ]
        whole = told(assemblers.OllamaAssembler, lines(*events))
        message = {
            "role": "assistant",
            "content": "Let me look: <b>\u2028ü",
            "thinking": "Hm, Paris.",
            "images": ["AAAA"],
            "tool_calls": [CALL, OTHER],
        }
        expected = {
            "model": "m",
            "created_at": "2026-11-20T12:00:07Z",
            "message": message,
            "done": True,
            "done_reason": "stop",
            **STATS,
        }
        assert expected == json.loads(whole.body)
        assert (200, "application/json; charset=utf-8") == (whole.status, whole.content_type)
        assert b"\\u003cb\\u003e\\u2028" in whole.body  # as Go writes it

    def test_a_generation(self) -> None:
        """Its text stands beside the rest, its context comes with the last object."""
        head = {"model": "m", "created_at": "2026-11-20T12:00:00Z"}
        last = {**head, "response": "", "done": True, "done_reason": "length", "context": [1, 2], **STATS}
        whole = told(
            assemblers.OllamaAssembler,
            lines(
                {**head, "response": "", "thinking": "so", "done": False},
                {**head, "response": "a", "done": False, "logprobs": [{"token": "a", "logprob": -0.1}]},
                {**head, "response": "b", "done": False, "logprobs": [{"token": "b", "logprob": -1e-9}]},
                last,
            ),
        )
        logprobs = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -1e-9}]
        expected = {**last, "response": "ab", "thinking": "so", "logprobs": logprobs}
        assert expected == json.loads(whole.body)

    def test_a_drawn_picture(self) -> None:
        """An image model tells how far it is, then the picture: the last object is the answer."""
        last = {"model": "m", "response": "", "done": True, "image": "QUJD", "completed": 4, "total": 4}
        steps = [{"model": "m", "response": "", "done": False, "completed": n, "total": 4} for n in (1, 2)]
        assert last == json.loads(told(assemblers.OllamaAssembler, lines(*steps, last)).body)

    def test_a_load(self) -> None:
        """One object, stream or not: its bytes stay."""
        body = b'{"model": "m",  "response":"<", "done":true,"done_reason":"load"}'
        assert body == told(assemblers.OllamaAssembler, body).body
        assert body == told(assemblers.OllamaAssembler, body + b"\n").body

    def test_nothing_was_said(self) -> None:
        """An empty text stays; nothing appears that Ollama leaves out."""
        whole = json.loads(told(assemblers.OllamaAssembler, lines(chat(1), chat(2, done=True))).body)
        assert {"role": "assistant", "content": ""} == whole["message"]
        assert "logprobs" not in whole

    def test_the_model_fails_under_way(self) -> None:
        """Ollama's line becomes Ollama's 500."""
        whole = told(assemblers.OllamaAssembler, lines(chat(1, content="a"), {"error": "out of memory"}))
        assert (500, {"error": "out of memory"}) == (whole.status, json.loads(whole.body))

    @pytest.mark.parametrize(
        "stream",
        [
            b"",
            b"\n\n",
            lines(chat(1, content="a")),
            lines(chat(1, content="a")) + b'{"model":"m","done":tr',
            lines(chat(1), chat(2, done=True))[:-20],
            b"<html>",
            b"[]\n",
            lines({"done": True, "message": {}}, 7),
        ],
    )
    def test_an_answer_that_is_cut_off(self, stream: bytes) -> None:
        """Nothing is told that looks complete."""
        with pytest.raises(IncompleteStream):
            told(assemblers.OllamaAssembler, stream)

    def test_a_stream_without_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is forgotten, and no answer."""
        monkeypatch.setattr(assemblers, "LIMIT", 1000)
        made = assemblers.OllamaAssembler()
        for _ in range(100):
            made.feed(b"x" * 100)
        assert b"" == made._line
        with pytest.raises(IncompleteStream):
            made.assembled()


def chunk(delta: object = None, **more: object) -> dict[str, Any]:
    """A chat.completion.chunk."""
    choice = {
        "index": 0,
        "delta": {"role": "assistant", "content": ""} | (delta or {}),
        "finish_reason": None,
    }  # type: ignore[operator]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}
    return {**head, "system_fingerprint": "fp_ollama", "choices": [{**choice, **more}]}


COUNTS = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


class TestOpenAi:
    """/v1/chat/completions and /v1/completions."""

    def test_reasoning_calls_and_logprobs(self) -> None:
        """As Ollama's translator writes a whole answer."""
        call = {"id": "c1", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}
        other = {**call, "id": "c2"}
        stream = frames(
            chunk({"reasoning": "a"}),
            chunk({"reasoning": "b"}),
            chunk({"content": "x"}, logprobs={"content": [{"token": "x", "logprob": -1.5}]}),
            chunk({"content": "y"}, logprobs={"content": [{"token": "y", "logprob": -0.5}]}),
            chunk({"tool_calls": [call]}),
            chunk({"tool_calls": [other]}),
            chunk(finish_reason="tool_calls"),
            {**chunk(), "choices": [], "usage": COUNTS},
        )
        whole = told(assemblers.OpenAiChatAssembler, stream)
        message = {"role": "assistant", "content": "xy", "reasoning": "ab", "tool_calls": [call, other]}
        probs = {"content": [{"token": "x", "logprob": -1.5}, {"token": "y", "logprob": -0.5}]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": probs}
        expected = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 7,
            "model": "m",
            "system_fingerprint": "fp_ollama",
            "choices": [choice],
            "usage": COUNTS,
        }
        assert expected == json.loads(whole.body)
        assert (200, "application/json") == (whole.status, whole.content_type)

    def test_a_call_in_pieces(self) -> None:
        """As other servers send it: what has no id goes on with the arguments before it."""
        begin = {"id": "c1", "index": 0, "type": "function", "function": {"name": "f", "arguments": ""}}
        rest = [{"index": 0, "function": {"arguments": part}} for part in ('{"a"', ":1}")]
        deltas = [{"tool_calls": [piece]} for piece in (begin, *rest)]
        whole = json.loads(told(assemblers.OpenAiChatAssembler, frames(*map(chunk, deltas))).body)
        (call,) = whole["choices"][0]["message"]["tool_calls"]
        assert '{"a":1}' == call["function"]["arguments"]

    def test_several_choices(self) -> None:
        """Each has its own text."""
        stream = frames(
            chunk({"content": "b"}, index=1), chunk({"content": "a"}), chunk({"content": "B"}, index=1)
        )
        choices = json.loads(told(assemblers.OpenAiChatAssembler, stream).body)["choices"]
        assert [(0, "a"), (1, "bB")] == [(c["index"], c["message"]["content"]) for c in choices]

    def test_an_error_in_the_stream(self) -> None:
        """It is the answer."""
        error = {"error": {"message": "no", "type": "api_error"}}
        whole = told(assemblers.OpenAiChatAssembler, frames(chunk({"content": "a"}), error, done=False))
        assert (500, error) == (whole.status, json.loads(whole.body))

    @pytest.mark.parametrize(
        "stream",
        [
            b"",
            b"data: [DONE]\n\n",
            frames(chunk({"content": "a"}), done=False),
            frames(chunk({"content": "a"}), {**chunk({}), "model": ""}, done=False),
            b"data: {\n\ndata: [DONE]\n\n",
            frames({"choices": [7]}),
            frames({"choices": 7}),
            frames({"choices": [{"index": "x"}, {"index": 0}]}),
            frames({"choices": [{"delta": {"tool_calls": [{"index": 0}, {"index": 0}]}}]}),
        ],
    )
    def test_an_answer_that_is_cut_off(self, stream: bytes) -> None:
        """Ollama loses its errors in this dialect; without [DONE] there is no answer."""
        with pytest.raises(IncompleteStream):
            told(assemblers.OpenAiChatAssembler, stream)


class TestAnthropic:
    """/v1/messages."""

    def test_thinking_text_and_tool(self) -> None:
        """Blocks by their index, the tool's input read, both halves of the usage."""
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}
        begun = {**message, "stop_reason": None, "usage": {"input_tokens": 9, "output_tokens": 0}}
        stream = frames(
            {"type": "message_start", "message": begun},
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "thinking", "thinking": ""},
            },
            {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "h"}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "m"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
            {"type": "ping"},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "hi"}},
            {
                "type": "content_block_start",
                "index": 2,
                "content_block": {"type": "tool_use", "id": "t1", "name": "f", "input": {}},
            },
            {
                "type": "content_block_delta",
                "index": 2,
                "delta": {"type": "input_json_delta", "partial_json": '{"a"'},
            },
            {
                "type": "content_block_delta",
                "index": 2,
                "delta": {"type": "input_json_delta", "partial_json": ":1}"},
            },
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}},
            {"type": "message_stop"},
            done=False,
        )
        whole = told(assemblers.AnthropicAssembler, stream)
        content = [
            {"type": "thinking", "thinking": "hm"},
            {"type": "text", "text": "hi"},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
        ]
        usage = {"input_tokens": 9, "output_tokens": 5}
        expected = {**message, "content": content, "stop_reason": "tool_use", "usage": usage}
        assert expected == json.loads(whole.body)

    @pytest.mark.parametrize(
        "events",
        [
            [],
            [{"type": "message_stop"}],
            [{"type": "message_start", "message": {"id": "m"}}],
            [
                {"type": "message_start", "message": {"id": "m"}},
                {"type": "content_block_delta", "index": 0, "delta": {"text": "a"}},
                {"type": "message_stop"},
            ],
            [
                {"type": "message_start", "message": {"id": "m"}},
                {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}},
                {"type": "content_block_delta", "index": 0, "delta": {"partial_json": "{"}},
                {"type": "message_stop"},
            ],
        ],
    )
    def test_an_answer_that_is_cut_off(self, events: list[object]) -> None:
        """Without its end, or with a tool's input that cannot be read, there is none."""
        with pytest.raises(IncompleteStream):
            told(assemblers.AnthropicAssembler, frames(*events, done=False))

    def test_an_error_in_the_stream(self) -> None:
        """It is the answer."""
        error = {"type": "error", "error": {"type": "api_error", "message": "no"}}
        whole = told(assemblers.AnthropicAssembler, b"event: error\n" + frames(error, done=False))
        assert (500, error) == (whole.status, json.loads(whole.body))


class TestResponses:
    """/v1/responses."""

    @pytest.mark.parametrize("kind", ["completed", "incomplete"])
    def test_the_last_event_is_the_answer(self, kind: str) -> None:
        """It holds the whole of it."""
        stream = frames(
            {"type": "response.created", "response": {"id": "r", "output": []}},
            {"type": f"response.{kind}", "response": {"id": "r", "output": [1], "error": None}},
            done=False,
        )
        assert {"id": "r", "output": [1], "error": None} == json.loads(
            told(assemblers.ResponsesAssembler, stream).body
        )

    def test_an_answer_that_is_cut_off(self) -> None:
        """Without that event there is none."""
        with pytest.raises(IncompleteStream):
            told(assemblers.ResponsesAssembler, frames({"type": "response.created", "response": {"id": "r"}}))


DIALECTS: dict[type[ResponseAssembler], Any] = {
    assemblers.OllamaAssembler: lambda: NATIVE,
    assemblers.OpenAiChatAssembler: lambda: OpenAiChat("m", 12, include_usage=True),
    assemblers.OpenAiCompletionsAssembler: lambda: OpenAiCompletions("m", 12, include_usage=True),
    assemblers.AnthropicAssembler: lambda: Anthropic("m", 12),
    assemblers.ResponsesAssembler: lambda: Responses("m", 12),
}


@pytest.mark.parametrize("kind", DIALECTS)
@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=5), data=st.data())
def test_every_dialect_in_any_pieces(
    kind: type[ResponseAssembler], texts: list[str], data: st.DataObject
) -> None:
    """Wherever the stream is cut into pieces, it comes to what the same Ollama says without a stream."""
    events = [chat(number % 10, content=text) for number, text in enumerate(texts)]
    last = chat(9, done=True)
    streaming: Dialect = DIALECTS[kind]()
    stream = b"".join(streaming.chunk(event) for event in [*events, last])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    edges = [0, *cuts, len(stream)]
    pieces = [stream[begin:end] for begin, end in pairwise(edges)]
    said = chat(9, done=True, content="".join(texts))
    expected = json.loads(DIALECTS[kind]().whole(said))
    actual = json.loads(told(kind, *pieces).body)
    for answer in (expected, actual):  # the time of day
        for name in ("created", "completed_at") + (
            ("created_at",) if kind is assemblers.ResponsesAssembler else ()
        ):
            answer.pop(name, None)
    assert expected == actual


OPENAI_END = b"data: [DONE]\n\n"
CHAT_HEAD = b'{"message":{"tool_calls":['
ENDLESS = {
    "empty objects in a list": ("/api/chat", CHAT_HEAD + b"{}," * 6000 + b"{}]}}\n"),
    "one line": ("/api/chat", b"{" + b" " * 100_000),
    "members of one line": ("/api/chat", b'{"a":{},' * 9000),
    "empty lines": ("/api/chat", b"\n" * 9000),
    "empty events": ("/api/chat", b"{}\n" * 9000),
    "short texts": ("/api/generate", b'{"response":"abcdefgh"}\n' * 3000),
    "data without an end": ("/v1/responses", b"data:\n" * 9000),
    "data of one event": ("/v1/responses", b"data: " + b"x" * 99 + b"\n"),
    "choices": ("/v1/completions", b'data: {"choices":[{"index":%d}]}\n\n'),
    "members": ("/v1/completions", b'data: {"k%d":1}\n\n'),
    "members of a delta": ("/v1/chat/completions", b'data: {"choices":[{"delta":{"k%d":"x"}}]}\n\n'),
    "calls": (
        "/v1/chat/completions",
        b'data: {"choices":[{"delta":{"tool_calls":[{"id":"%d","index":%d}]}}]}\n\n',
    ),
    "blocks": (
        "/v1/messages",
        b'data: {"type":"content_block_start","index":%d,"content_block":{}}\n\n',
    ),
    "members of a message": ("/v1/messages", b'data: {"type":"message_delta","delta":{"k%d":1}}\n\n'),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_is_held_is_bounded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a stream repeats, it is given up before the process has taken much more than the limit."""
    monkeypatch.setattr(assemblers, "HELD_LIMIT", 1 << 18)
    path, text = ENDLESS[kind]
    made = stream_buffering._ASSEMBLERS[path]()
    tracemalloc.start()
    try:
        for number in range(20_000):
            if not made.feed(text.replace(b"%d", b"%d" % number)):
                break
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made.invalid
    assert peak < 3 << 19
    with pytest.raises(IncompleteStream):
        made.assembled()
    made.close()


def test_what_all_answers_hold_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one they are small; together they are not. Who is done makes room."""
    monkeypatch.setattr(assemblers, "HELD_LIMIT_OF_ALL", 500_000)
    monkeypatch.setattr(assemblers._Holdings, "of_all", 0)
    text = lines({"message": {"content": "x" * 200_000}})
    first, second, third = (assemblers.OllamaAssembler() for _ in range(3))
    assert first.feed(text)
    assert not second.feed(text)
    second.close()
    first.close()
    assert third.feed(text)
    third.close()
    assert 0 == assemblers._Holdings.of_all


def test_a_long_answer_is_put_together() -> None:
    """Ten thousand tokens, with logprobs, are no trouble."""
    made = assemblers.OpenAiChatAssembler()
    piece = frames(chunk({"content": "word "}), done=False) * 1000
    for _ in range(10):
        made.feed(piece)
    made.feed(frames(chunk({"content": ""}, logprobs={"content": [{"token": "a", "top": [1] * 20}] * 9})))
    answer = json.loads(made.assembled().body)
    assert "word " * 10_000 == answer["choices"][0]["message"]["content"]
    made.close()


def test_arguments_in_many_pieces() -> None:
    """They are joined once, each with its call."""
    calls = [
        {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}},
        {"index": 1, "id": "b", "function": {"name": "g", "arguments": "{"}},
        *({"index": 0, "function": {"arguments": letter}} for letter in '{"ü":1}'),
        {"index": 1, "function": {"arguments": "}"}},
    ]
    stream = frames(*(chunk({"tool_calls": [call]}) for call in calls))
    told_calls = json.loads(told(assemblers.OpenAiChatAssembler, stream).body)["choices"][0]["message"]
    assert ['{"ü":1}', "{}"] == [call["function"]["arguments"] for call in told_calls["tool_calls"]]
