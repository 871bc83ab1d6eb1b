"""Which requests are asked as streams, and what is changed in them for it."""

from __future__ import annotations

import json

import pytest

from gpugate.ollama.routes import match_route
from gpugate.ollama.stream_buffering import StreamRewrite, stream_rewrite
from gpugate.ollama.validation import OllamaBody

PLAIN: dict[str, str] = {}
MESSAGES = [{"role": "user", "content": "hi"}]
USAGE = {"include_usage": True}


def rewritten(path: str, headers: dict[str, str], raw: bytes) -> StreamRewrite | None:
    return stream_rewrite(path, OllamaBody(match_route("POST", path), headers, raw))


def asked(path: str, body: object, headers: dict[str, str] = PLAIN) -> object:
    """The changed body, None where nothing is changed."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = rewritten(path, headers, text)
    return None if found is None else json.loads(found.body)


NATIVE = [
    ("/api/chat", {"model": "m", "messages": MESSAGES, "stream": False}),
    ("/api/generate", {"model": "m", "prompt": "hi", "stream": False}),
    ("/v1/messages", {"model": "m", "messages": MESSAGES, "max_tokens": 9}),
    ("/v1/responses", {"model": "m", "input": "hi", "stream": None}),
]


@pytest.mark.parametrize(("path", "body"), NATIVE)
def test_one_answer_is_wanted(path: str, body: dict[str, object]) -> None:
    """Only `stream` changes."""
    assert {**body, "stream": True} == asked(path, body)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_openai_tells_its_usage_only_if_asked(path: str) -> None:
    """`stream_options` is changed as well; what else it holds stays."""
    body = {"model": "m", "messages": MESSAGES}
    assert {**body, "stream": True, "stream_options": USAGE} == asked(path, body)
    assert {**body, "stream": True, "stream_options": USAGE} == asked(path, {**body, "stream_options": None})
    given = {**body, "stream_options": {"include_usage": False, "other": 1}}
    assert {"other": 1, **USAGE} == asked(path, given)["stream_options"]  # type: ignore[index]
    assert asked(path, {**body, "stream_options": 7}) is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"model": "m", "messages": MESSAGES}),
        ("/v1/chat/completions", {"model": "m", "messages": MESSAGES, "stream": True}),
        ("/api/embed", {"model": "m", "input": "hi"}),
        ("/v1/embeddings", {"model": "m", "input": "hi"}),
        ("/api/pull", {"model": "m", "stream": False}),
        ("/api/generate", {"model": "m", "keep_alive": 0, "stream": False}),
        ("/api/chat", {"messages": MESSAGES, "stream": False}),
        ("/api/chat", {"model": "m", "messages": MESSAGES, "stream": "no"}),
        ("/api/chat", b'{"model":"m","stream":false'),
        ("/api/chat", b"[]"),
        ("/api/chat", b"null"),
        ("/api/chat", b""),
        ("/v1/audio/transcriptions", b"x"),
    ],
)
def test_what_is_passed_as_it_is(path: str, body: object) -> None:
    """A stream, what has no stream, an unload, and what Ollama will refuse."""
    assert asked(path, body) is None


def test_a_packed_body() -> None:
    """It cannot be read, so it is not touched."""
    assert asked("/v1/responses", b"\x28\xb5\x2f\xfd", {"Content-Encoding": "zstd"}) is None


def test_the_prompt_does_not_show() -> None:
    """In a log or a traceback."""
    found = rewritten("/api/chat", PLAIN, json.dumps(NATIVE[0][1]).encode())
    assert "role" not in repr(found)


def test_every_other_byte_stays() -> None:
    """The members are appended, where they count: the last of two members of a name does."""
    raw = b' {"model" : "m","n":1e999,\n"Stream":false, "messages":[{"a":"}"}]}\n'
    found = rewritten("/api/chat", PLAIN, raw)
    assert found is not None
    assert raw[:-2] + b',"stream":true}' == found.body


def test_a_large_picture() -> None:
    """A body of 8 MB is no trouble."""
    raw = b'{"model":"m","images":["' + b"A" * (8 << 20) + b'"],"stream":false}'
    found = rewritten("/api/generate", PLAIN, raw)
    assert found is not None
    assert found.body.endswith(b'"stream":false,"stream":true}')
