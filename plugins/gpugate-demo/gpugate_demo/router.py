"""Routes, CORS and the Host check, in the order in which Ollama applies them.

Modelled on docs/ollama.md#routes: gin with method checks and slash redirects, then
gin-contrib/cors, then Ollama's own Host check.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from attrs import frozen

ROUTES: Mapping[tuple[str, str], str] = {
    ("GET", "/"): "root",
    ("HEAD", "/"): "root",
    ("GET", "/api/version"): "version",
    ("HEAD", "/api/version"): "version",
    ("GET", "/api/status"): "status",
    ("GET", "/api/tags"): "tags",
    ("HEAD", "/api/tags"): "tags",
    ("GET", "/api/ps"): "ps",
    ("POST", "/api/show"): "show",
    ("POST", "/api/generate"): "generate",
    ("POST", "/api/chat"): "chat",
    ("POST", "/api/embed"): "embed",
    ("POST", "/api/embeddings"): "embeddings",
    ("POST", "/v1/chat/completions"): "openai_chat",
    ("POST", "/v1/completions"): "openai_completions",
    ("POST", "/v1/responses"): "responses",
    ("POST", "/v1/messages"): "messages",
    ("POST", "/v1/embeddings"): "openai_embeddings",
    ("POST", "/v1/audio/transcriptions"): "transcriptions",
    ("GET", "/v1/models"): "openai_models",
    ("GET", "/v1/models/*"): "openai_model",
    ("POST", "/api/pull"): "pull",
    ("POST", "/api/push"): "push",
    ("POST", "/api/create"): "create",
    ("DELETE", "/api/delete"): "delete",
    ("POST", "/api/copy"): "copy",
    ("HEAD", "/api/blobs/*"): "blob_head",
    ("POST", "/api/blobs/*"): "blob_create",
    ("GET", "/api/experimental/model-recommendations"): "recommendations",
    ("POST", "/api/experimental/web_search"): "account",
    ("POST", "/api/experimental/web_fetch"): "account",
    ("POST", "/api/me"): "account",
    ("POST", "/api/signout"): "account",
    ("DELETE", "/api/user/keys/*"): "account",
}
METHODS: Mapping[str, frozenset[str]] = {
    path: frozenset(method for method, other in ROUTES if other == path) for _, path in ROUTES
}
_LOCAL_ORIGIN_HOSTS = frozenset({"localhost", "127.0.0.1", "0.0.0.0"})
_LOCAL_ORIGIN_SCHEMES = ("app://", "file://", "tauri://", "vscode-webview://", "vscode-file://")
_ALLOW_HEADERS = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta"


@frozen
class Found:
    """A handler's name, and the last segment of a path that has one."""

    name: str
    parameter: str = ""


@frozen
class Redirected:
    """The same path without, or with, a slash at its end, or without empty segments."""

    status: int
    location: str


@frozen
class WrongMethod:
    """The path exists; `allow` is what it takes."""

    allow: str


@frozen
class NotThere:
    """No such path."""


Target = Found | Redirected | WrongMethod | NotThere


def _pattern(path: str) -> tuple[str, str]:
    if path in METHODS:
        return path, ""
    parent, _, last = path.rpartition("/")
    pattern = f"{parent}/*"
    return (pattern, last) if last and last != "*" and pattern in METHODS else ("", "")


def find(method: str, path: str) -> Target:
    """Where a request goes, as Go's mux and then gin decide it."""
    if "//" in path:
        return Redirected(307, re.sub("//+", "/", path))
    pattern, parameter = _pattern(path)
    if (name := ROUTES.get((method, pattern))) is not None:
        return Found(name, parameter)
    if path != "/":
        other = path[:-1] if path.endswith("/") else f"{path}/"
        if (method, _pattern(other)[0]) in ROUTES:
            return Redirected(301 if method == "GET" else 307, other)
    if pattern:
        return WrongMethod(", ".join(sorted(METHODS[pattern])))
    return NotThere()


def _origin_allowed(origin: str, extra: Iterable[str]) -> bool:
    if origin.startswith(_LOCAL_ORIGIN_SCHEMES) or origin in extra or "*" in extra:
        return True
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.hostname in _LOCAL_ORIGIN_HOSTS
    except ValueError:
        return False


def cors(method: str, host: str, origin: str, extra: Iterable[str] = ()) -> int | dict[str, str]:
    """The status that ends the request (403, 204), or the headers that CORS adds to its answer.

    A foreign Origin is refused for every method, not only OPTIONS; a preflight's own headers come
    from `preflight_headers`.
    """
    if not origin or origin in (f"http://{host}", f"https://{host}"):
        return {}
    if not _origin_allowed(origin, tuple(extra)):
        return 403
    return 204 if method == "OPTIONS" else {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def preflight_headers(origin: str) -> dict[str, str]:
    """What a preflight that is welcome is answered."""
    return {
        "Access-Control-Allow-Headers": _ALLOW_HEADERS,
        "Access-Control-Allow-Methods": "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS",
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Max-Age": "43200",
        "Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
    }


def host_allowed(host: str) -> bool:
    """Whether an Ollama that listens on loopback accepts this Host header."""
    name = host.rpartition(":")[0] if _has_port(host) else host
    name = name.strip("[]").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        known = name in ("", "localhost", socket.gethostname().lower())
        return known or name.endswith((".localhost", ".local", ".internal"))
    return address.is_loopback or address.is_private or address.is_unspecified


def _has_port(host: str) -> bool:
    return host.endswith("]") is False and ":" in host and (host.count(":") == 1 or host.startswith("["))
