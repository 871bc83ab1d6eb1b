"""Handles every request: parses its target, checks its token and scope, calls a handler, logs one line.

What a request goes through, in this order:

1. The target is split into path token, path and query; the path decides the route (`ollama.routes`).
2. A path that is neither Ollama's nor gpugate's, a CORS preflight and a public endpoint need no token.
3. The token is verified before the body is read; then its scope is checked.
4. The handler answers, or raises a `GateError`, which becomes a response in the shape of the path.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import count
from typing import Any, Protocol

from aiohttp import web
from yarl import URL

from gpugate.api.routing import ApiRoutes
from gpugate.errors import (
    AuthError,
    Forbidden,
    GateError,
    InternalError,
    MethodNotAllowed,
    PathNotFound,
)
from gpugate.ollama.handlers import OllamaHandlers
from gpugate.ollama.routes import Route, RouteKind, WakePaths, match_route, split_path_token
from gpugate.proxy.auth import User, Verifier, tokens_of
from gpugate.proxy.cors import Cors
from gpugate.proxy.error_format import error_body, request_id
from gpugate.proxy.request_context import RequestContext, check_transfer_coding
from gpugate.relay.relay import RelayedResponse
from gpugate.relay.response_policy import RelayOutcome
from gpugate.tasks import CrashHandler

CLIENT_CLOSED_STATUS = 499
"""The status in the log line of a client that hung up."""


FORGET_S = 1.0
"""How long a path token may stay in memory after its request began."""

_YARL_CACHE = 128  # entries of each of yarl's caches


class RequestLog(Protocol):
    """Writes one line per request."""

    def request(
        self,
        *,
        request_id: str,
        method: str,
        path: str,
        status: int,
        user: str | None,
        ms: float,
        pod: str | None,
        waited_ms: float | None,
        run: int | None,
        bytes_out: int | None,
        ending: str | None,
        reason: str | None,
    ) -> None:
        """Write the line."""


class ObservedLog:
    """A `RequestLog` that writes each line, and hands it to a function."""

    def __init__(self, log: RequestLog, observe: Callable[[Mapping[str, Any]], None]) -> None:
        self._log = log
        self._observe = observe

    def request(self, **line: Any) -> None:
        """Write the line, and hand it on."""
        self._log.request(**line)
        self._observe(line)


class UrlCacheFlusher:
    """Takes path tokens out of yarl's caches, which aiohttp fills with the target of each request.

    yarl has no call for it, so that other URLs push them out: 0.3 ms of work, at most once each `FORGET_S`.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None

    def schedule(self) -> None:
        """Flush soon; called for each request with a path token."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FORGET_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        for _ in range(_YARL_CACHE):
            number = next(self._numbers)
            URL.build(path=f"/{number}", encoded=True)
            URL(f"http://{number}/", encoded=True)  # a target with scheme and host goes through others


class RequestDispatcher:
    """The handler of `GatewayServer`."""

    def __init__(
        self,
        *,
        verifier: Verifier,
        ollama: OllamaHandlers,
        own: ApiRoutes,
        cors: Cors,
        log: RequestLog,
        path_tokens: bool,
        on_crash: CrashHandler,
        wake_paths: Iterable[str] = (),
        extra_paths: Iterable[str] = (),
    ) -> None:
        self._verifier = verifier
        self._ollama = ollama
        self._own: ApiRoutes = own
        self._cors = cors
        self._log = log
        self._path_tokens = path_tokens
        self._urls = UrlCacheFlusher()
        self._on_crash = on_crash
        self._wake_paths = WakePaths.of(wake_paths)
        self._extra_paths = WakePaths.of(extra_paths)

    def set_lists(self, cors_origins: Iterable[str], wake_paths: Iterable[str]) -> None:
        """Use other `server.cors_origins` and `server.wake_paths` from now on."""
        self._cors, self._wake_paths = Cors(tuple(cors_origins)), WakePaths.of(wake_paths)

    def handle(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """Answer one request; every error becomes a response in the shape of its path."""
        began = time.perf_counter()
        context = self._parse_target(request)
        route = match_route(context.method, context.path, self._wake_paths, self._extra_paths)
        return self._dispatch(context, route, began)

    async def _dispatch(self, context: RequestContext, route: Route, began: float) -> web.StreamResponse:
        status = CLIENT_CLOSED_STATUS
        try:
            response = await self._route(context, route)
            status = response.status
            _record_outcome(context, response)
        except GateError as error:
            response = _error_response(context, error)
            status = response.status
            context.refusal = _refusal(error)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as error:
            self._on_crash(f"request {context.request_id}", error)
            if context.request.writer.output_size:  # the response has started: no error can be sent any more
                raise ConnectionResetError from error
            response = _error_response(context, InternalError())
            status = response.status
        finally:
            self._log_request(context, status, began)
        if not isinstance(response, RelayedResponse) and not response.prepared:
            _add_extra_headers(context, response)
        return response

    def answer_malformed(self, request: web.BaseRequest, error: GateError) -> web.Response:
        """Answer what is no HTTP; none of it is sent back or logged, as it may be a prompt or a token."""
        context = RequestContext(request, request_id(None), "", "", "")
        response = _error_response(context, error)
        response.headers["X-Request-Id"] = context.request_id
        self._log_request(context, response.status, time.perf_counter())
        return response

    # --- in -----------------------------------------------------------------------------------

    def _parse_target(self, request: web.BaseRequest) -> RequestContext:
        """Split the target; a path token is taken out before the path can be logged."""
        headers = request.headers
        target = request.raw_path
        path, _, query = (target if target.startswith("/") else _origin_form(target)).partition("?")
        prefix = ""
        if self._path_tokens and path.startswith("/k/") and (split := split_path_token(path)):
            token, rest = split
            prefix, path = f"/k/{token}", rest
            self._urls.schedule()
        context = RequestContext(request, request_id(headers.get("X-Request-Id")), path, query, prefix)
        context.extra_head = _request_id_header(context.request_id)
        if "Origin" in headers:
            context.extra_head += self._cors.headers_for(headers["Origin"])
        return context

    def _route(self, context: RequestContext, route: Route) -> Awaitable[web.StreamResponse]:
        if route.kind is RouteKind.NOT_FOUND and context.path.startswith("/k/"):
            raise PathNotFound  # path tokens are off, or this is none: with any token
        if "Transfer-Encoding" in context.request.headers:
            check_transfer_coding(context.request)
        if route.kind is RouteKind.GATEWAY_API or context.method == "OPTIONS":
            return self._answer_gateway_api(context, route)
        if route.kind is RouteKind.NOT_FOUND and route.upstream_path in self._own:  # such as /dashboard
            return self._answer_gateway_api(context, route)
        if route.kind is RouteKind.HEALTH or self._cached_user(context):
            return self._answer_if_allowed(context, route)
        return self._authenticate_and_answer(context, route)

    async def _authenticate_and_answer(self, context: RequestContext, route: Route) -> web.StreamResponse:
        await self._verify(context)
        return await self._answer_if_allowed(context, route)

    def _answer_if_allowed(self, context: RequestContext, route: Route) -> Awaitable[web.StreamResponse]:
        if route.scope is not None and (context.user is None or not context.user.has_scope(route.scope)):
            raise Forbidden(f"the token's scope does not cover this (needed: {route.scope})")
        return self._ollama.answer(context, route)

    async def _answer_gateway_api(self, context: RequestContext, route: Route) -> web.StreamResponse:
        if context.method == "OPTIONS":
            return self._preflight(context)
        methods = self._own.get(route.upstream_path)
        own = methods.get(context.method) if methods is not None else None
        if own is not None and own.public:
            return await own.handler(context)
        user = self._cached_user(context) or await self._verify(context)
        if methods is None:
            raise PathNotFound
        if own is None:
            raise MethodNotAllowed(f"method not allowed; use {', '.join(methods)}", allow=tuple(methods))
        if own.scope is not None and not user.has_scope(own.scope):
            raise Forbidden(f"the token's scope does not cover this (needed: {own.scope})")
        return await own.handler(context)

    def _cached_user(self, context: RequestContext) -> User | None:
        """Return the user of a token that was verified before, None for a new one."""
        if context.token_prefix:
            context.user = self._verifier.cached_user(_path_token(context))
        else:
            context.user = self._verifier.user_from_headers(context.request.headers)
        return context.user

    async def _verify(self, context: RequestContext) -> User:
        tokens = tokens_of(_path_token(context), context.request.headers)
        context.user = await self._verifier.verify_any(tokens)
        return context.user

    def _preflight(self, context: RequestContext) -> web.StreamResponse:
        headers = context.request.headers
        origin = headers.get("Origin")
        if origin is None:
            return web.Response(status=204)
        status, answer = self._cors.preflight(
            origin,
            headers.get("Access-Control-Request-Headers"),
            asked_private_network=headers.get("Access-Control-Request-Private-Network") == "true",
        )
        context.extra_head = context.extra_head.partition(b"\r\n")[0] + b"\r\n"
        return web.Response(status=status, headers=answer)

    # --- out ----------------------------------------------------------------------------------

    def _log_request(self, context: RequestContext, status: int, began: float) -> None:
        self._log.request(
            request_id=context.request_id,
            method=context.method,
            path=context.path,
            status=status,
            user=context.user.subject if context.user is not None else None,
            ms=(time.perf_counter() - began) * 1000,
            pod=context.pod or None,
            waited_ms=context.waited_ms or None,
            run=context.run_id or None,
            bytes_out=context.bytes_sent or None,
            ending=context.outcome or None,
            reason=context.refusal or None,
        )


def _record_outcome(context: RequestContext, response: web.StreamResponse) -> None:
    if isinstance(response, RelayedResponse):
        context.bytes_sent = response.bytes_sent
        if response.outcome is not RelayOutcome.COMPLETE:
            context.outcome = response.outcome.name.lower()


def _refusal(error: GateError) -> str:
    """Return for the log why nobody, or this user, is let in; empty for other errors."""
    if isinstance(error, AuthError):
        return f"{error.message}: {error.detail}" if error.detail else error.message
    return error.message if isinstance(error, Forbidden) else ""


def _request_id_header(request_id: str) -> bytes:
    return b"X-Request-Id: " + request_id.encode("ascii") + b"\r\n"


def _path_token(context: RequestContext) -> str:
    return context.token_prefix.removeprefix("/k/")


def _origin_form(target: str) -> str:
    """Return `/path?query` for `http://host/path?query`, which a client sends that takes this for its proxy.

    The host ends where path, query or fragment begin (RFC 9112 3.2.2, RFC 3986 3.2). Without a host there is
    no path, and nothing is found.
    """
    _, scheme, rest = target.partition("://")
    if not scheme:
        return target
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    path = rest.removeprefix(host)
    if not host or path.startswith("#"):
        return ""
    return path if path.startswith("/") else f"/{path}"


def _error_response(context: RequestContext, error: GateError) -> web.Response:
    status, body, headers = error_body(context.dialect, error, context.request_id, time.time())
    response = web.Response(status=status, body=body, headers=headers)
    if isinstance(error, MethodNotAllowed) and error.allow:
        response.headers["Allow"] = ", ".join(error.allow)
    if not context.request.content.is_eof() or context.method == "CONNECT":
        response.force_close()  # the rest of the request has not been read
    return response


def _add_extra_headers(context: RequestContext, response: web.StreamResponse) -> None:
    for line in context.extra_head.decode("ascii").split("\r\n"):
        if line:
            name, _, value = line.partition(": ")
            response.headers.setdefault(name, value)
