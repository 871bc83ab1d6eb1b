"""The gate: every request comes through here once. Names it, checks its token, sends it on, logs one line.

Knows the order of things (token before body, scope before route) and the shape of errors; what is
answered stands in `ollama_api.py` and `gate_api.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Protocol

from aiohttp import web

from gpugate.api.routing import ApiRoutes
from gpugate.errors import Forbidden, GateError, InternalError, InvalidRequest, MethodNotAllowed, PathNotFound
from gpugate.ollama.handlers import OllamaHandlers
from gpugate.ollama.routes import Route, RouteKind, match_route, split_path_token
from gpugate.proxy.auth import User, Verifier, bearer_token
from gpugate.proxy.cors import Cors
from gpugate.proxy.error_format import error_body, request_id
from gpugate.proxy.request_context import RequestContext
from gpugate.relay import RelayedResponse, RelayOutcome
from gpugate.tasks import CrashHandler

CLIENT_CLOSED_STATUS = 499
"""The status that a log line shows for a client that hung up."""


class RequestLog(Protocol):
    """Where the one line per request goes."""

    def request(
        self,
        *,
        request_id: str,
        method: str,
        path: str,
        status: int,
        user: str | None,
        ms: float,
        waited_ms: float | None,
        run: int | None,
        bytes_out: int | None,
        ending: str | None,
    ) -> None:
        """Write the line."""


class RequestDispatcher:
    """The handler of the server."""

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
    ) -> None:
        self._verifier = verifier
        self._ollama = ollama
        self._own: ApiRoutes = own
        self._cors = cors
        self._log = log
        self._path_tokens = path_tokens
        self._on_crash = on_crash

    def handle(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """Answer one request; every error becomes an answer in the dialect of its path."""
        began = time.perf_counter()
        call = self._parse_target(request)
        return self._dispatch(call, match_route(call.method, call.path), began)

    async def _dispatch(self, call: RequestContext, route: Route, began: float) -> web.StreamResponse:
        status = CLIENT_CLOSED_STATUS
        try:
            response = await self._route(call, route)
            status = response.status
            _record_outcome(call, response)
        except GateError as error:
            response = _error_response(call, error)
            status = response.status
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as error:
            self._on_crash(f"request {call.request_id}", error)
            if call.request.writer.output_size:  # an answer has begun: nothing can be said any more
                raise ConnectionResetError from error
            response = _error_response(call, InternalError())
            status = response.status
        finally:
            self._log_request(call, status, began)
        if not isinstance(response, RelayedResponse) and not response.prepared:
            _add_extra_headers(call, response)
        return response

    def answer_malformed(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer what is no HTTP; nothing of it is shown or logged, since it may be anything."""
        call = RequestContext(request, request_id(None), "", "", "")
        response = _error_response(call, InvalidRequest("the request is malformed"))
        response.headers["X-Request-Id"] = call.request_id
        self._log_request(call, response.status, time.perf_counter())
        return response

    # --- in -----------------------------------------------------------------------------------

    def _parse_target(self, request: web.BaseRequest) -> RequestContext:
        """Split the target; a path token is taken out before anything can log it."""
        headers = request.headers
        target = request.raw_path
        path, _, query = (target if target.startswith("/") else _origin_form(target)).partition("?")
        prefix = ""
        if self._path_tokens and path.startswith("/k/") and (split := split_path_token(path)):
            token, rest = split
            prefix, path = f"/k/{token}", rest
        call = RequestContext(request, request_id(headers.get("X-Request-Id")), path, query, prefix)
        call.extra_head = _request_id_header(call.request_id)
        if "Origin" in headers:
            call.extra_head += self._cors.headers_for(headers["Origin"])
        return call

    def _route(self, call: RequestContext, route: Route) -> Awaitable[web.StreamResponse]:
        if route.kind is RouteKind.NOT_FOUND and call.path.startswith("/k/"):
            raise PathNotFound  # path tokens are off, or it is none: who asks does not matter
        if route.kind is RouteKind.GATEWAY_API or call.method == "OPTIONS":
            return self._answer_gateway_api(call, route)
        if route.kind is RouteKind.HEALTH or self._cached_user(call):
            return self._answer_if_allowed(call, route)
        return self._authenticate_and_answer(call, route)

    async def _authenticate_and_answer(self, call: RequestContext, route: Route) -> web.StreamResponse:
        await self._verify(call)
        return await self._answer_if_allowed(call, route)

    def _answer_if_allowed(self, call: RequestContext, route: Route) -> Awaitable[web.StreamResponse]:
        if route.scope is not None and (call.user is None or not call.user.has_scope(route.scope)):
            raise Forbidden(f"the token's scope does not cover this (needed: {route.scope})")
        return self._ollama.answer(call, route)

    async def _answer_gateway_api(self, call: RequestContext, route: Route) -> web.StreamResponse:
        if call.method == "OPTIONS":
            return self._preflight(call)
        methods = self._own.get(route.upstream_path)
        own = methods.get(call.method) if methods is not None else None
        if own is not None and own.public:
            return await own.handler(call)
        user = self._cached_user(call) or await self._verify(call)
        if methods is None:
            raise PathNotFound
        if own is None:
            raise MethodNotAllowed(f"method not allowed; use {', '.join(methods)}", allow=tuple(methods))
        if own.scope is not None and not user.has_scope(own.scope):
            raise Forbidden(f"the token's scope does not cover this (needed: {own.scope})")
        return await own.handler(call)

    def _cached_user(self, call: RequestContext) -> User | None:
        """Who asks, if the token was seen before; before any body is read."""
        if call.token_prefix:
            call.user = self._verifier.cached_user(_token(call))
        else:
            call.user = self._verifier.user_from_headers(call.request.headers)
        return call.user

    async def _verify(self, call: RequestContext) -> User:
        token = _token(call)
        call.user = self._verifier.cached_user(token) or await self._verifier.verify(token)
        return call.user

    def _preflight(self, call: RequestContext) -> web.StreamResponse:
        headers = call.request.headers
        origin = headers.get("Origin")
        if origin is None:
            return web.Response(status=204)
        status, answer = self._cors.preflight(
            origin,
            headers.get("Access-Control-Request-Headers"),
            asked_private_network=headers.get("Access-Control-Request-Private-Network") == "true",
        )
        call.extra_head = call.extra_head.partition(b"\r\n")[0] + b"\r\n"
        return web.Response(status=status, headers=answer)

    # --- out ----------------------------------------------------------------------------------

    def _log_request(self, call: RequestContext, status: int, began: float) -> None:
        self._log.request(
            request_id=call.request_id,
            method=call.method,
            path=call.path,
            status=status,
            user=call.user.subject if call.user is not None else None,
            ms=(time.perf_counter() - began) * 1000,
            waited_ms=call.waited_ms or None,
            run=call.run_id or None,
            bytes_out=call.bytes_sent or None,
            ending=call.outcome or None,
        )


def _record_outcome(call: RequestContext, response: web.StreamResponse) -> None:
    if isinstance(response, RelayedResponse):
        call.bytes_sent = response.bytes_sent
        if response.outcome is not RelayOutcome.COMPLETE:
            call.outcome = response.outcome.name.lower()


def _request_id_header(request_id: str) -> bytes:
    return b"X-Request-Id: " + request_id.encode("ascii") + b"\r\n"


def _token(call: RequestContext) -> str:
    return call.token_prefix[3:] if call.token_prefix else bearer_token(call.request.headers)


def _origin_form(target: str) -> str:
    """`http://host/path` as a proxy would send it, brought to `/path`."""
    _, scheme, rest = target.partition("://")
    if not scheme:
        return target
    _, slash, path = rest.partition("/")
    return slash + path or "/"


def _error_response(call: RequestContext, error: GateError) -> web.Response:
    status, body, headers = error_body(call.dialect, error, call.request_id, time.time())
    response = web.Response(status=status, body=body, headers=headers)
    if isinstance(error, MethodNotAllowed) and error.allow:
        response.headers["Allow"] = ", ".join(error.allow)
    if not call.request.content.is_eof() or call.method == "CONNECT":
        response.force_close()  # what follows was not read, and is not worth reading
    return response


def _add_extra_headers(call: RequestContext, response: web.StreamResponse) -> None:
    for line in call.extra_head.decode("ascii").split("\r\n"):
        if line:
            name, _, value = line.partition(": ")
            response.headers.setdefault(name, value)
