"""Where an error becomes JSON: its status, its shape and its headers.

The path that the client called picks the shape (docs/api.md#error-shapes), since each client reads its own:
Ollama's want a string under `error`, OpenAI's an object, Anthropic's a typed object, and gpugate's own
endpoints respond in the envelope.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from itertools import count
from math import ceil

import orjson

from gpugate import errors
from gpugate.errors import GateError


class Dialect(Enum):
    """The shape of a response, named after the API that has it."""

    ENVELOPE = "envelope"
    OLLAMA = "ollama"
    ANTHROPIC = "anthropic"
    OPENAI = "openai"


STATUS: Mapping[type[GateError], int] = {
    GateError: 500,
    errors.AuthError: 401,
    errors.Forbidden: 403,
    errors.RequestError: 400,
    errors.PayloadTooLarge: 413,
    errors.BodyTooSlow: 408,
    errors.UnknownTransferCoding: 501,
    errors.PathNotFound: 404,
    errors.ModelNotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.QueueError: 503,
    errors.PodError: 503,
    errors.PodBusy: 409,
    errors.BudgetExceeded: 402,
    errors.WakeDenied: 403,
    errors.UpstreamError: 502,
    errors.UpstreamTimeout: 504,
    errors.InternalError: 500,
}

RETRY_AFTER_S = 5  # of a 503 whose error has none of its own
_START_RETRY_AFTER_S = 60  # docs/api.md#configuration, for errors raised without the setting
_DAY_S = 86400.0
_RETRY_AFTER: Mapping[type[GateError], int] = {
    errors.PodStartFailed: _START_RETRY_AFTER_S,
    errors.WarmupTimeout: _START_RETRY_AFTER_S,
}

# OpenAI's and Anthropic's libraries try again by themselves on any 5xx (docs/ollama.md#client-defaults).
# Here that would rent the pod once more, undo a stop by hand, or run a job twice.
_DO_NOT_RETRY = (errors.PodStartFailed, errors.WarmupTimeout, errors.PodStopped, errors.UpstreamTimeout)

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
}
_ANTHROPIC_TYPES = {
    **_OPENAI_TYPES,
    413: "request_too_large",
    503: "overloaded_error",
}
_API_ERROR = "api_error"

_BOOT = os.urandom(4).hex()
_COUNT = count(1)
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)


def dialect_of(path: str) -> Dialect:
    """Return the dialect of a path without its query."""
    if path.startswith("/api"):
        rest = path[4:]
        if rest.startswith("/v1") and rest[3:4] in ("", "/"):
            return Dialect.ENVELOPE
        return Dialect.OLLAMA if rest[:1] in ("", "/") else Dialect.ENVELOPE
    if path.startswith("/v1") and path[3:4] in ("", "/"):
        messages = path.startswith("/v1/messages") and path[12:13] in ("", "/")
        return Dialect.ANTHROPIC if messages else Dialect.OPENAI
    return Dialect.ENVELOPE


def status_of(error: GateError) -> int:
    """The HTTP status; the nearest ancestor in `STATUS` decides."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_body(
    dialect: Dialect, error: GateError, request_id: str, now: float
) -> tuple[int, bytes, list[tuple[str, str]]]:
    """Return the whole response to a request that failed before its first byte.

    Args:
        dialect: of the path that the client called.
        error: what went wrong; the detail of an `InternalError` is left out.
        request_id: for the envelope's `meta`. The header `X-Request-Id` is the caller's to add, since
            every response carries it.
        now: seconds since 1970.

    Returns:
        Status, body, and headers: Content-Type, X-Gpugate-Code, and where they apply Retry-After,
        WWW-Authenticate and x-should-retry.
    """
    status, retry_after = status_of(error), _retry_after(error)
    body = dump(_shape(dialect, error, status, retry_after, request_id, now))
    headers = [("Content-Type", _content_type(dialect)), ("X-Gpugate-Code", error.code)]
    if retry_after is not None:
        headers.append(("Retry-After", str(retry_after)))
    if status == 401:
        headers.append(("WWW-Authenticate", "Bearer"))
    if isinstance(error, _DO_NOT_RETRY):
        headers.append(("x-should-retry", "false"))
    return status, body, headers


def success(data: object, request_id: str, now: float) -> bytes:
    """The envelope around `data`: anything JSON, Decimals (as numbers) and datetimes (as ISO 8601, Z)."""
    return dump({"status": "success", "data": data, "error": None, "meta": _meta(request_id, now)})


def stream_error(
    dialect: Dialect,
    error: GateError,
    content_type: str,
    *,
    inside_event: bool = False,
    request_id: str = "",
    now: float | None = None,
) -> bytes:
    """What ends a stream whose status is already sent (docs/api.md#in-mid-stream).

    Args:
        dialect: of the path that the client called.
        error: why the stream ends.
        content_type: of the response that was begun; a plain JSON answer gets the whole error object.
        inside_event: for Server-Sent Events, whether an event was begun: a blank line ends it first.
        request_id: for the envelope alone.
        now: for the envelope alone: seconds since 1970, None for the present.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-ndjson":
        return dump({"error": _message(error)}) + b"\n"
    status = status_of(error)
    if kind != "text/event-stream":
        now = time.time() if now is None else now
        return dump(_shape(dialect, error, status, _retry_after(error), request_id, now))
    name = b"event: error\n" if dialect is Dialect.ANTHROPIC else b""
    event = _anthropic(error, status) if dialect is Dialect.ANTHROPIC else _openai(error, status)
    return (b"\n\n" if inside_event else b"") + name + b"data: " + dump(event) + b"\n\n"


def request_id(raw: str | None) -> str:
    """Return the client's id if it is a sane one, else a new one: 16 hex digits, this process and a count.

    An id that begins like a token is not sane: ids are logged, tokens never.
    """
    if raw is not None and _SANE_ID.fullmatch(raw) and not raw.startswith("eyJ"):
        return raw
    return f"{_BOOT}{next(_COUNT) & 0xFFFFFFFF:08x}"


def timestamp(now: float) -> str:
    """Seconds since 1970 as docs/api.md#the-envelope has it: ISO 8601, UTC, milliseconds."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _shape(
    dialect: Dialect, error: GateError, status: int, retry_after: int | None, request_id: str, now: float
) -> Mapping[str, object]:
    if dialect is Dialect.ANTHROPIC:
        return _anthropic(error, status)
    if dialect is Dialect.OPENAI:
        return _openai(error, status)
    code: dict[str, object] = {"code": error.code}
    hints: dict[str, object] = {} if retry_after is None else {"retryAfter": retry_after}
    hints |= _reason(error)
    message = _message(error)
    if dialect is Dialect.OLLAMA:
        return {"error": message, **code, **hints}
    return {
        "status": "error",
        "data": None,
        "error": {**code, "message": message, **hints},
        "meta": _meta(request_id, now),
    }


def _openai(error: GateError, status: int) -> Mapping[str, object]:
    kind = _OPENAI_TYPES.get(status, _API_ERROR)
    told = {"message": _message(error), "type": kind, "param": None, "code": error.code, **_reason(error)}
    return {"error": told}


def _anthropic(error: GateError, status: int) -> Mapping[str, object]:
    told = {"type": _ANTHROPIC_TYPES.get(status, _API_ERROR), "message": _message(error)}
    if error.reason is not None:  # the shape has no code of its own; a reason stands beside one
        told |= {"code": error.code, "reason": error.reason}
    return {"type": "error", "error": told}


def _reason(error: GateError) -> dict[str, object]:
    return {} if error.reason is None else {"reason": error.reason}


def _message(error: GateError) -> str:
    """Return the message for the client: one line, without the details of internal errors."""
    if status_of(error) == 500:
        return errors.InternalError.default_message
    return " ".join(error.message.split()) or error.default_message


def _retry_after(error: GateError) -> int | None:
    """Return whole seconds, at least 1; None where waiting does not help."""
    wanted = error.retry_after_s
    if wanted is None and status_of(error) == 503:
        return next(
            (_RETRY_AFTER[kind] for kind in type(error).__mro__ if kind in _RETRY_AFTER), RETRY_AFTER_S
        )
    if wanted is None:
        return None
    return (
        ceil(min(wanted, _DAY_S)) if wanted > 0 else 1
    )  # the number may be a provider's, so it can be anything


def _meta(request_id: str, now: float) -> Mapping[str, str]:
    return {"requestId": request_id, "timestamp": timestamp(now)}


def _content_type(dialect: Dialect) -> str:
    return "application/json; charset=utf-8" if dialect is Dialect.OLLAMA else "application/json"


def dump(value: object) -> bytes:
    """JSON, with Decimals as numbers and instants in UTC; text that is no UTF-8 is escaped."""
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_UTC_Z)
    except TypeError:  # text made of bytes that are no UTF-8: a path, a field's name
        return orjson.dumps(_repaired(value), default=_plain, option=orjson.OPT_UTC_Z)


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _repaired(value: object) -> object:
    if isinstance(value, str):
        return _utf8(value)
    if isinstance(value, Mapping):
        return {_utf8(str(key)): _repaired(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_repaired(item) for item in value]
    return value


# --- errors that are not the pod's own ----------------------------------------------------------

EDGE_STATUSES = frozenset([*range(520, 528), 530])
"""Only said by proxies in front of a server."""

_EDGE_PAGE_STATUSES = frozenset({404, 502, 503, 504})  # Ollama says these, too, but never as an HTML page
_EDGE_REFUSALS = frozenset({403, 413, 429})
_EDGE_TIMEOUTS = frozenset({504, 524})
_EDGE_CODE = re.compile(rb"error code:? ?([0-9]{3,4})\b", re.IGNORECASE)
_EDGE_CODE_LIMIT = 64  # bytes of a plain text that is nothing but such a code


def may_be_of_edge(status: int, content_type: str, length: int) -> bool:
    """Say whether a response from behind an edge, of `length` bytes (0: not told), may be the edge's own."""
    if status in EDGE_STATUSES:
        return True
    if content_type[:9].lower() == "text/html":
        return status in _EDGE_PAGE_STATUSES or status in _EDGE_REFUSALS
    if status < 400 or status in (404, 405):  # Ollama's in plain text
        return False
    return content_type[:10].lower() == "text/plain" and length <= _EDGE_CODE_LIMIT


def edge_error(status: int, content_type: str, body: bytes, *, proxied: bool) -> GateError | None:
    """Return the error that an edge's page or code stands for; None for an answer of the pod's own.

    Returns:
        `UpstreamTimeout`, `EdgeOutage` (the pod may be no more), or `UpstreamBroken` (the edge refused this
        request: another attempt would be refused as well). The message names what the edge said.
    """
    if not (status in EDGE_STATUSES or (proxied and may_be_of_edge(status, content_type, len(body)))):
        return None
    code = _EDGE_CODE.search(body)
    if code is None and content_type[:10].lower() == "text/plain" and status not in EDGE_STATUSES:
        return None
    said = f"error code: {code[1].decode()}" if code else "a page of its own"
    told = f"the edge in front of the pod answered {status} ({said})"
    if status in _EDGE_TIMEOUTS:
        return errors.UpstreamTimeout(
            f"the pod's service did not answer in time: {told}; the job may still run"
        )
    is_outage = status in EDGE_STATUSES or status in _EDGE_PAGE_STATUSES
    return errors.EdgeOutage(told) if is_outage else errors.UpstreamBroken(told)
