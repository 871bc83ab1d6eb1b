"""Handles Ollama's API: what computes waits for the pod and is forwarded, what does not never starts it.

See docs/api.md#what-wakes-the-pod. The route decides; a body is only parsed where no pod serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

import orjson
from aiohttp import web

from gpugate.core.commands import AS_IT_COMES, LoadOptions
from gpugate.errors import (
    GateError,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    PathNotFound,
    PodStopped,
    RequestError,
    UpstreamBroken,
)
from gpugate.fleet import POD_HEADER, Fleet, FleetPod
from gpugate.lifecycle.leased_call import AttemptFailed
from gpugate.ollama.catalog_cache import cache_key
from gpugate.ollama.catalog_responses import union
from gpugate.ollama.progress_lines import THINKING, ProgressLines
from gpugate.ollama.routes import COUNT_TOKENS, Route, RouteKind
from gpugate.ollama.validation import (
    JSON,
    PLAIN_JSON,
    BodyFields,
    LocalResponse,
    OllamaBody,
    no_route,
    no_web_socket,
    redirect,
    running,
    unload_response,
    wrong_method,
)
from gpugate.proxy.auth import subject_of
from gpugate.proxy.error_format import Dialect
from gpugate.proxy.heartbeat import Heartbeat
from gpugate.proxy.request_context import BodyLimits, RequestContext, read_body, whole_body
from gpugate.relay.relay import PacedBody
from gpugate.relay.response_parser import Head
from gpugate.relay.response_policy import CapturedBody, ResponseIntercepted
from gpugate.relay.transport import detect_disconnect

_EMBEDS = frozenset({"embed", "embeddings", "v1/embeddings"})
_NEEDS_MODEL = frozenset({"delete", "copy", "push"})
_MAKES_MODELS = frozenset({"pull", "create", "copy"})
_LISTS = frozenset({"tags", "v1/models", "ps"})
_NO_TOKENS = "the engine counts no tokens"


class OllamaHandlers:
    """Handles every path under `/`, `/api` and `/v1` that is not gpugate's own."""

    def __init__(self, fleet: Fleet, limits: BodyLimits, *, heartbeat_s: float, shows_progress: bool) -> None:
        self._fleet = fleet
        self._limits = limits
        self._heartbeat_s = heartbeat_s
        self._shows_progress = shows_progress
        self._handlers: dict[RouteKind, Callable[[RequestContext, Route], Awaitable[web.StreamResponse]]] = {
            RouteKind.COMPUTE: self._compute,
            RouteKind.ADMIN: self._admin,
            RouteKind.METADATA: self._metadata,
            RouteKind.PASS_THROUGH: self._pass_through,
            RouteKind.HEALTH: self._running,
            RouteKind.WRONG_METHOD: self._wrong_method,
            RouteKind.REDIRECT: self._redirect,
            RouteKind.NOT_FOUND: self._nothing,
            RouteKind.NO_ROUTE: self._no_route,
            RouteKind.GATEWAY_API: self._nothing,
        }

    def answer(self, context: RequestContext, route: Route) -> Awaitable[web.StreamResponse]:
        """Handle a request whose token and scope have been checked.

        Raises:
            GateError: the error response to send instead.
        """
        return self._handlers[route.kind](context, route)

    def _pod_for(self, context: RequestContext, route: Route, body: OllamaBody | None = None) -> FleetPod:
        """Return the pod that serves a request; the body is not parsed where there is one pod.

        Raises:
            PathNotFound: the request names a pod that there is not, or its engine has no such path.
            ModelNotFound: Ollama's own API is asked for a model of another engine.
        """
        name = context.request.headers.get(POD_HEADER)
        if name is not None:
            pod = self._fleet.named(name)
        elif self._fleet.only is not None:
            pod = self._fleet.only
        else:
            pod = self._fleet.pod_for(None if body is None else body.routing_model, route)
        if self._fleet.only is None:
            context.pod = pod.name
        if (route.is_extra or self._fleet.has_other_engines) and not pod.has_path(route):
            _refuse_path(route, body)
        return pod

    # --- what wakes the pod -------------------------------------------------------------------

    async def _compute(self, context: RequestContext, route: Route) -> web.StreamResponse:
        """Forward a request that computes, holding it until a pod serves.

        (1) A request that only unloads a model never wakes the pod.
        (2) While no pod serves, what Ollama would refuse unseen is refused here, and so is a model that
        the pod is known not to have. Other engines serve a request that names no model.
        (3) Everything else gets a lease. On the hot path (a pod serves) the body is not parsed.
        """
        body = await self._read(context, route)
        pod = self._pod_for(context, route, body)
        model = body.model_to_unload
        if model is not None:
            return await self._unload(context, route, pod, body, model)  # (1)
        if pod.lifecycle.serving is None:  # (2)
            if (error := body.fields.error) and (pod.speaks_ollama or body.fields.unreadable):
                return _respond(context, error)
            pod.catalog.require(body.fields.model)
        return await self._forward_leased(context, route, pod, body)  # (3)

    async def _unload(
        self, context: RequestContext, route: Route, pod: FleetPod, body: OllamaBody, model: str
    ) -> web.StreamResponse:
        """Pass an unload request to a pod that serves; otherwise nothing is loaded, and that is the answer.

        Neither wakes the pod nor resets its idle timer.
        """
        serving = pod.lifecycle.serving
        if serving is not None:
            try:
                return await pod.forwarder.forward_unleased(context, serving, route.upstream_path, body.raw)
            except AttemptFailed:
                pass
        return _respond(context, unload_response(route.api or "generate", model, datetime.now(UTC)))

    async def _admin(self, context: RequestContext, route: Route) -> web.StreamResponse:
        """Forward what changes the models on the pod's disk; blobs of many GB are streamed through."""
        if route.streamed_body:
            with detect_disconnect(context.request.transport):
                upload = PacedBody(context.request.content, self._limits.timeout_s)
                return await self._forward_leased(context, route, self._pod_for(context, route), upload)
        body = await self._read(context, route)
        pod = self._pod_for(context, route, body)
        if pod.lifecycle.serving is None and (error := body.fields.error):
            return _respond(context, error)
        if route.api in _NEEDS_MODEL and pod.lifecycle.serving is None:
            pod.catalog.require(body.fields.model)
        makes = body.fields.makes if route.api in _MAKES_MODELS else None
        catalog = pod.catalog.catalog
        catalog.expect(makes)
        try:
            return await self._forward_leased(context, route, pod, body)
        finally:
            if makes is not None or route.api == "delete":
                catalog.expect(makes)
                catalog.invalidate(makes or body.fields.model)

    async def _forward_leased(
        self, context: RequestContext, route: Route, pod: FleetPod, body: OllamaBody | PacedBody
    ) -> web.StreamResponse:
        """Forward under a lease. The body is parsed now only if the request waits or has a heartbeat."""
        fields = None
        shows_progress = self._shows_progress and route.api in THINKING
        needs_fields = pod.lifecycle.serving is None or self._heartbeat_s or shows_progress
        if needs_fields and isinstance(body, OllamaBody):
            fields = body.fields
        heartbeat = self._new_heartbeat(context, route, pod, fields)
        model, load = _load_of(route, fields)
        with pod.lifecycle.acquire(
            model=model,
            load=load,
            user=subject_of(context.user),
            request_id=context.request_id,
            purpose=route.api or "",
            body_bytes=len(body.raw) if isinstance(body, OllamaBody) else 0,
            asks=lambda: context.wake_request(_named_model(body)),
        ) as lease:
            if fields is None and isinstance(body, OllamaBody):
                lease.model_hint = lambda: _load_of(route, body.fields)
            try:
                return await pod.forwarder.forward(context, route.upstream_path, body, lease, heartbeat)
            except GateError as error:
                if heartbeat is None or not heartbeat.headers_sent:
                    raise
                return heartbeat.finish_with_error(error)

    def _new_heartbeat(
        self, context: RequestContext, route: Route, pod: FleetPod, fields: BodyFields | None
    ) -> Heartbeat | None:
        if fields is None or fields.stream is None:
            return None
        lines = None
        if self._shows_progress and route.api in THINKING and fields.stream and not fields.no_thinking:
            write = THINKING[route.api](fields.model or "", context.request_id)
            lines = ProgressLines(pod.lifecycle.progress_of, write)
        if self._heartbeat_s <= 0 and lines is None:
            return None
        return Heartbeat(context, self._heartbeat_s, streams=fields.stream, lines=lines)

    async def _read(self, context: RequestContext, route: Route) -> OllamaBody:
        """Read the body of a request that may have to wait; see `Lifecycle.reading_body`."""
        request = context.request
        body = whole_body(request, self._limits)
        if body is None:
            with self._fleet.reading_body(request.headers.get(POD_HEADER)) as hold:
                body = await read_body(request, self._limits, hold)
        return OllamaBody(route, request.headers, body)

    # --- what never wakes the pod -------------------------------------------------------------

    async def _metadata(self, context: RequestContext, route: Route) -> web.StreamResponse:
        """Ask a pod that serves; otherwise, or if that fails, answer from the catalogue."""
        body = OllamaBody(route, context.request.headers, await read_body(context.request, self._limits))
        if route.api in _LISTS and self._fleet.only is None and POD_HEADER not in context.request.headers:
            return _respond(context, await self._list_of_all(route.api))
        path, pod = route.upstream_path, self._pod_for(context, route, body)
        trouble = ""
        if (pod.speaks_ollama or not route.is_native) and (serving := pod.lifecycle.serving) is not None:
            key = cache_key(context.method, path, body)
            capture = partial(_store, pod, key) if key is not None else None
            try:
                return await pod.forwarder.forward_unleased(context, serving, path, body.raw, capture)
            except AttemptFailed as failed:
                trouble = str(failed)  # a cached response is better than an error
        if error := body.fields.error:
            return _respond(context, error)
        cached = pod.catalog.catalog.answer(context.method, path, body.fields)
        if cached is None:
            raise UpstreamBroken(trouble) if trouble else _pod_is_off(pod)
        return _respond(context, cached)

    async def _list_of_all(self, kind: str) -> LocalResponse:
        """Return the union of the pods' lists, in the file's order."""
        lists = await asyncio.gather(*(pod.catalog.current_list(kind) for pod in self._fleet))
        return LocalResponse(200, PLAIN_JSON if kind == "v1/models" else JSON, union(kind, lists))

    async def _pass_through(self, context: RequestContext, route: Route) -> web.StreamResponse:
        """Pass on what neither computes nor is known here, while a pod serves; that is no use of the pod.

        Of another engine than Ollama any POST computes.
        """
        counts_tokens = route.api == COUNT_TOKENS
        may_compute = self._fleet.has_other_engines and context.method == "POST" and not counts_tokens
        if not may_compute and self._fleet.only is not None and self._fleet.only.lifecycle.serving is None:
            raise PathNotFound(_NO_TOKENS) if counts_tokens else _pod_is_off(self._pod_for(context, route))
        if may_compute:
            body = await self._read(context, route)
        else:
            body = OllamaBody(route, context.request.headers, await read_body(context.request, self._limits))
        pod = self._pod_for(context, route, body)
        if may_compute and not pod.speaks_ollama:
            return await self._forward_leased(context, route, pod, body)
        # Made where it is raised: a variable that holds an error makes a cycle, which keeps a token alive.
        absent = partial(PathNotFound, _NO_TOKENS) if counts_tokens else partial(_pod_is_off, pod)
        if (serving := pod.lifecycle.serving) is None:
            raise absent()
        intercept = _is_not_found if counts_tokens else None
        try:
            return await pod.forwarder.forward_unleased(
                context, serving, route.upstream_path, body.raw, intercept=intercept
            )
        except ResponseIntercepted as answer:
            raise absent() from answer
        except AttemptFailed as error:
            raise (UpstreamBroken(str(error)) if str(error) else absent()) from error

    async def _running(self, context: RequestContext, route: Route) -> web.StreamResponse:
        return _respond(context, running())

    async def _wrong_method(self, context: RequestContext, route: Route) -> web.StreamResponse:
        if route.upstream_path == "/v1/responses" and _asks_for_web_socket(context):
            refusal = _respond(context, no_web_socket())
            refusal.force_close()  # the parser takes what follows on this connection for another protocol
            return refusal
        return _respond(context, wrong_method(route))

    async def _no_route(self, context: RequestContext, route: Route) -> web.StreamResponse:
        return _respond(context, no_route())

    async def _redirect(self, context: RequestContext, route: Route) -> web.StreamResponse:
        return _respond(
            context, redirect(context.method, route, prefix=context.token_prefix, query=context.query)
        )

    async def _nothing(self, context: RequestContext, route: Route) -> web.StreamResponse:
        raise PathNotFound


def _refuse_path(route: Route, body: OllamaBody | None) -> None:
    """Refuse what the pod's engine does not have; lists of models and versions are answered all the same.

    Raises:
        ModelNotFound, PathNotFound
    """
    if route.is_native and body is not None and body.fields.model is not None:
        raise ModelNotFound(body.fields.model)
    if route.kind is not RouteKind.METADATA:
        raise PathNotFound


def _pod_is_off(pod: FleetPod) -> PodStopped:
    message = "the pod is not running, and this does not wake it"
    return PodStopped(message, retry_after_s=pod.lifecycle.ready_in_s())


def _store(pod: FleetPod, key: tuple[str, str], captured: CapturedBody) -> None:
    if not captured.content_encoding and pod.catalog.catalog.store(*key, captured.body):
        pod.catalog.changed()


def _is_not_found(head: Head) -> bool:
    return head.status == 404


def _asks_for_web_socket(context: RequestContext) -> bool:
    return context.request.headers.get("Upgrade", "").strip().lower() == "websocket"


def _load_of(route: Route, fields: BodyFields | None) -> tuple[str | None, LoadOptions]:
    """Return the model that a request computes with, and how to load it; none for a pull or delete."""
    if fields is None or route.kind is not RouteKind.COMPUTE:
        return None, AS_IT_COMES
    return fields.model, LoadOptions(route.api in _EMBEDS, fields.load)


def _named_model(body: OllamaBody | PacedBody) -> str | None:
    return body.fields.model or body.fields.makes if isinstance(body, OllamaBody) else None


def _in_envelope(answer: LocalResponse) -> RequestError:
    if answer.status in (404, 405):
        return PathNotFound() if answer.status == 404 else MethodNotAllowed()
    try:
        said = orjson.loads(answer.body).get("error")
    except (orjson.JSONDecodeError, AttributeError):
        said = None
    return InvalidRequest(said if isinstance(said, str) else "")


def _respond(context: RequestContext, answer: LocalResponse) -> web.Response:
    """Send a local response; aiohttp leaves the body out for HEAD and keeps its length.

    Raises:
        RequestError: a refusal on one of gpugate's own paths, whose errors have the envelope.
    """
    if answer.status >= 400 and context.dialect is Dialect.ENVELOPE:
        raise _in_envelope(answer)
    response = web.Response(status=answer.status, body=answer.body)
    if answer.content_type:
        response.headers["Content-Type"] = answer.content_type
    response.headers.update(answer.headers)
    return response
