"""gpugate/ollama/validation.py: what Ollama refuses without a look at its models."""

from __future__ import annotations

import json
import re

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from gpugate.ollama.routes import match_route
from gpugate.ollama.validation import (
    BodyFields,
    LocalResponse,
    native,
    not_found,
    redirect,
    running,
    scan_body,
    validation_error,
    wrong_method,
)

NATIVE = "application/json; charset=utf-8"
NO_HEADERS: CIMultiDict[str] = CIMultiDict()


def refused(path: str, body: bytes, method: str = "POST") -> LocalResponse | None:
    return validation_error(match_route(method, path), NO_HEADERS, body)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/chat", b"", 400, "missing request body"),
        ("/api/chat", b"hi", 400, "invalid character 'h' looking for beginning of value"),
        ("/api/chat", b'{"model"', 400, "unexpected EOF"),
        ("/api/chat", b"[]", 400, "json: cannot unmarshal array into Go value of type api.ChatRequest"),
        ("/api/chat", b'"x"', 400, "json: cannot unmarshal string into Go value of type api.ChatRequest"),
        ("/api/chat", b"null", 400, "model is required"),
        ("/api/chat", b"{}", 400, "model is required"),
        ("/api/chat", b'{"model":null}', 400, "model is required"),
        ("/api/chat", b'{"model":" "}', 400, "model is required"),
        (
            "/api/chat",
            b'{"model":["x"]}',
            400,
            "json: cannot unmarshal array into Go struct field ChatRequest.model of type string",
        ),
        (
            "/api/chat",
            b'{"model":"x","messages":"hi"}',
            400,
            "json: cannot unmarshal string into Go struct field ChatRequest.messages of type []api.Message",
        ),
        ("/api/chat", b'{"stream":1,"keep_alive":"-1"}', 400, 'time: missing unit in duration "-1"'),
        ("/api/chat", b'{"model":"x","keep_alive":true}', 400, "Unsupported type: 'bool'"),
        ("/api/generate", b"", 400, "missing request body"),
        ("/api/generate", b"{}", 404, "model '' not found"),
        ("/api/generate", b'{"model":" "}', 404, "model ' ' not found"),
        (
            "/api/generate",
            b'{"model":"x","stream":"yes"}',
            400,
            "json: cannot unmarshal string into Go struct field GenerateRequest.stream of type bool",
        ),
        ("/api/embed", b"{}", 404, "model '' not found"),
        ("/api/embeddings", b"{}", 400, "model is required"),
        ("/api/v1/chat", b"{}", 400, "model is required"),
        ("/api/v1/generate", b"{}", 404, "model '' not found"),
        ("/api/show", b"", 400, "missing request body"),
        ("/api/show", b"{}", 400, "model is required"),
        ("/api/pull", b"{}", 400, "invalid model name"),
        ("/api/push", b"{}", 400, "model is required"),
        ("/api/create", b"[]", 400, "json: cannot unmarshal array into Go value of type api.CreateRequest"),
        ("/api/copy", b'{"source":"a"}', 400, 'destination "" is invalid'),
    ],
)
def test_a_native_refusal(path: str, body: bytes, status: int, message: str) -> None:
    """Status, text and type are Ollama's: the error is a string."""
    expected = LocalResponse(status, NATIVE, orjson.dumps({"error": message}))
    assert expected == refused(path, body)


def test_a_delete_without_a_model() -> None:
    """The one DELETE with a body is judged too."""
    assert native(400, "model is required") == refused("/api/delete", b"{}", "DELETE")


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "message", "is_late"),
    [
        ("chat/completions", b"", 400, "invalid_request_error", "EOF", False),
        ("chat/completions", b"{}", 400, "invalid_request_error", "[] is too short - 'messages'", False),
        (
            "chat/completions",
            b'{"messages":[{"role":"user","content":"hi"}]}',
            400,
            "invalid_request_error",
            "model is required",
            True,
        ),
        (
            "chat/completions",
            b"[]",
            400,
            "invalid_request_error",
            "json: cannot unmarshal array into Go value of type openai.ChatCompletionRequest",
            False,
        ),
        (
            "completions",
            b'{"model":5}',
            400,
            "invalid_request_error",
            "json: cannot unmarshal number into Go struct field CompletionRequest.model of type string",
            False,
        ),
        ("completions", b"{}", 404, "not_found_error", "model '' not found", True),
        ("embeddings", b'{"model":"x"}', 400, "invalid_request_error", "invalid input", False),
        ("embeddings", b'{"model":"x","input":[]}', 400, "invalid_request_error", "invalid input", False),
        ("embeddings", b'{"input":""}', 404, "not_found_error", "model '' not found", True),
        ("responses", b"{}", 400, "invalid_request_error", "model is required", True),
    ],
)
def test_an_openai_refusal(
    path: str, body: bytes, status: int, kind: str, message: str, is_late: bool
) -> None:
    """The error is OpenAI's object; behind the translator Ollama frames it with a newline."""
    error = {"message": message, "type": kind, "param": None, "code": None}
    content = orjson.dumps({"error": error})
    late = LocalResponse(status, "application/json", content + b"\n")
    expected = late if is_late else LocalResponse(status, NATIVE, content)
    assert expected == refused(f"/v1/{path}", body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "EOF"),
        (b"{}", "model is required"),
        (b'{"model":"x"}', "max_tokens is required and must be positive"),
        (b'{"model":"x","max_tokens":0}', "max_tokens is required and must be positive"),
        (b'{"model":"x","max_tokens":5,"messages":[]}', "messages is required"),
        (
            b'{"model":"x","max_tokens":"5"}',
            "json: cannot unmarshal string into Go struct field MessagesRequest.max_tokens of type int",
        ),
    ],
)
def test_an_anthropic_refusal(body: bytes, message: str) -> None:
    """The error is Anthropic's, with a request id of Ollama's kind."""
    answer = refused("/v1/messages", body)
    assert answer is not None
    document = orjson.loads(answer.body)
    assert re.fullmatch("req_[0-9a-f]{24}", document.pop("request_id"))
    expected = {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
    assert (400, NATIVE, expected) == (answer.status, answer.content_type, document)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", b'{"model":"x"}'),
        ("/api/chat", b'{"MODEL":"x"}'),
        ("/api/chat", b'{"model":"x"} trailing'),
        ("/api/chat", b'{"model":"x","keep_alive":"-1s"}'),
        ("/api/chat", b'{"model":"x","unknown":{"model":5}}'),
        ("/api/chat", b'{"model":"x","stream":null,"messages":null,"options":null,"keep_alive":null}'),
        ("/api/chat", b'{"model":"x","prompt":5}'),
        ("/api/generate", b'{"model":"x","prompt":""}'),
        ("/api/embed", b'{"model":"x"}'),
        ("/api/show", b'{"name":"x"}'),
        ("/api/pull", b'{"name":"x"}'),
        ("/v1/chat/completions", b'{"model":"x","messages":[5]}'),
        ("/v1/completions", b'{"model":"x","prompt":["a"]}'),
        ("/v1/embeddings", b'{"model":"x","input":""}'),
        ("/v1/responses", b'{"model":"x"}'),
        ("/v1/messages", b'{"model":"x","max_tokens":1,"messages":[{}]}'),
        ("/v1/systemone", b""),
        ("/v1/systemone", b"no json"),
        ("/v1/audio/transcriptions", b"--x"),
        ("/api/blobs/sha256:ab", b"\x00"),
    ],
)
def test_what_ollama_might_take(path: str, body: bytes) -> None:
    """What is not certain to be refused is held for the pod."""
    assert refused(path, body) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"content-encoding": "zstd"},
        {"Content-Encoding": "gzip"},
        {"Content-Type": "multipart/form-data; boundary=x"},
    ],
)
def test_a_body_that_cannot_be_read(headers: dict[str, str]) -> None:
    """A compressed or multipart body is not judged."""
    assert BodyFields() == scan_body(
        match_route("POST", "/v1/responses"), CIMultiDict(headers), b"\x28\xb5\x2f\xfd"
    )


@pytest.mark.parametrize("headers", [{"Content-Encoding": "identity"}, {"Content-Type": "text/plain"}])
def test_a_body_of_another_type(headers: dict[str, str]) -> None:
    """Ollama does not look at the type, so neither do we."""
    expected = native(400, "model is required")
    assert expected == scan_body(match_route("POST", "/api/chat"), CIMultiDict(headers), b"{}").error


@pytest.mark.parametrize(
    ("path", "body", "seen"),
    [
        ("/api/chat", b'{"model":" llava "}', BodyFields("llava", True)),
        ("/api/chat", b'{"model":"llava","stream":false}', BodyFields("llava", False)),
        ("/api/generate", b'{"model":"llava","stream":null}', BodyFields("llava", True)),
        ("/api/generate", b'{"model":"llava","keep_alive":0}', BodyFields("llava", True, unload=True)),
        ("/api/generate", b'{"model":"llava","keep_alive":"5m"}', BodyFields("llava", True)),
        ("/api/embed", b'{"model":"llava","stream":true}', BodyFields("llava", False)),
        ("/v1/chat/completions", b'{"model":"llava","messages":[{}]}', BodyFields("llava", False)),
        ("/v1/responses", b'{"model":"llava","stream":true}', BodyFields("llava", True)),
        ("/api/pull", b'{"name":"llava"}', BodyFields("llava", True)),
        ("/v1/systemone", b'{"model":"llava","stream":true}', BodyFields("llava", None)),
        ("/v1/systemone", b"[]", BodyFields()),
        ("/api/chat", b'{"model":"llava","x":' + b"[" * 2000, BodyFields("llava")),
    ],
)
def test_a_peek(path: str, body: bytes, seen: BodyFields) -> None:
    """A look tells the model, whether it streams, and whether it only unloads."""
    assert seen == scan_body(match_route("POST", path), NO_HEADERS, body)


def test_a_wrong_method() -> None:
    """The 405 is Ollama's router's, whatever the body."""
    expected = LocalResponse(405, "text/plain", b"405 method not allowed", (("Allow", "POST"),))
    assert expected == refused("/api/chat", b"{}", "GET")
    bare = LocalResponse(405, "text/plain", b"405 method not allowed")
    assert bare == wrong_method(match_route("OPTIONS", "/v1/x"))


def test_the_texts_of_the_router() -> None:
    """The 404 and the health text are Ollama's."""
    expected = LocalResponse(404, "text/plain", b"404 page not found")
    assert expected == not_found()
    health = LocalResponse(200, "text/plain; charset=utf-8", b"Ollama is running")
    assert health == running()


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_redirect(method: str) -> None:
    """The client is sent to the plain spelling, with its query and what was split off in front."""
    answer = redirect(method, match_route(method, "/api/tags/"), prefix="/k/token", query="a=b")
    expected = LocalResponse(307, "text/plain", b"", (("Location", "/k/token/api/tags?a=b"),))
    assert expected == answer


def test_a_redirect_of_get() -> None:
    """With the page that Go writes for people, escaped."""
    answer = redirect("GET", match_route("GET", "/api/tags/"), query='a="b"&c')
    page = b'<a href="/api/tags?a=&quot;b&quot;&amp;c">Moved Permanently</a>.\n\n'
    location = (("Location", '/api/tags?a="b"&c'),)
    assert LocalResponse(301, "text/html; charset=utf-8", page, location) == answer


PATHS = st.sampled_from(
    [
        "/api/chat",
        "/api/generate",
        "/api/embed",
        "/api/copy",
        "/api/show",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/other",
    ]
)
KEYS = st.sampled_from(
    ["model", "MODEL", "name", "stream", "messages", "prompt", "keep_alive", "input", "max_tokens"]
) | st.text(max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def _dump(value: object) -> bytes:
    return json.dumps(value).encode()  # unlike orjson it also writes NaN, lone surrogates, huge numbers


@settings(deadline=None)
@given(PATHS, st.dictionaries(KEYS, JSON, max_size=6).map(_dump) | JSON.map(_dump) | st.binary(max_size=60))
def test_any_body(path: str, body: bytes) -> None:
    """Looking at a body never raises, and a refusal is JSON."""
    seen = scan_body(match_route("POST", path), NO_HEADERS, body)
    if seen.error is not None:
        assert "error" in orjson.loads(seen.error.body)
    if seen.model is not None:
        assert seen.model.encode()
