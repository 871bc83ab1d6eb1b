"""Requests that only unload a model: while the pod is off nothing is loaded, so they are answered here.

Knows Ollama's rules for them (docs/ollama.md#unload-and-load), nothing of pods.
"""

from __future__ import annotations

from datetime import UTC, datetime

from gpugate.ollama import gojson
from gpugate.ollama.gojson import Malformed, Unjudged

_SMALL = 64 * 1024
"""Bytes: an unload has no prompt and no messages, so a larger body is none."""


def may_be_unload(body: bytes) -> bool:
    """Say cheaply whether `body` is worth parsing: for the hot path, where almost none is."""
    return len(body) <= _SMALL and b"keep_alive" in body


def is_unload(api: str | None, document: dict[str, object]) -> bool:
    """Say whether a request asks Ollama to unload its model: no prompt or messages, `keep_alive` zero.

    Args:
        api: the endpoint; only "generate" and "chat" have it.
        document: the parsed body, of a request that Ollama would not refuse.
    """
    if api not in ("generate", "chat"):
        return False
    content = gojson.field(document, "prompt" if api == "generate" else "messages")
    return content in (None, "", []) and _is_zero(gojson.field(document, "keep_alive"))


def model_to_unload(api: str | None, body: bytes) -> str | None:
    """Return the model that `body` asks to unload, or None if it is no unload; never raises."""
    if api not in ("generate", "chat") or not may_be_unload(body):
        return None
    try:
        document = gojson.read(body)
    except (Malformed, Unjudged):
        return None
    if not isinstance(document, dict) or not is_unload(api, document):
        return None
    return gojson.as_text(gojson.field(document, "model")).strip() or None


def _is_zero(keep_alive: object) -> bool:
    """Go keeps nanoseconds; a negative number means for ever, and so does a negative string."""
    if isinstance(keep_alive, bool):
        return False
    if isinstance(keep_alive, int | float):
        return 0 <= keep_alive < 1e-9
    if not isinstance(keep_alive, str):
        return False
    try:
        return gojson.duration_ns(keep_alive) == 0
    except Malformed:
        return False


def unload_answer(api: str, model: str, now: datetime) -> bytes:
    """Return Ollama's answer: one JSON object (charset=utf-8), also where a stream was asked for.

    Args:
        api: "generate" or "chat".
        model: as the request named it.
        now: an aware instant.
    """
    answer: dict[str, object] = {"model": model, "created_at": _go_time(now)}
    if api == "generate":
        answer["response"] = ""
    else:
        answer["message"] = {"role": "assistant", "content": ""}
    return gojson.write({**answer, "done": True, "done_reason": "unload"})


def _go_time(now: datetime) -> str:
    """Write RFC 3339 as Go does: UTC, a `Z`, no zeros at the end of the fraction."""
    at = now.astimezone(UTC)
    fraction = f".{at.microsecond:06d}".rstrip("0").rstrip(".")
    return at.strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"
