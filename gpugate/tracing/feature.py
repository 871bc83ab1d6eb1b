"""OpenTelemetry traces of requests and of the starts that they wait for (docs/tracing.md).

Everything is observed from outside: the server's handler is wrapped, the access log's lines and the pod's
events are read, and the lifecycle tells which request begins to wait. With `[tracing] enabled = false` this
module is not imported. Spans carry no path, prompt, user or URL. What is sent to the pod stays as it is: a
client's `traceparent` goes on with the other headers, unchanged.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from importlib.metadata import version
from threading import Thread
from time import time_ns
from typing import Any

import structlog
from aiohttp import web
from attrs import define
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context

from gpugate.core.states import StateName
from gpugate.lifecycle.lease import Lease
from gpugate.lifecycle.status import LifecycleEvent, ProviderCalled, RequestWaited, StateChanged
from gpugate.ollama.routes import RouteKind, match_route, route_name
from gpugate.proxy.dispatcher import ObservedLog, RequestLog

CLOSE_LIMIT_S = 3.0
"""How long the last spans may take to be sent, at the end of the gateway."""

_STEPS: Mapping[StateName, str] = {
    StateName.CALLING_START: "call the provider",
    StateName.BACKING_OFF: "pause before the next call",
    StateName.VERIFYING_START: "verify the start",
    StateName.PROVISIONING: "boot",
    StateName.WARMING: "warm up",
    StateName.PULLING: "pull",
    StateName.PRELOADING: "preload",
}
"""The spans of a start, by the state in which each passes."""

_READS = ("GET", "HEAD", "OPTIONS")
_METHODS = (*_READS, "POST", "PUT", "PATCH", "DELETE")

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@define(eq=False)
class _RequestSpans:
    """A request's span, and the one of its answer, from its admission on if it had to wait."""

    whole: Span
    answer: Span | None = None
    is_wanted: bool = True


@define(eq=False)
class _Wait:
    """A request that waits for the pod; `request` is None for one of the bot's."""

    span: Span
    request: _RequestSpans | None


@define
class _Start:
    """A start that is under way, and the step that it is in."""

    span: Span
    step: Span


class Tracing:
    """Makes the spans, as a feature. `traced` wraps the server's handler, `observe` the access log.

    Args:
        exporter: sends the spans; by default over OTLP, as the variables `OTEL_EXPORTER_OTLP_*` say.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)  # its lines may show a URL
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        sender = BatchSpanProcessor(_TellingExporter(exporter or OTLPSpanExporter()))
        self._provider.add_span_processor(sender)
        self._tracer = self._provider.get_tracer("gpugate", version("gpugate"))
        self._request: ContextVar[_RequestSpans | None] = ContextVar("traced request", default=None)
        # By pod, and of each pod by who waits: a client may use one id for several requests.
        self._waits: defaultdict[str, dict[tuple[str, str], list[_Wait]]] = defaultdict(dict)
        self._starts: dict[str, _Start] = {}

    # --- requests -----------------------------------------------------------------------------

    def traced(self, handle: Handler) -> Handler:
        """Return the handler with a span around each request."""

        async def handle_in_span(request: web.BaseRequest) -> web.StreamResponse:
            parent = extract(request.headers)
            spans = _RequestSpans(self._tracer.start_span("request", parent, SpanKind.SERVER))
            token = self._request.set(spans)
            try:
                return await handle(request)
            finally:
                self._request.reset(token)
                if spans.answer is not None:
                    spans.answer.end()
                if spans.is_wanted:  # a span that does not end is not sent
                    spans.whole.end()

        return handle_in_span

    def observe(self, log: RequestLog) -> RequestLog:
        """Return a log that also completes each request's span."""
        return ObservedLog(log, self._complete)

    def _complete(self, line: Mapping[str, Any]) -> None:
        spans = self._request.get()
        if spans is None:  # malformed: no handler was called
            return
        method, status = line["method"], line["status"]
        kind, name = match_route(method, line["path"]).kind, route_name(method, line["path"])
        if method not in _METHODS:
            method = "_OTHER"
        spans.is_wanted = kind is not RouteKind.HEALTH and not (name == "gpugate" and method in _READS)
        spans.whole.update_name(f"{method} {name}")
        attributes = {
            "http.request.method": method,
            "http.response.status_code": status,
            "gpugate.route": name,
            "gpugate.request_id": line["request_id"],
            "gpugate.pod": line["pod"],
            "gpugate.waited_ms": line["waited_ms"],
            "gpugate.run": line["run"],
            "gpugate.bytes_out": line["bytes_out"],
            "gpugate.ending": line["ending"],
        }
        spans.whole.set_attributes({key: value for key, value in attributes.items() if value is not None})
        if status >= 500 or line["ending"]:
            spans.whole.set_status(StatusCode.ERROR)

    # --- waits, as the lifecycle tells them -----------------------------------------------------

    def on_wait(self, pod: str, lease: Lease) -> None:
        """Begin the span of a request that waits; called in the request's task."""
        request = self._request.get()
        attributes = {"gpugate.pod": pod, "gpugate.purpose": lease.purpose}
        span = self._child("wait for the pod", request.whole if request is not None else None, attributes)
        if (start := self._starts.get(pod)) is not None:
            span.add_link(start.span.get_span_context())
        self._waits[pod].setdefault((lease.request_id, lease.user), []).append(_Wait(span, request))

    def on_event(self, event: LifecycleEvent) -> None:
        """Take an event."""
        match event:
            case RequestWaited():
                self._end_wait(event)
            case StateChanged():
                self._follow_start(event)
            case ProviderCalled() if (start := self._starts.get(event.pod)) is not None:
                self._add_call(event, start)

    def _end_wait(self, event: RequestWaited) -> None:
        waits, key = self._waits[event.pod], (event.request_id, event.user)
        if key not in waits:  # admitted once more, after its pod was lost
            return
        wait = waits[key].pop(0)
        if not waits[key]:
            del waits[key]
        if event.error is not None:
            wait.span.set_attribute("gpugate.error", event.error.code)
            wait.span.set_status(StatusCode.ERROR)
        wait.span.end()
        if event.error is None and not event.left and wait.request is not None:
            wait.request.answer = self._child("answer", wait.request.whole, {"gpugate.pod": event.pod})

    # --- starts -------------------------------------------------------------------------------

    def _follow_start(self, event: StateChanged) -> None:
        step, start = _STEPS.get(event.now), self._starts.get(event.pod)
        attributes = {"gpugate.pod": event.pod, "gpugate.provider": event.provider or ""}
        if step is not None:
            if start is None:
                start = self._starts[event.pod] = self._begin_start(event, attributes)
            else:
                start.step.end()
            start.step = self._child(step, start.span, attributes)
        elif start is not None:
            del self._starts[event.pod]
            start.step.end()
            if event.now is not StateName.READY:
                start.span.set_status(StatusCode.ERROR)
            start.span.end()

    # It belongs to the trace of the first request that waits, else of the request that starts by hand; the
    # waits of the others link to it.
    def _begin_start(self, event: StateChanged, attributes: Mapping[str, str]) -> _Start:
        waits = [wait.span for same in self._waits[event.pod].values() for wait in same]
        request = self._request.get()
        by_hand = [request.whole] if request is not None and request.whole.is_recording() else []
        span = self._child("start", next(iter(waits + by_hand), None), attributes)
        span.set_attribute("gpugate.cause", event.cause)
        for other in waits[1:]:
            other.add_link(span.get_span_context())
        return _Start(span, span)

    def _add_call(self, event: ProviderCalled, start: _Start) -> None:
        now = time_ns()
        attributes = {
            "gpugate.pod": event.pod,
            "gpugate.provider": event.provider,
            "gpugate.outcome": event.outcome,
        }
        began = now - int(event.seconds * 1e9)
        span = self._child(f"{event.provider} {event.call}", start.span, attributes, began, SpanKind.CLIENT)
        if event.outcome != "ok":
            span.set_status(StatusCode.ERROR)
        span.end(now)

    def _child(
        self,
        name: str,
        parent: Span | None,
        attributes: Mapping[str, str],
        began_ns: int | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> Span:
        context = set_span_in_context(parent) if parent is not None else None
        return self._tracer.start_span(name, context, kind, attributes, start_time=began_ns)

    # --- the end ------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Send what is left, for some seconds; a collector that does not answer must not delay the end."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop was not waited for
                loop.call_soon_threadsafe(done.set)

        # The loop's own threads would be waited for by its end.
        Thread(target=shut_down, name="tracing:shutdown", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await done.wait()


class _TellingExporter(SpanExporter):
    """Hands the spans on, in the processor's thread; tells once that they are not taken, without a URL."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._fails = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send the spans."""
        result = self._exporter.export(spans)
        fails = result is not SpanExportResult.SUCCESS
        if fails and not self._fails:
            structlog.get_logger().warning("tracing: the collector does not take the spans")
        self._fails = fails
        return result

    def shutdown(self) -> None:
        """End a send that is under way."""
        self._exporter.shutdown()


def _resource() -> Resource:
    """Return what the spans are of; `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` come first."""
    resource = Resource.create({"service.version": version("gpugate")})
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "gpugate"}))
    return resource
