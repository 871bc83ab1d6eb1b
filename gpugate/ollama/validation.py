"""What Ollama refuses without a look at its models, said as Ollama says it; knows nothing of pods or sockets.

Statuses, texts and shapes are those of Ollama's handlers (docs/ollama.md#error-bodies). Only what is
certain is refused here: a request that Ollama might take is held for the pod instead. In particular a
body in a Content-Encoding, a multipart body and an endpoint that is not known are not judged.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from html import escape

from attrs import frozen

from gpugate.ollama import gojson
from gpugate.ollama.gojson import Malformed, Unjudged
from gpugate.ollama.routes import Route, RouteKind
from gpugate.ollama.unload import is_unload

JSON = "application/json; charset=utf-8"
PLAIN_JSON = "application/json"


@frozen
class LocalResponse:
    """A whole answer, as Ollama would give it."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


@frozen
class BodyFields:
    """What a held request's body says. Small: the parsed body is not kept while the request waits.

    Attributes:
        model: the model it names, if it could be read.
        stream: whether its answer will be a stream, the endpoint's default included; None: unknown.
        unload: it asks to unload a model (answered here while the pod is off).
        error: Ollama would refuse it; nothing wakes.
    """

    model: str | None = None
    stream: bool | None = None
    unload: bool = False
    error: LocalResponse | None = None


_Shape = Callable[[int, str], LocalResponse]
_Document = dict[str, object]


def native(status: int, message: str) -> LocalResponse:
    """Return `{"error": "…"}`, the shape of /api/*."""
    return LocalResponse(status, JSON, gojson.write({"error": message}))


def _openai(status: int, message: str) -> LocalResponse:
    """Return the error of a /v1 request that Ollama's translator refuses."""
    kinds = {400: "invalid_request_error", 404: "not_found_error"}
    error = {"message": message, "type": kinds.get(status, "api_error"), "param": None, "code": None}
    return LocalResponse(status, JSON, gojson.write({"error": error}))


def _openai_late(status: int, message: str) -> LocalResponse:
    """Return the same from behind the translator, which frames it another way."""
    early = _openai(status, message)
    return LocalResponse(status, PLAIN_JSON, early.body + b"\n")


def _anthropic(status: int, message: str) -> LocalResponse:
    error = {"type": "invalid_request_error" if status == 400 else "api_error", "message": message}
    body = {"type": "error", "error": error, "request_id": f"req_{secrets.token_hex(12)}"}
    return LocalResponse(status, JSON, gojson.write(body))


@frozen
class _Endpoint:
    """How one endpoint judges a body.

    Attributes:
        struct: the Go type that the body is read into; its texts name it.
        fields: the types of the fields that have had one type in every Ollama.
        shape: how its errors look.
        streams: whether it streams when the body does not say; None: it never does.
        missing: judges a body of the right types; None when nothing is missing.
    """

    struct: str
    fields: Mapping[str, tuple[str, str]]
    shape: _Shape
    streams: bool | None
    missing: Callable[[_Document], LocalResponse | None]


def _is_blank(document: _Document, name: str = "model") -> bool:
    return not gojson.as_text(gojson.field(document, name)).strip()


def _required(document: _Document) -> LocalResponse | None:
    return native(400, "model is required") if _is_blank(document) else None


def _not_found(document: _Document) -> LocalResponse | None:
    if not _is_blank(document):
        return None
    return native(404, f"model '{gojson.as_text(gojson.field(document, 'model'))}' not found")


def _either_name(text: str) -> Callable[[_Document], LocalResponse | None]:
    def missing(document: _Document) -> LocalResponse | None:
        return native(400, text) if _is_blank(document) and _is_blank(document, "name") else None

    return missing


def _copy(document: _Document) -> LocalResponse | None:
    for name in ("source", "destination"):
        if _is_blank(document, name):
            return native(400, f'{name} "{gojson.as_text(gojson.field(document, name))}" is invalid')
    return None


def _nothing(_document: _Document) -> LocalResponse | None:
    return None


def _v1_chat(document: _Document) -> LocalResponse | None:
    if not gojson.field(document, "messages"):
        return _openai(400, "[] is too short - 'messages'")
    return _v1_required(document)


def _v1_required(document: _Document) -> LocalResponse | None:
    return _openai_late(400, "model is required") if _is_blank(document) else None


def _v1_not_found(document: _Document) -> LocalResponse | None:
    if not _is_blank(document):
        return None
    return _openai_late(404, f"model '{gojson.as_text(gojson.field(document, 'model'))}' not found")


def _v1_embeddings(document: _Document) -> LocalResponse | None:
    value = gojson.field(document, "input")
    if value is None or value == []:
        return _openai(400, "invalid input")
    return _v1_not_found(document)


def _v1_messages(document: _Document) -> LocalResponse | None:
    limit = gojson.field(document, "max_tokens")
    if _is_blank(document):
        return _anthropic(400, "model is required")
    if limit is None or (isinstance(limit, int | float) and limit <= 0):
        return _anthropic(400, "max_tokens is required and must be positive")
    if not gojson.field(document, "messages"):
        return _anthropic(400, "messages is required")
    return None


_STRING, _BOOL = ("string", "string"), ("bool", "bool")
_OPTIONS = ("object", "map[string]interface {}")
_DURATION = ("duration", "")
_NATIVE = {"model": _STRING, "stream": _BOOL, "options": _OPTIONS, "keep_alive": _DURATION}
_EMBED = {"model": _STRING, "options": _OPTIONS, "keep_alive": _DURATION}
_NAMED = {"model": _STRING, "name": _STRING}
_ENDPOINTS: Mapping[str, _Endpoint] = {
    "chat": _Endpoint(
        "api.ChatRequest", {**_NATIVE, "messages": ("array", "[]api.Message")}, native, True, _required
    ),
    "generate": _Endpoint("api.GenerateRequest", {**_NATIVE, "prompt": _STRING}, native, True, _not_found),
    "embed": _Endpoint("api.EmbedRequest", _EMBED, native, None, _not_found),
    "embeddings": _Endpoint("api.EmbeddingRequest", {**_EMBED, "prompt": _STRING}, native, None, _required),
    "show": _Endpoint("api.ShowRequest", _NAMED, native, None, _either_name("model is required")),
    "pull": _Endpoint("api.PullRequest", _NAMED, native, True, _either_name("invalid model name")),
    "push": _Endpoint("api.PushRequest", _NAMED, native, True, _either_name("model is required")),
    "delete": _Endpoint("api.DeleteRequest", _NAMED, native, None, _either_name("model is required")),
    "create": _Endpoint("api.CreateRequest", _NAMED, native, True, _nothing),
    "copy": _Endpoint("api.CopyRequest", {"source": _STRING, "destination": _STRING}, native, None, _copy),
    "v1/chat/completions": _Endpoint(
        "openai.ChatCompletionRequest",
        {"model": _STRING, "stream": _BOOL, "messages": ("array", "[]openai.Message")},
        _openai,
        False,
        _v1_chat,
    ),
    "v1/completions": _Endpoint(
        "openai.CompletionRequest", {"model": _STRING, "stream": _BOOL}, _openai, False, _v1_not_found
    ),
    "v1/embeddings": _Endpoint("openai.EmbedRequest", {"model": _STRING}, _openai, None, _v1_embeddings),
    "v1/responses": _Endpoint(
        "openai.ResponsesRequest", {"model": _STRING, "stream": _BOOL}, _openai, False, _v1_required
    ),
    "v1/messages": _Endpoint(
        "anthropic.MessagesRequest",
        {
            "model": _STRING,
            "stream": _BOOL,
            "messages": ("array", "[]anthropic.MessageParam"),
            "max_tokens": ("number", "int"),
        },
        _anthropic,
        False,
        _v1_messages,
    ),
}
_BY_NAME = frozenset({"show", "pull", "push", "delete", "create", None})


def scan_body(route: Route, headers: Mapping[str, str], body: bytes) -> BodyFields:
    """Look once at a body that has to wait: its model, whether Ollama would refuse it; never raises.

    Args:
        route: from `surface.classify`.
        headers: the request's, found in any case (a `CIMultiDict` or the like).
        body: all of it.
    """
    if route.streamed_body or not _is_plain(headers):
        return BodyFields()
    endpoint = _ENDPOINTS.get(route.api) if route.api is not None else None
    try:
        document = gojson.read(body)
    except Unjudged:
        return BodyFields(model=gojson.guess_model(body))
    except Malformed as error:
        return BodyFields(error=_malformed(endpoint, str(error)) if endpoint else None)
    if not isinstance(document, dict | None):
        return BodyFields(error=_wrong_document(endpoint, document) if endpoint else None)
    return _look(route.api, endpoint, document or {})


def validation_error(route: Route, headers: Mapping[str, str], body: bytes) -> LocalResponse | None:
    """Return what Ollama would refuse this with, unseen, or None; never raises."""
    if route.kind is RouteKind.WRONG_METHOD:
        return wrong_method(route)
    return scan_body(route, headers, body).error


def _is_plain(headers: Mapping[str, str]) -> bool:
    encoding = headers.get("Content-Encoding", "").strip().lower()
    kind = headers.get("Content-Type", "").lstrip().lower()
    return encoding in ("", "identity") and not kind.startswith("multipart/")


def _look(api: str | None, endpoint: _Endpoint | None, document: _Document) -> BodyFields:
    model = gojson.as_text(gojson.field(document, "model"))
    if not model and api in _BY_NAME:
        model = gojson.as_text(gojson.field(document, "name"))
    model = model.strip()
    if endpoint is None:
        return BodyFields(model=model or None)
    if refused := _wrong_field(endpoint, document) or endpoint.missing(document):
        return BodyFields(model=model or None, error=refused)
    stream = gojson.field(document, "stream")
    return BodyFields(
        model=model or None,
        stream=bool(endpoint.streams if stream is None or endpoint.streams is None else stream),
        unload=is_unload(api, document),
    )


def _malformed(endpoint: _Endpoint, complaint: str) -> LocalResponse:
    if complaint == "EOF" and endpoint.shape is native:
        complaint = "missing request body"
    return endpoint.shape(400, complaint)


def _wrong_document(endpoint: _Endpoint, document: object) -> LocalResponse:
    kind = gojson.kind_of(document)
    return endpoint.shape(400, f"json: cannot unmarshal {kind} into Go value of type {endpoint.struct}")


def _wrong_field(endpoint: _Endpoint, document: _Document) -> LocalResponse | None:
    """Return Go's complaint about the first field of another type, a bad duration before all others."""
    complaint = ""
    for key, value in document.items():
        name = key if key in endpoint.fields else key.lower()
        if name not in endpoint.fields or value is None:
            continue
        wanted, go_type = endpoint.fields[name]
        if wanted == "duration":
            if text := _wrong_duration(value):
                return endpoint.shape(400, text)
        elif (kind := gojson.kind_of(value)) != wanted and not complaint:
            place = f"{endpoint.struct.partition('.')[2]}.{name}"
            complaint = f"json: cannot unmarshal {kind} into Go struct field {place} of type {go_type}"
    return endpoint.shape(400, complaint) if complaint else None


_GO_TYPES = {"bool": "bool", "array": "[]interface {}", "object": "map[string]interface {}"}


def _wrong_duration(value: object) -> str:
    if isinstance(value, str):
        try:
            gojson.duration_ns(gojson.as_text(value))
        except Malformed as error:
            return str(error)
        return ""
    kind = gojson.kind_of(value)
    return "" if kind == "number" else f"Unsupported type: '{_GO_TYPES[kind]}'"


def running() -> LocalResponse:
    """Return the answer of `GET|HEAD /`; no refusal, but the one body that Ollama never changes."""
    return LocalResponse(200, "text/plain; charset=utf-8", b"Ollama is running")


def wrong_method(route: Route) -> LocalResponse:
    """Return the 405 of Ollama's router."""
    allow = (("Allow", ", ".join(route.allow)),) if route.allow else ()
    return LocalResponse(405, "text/plain", b"405 method not allowed", allow)


def not_found() -> LocalResponse:
    """Return the 404 of Ollama's router."""
    return LocalResponse(404, "text/plain", b"404 page not found")


def redirect(method: str, route: Route, *, prefix: str = "", query: str = "") -> LocalResponse:
    """Return the redirect of Ollama's router to the plain spelling of a path.

    Args:
        method: GET gets a 301; a 307 makes clients send the body of any other again.
        route: of kind `REDIRECT`.
        prefix: what was split off in front, such as "/k/<token>".
        query: of the request, without the question mark.
    """
    location = prefix + route.upstream_path + (f"?{query}" if query else "")
    headers = (("Location", location),)
    if method != "GET":
        return LocalResponse(307, "text/plain", b"", headers)
    page = f'<a href="{escape(location)}">Moved Permanently</a>.\n\n'  # what Go's http.Redirect writes
    return LocalResponse(301, "text/html; charset=utf-8", page.encode(), headers)
