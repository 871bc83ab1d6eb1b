"""gpugate/ollama/validation.py: what a body says, and what is refused or answered without the pod."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from gpugate.ollama import validation
from gpugate.ollama.routes import match_route
from gpugate.ollama.validation import (
    BodyFields,
    LocalResponse,
    OllamaBody,
    native_error,
    redirect,
    running,
    unload_response,
    wrong_method,
)

NATIVE = "application/json; charset=utf-8"
NO_HEADERS: CIMultiDict[str] = CIMultiDict()


def scanned(path: str, raw: bytes, method: str = "POST") -> BodyFields:
    return OllamaBody(match_route(method, path), NO_HEADERS, raw).fields


def refused(path: str, raw: bytes, method: str = "POST") -> LocalResponse | None:
    return scanned(path, raw, method).error


NO_JSON = [
    b"",
    b"  ",
    b"hi",
    b'{"model"',
    b'{"model":"x"',
    b'{"model":"x",}',
    b"nul",
    b'{"model":NaN}',
    b"\xff",
]
NO_OBJECT = [b"[]", b'"x"', b"1", b"true"]


@pytest.mark.parametrize("raw", NO_JSON + NO_OBJECT)
@pytest.mark.parametrize("name", ["chat", "generate", "embed", "show", "pull", "create", "copy", "v1/chat"])
def test_no_object_on_a_native_path(name: str, raw: bytes) -> None:
    """A body that is no JSON object is a 400 whose error is a string."""
    answer = refused(f"/api/{name}", raw)
    assert answer is not None
    assert (400, NATIVE, ["error"]) == (answer.status, answer.content_type, list(orjson.loads(answer.body)))
    assert isinstance(orjson.loads(answer.body)["error"], str)


@pytest.mark.parametrize(
    ("path", "raw", "status"),
    [
        ("/api/chat", b"null", 400),
        ("/api/chat", b"{}", 400),
        ("/api/chat", b'{"model":null}', 400),
        ("/api/chat", b'{"model":" "}', 400),
        ("/api/chat", b'{"model":["x"]}', 400),
        ("/api/generate", b"{}", 404),
        ("/api/generate", b'{"model":5}', 400),
        ("/api/embed", b"{}", 404),
        ("/api/embeddings", b"{}", 400),
        ("/api/v1/chat", b"{}", 400),
        ("/api/v1/generate", b"{}", 404),
        ("/api/show", b"{}", 400),
        ("/api/pull", b"{}", 400),
        ("/api/push", b"{}", 400),
        ("/api/copy", b'{"source":"a"}', 400),
    ],
)
def test_no_model_on_a_native_path(path: str, raw: bytes, status: int) -> None:
    """A missing model has the status that the endpoint has for it."""
    answer = refused(path, raw)
    assert answer is not None
    assert (status, NATIVE) == (answer.status, answer.content_type)
    assert orjson.loads(answer.body)["error"].endswith("required")


def test_nothing_to_transcribe() -> None:
    """Without a body there is no file."""
    answer = refused("/v1/audio/transcriptions", b"")
    assert answer is not None
    assert (400, "file is required") == (answer.status, orjson.loads(answer.body)["error"]["message"])


def test_a_delete_without_a_model() -> None:
    """The one DELETE with a body is judged, too."""
    assert native_error(400, "model is required") == refused("/api/delete", b"{}", "DELETE")


@pytest.mark.parametrize(
    ("path", "raw", "status", "kind", "is_late"),
    [
        ("chat/completions", b"", 400, "invalid_request_error", False),
        ("chat/completions", b"{}", 400, "invalid_request_error", False),
        ("chat/completions", b'{"messages":[{"role":"user"}]}', 400, "invalid_request_error", True),
        ("chat/completions", b"[]", 400, "invalid_request_error", False),
        ("completions", b'{"model":5}', 400, "invalid_request_error", False),
        ("completions", b"{}", 404, "not_found_error", True),
        ("embeddings", b"{}", 400, "invalid_request_error", False),
        ("embeddings", b'{"input":"x"}', 404, "not_found_error", True),
        ("responses", b"{}", 400, "invalid_request_error", True),
    ],
)
def test_an_openai_refusal(path: str, raw: bytes, status: int, kind: str, is_late: bool) -> None:
    """The error is OpenAI's object; from behind Ollama's translation it is framed with a newline."""
    answer = refused(f"/v1/{path}", raw)
    assert answer is not None
    content_type = "application/json" if is_late else NATIVE
    assert (status, content_type, is_late) == (
        answer.status,
        answer.content_type,
        answer.body.endswith(b"\n"),
    )
    error = orjson.loads(answer.body)["error"]
    assert (kind, None, None) == (error["type"], error["param"], error["code"])


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"max_tokens":5}'])
def test_an_anthropic_refusal(raw: bytes) -> None:
    """The error is Anthropic's, with a request id of Ollama's kind."""
    answer = refused("/v1/messages", raw)
    assert answer is not None
    document = orjson.loads(answer.body)
    assert re.fullmatch("req_[0-9a-f]{24}", document["request_id"])
    assert (400, NATIVE, "error") == (answer.status, answer.content_type, document["type"])
    assert "invalid_request_error" == document["error"]["type"]


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
        ("/api/chat", b'{"model":"x","keep_alive":"-1"}'),
        ("/api/chat", b'{"model":"x","stream":1}'),
        ("/api/chat", b'{"model":"x","text":"\\ud800"}'),
        ("/api/chat", b'{"model":"x","text":"\xff"}'),
        ("/api/embed", b'{"model":"x"}'),
        ("/api/show", b'{"name":"x"}'),
        ("/api/pull", b'{"name":"x"}'),
        ("/v1/chat/completions", b'{"model":"x","messages":[5]}'),
        ("/v1/completions", b'{"model":"x","prompt":["a"]}'),
        ("/v1/embeddings", b'{"model":"x","input":""}'),
        ("/v1/responses", b'{"model":"x"}'),
        ("/v1/chat/completions", b'{"model":"x"}'),
        ("/v1/messages", b'{"model":"x"}'),
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
    route = match_route("POST", "/v1/responses")
    assert BodyFields() == OllamaBody(route, CIMultiDict(headers), b"\x28\xb5\x2f\xfd").fields


@pytest.mark.parametrize("headers", [{"Content-Encoding": "identity"}, {"Content-Type": "text/plain"}])
def test_a_body_of_another_type(headers: dict[str, str]) -> None:
    """Ollama does not look at the type, so neither does the gateway."""
    body = OllamaBody(match_route("POST", "/api/chat"), CIMultiDict(headers), b"{}")
    assert native_error(400, "model is required") == body.fields.error


@pytest.mark.parametrize(
    ("path", "raw", "model", "stream", "unload"),
    [
        ("/api/chat", b'{"model":" llava ","messages":[1]}', "llava", True, False),
        ("/api/chat", b'{"Model":"llava","model":null,"messages":[1]}', "llava", True, False),
        ("/api/chat", b'{"model":"a","Model":"llava","messages":[1]}', "llava", True, False),
        ("/api/chat", b'{"model":"llava","stream":false}', "llava", False, False),
        ("/api/chat", b'{"model":"llava","stream":"no"}', "llava", None, False),
        ("/api/chat", b'{"model":"llava","text":"\xff"} behind', "llava", True, False),
        ("/api/generate", b'{"model":"llava","stream":null}', "llava", True, False),
        ("/api/generate", b'{"model":"llava","keep_alive":0}', "llava", True, True),
        ("/api/generate", b'{"model":"llava","keep_alive":"5m"}', "llava", True, False),
        ("/api/embed", b'{"model":"llava","stream":true}', "llava", False, False),
        ("/v1/chat/completions", b'{"model":"llava","messages":[{}]}', "llava", False, False),
        ("/v1/responses", b'{"model":"llava","stream":true}', "llava", True, False),
        ("/api/pull", b'{"name":"llava"}', "llava", True, False),
        ("/api/copy", b'{"source":"llava","destination":"other"}', "llava", False, False),
        ("/v1/systemone", b'{"model":"llava","stream":true}', "llava", None, False),
        ("/v1/systemone", b"[]", None, None, False),
        ("/api/chat", b'{"model":"llava","x":' + b"[" * 2000, "llava", None, False),
        ("/api/chat", b'{"model":"llava","x":[' + b"{}," * 700_000 + b"1]}", "llava", None, False),
    ],
)
def test_fields(path: str, raw: bytes, model: str | None, stream: bool | None, unload: bool) -> None:
    """A body tells the model, whether it streams, and whether it only unloads."""
    fields = scanned(path, raw)
    assert (model, stream, unload, None) == (fields.model, fields.stream, fields.unload, fields.error)


@pytest.mark.parametrize(
    ("more", "no_thinking"),
    [
        (b"", False),
        (b',"think":false', True),
        (b',"think":true,"reasoning_effort":"low"', False),
        (b',"think":"low"', False),
        (b',"reasoning_effort":"none"', True),
    ],
)
def test_thinking(more: bytes, no_thinking: bool) -> None:
    """Whether an answer without thinking is asked for."""
    raw = b'{"model":"llava","messages":[{}]%b}' % more
    assert no_thinking == scanned("/v1/chat/completions", raw).no_thinking


@pytest.mark.parametrize(
    ("raw", "key", "is_plain"),
    [
        (b'{"model":"Llava"}', "llava:latest", True),
        (b'{"name":"llava:7b","verbose":true}', "llava:7b verbose", True),
        (b'{"model":"llava","system":"x"}', "llava:latest", False),
    ],
)
def test_show(raw: bytes, key: str, is_plain: bool) -> None:
    """The name under which the answer is cached, and whether it may be."""
    fields = scanned("/api/show", raw)
    assert (key, is_plain) == (fields.show_key, fields.is_plain_show)


@pytest.mark.parametrize("api", ["chat", "generate", "embed", "embeddings"])
@pytest.mark.parametrize(
    ("fields", "load"),
    [
        ({}, {}),
        (
            {"options": {"num_ctx": 8192, "temperature": 0.1, "num_thread": 4, "use_mmap": False}},
            {"options": {"num_ctx": 8192, "num_thread": 4, "use_mmap": False}},
        ),
        (
            {"options": {"num_batch": 8, "num_gpu": 1, "main_gpu": 0}, "shift": False, "keep_alive": "1h"},
            {"options": {"num_batch": 8, "num_gpu": 1, "main_gpu": 0}, "shift": False, "keep_alive": "1h"},
        ),
        ({"options": {"num_ctx": None, "num_gpu": "all"}}, {}),
        ({"options": {"NUM_CTX": 1}, "Keep_Alive": -1}, {"keep_alive": -1}),
        ({"options": [8192], "shift": "no", "keep_alive": True}, {}),
        ({"keep_alive": 0}, {}),
        ({"keep_alive": "0s"}, {}),
        ({"keep_alive": "0h0m"}, {}),
        ({"keep_alive": 0.5}, {"keep_alive": 0.5}),
    ],
)
def test_what_loads_a_model_anew(api: str, fields: dict[str, object], load: dict[str, object]) -> None:
    """The options of the load, and how long it is kept, unless it is to be unloaded at once."""
    said = {"model": "x", "input": "hi", "prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
    assert load == scanned(f"/api/{api}", orjson.dumps({**said, **fields})).load


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/api/pull", "/api/create"])
def test_what_has_no_say_in_a_load(path: str) -> None:
    """Ollama ignores these fields there."""
    raw = b'{"model":"x","messages":[1],"input":"x","options":{"num_ctx":8192},"keep_alive":5}'
    assert {} == scanned(path, raw).load


def test_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is asked for, and not before it is."""
    calls: list[bytes] = []
    loads = orjson.loads
    monkeypatch.setattr(validation.orjson, "loads", lambda raw: calls.append(raw) or loads(raw))
    raw = b'{"model":"x","keep_alive":0,"messages":[]}'
    body = OllamaBody(match_route("POST", "/api/chat"), NO_HEADERS, raw)
    assert [] == calls
    assert ("x", "x", True) == (body.model_to_unload, body.fields.model, body.fields.unload)
    assert [raw] == calls


ZEROS = [0, 0.0, -0.0, 1e-10, "0", "-0", "+0", "0s", "0m", "0h0m0s", "0.0s"]
OTHERS = [1, -1, 0.5, "5m", "-1s", "1ms", "-1", "", "x", None, True, False, [], {}]


def to_unload(api: str, document: object) -> str | None:
    raw = document if isinstance(document, bytes) else orjson.dumps(document)
    return OllamaBody(match_route("POST", f"/{api}"), NO_HEADERS, raw).model_to_unload


@pytest.mark.parametrize("keep_alive", ZEROS)
@pytest.mark.parametrize(
    ("api", "content"),
    [
        ("api/generate", {}),
        ("api/generate", {"prompt": ""}),
        ("api/generate", {"prompt": None, "stream": True}),
        ("api/chat", {}),
        ("api/chat", {"messages": []}),
        ("api/chat", {"messages": None}),
    ],
)
def test_an_unload_request(keep_alive: object, api: str, content: dict[str, object]) -> None:
    """A zero in any spelling, with an empty or missing prompt."""
    assert "x" == to_unload(api, {"model": "x", "keep_alive": keep_alive, **content})


@pytest.mark.parametrize("keep_alive", OTHERS)
def test_another_keep_alive(keep_alive: object) -> None:
    """An empty request that keeps the model is a load, which computes."""
    assert to_unload("api/generate", {"model": "x", "keep_alive": keep_alive}) is None


@pytest.mark.parametrize(
    ("api", "document"),
    [
        ("api/generate", {"model": "x", "prompt": "hi", "keep_alive": 0}),
        ("api/generate", {"model": "x", "prompt": " ", "keep_alive": 0}),
        ("api/chat", {"model": "x", "messages": [{"role": "user"}], "keep_alive": 0}),
        ("api/chat", {"model": "x"}),
        ("api/chat", {"keep_alive": 0}),
        ("api/chat", {"model": 1, "keep_alive": 0}),
        ("api/embed", {"model": "x", "keep_alive": 0}),
        ("v1/chat/completions", {"model": "x", "keep_alive": 0}),
        ("v1/other", {"model": "x", "keep_alive": 0}),
        ("api/chat", b'{"keep_alive":'),
        ("api/chat", b'["keep_alive"]'),
        ("api/chat", b'{"model":"x","keep_alive":0,"format":"' + b"x" * 70_000 + b'"}'),
    ],
)
def test_no_unload_request(api: str, document: object) -> None:
    """A prompt, another endpoint, no model."""
    assert to_unload(api, document) is None


def test_the_answer_to_an_unload() -> None:
    """One JSON object with Ollama's fields in Ollama's order, the time in UTC."""
    now = datetime(2026, 11, 21, 3, 4, 5, 120_000, tzinfo=timezone(timedelta(hours=1)))
    start = b'{"model":"llava","created_at":"2026-11-21T02:04:05.12Z",'
    end = b'"done":true,"done_reason":"unload"}'
    generated = unload_response("generate", "llava", now)
    assert LocalResponse(200, NATIVE, start + b'"response":"",' + end) == generated
    chat = unload_response("chat", "llava", now.replace(microsecond=0))
    message = b'"message":{"role":"assistant","content":""},'
    assert start.replace(b".12Z", b"Z") + message + end == chat.body


def test_a_wrong_method() -> None:
    """The 405 is that of Ollama's router."""
    expected = LocalResponse(405, "text/plain", b"405 method not allowed", (("Allow", "POST"),))
    assert expected == wrong_method(match_route("GET", "/api/chat"))
    bare = LocalResponse(405, "text/plain", b"405 method not allowed")
    assert bare == wrong_method(match_route("OPTIONS", "/v1/x"))


def test_running() -> None:
    """The health text is Ollama's."""
    assert LocalResponse(200, "text/plain; charset=utf-8", b"Ollama is running") == running()


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_redirect(method: str) -> None:
    """The client is sent to the plain spelling, with its query and what was split off in front."""
    answer = redirect(method, match_route(method, "//api/tags"), prefix="/k/token", query="a=b")
    expected = LocalResponse(307, "", b"", (("Location", "/k/token/api/tags?a=b"),))
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
def test_any_body(path: str, raw: bytes) -> None:
    """Reading a body never raises, and a refusal is JSON."""
    fields = scanned(path, raw)
    assert fields.error is None or "error" in orjson.loads(fields.error.body)
    assert fields.model is None or fields.model.encode()


CHAT_ROUTE = match_route("POST", "/api/chat")


@pytest.mark.parametrize(
    ("raw", "model", "parsed"),
    [
        (b'{"model":"a","messages":[]}', "a", False),
        (b' {\n "model" : " a:1b " }', "a:1b", False),
        (
            b'{"messages":[{}],"model":"a","stream":true,"seed":-1.5e3,"f":"json"}',
            "a",
            False,
        ),
        (b'{"messages":[{"content":"x"}],"model":"a"}\n', "a", False),
        (b'{"messages":[],"model":"a","options":{"seed":1}}', "a", True),
        (b'{"options":{"model":"no"},"model":"a","tools":[]}', "a", True),
        (b'{"model":"a\\u0062","x":1}', "ab", True),
        (b'{"x":{"model":"no"}}', None, True),
        (b'{"messages":[{"content":"\\"model\\":\\"no\\"}"}]}', None, True),
        (b'{"messages":[{"model":"no"}],"model":"a"}', "a", False),
        (b'{"Model":"a"}', "a", True),
        (b'{"model":""}', None, True),
        (b"", None, True),
        (b"no JSON", None, True),
    ],
)
def test_routing_model(raw, model, parsed):
    """The outermost object's, found without parsing where it stands first or last."""
    body = OllamaBody(CHAT_ROUTE, {}, raw)
    assert model == body.routing_model
    assert parsed is (body._fields is not None)


@pytest.mark.parametrize(
    ("method", "path", "raw", "model"),
    [
        ("POST", "/api/copy", b'{"source":"a","destination":"b"}', "a"),
        ("POST", "/api/create", b'{"model":"b","from":"a"}', "a"),
        ("POST", "/api/create", b'{"model":"b"}', "b"),
        ("DELETE", "/api/delete", b'{"name":"a"}', "a"),
        ("GET", "/v1/models/a%3A1b", b"", "a:1b"),
    ],
)
def test_routing_model_of_other_requests(method, path, raw, model):
    """A copy goes by its source, a create by what it is made from."""
    assert model == OllamaBody(match_route(method, path), {}, raw).routing_model
