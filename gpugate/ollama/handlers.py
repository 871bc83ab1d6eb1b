"""Ollama's surface: what wakes the pod is held and forwarded, what does not is answered from what is known.

See docs/api.md#what-wakes-the-pod. Decides by the route; looks into bodies only where the pod is not READY.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

import orjson
from aiohttp import StreamReader, web

from gpugate.errors import GateError, InvalidRequest, MethodNotAllowed, PathNotFound, PodStopped, RequestError
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.ollama.catalog_cache import CatalogCache, cache_key
from gpugate.ollama.routes import Route, RouteKind
from gpugate.ollama.unload import model_to_unload, unload_answer
from gpugate.ollama.validation import (
    JSON,
    BodyFields,
    LocalResponse,
    redirect,
    running,
    scan_body,
    validation_error,
    wrong_method,
)
from gpugate.proxy.auth import subject_of
from gpugate.proxy.error_format import Dialect
from gpugate.proxy.forwarder import Forwarder
from gpugate.proxy.heartbeat import Heartbeat
from gpugate.proxy.request_body import read_body
from gpugate.proxy.request_context import RequestContext
from gpugate.relay import CapturedBody, UpstreamExchangeError, detect_disconnect

_EMBEDS = frozenset({"embed", "embeddings", "v1/embeddings"})
_CHANGES = frozenset({"pull", "create", "copy", "delete"})
_OFF = "the pod is not running, and this does not wake it"


class OllamaHandlers:
    """Answers every path under `/`, `/api` and `/v1` that is not gpugate's own."""

    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        forwarder: Forwarder,
        catalog: CatalogCache,
        max_body: int,
        heartbeat_s: float,
        changed: Callable[[], None],
    ) -> None:
        self._lifecycle = lifecycle
        self._forwarder = forwarder
        self._catalog = catalog
        self._max_body = max_body
        self._heartbeat_s = heartbeat_s
        self._changed = changed
        self._answers: dict[RouteKind, Callable[[RequestContext, Route], Awaitable[web.StreamResponse]]] = {
            RouteKind.COMPUTE: self._compute,
            RouteKind.ADMIN: self._admin,
            RouteKind.METADATA: self._metadata,
            RouteKind.PASS_THROUGH: self._unknown,
            RouteKind.HEALTH: self._running,
            RouteKind.WRONG_METHOD: self._wrong_method,
            RouteKind.REDIRECT: self._redirect,
            RouteKind.NOT_FOUND: self._nothing,
            RouteKind.GATEWAY_API: self._nothing,
        }

    def answer(self, call: RequestContext, route: Route) -> Awaitable[web.StreamResponse]:
        """Answer a call whose token has been judged.

        Raises:
            GateError: what the client is to be told instead.
        """
        return self._answers[route.kind](call, route)

    # --- what wakes ---------------------------------------------------------------------------

    async def _compute(self, call: RequestContext, route: Route) -> web.StreamResponse:
        body = await read_body(call.request, self._max_body)
        unloaded = model_to_unload(route.api, body)
        if unloaded is not None:
            return await self._unload(call, route, body, unloaded)
        serves = self._lifecycle.serving is not None
        if serves and not self._heartbeat_s:
            return await self._leased(call, route, body, None)
        seen = scan_body(route, call.request.headers, body)
        if seen.error is not None and not serves:
            return _plain(call, seen.error)
        return await self._leased(call, route, body, seen)

    async def _unload(
        self, call: RequestContext, route: Route, body: bytes, model: str
    ) -> web.StreamResponse:
        """Never wakes and never resets the idle clock; a pod that serves is really asked."""
        pod = self._lifecycle.serving
        if pod is not None:
            try:
                return await self._forwarder.forward_unleased(call, pod, route.upstream_path, body)
            except UpstreamExchangeError:
                pass
        answer = unload_answer(route.api or "generate", model, datetime.now(UTC))
        return _plain(call, LocalResponse(200, JSON, answer))

    async def _leased(
        self, call: RequestContext, route: Route, body: bytes | StreamReader, seen: BodyFields | None
    ) -> web.StreamResponse:
        model = seen.model if seen is not None else None
        heartbeat = self._beat(call, seen)
        embeds, user = route.api in _EMBEDS, subject_of(call.user)
        with self._lifecycle.acquire(
            model=model, embeds=embeds, user=user, request_id=call.request_id
        ) as lease:
            if seen is None and isinstance(body, bytes):
                lease.model_hint = lambda: scan_body(route, call.request.headers, body).model
            try:
                return await self._forwarder.forward(call, route.upstream_path, body, lease, heartbeat)
            except GateError as error:
                if heartbeat is None or not heartbeat.headers_sent:
                    raise
                return heartbeat.finish_with_error(error)

    def _beat(self, call: RequestContext, seen: BodyFields | None) -> Heartbeat | None:
        if self._heartbeat_s <= 0 or seen is None or seen.stream is None or call.request.version < (1, 1):
            return None
        return Heartbeat(call, self._heartbeat_s, streams=seen.stream)

    async def _admin(self, call: RequestContext, route: Route) -> web.StreamResponse:
        """What changes models on the pod's disk; blobs of many GB stream through."""
        if route.streamed_body:
            with detect_disconnect(call.request.transport):
                return await self._leased(call, route, call.request.content, None)
        body = await read_body(call.request, self._max_body)
        seen = None
        serves = self._lifecycle.serving is not None
        if self._heartbeat_s or not serves:
            seen = scan_body(route, call.request.headers, body)
            if seen.error is not None and not serves:
                return _plain(call, seen.error)
        try:
            return await self._leased(call, route, body, seen)
        finally:
            if route.api in _CHANGES:
                self._catalog.invalidate(scan_body(route, call.request.headers, body).model)

    # --- what never wakes ---------------------------------------------------------------------

    async def _metadata(self, call: RequestContext, route: Route) -> web.StreamResponse:
        body = await read_body(call.request, self._max_body)
        path = route.upstream_path
        pod = self._lifecycle.serving
        if pod is not None:
            tap = self._tap(call, route, body)
            try:
                return await self._forwarder.forward_unleased(call, pod, path, body, tap)
            except UpstreamExchangeError:
                pass  # the pod is in trouble: what is remembered is better than an error
        if refused := validation_error(route, call.request.headers, body):
            return _plain(call, refused)
        answered = self._catalog.answer(call.method, path, body)
        if answered is None:
            raise PodStopped(_OFF)
        return _plain(call, LocalResponse(answered.status, answered.content_type, answered.body))

    def _tap(self, call: RequestContext, route: Route, body: bytes) -> Callable[[CapturedBody], None] | None:
        slot = cache_key(call.method, route.upstream_path, body)
        return partial(self._remember, slot) if slot is not None else None

    def _remember(self, slot: tuple[str, str], tapped: CapturedBody) -> None:
        if not tapped.content_encoding and self._catalog.store(*slot, tapped.body):
            self._changed()

    async def _unknown(self, call: RequestContext, route: Route) -> web.StreamResponse:
        pod = self._lifecycle.serving
        if pod is None:
            raise PodStopped(_OFF)
        body = await read_body(call.request, self._max_body)
        try:
            return await self._forwarder.forward_unleased(call, pod, route.upstream_path, body)
        except UpstreamExchangeError as gone:
            raise PodStopped(_OFF) from gone

    async def _running(self, call: RequestContext, route: Route) -> web.StreamResponse:
        return _plain(call, running())

    async def _wrong_method(self, call: RequestContext, route: Route) -> web.StreamResponse:
        return _plain(call, wrong_method(route))

    async def _redirect(self, call: RequestContext, route: Route) -> web.StreamResponse:
        return _plain(call, redirect(call.method, route, prefix=call.token_prefix, query=call.query))

    async def _nothing(self, call: RequestContext, route: Route) -> web.StreamResponse:
        raise PathNotFound


def _in_envelope(answer: LocalResponse) -> RequestError:
    if answer.status == 405:
        return MethodNotAllowed()
    try:
        said = orjson.loads(answer.body).get("error")
    except (orjson.JSONDecodeError, AttributeError):
        said = None
    return InvalidRequest(said if isinstance(said, str) else "")


def _plain(call: RequestContext, answer: LocalResponse) -> web.Response:
    """A whole answer in Ollama's own words; aiohttp leaves the body out for HEAD and keeps its length.

    Raises:
        RequestError: a refusal on gpugate's own paths, which have the envelope.
    """
    if answer.status >= 400 and call.dialect is Dialect.ENVELOPE:
        raise _in_envelope(answer)
    response = web.Response(status=answer.status, body=answer.body)
    response.headers["Content-Type"] = answer.content_type
    response.headers.update(answer.headers)
    return response
