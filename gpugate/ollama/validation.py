"""Reads a request's body once, and answers without the pod what Ollama would refuse unseen.

Three things are answered here while the pod is off, because starting a pod for them would only cost money: a
body that is no JSON object, a body without a model, and a request that only unloads a model. Status, content
type and shape of a refusal are Ollama's (docs/ollama.md#error-bodies), the words are gpugate's. Any other
fault of a body is left to Ollama: in doubt the request is held for the pod.

How far this agrees with Ollama, whose decoder is Go's:

- Field names are matched in any case, and `null` counts as a missing field. When a body has one field in two
  spellings, the last one counts. (Go does all three.)
- orjson refuses what Go takes: text behind the object, bytes that are no UTF-8, lone surrogates. A body that
  orjson refuses is therefore read once more by the lenient parser of the standard library, up to
  `_LENIENT_SIZE`; larger ones are not judged.
- Not judged either: a body with a Content-Encoding, a multipart body, an endpoint that is not in
`_ENDPOINTS`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from html import escape
from http import HTTPStatus
from urllib.parse import unquote

import orjson
from attrs import define, evolve, field, frozen

from gpugate.ollama.catalog_responses import canonical
from gpugate.ollama.routes import Route, RouteKind

JSON = "application/json; charset=utf-8"
PLAIN_JSON = "application/json"

_LENIENT_SIZE = 64 * 1024  # bytes
_PARSED_SIZE = 16 << 20  # bytes; parsing more would keep the event loop from everything else for 50 ms
_COUNTED_SIZE = 1 << 20  # bytes; up to here a body may hold as many values as it likes
_MAX_VALUES = 250_000  # in a larger body: 16 MiB of `[]` would take 350 MB as Python lists
_UNLOAD_SIZE = 64 * 1024  # bytes; an unload request has no prompt, so a larger body is none
MAX_MODEL_NAME = 1024  # characters of a name that becomes a key of the catalogue
_MODEL_SEARCH_SIZE = 4096  # bytes at either end of a body that is not parsed

Document = Mapping[str, object]


@frozen
class LocalResponse:
    """A whole response that is made here, as Ollama would make it; an empty content type is none."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


@define
class BodyFields:
    """The few fields of a body that the gateway needs. Small: it is kept while the request waits.

    Never changed; not frozen, because to make one would then take three times as long.

    Attributes:
        model: the model that the body names, of a copy its source; None if it names none or cannot be read.
        stream: whether the response will be a stream, the endpoint's default included; None: unknown.
        unload: it asks to unload `model`.
        no_thinking: it asks for an answer without thinking.
        stream_options: OpenAI's field of this name, None if missing.
        show_key: of `/api/show`: the model's canonical name, with " verbose" behind it if that is asked for.
        load: of a request that loads its model: what makes Ollama load it anew where it differs.
        makes: of a pull, create or copy: the model that there will be.
        origin: of a create: the model that it is made from.
        is_plain_show: of `/api/show`: nothing but the name and `verbose` is given, so the answer may be kept.
        error: the refusal that Ollama would give without looking at its models.
        unreadable: the refusal is for a body that is no JSON object, and any engine would refuse it.
    """

    model: str | None = None
    stream: bool | None = None
    unload: bool = False
    no_thinking: bool = False
    stream_options: object = None
    show_key: str | None = None
    load: Document = field(factory=dict)
    makes: str | None = None
    origin: str | None = None
    is_plain_show: bool = False
    error: LocalResponse | None = None
    unreadable: bool = False


class OllamaBody:
    """A request's body. It is parsed at most once, when `fields` is read first; most are never parsed.

    Args:
        route: what the request means.
        headers: the request's; looked up in any case.
        raw: the whole body.
    """

    __slots__ = ("_fields", "_headers", "_route", "raw")

    def __init__(self, route: Route, headers: Mapping[str, str], raw: bytes) -> None:
        self.raw = raw
        self._route = route
        self._headers = headers
        self._fields: BodyFields | None = None

    @property
    def fields(self) -> BodyFields:
        """What the body says; never raises."""
        if self._fields is None:
            self._fields = scan_body(self._route, self._headers, self.raw)
        return self._fields

    @property
    def routing_model(self) -> str | None:
        """The model by which one of several pods is chosen.

        On the hot path: most bodies begin with it, or end with it and a few plain fields, and are not parsed
        for it.
        """
        if self._fields is None and self._route.kind is RouteKind.COMPUTE:
            found = _MODEL_FIRST.match(self.raw) or _MODEL_LAST.match(self.raw, self.raw.rfind(b'"model"'))
            if found:
                return found[1].decode("utf-8", "replace").strip() or None
        return self.fields.origin or self.fields.model

    @property
    def model_to_unload(self) -> str | None:
        """The model that the request asks to unload, None if it is no unload request.

        On the hot path: a body without the word `keep_alive` is not parsed for it.
        """
        if self._route.api not in ("generate", "chat") or len(self.raw) > _UNLOAD_SIZE:
            return None
        if b"keep_alive" not in self.raw:
            return None
        return self.fields.model if self.fields.unload else None


# --- the endpoints' refusals --------------------------------------------------------------------

_ErrorShape = Callable[[int, str], LocalResponse]


def native_error(status: int, message: str) -> LocalResponse:
    """Return `{"error": "..."}`, the shape of /api/*."""
    return LocalResponse(status, JSON, orjson.dumps({"error": message}))


def _openai_error(status: int, message: str) -> LocalResponse:
    kinds = {400: "invalid_request_error", 404: "not_found_error", 426: "invalid_request_error"}
    error = {"message": message, "type": kinds.get(status, "api_error"), "param": None, "code": None}
    return LocalResponse(status, JSON, orjson.dumps({"error": error}))


def _openai_handler_error(status: int, message: str) -> LocalResponse:
    """Return the same from behind Ollama's translation of /v1, which frames it another way."""
    return LocalResponse(status, PLAIN_JSON, _openai_error(status, message).body + b"\n")


def _anthropic_error(status: int, message: str) -> LocalResponse:
    error = {"type": "invalid_request_error" if status == 400 else "api_error", "message": message}
    body = {"type": "error", "error": error, "request_id": f"req_{secrets.token_hex(12)}"}
    return LocalResponse(status, JSON, orjson.dumps(body))


@frozen
class _Endpoint:
    """How one endpoint refuses.

    Attributes:
        shape: of a refusal of the body itself.
        streams: whether it streams when the body does not say so; None: it never does.
        no_model: the status when the model is missing.
        no_model_shape: of that refusal, where it is not `shape`.
        required: the fields that name the model. One of them is enough, except where `needs_all`.
        needs_all: each of `required` is needed.
        first_field: a field that Ollama checks before the model; without it the refusal is a 400 of `shape`.
    """

    shape: _ErrorShape = native_error
    streams: bool | None = None
    no_model: int = 400
    no_model_shape: _ErrorShape | None = None
    required: tuple[str, ...] = ("model",)
    needs_all: bool = False
    first_field: str = ""


_NAMED = ("model", "name")
_ENDPOINTS: Mapping[str, _Endpoint] = {
    "chat": _Endpoint(streams=True),
    "generate": _Endpoint(streams=True, no_model=404),
    "embed": _Endpoint(no_model=404),
    "embeddings": _Endpoint(),
    "show": _Endpoint(required=_NAMED),
    "pull": _Endpoint(streams=True, required=_NAMED),
    "push": _Endpoint(streams=True, required=_NAMED),
    "delete": _Endpoint(required=_NAMED),
    "create": _Endpoint(streams=True, required=()),
    "copy": _Endpoint(required=("source", "destination"), needs_all=True),
    "v1/chat/completions": _Endpoint(
        _openai_error, streams=False, no_model_shape=_openai_handler_error, first_field="messages"
    ),
    "v1/completions": _Endpoint(
        _openai_error, streams=False, no_model=404, no_model_shape=_openai_handler_error
    ),
    "v1/embeddings": _Endpoint(
        _openai_error, no_model=404, no_model_shape=_openai_handler_error, first_field="input"
    ),
    "v1/responses": _Endpoint(_openai_error, streams=False, no_model_shape=_openai_handler_error),
    "v1/messages": _Endpoint(_anthropic_error, streams=False),
}
_TAKES_OPTIONS = frozenset({"chat", "generate", "embed", "embeddings"})
_NAME_IS_MODEL = frozenset({"show", "pull", "push", "delete", "create", None})


def _model_error(endpoint: _Endpoint, fields: Document) -> LocalResponse | None:
    """The refusal of a body whose model is missing; None if it is there."""
    missing = [name for name in endpoint.required if not _text(fields.get(name)).strip()]
    if not missing or (len(missing) < len(endpoint.required) and not endpoint.needs_all):
        return None
    message = f"{' and '.join(endpoint.required) if endpoint.needs_all else 'model'} is required"
    # A field of another type is a 400 wherever it stands: Go cannot decode it.
    of_other_type = any(not isinstance(fields.get(name, ""), str) for name in missing)
    if of_other_type or (endpoint.first_field and not fields.get(endpoint.first_field)):
        return endpoint.shape(400, message)
    return (endpoint.no_model_shape or endpoint.shape)(endpoint.no_model, message)


# --- reading ------------------------------------------------------------------------------------


class _NotJson(Exception):
    """No decoder would read this body."""


class _NotJudged(Exception):
    """Whether Ollama would read this body cannot be told here."""


def scan_body(route: Route, headers: Mapping[str, str], raw: bytes) -> BodyFields:
    """Parse a body and return what the gateway needs of it; never raises. Called once per body.

    (1) A body that cannot be judged gives what a search for the model's name finds.
    (2) A body that is no JSON object is refused, if the endpoint is known.
    (3) A body without a model is refused, if the endpoint is known.
    (4) Everything else is read; fields of unexpected types are left to Ollama.
    """
    if route.api == "v1/model":
        return BodyFields(unquote(route.upstream_path.removeprefix("/v1/models/")))
    if route.streamed_body or not _is_plain(headers):
        return BodyFields()
    endpoint = _ENDPOINTS.get(route.api) if route.api is not None else None
    if route.api == "v1/audio/transcriptions" and not raw:
        return BodyFields(error=_openai_error(400, "file is required"), unreadable=True)
    try:
        document = _parse(raw)
    except _NotJudged:  # (1)
        return BodyFields(model=_search_model(raw))
    except _NotJson:  # (2)
        return _refused(endpoint, "the request body is not valid JSON")
    if not isinstance(document, dict | None):
        return _refused(endpoint, "the request body is not a JSON object")
    fields = {name.lower(): value for name, value in (document or {}).items() if value is not None}
    model = _text(fields.get("source" if route.api == "copy" else "model"))
    if not model and route.api in _NAME_IS_MODEL:
        model = _text(fields.get("name"))
    model = model.strip()
    if endpoint is None:
        return BodyFields(model or None)
    if error := _model_error(endpoint, fields):  # (3)
        return BodyFields(model or None, error=error)
    stream = fields.get("stream", endpoint.streams) if endpoint.streams is not None else False  # (4)
    return BodyFields(
        model or None,
        stream=stream if isinstance(stream, bool) else None,
        unload=_is_unload(route.api, fields),
        no_thinking=fields.get("think") is False or fields.get("reasoning_effort") == "none",
        stream_options=fields.get("stream_options"),
        show_key=_show_key(model, fields) if route.api == "show" else None,
        load=_load_fields(fields) if route.api in _TAKES_OPTIONS else {},
        makes=_text(fields.get("destination")) if route.api == "copy" else model or None,
        origin=_text(fields.get("from")).strip() or None if route.api == "create" else None,
        is_plain_show=fields.keys() <= {"model", "name", "verbose"},
    )


def _refused(endpoint: _Endpoint | None, message: str) -> BodyFields:
    return BodyFields(error=endpoint.shape(400, message) if endpoint is not None else None, unreadable=True)


def _is_plain(headers: Mapping[str, str]) -> bool:
    encoding = headers.get("Content-Encoding", "").strip().lower()
    kind = headers.get("Content-Type", "").lstrip().lower()
    return encoding in ("", "identity") and not kind.startswith("multipart/")


def _parse(raw: bytes) -> object:
    if len(raw) > _PARSED_SIZE or (len(raw) > _COUNTED_SIZE and _count_values(raw) > _MAX_VALUES):
        raise _NotJudged
    try:
        document: object = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _parse_leniently(raw)
    return document


def _count_values(raw: bytes) -> int:
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{")


def _parse_leniently(raw: bytes) -> object:
    """Parse what orjson refused: Go may still take it if it begins as an object does."""
    if not raw.lstrip(b" \t\r\n").startswith(b"{"):
        raise _NotJson
    if len(raw) > _LENIENT_SIZE:
        raise _NotJudged
    text = raw.decode("utf-8", "replace").lstrip(" \t\r\n")
    try:
        document: object = _LENIENT.raw_decode(text)[0]
    except ValueError:
        raise _NotJson from None
    except RecursionError:
        raise _NotJudged from None
    return document


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_LENIENT = json.JSONDecoder(parse_int=float, parse_constant=_refuse_constant)
_NAMES_MODEL = rb'"model"\s*:\s*"([^"\\]{1,256})"\s*'
_MODEL_FIRST = re.compile(rb"\s*\{\s*" + _NAMES_MODEL + rb"[,}]")
# Between the model and the end of the body stands no bracket, so it is a field of the outermost object; and
# in a string the quotes around "model" would be escaped.
_MODEL_LAST = re.compile(_NAMES_MODEL + rb'(?:,\s*"[^"\\]*"\s*:\s*(?:[-+.0-9A-Za-z]+|"[^"\\]*")\s*)*\}\s*\Z')
_MODEL = re.compile(rb'(?<!\\)"model"\s*:\s*"([^"\\]{1,256})"')


def _search_model(raw: bytes) -> str | None:
    """Return what is probably the model that a body names which is not parsed."""
    found = _MODEL.search(raw, 0, _MODEL_SEARCH_SIZE) or _MODEL.search(
        raw, max(0, len(raw) - _MODEL_SEARCH_SIZE)
    )
    return found[1].decode("utf-8", "replace").strip() or None if found else None


def _text(value: object) -> str:
    """Return a string field without lone surrogates, "" for anything else."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _show_key(model: str, fields: Document) -> str | None:
    if not model or len(model) > MAX_MODEL_NAME:
        return None
    return f"{canonical(model)} verbose" if fields.get("verbose") is True else canonical(model)


# --- load and unload ----------------------------------------------------------------------------

# docs/ollama.md#unload-and-load
_LOAD_OPTIONS = frozenset({"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread"})


def _load_fields(fields: Document) -> Document:
    """Return what of a request makes Ollama load its model anew, if the loaded one was loaded without it."""
    load: dict[str, object] = {}
    if isinstance(options := fields.get("options"), dict):
        given = {name: options[name] for name in options.keys() & _LOAD_OPTIONS}
        if kept := {name: value for name, value in given.items() if isinstance(value, int | float)}:
            load["options"] = kept
    if isinstance(fields.get("shift"), bool):
        load["shift"] = fields["shift"]
    keep_alive = fields.get("keep_alive")  # zero would have Ollama unload the model at once
    is_time = isinstance(keep_alive, int | float | str) and not isinstance(keep_alive, bool)
    if is_time and not _is_zero(keep_alive):
        load["keep_alive"] = keep_alive
    return load


# Go's notation of a duration of zero: "0", "0s", "0h0m0s", "0.0s".
_ZERO_DURATION = re.compile(r"[+-]?(?:0|(?:0+(?:\.0*)?|\.0+)(?:ns|us|µs|μs|ms|s|m|h))+")


def _is_unload(api: str | None, fields: Document) -> bool:
    """Say whether a request only unloads its model: no prompt or messages, and `keep_alive` zero."""
    if api not in ("generate", "chat"):
        return False
    content = fields.get("prompt" if api == "generate" else "messages")
    keep_alive = fields.get("keep_alive")
    return content in (None, "", []) and _is_zero(keep_alive)


def _is_zero(keep_alive: object) -> bool:
    if isinstance(keep_alive, bool):
        return False
    if isinstance(keep_alive, int | float):  # seconds, which Go keeps as nanoseconds; below 0 is "for ever"
        return 0 <= keep_alive < 1e-9
    return isinstance(keep_alive, str) and _ZERO_DURATION.fullmatch(keep_alive) is not None


def unload_response(api: str, model: str, now: datetime) -> LocalResponse:
    """Return Ollama's answer to an unload request: one JSON object, also where a stream was asked for.

    Args:
        api: "generate" or "chat".
        model: as the request named it.
        now: an aware instant.
    """
    answer: dict[str, object] = {"model": model, "created_at": go_time(now)}
    if api == "generate":
        answer["response"] = ""
    else:
        answer["message"] = {"role": "assistant", "content": ""}
    return LocalResponse(200, JSON, orjson.dumps({**answer, "done": True, "done_reason": "unload"}))


def go_time(now: datetime) -> str:
    """Write RFC 3339 as Go does: UTC, a `Z`, no zeros at the end of the fraction."""
    at = now.astimezone(UTC)
    fraction = f".{at.microsecond:06d}".rstrip("0").rstrip(".")
    return at.strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


# --- the router's own responses -----------------------------------------------------------------


def running() -> LocalResponse:
    """Return the answer of `GET|HEAD /`."""
    return LocalResponse(200, "text/plain; charset=utf-8", b"Ollama is running")


def wrong_method(route: Route) -> LocalResponse:
    """Return the 405 of Ollama's router."""
    assert route.kind is RouteKind.WRONG_METHOD
    allow = (("Allow", ", ".join(route.allow)),) if route.allow else ()
    return LocalResponse(405, "text/plain", b"405 method not allowed", allow)


def no_route() -> LocalResponse:
    """Return the 404 of Ollama's router."""
    return LocalResponse(404, "text/plain", b"404 page not found")


def no_web_socket() -> LocalResponse:
    """Return what makes clients of `/v1/responses` that try a WebSocket first go on with HTTP at once."""
    refusal = _openai_error(426, "no WebSocket here; send a POST")
    return evolve(refusal, headers=(("Upgrade", "HTTP/1.1"),))


def redirect(method: str, route: Route, *, prefix: str = "", query: str = "") -> LocalResponse:
    """Return the redirect of Ollama's router to the plain spelling of a path.

    Args:
        method: GET and HEAD get a content type, GET also a page; other methods neither.
        route: of kind `REDIRECT`.
        prefix: what was split off in front, such as "/k/<token>".
        query: of the request, without the question mark.
    """
    location = prefix + route.upstream_path + (f"?{query}" if query else "")
    headers = (("Location", location),)
    if method not in ("GET", "HEAD"):
        return LocalResponse(route.status, "", b"", headers)
    reason = HTTPStatus(route.status).phrase
    page = f'<a href="{escape(location)}">{reason}</a>.\n\n'  # what Go's http.Redirect writes
    return LocalResponse(route.status, "text/html; charset=utf-8", page.encode(), headers)
