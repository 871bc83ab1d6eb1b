"""The table of Ollama's routes: what a method and a path mean.

Routes are those of docs/ollama.md#routes; what wakes a pod is docs/api.md#what-wakes-the-pod. A path is
read as Ollama's router reads it: decoded once, without dot segments or empty ones. A spelling that Ollama
would redirect is redirected here, so no spelling evades a scope or starts a pod by mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from posixpath import normpath
from urllib.parse import quote, unquote_to_bytes

from attrs import evolve, frozen


class RouteKind(StrEnum):
    """How a request is handled."""

    COMPUTE = "compute"
    """Starts the pod if it is off; the request waits for it."""
    METADATA = "metadata"
    """Never starts the pod: answered by a pod that is READY, otherwise from the catalogue."""
    ADMIN = "admin"
    """Changes models on the pod's disk: starts the pod, and needs the scope `admin`."""
    HEALTH = "health"
    """`GET|HEAD /`: answered here, without a token."""
    PASS_THROUGH = "pass_through"
    """Under /api or /v1, and neither computes nor is known: passed on while READY, otherwise 503."""
    GATEWAY_API = "own"
    """`/api/v1/*`: gpugate's own, dispatched elsewhere by `upstream_path`."""
    NOT_FOUND = "not_ours"
    """Nothing is there: 404 in the envelope."""
    NO_ROUTE = "no_route"
    """404 as from Ollama's router."""
    WRONG_METHOD = "wrong_method"
    """405 as from Ollama's router; `allow` lists the methods."""
    REDIRECT = "redirect"
    """Another spelling of `upstream_path`, to which Ollama's router redirects."""


@frozen
class Route:
    """What one request means.

    Attributes:
        kind: what becomes of it.
        upstream_path: the path to ask the pod for (raw, without query); for `GATEWAY_API` the decoded own
            path; for `REDIRECT` the path to send the client to.
        scope: "chat" or "admin"; None means that any valid token will do (`HEALTH`: none at all).
        api: which endpoint, such as "chat" or "v1/messages"; None when it is not known.
        streamed_body: the body is passed on as it comes, never kept.
        allow: the methods that the path has, for a 405.
        status: of a redirect.
        is_extra: one of the `pod.extra_paths`.
    """

    kind: RouteKind
    upstream_path: str
    scope: str | None = None
    api: str | None = None
    streamed_body: bool = False
    allow: tuple[str, ...] = ()
    status: int = 307
    is_extra: bool = False

    @property
    def is_native(self) -> bool:
        """Whether it belongs to Ollama's own API, which other engines do not have."""
        return self.upstream_path.startswith("/api/")


@frozen
class WakePaths:
    """`server.wake_paths`: further paths whose POST computes; what is known here keeps its meaning.

    Also `pod.extra_paths`, which are passed on to the pod with any method.
    """

    whole: frozenset[str] = frozenset()
    beginnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, patterns: Iterable[str]) -> WakePaths:
        """Read the patterns; a "*" at the end of one stands for the rest of a path."""
        given = tuple(patterns)
        return cls(
            frozenset(given), tuple(pattern.removesuffix("*") for pattern in given if pattern.endswith("*"))
        )

    def cover(self, path: str) -> bool:
        """Return whether a decoded path is one of them."""
        return path in self.whole or path.startswith(self.beginnings)


_NONE = WakePaths()
COUNT_TOKENS = "v1/messages/count_tokens"

_COMPUTE = (
    ("chat", "/api/chat"),
    ("generate", "/api/generate"),
    ("embed", "/api/embed"),
    ("embeddings", "/api/embeddings"),
    ("v1/chat/completions", "/v1/chat/completions"),
    ("v1/completions", "/v1/completions"),
    ("v1/embeddings", "/v1/embeddings"),
    ("v1/responses", "/v1/responses"),
    ("v1/messages", "/v1/messages"),
    ("v1/audio/transcriptions", "/v1/audio/transcriptions"),
)
_ADMIN = (
    ("POST", "pull", "/api/pull"),
    ("POST", "push", "/api/push"),
    ("POST", "create", "/api/create"),
    ("POST", "copy", "/api/copy"),
    ("DELETE", "delete", "/api/delete"),
)
_METADATA = (
    (("GET", "HEAD"), "version", "/api/version"),
    (("GET", "HEAD"), "tags", "/api/tags"),
    (("GET",), "status", "/api/status"),
    (("GET",), "ps", "/api/ps"),
    (("POST",), "show", "/api/show"),
    (("GET",), "recommendations", "/api/experimental/model-recommendations"),
    (("GET",), "v1/models", "/v1/models"),
)
_ALIASES = (("/api/v1/chat", "/api/chat"), ("/api/v1/generate", "/api/generate"))


def _table() -> dict[tuple[str, str], Route]:
    table = {(method, "/"): Route(RouteKind.HEALTH, "/") for method in ("GET", "HEAD")}
    for api, path in _COMPUTE:
        table["POST", path] = Route(RouteKind.COMPUTE, path, "chat", api)
    for method, api, path in _ADMIN:
        table[method, path] = Route(RouteKind.ADMIN, path, "admin", api)
    for methods, api, path in _METADATA:
        for method in methods:
            table[method, path] = Route(RouteKind.METADATA, path, "chat", api)
    for alias, path in _ALIASES:
        table["POST", alias] = table["POST", path]
    return table


_ROUTES = _table()
_METHODS: dict[str, tuple[str, ...]] = {}
for _method, _path in _ROUTES:
    _METHODS[_path] = (*_METHODS.get(_path, ()), _method)

_MODELS = "/v1/models/"
_BLOBS = "/api/blobs"
_BLOB_METHODS = ("POST", "HEAD")
_NEVER_PASSED_ON = frozenset({"CONNECT", "OPTIONS", "TRACE"})
# A character that no correct client leaves unescaped in a path; "#" would hide what follows it.
_STRANGE = re.compile(r"[^!-~]|#|%(?![0-9A-Fa-f]{2})")
# What is still there after decoding once: control characters, a backslash (a slash to some proxies in
# front of pods) and a second layer of escapes, which such a proxy might take off.
_HIDDEN = re.compile(r"[\x00-\x1f\x7f\\%]")


def match_route(
    method: str, path: str, wake_paths: WakePaths = _NONE, extra_paths: WakePaths = _NONE
) -> Route:
    """Return what a request means; never raises.

    Args:
        method: as received; methods are case-sensitive.
        path: the raw path; a query behind it is ignored.
        wake_paths: what computes beside the known routes.
        extra_paths: what engines of the pods have outside of /api and /v1.
    """
    known = _ROUTES.get((method, path))
    return known or _match_rare_route(method, path.partition("?")[0], wake_paths, extra_paths)


def route_name(method: str, path: str) -> str:
    """Return the name of a request's route for metrics and traces, out of a fixed list.

    An endpoint of Ollama, "gpugate" for our own ones, or what kind of path it is.
    """
    route = match_route(method, path)
    if route.kind is RouteKind.GATEWAY_API:
        return "gpugate"
    return route.api or route.kind.value


def _match_rare_route(method: str, raw: str, wake_paths: WakePaths, extra_paths: WakePaths) -> Route:
    path = _decoded(raw)
    if path is None:
        return Route(RouteKind.NOT_FOUND, raw)
    if (clean := _clean(path)) != path:
        return _redirect(clean) if _is_inside(clean) else Route(RouteKind.NOT_FOUND, raw)
    if path != "/" and path.endswith("/") and (methods := _methods(path[:-1])):
        return _without_slash(method, raw, path[:-1], methods)
    if route := _ROUTES.get((method, path)):
        return route
    if path in _METHODS:
        return _wrong_method(raw, _METHODS[path])
    if path == "/api/v1" or path.startswith("/api/v1/"):
        return Route(RouteKind.GATEWAY_API, path)
    if path == _BLOBS or path.startswith(_BLOBS + "/"):
        return _blob(method, raw, path)
    if path.startswith(_MODELS) and (known := _model(method, raw, path)):
        return known
    is_extra = method not in _NEVER_PASSED_ON and extra_paths.cover(path)
    if method == "POST" and (is_extra or wake_paths.cover(path)):
        return Route(RouteKind.COMPUTE, raw, "chat", is_extra=is_extra)
    if is_extra:
        return Route(RouteKind.PASS_THROUGH, raw, "chat", is_extra=True)
    return _unknown(method, raw, path)


def _decoded(raw: str) -> str | None:
    """Return the path as Ollama's router reads it, or None for one that no correct client sends."""
    if not raw.startswith("/") or _STRANGE.search(raw):
        return None
    if "%" not in raw:
        return None if "\\" in raw else raw
    try:
        path = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        return None
    return None if _HIDDEN.search(path) else path


def _clean(path: str) -> str:
    """Return `path` without dot segments and empty segments; a slash at its end stays."""
    if "//" not in path and "/." not in path:
        return path
    clean = "/" + normpath(path).lstrip("/")
    return clean + "/" if path.endswith(("/", "/.", "/..")) and clean != "/" else clean


def _is_inside(path: str) -> bool:
    return path == "/" or path in ("/api", "/v1") or path.startswith(("/api/", "/v1/"))


def _methods(path: str) -> tuple[str, ...]:
    """Return the methods of a known path, none for any other."""
    if path in _METHODS:
        return _METHODS[path]
    head, _, last = path.rpartition("/")
    return {_MODELS: ("GET",), _BLOBS + "/": _BLOB_METHODS}.get(head + "/", ()) if last else ()


def _redirect(path: str, status: int = 307) -> Route:
    return Route(RouteKind.REDIRECT, quote(path, safe="/:@"), status=status)


def _without_slash(method: str, raw: str, path: str, methods: tuple[str, ...]) -> Route:
    """Redirect where the method fits, as Ollama's router does (docs/ollama.md#content-types-and-headers)."""
    if method not in methods:
        return Route(RouteKind.NO_ROUTE, raw, "chat")
    return _redirect(path, 301 if method == "GET" else 307)


def _wrong_method(raw: str, allow: tuple[str, ...], scope: str = "chat") -> Route:
    return Route(RouteKind.WRONG_METHOD, raw, scope, allow=allow)


def _model(method: str, raw: str, path: str) -> Route | None:
    name = path[len(_MODELS) :]
    if method == "GET" and name.strip("/"):  # a name may hold slashes: hf.co/user/model
        return Route(RouteKind.METADATA, raw, "chat", "v1/model")
    if name and "/" not in name:
        return _wrong_method(raw, ("GET",))
    return None


def _blob(method: str, raw: str, path: str) -> Route:
    """All under /api/blobs needs `admin`, however deep: an odd digest must not lower the scope."""
    if not path[len(_BLOBS) :].strip("/"):
        return evolve(_unknown("GET", raw, path), scope="admin")
    if method == "POST":
        return Route(RouteKind.ADMIN, raw, "admin", "blob", streamed_body=True)
    if method == "HEAD":
        return Route(RouteKind.ADMIN, raw, "admin", "blob")
    return _wrong_method(raw, _BLOB_METHODS, "admin")


def _unknown(method: str, raw: str, path: str) -> Route:
    if not _is_inside(path):
        return Route(RouteKind.NOT_FOUND, raw)
    if method in _NEVER_PASSED_ON:
        return _wrong_method(raw, ())
    return Route(RouteKind.PASS_THROUGH, raw, "chat", COUNT_TOKENS if path == f"/{COUNT_TOKENS}" else None)


_PATH_TOKEN = re.compile(r"/k/([A-Za-z0-9._~-]{1,16384})(?:/+((?:api|v1)(?:/.*)?)?)?", re.DOTALL)


def split_path_token(raw_path: str) -> tuple[str, str] | None:
    """Split `/k/<token>/api/…`, `/k/<token>/v1/…` or `/k/<token>/` into the token and the path behind it.

    The Ollama command line can send no headers but keeps a path prefix (docs/ollama.md#client-defaults).
    The token is a secret: neither it nor `raw_path` may be logged. A redirect of such a request needs
    the prefix put back.
    """
    if not raw_path.startswith("/k/"):
        return None
    found = _PATH_TOKEN.fullmatch(raw_path)
    return (found[1], "/" + (found[2] or "")) if found else None
