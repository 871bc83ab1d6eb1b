"""Prometheus metrics of the pod, its requests and its cost (docs/metrics.md).

Everything is observed from outside: events of the lifecycle, the access log's lines, and the pod's status
when it is scraped. With `[metrics] enabled = false` this module is not imported. No label has unbounded
values: a route is one of `ollama.routes`, never a path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from math import inf
from time import monotonic
from typing import Any

from aiohttp import web
from attrs import define
from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gpugate.api.routing import ApiRoute, ApiRoutes
from gpugate.core.states import StateName, Status
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.status import (
    BudgetThresholdCrossed,
    LifecycleEvent,
    ProviderCalled,
    QueueChanged,
    SessionEnded,
    SessionStarted,
    StateChanged,
    WakeRefused,
)
from gpugate.ollama.routes import route_name
from gpugate.proxy.addresses import CannotListen
from gpugate.proxy.dispatcher import CLIENT_CLOSED_STATUS, ObservedLog, RequestLog
from gpugate.proxy.request_context import RequestContext

WAIT_BUCKETS = (0.1, 1, 5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600)
FIRST_BYTE_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CALL_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUDGET_STATUS = 402
_UNKNOWN = "UNKNOWN"


class UseClock:
    """How many seconds of billed sessions went into starting, serving and idling.

    Args:
        clock: in seconds, only forward.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds = {"starting": 0.0, "serving": 0.0, "idle": 0.0}
        self._clock = clock
        self._since = clock()
        self._open_sessions = 0
        self._status: Status | None = None
        self._in_flight = 0

    def on_event(self, event: LifecycleEvent) -> None:
        """Take an event of the lifecycle."""
        self.advance()
        match event:
            case SessionStarted():
                self._open_sessions += 1
            case SessionEnded():
                self._open_sessions -= 1
            case StateChanged():
                self._status = event.status
            case QueueChanged():
                self._in_flight = event.in_flight

    def advance(self) -> None:
        """Add the time since the last call to what it was used for."""
        now, since = self._clock(), self._since
        self._since = now
        if self._open_sessions > 0:
            self.seconds[self._use()] += now - since

    def _use(self) -> str:
        if self._status in (Status.STARTING, Status.WARMING):
            return "starting"
        return "serving" if self._in_flight else "idle"


@define
class _PodFigures:
    """What is counted of one pod beside the library's metrics."""

    lifecycle: Lifecycle
    use: UseClock
    ended_cost: Decimal = Decimal(0)
    shown_cost: float = 0.0


class MetricsExporter:
    """The metrics of all pods, as a feature; `observe` wraps the access log.

    Attributes:
        budget_ratio: returns the spent part of the month's budget; 0 unless it is replaced.

    Args:
        lifecycles: of the pods, by name; asked for their status when the metrics are scraped. What concerns
            no pod, such as a status that is read, counts for the first.
        currency: of all costs.
        address: host and port of a server of their own, which needs no token; None for none.
    """

    def __init__(
        self,
        lifecycles: Mapping[str, Lifecycle],
        *,
        currency: str,
        address: tuple[str, int] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._pods = {name: _PodFigures(one, UseClock(clock)) for name, one in lifecycles.items()}
        self._first = next(iter(lifecycles))
        self._currency = currency
        self.budget_ratio: Callable[[], float] = float
        self._address = address
        self._server: web.ServerRunner | None = None
        self.registry = CollectorRegistry()
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR, self):
            self.registry.register(collector)
        self._define()
        for name, lifecycle in lifecycles.items():
            lifecycle.on_first_byte = self._first_byte.labels(name).observe

    def _define(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"gpugate_{name}", text, ("pod", *labels), registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            bounds = (*buckets, inf)
            return Histogram(
                f"gpugate_{name}", text, ("pod", *labels), buckets=bounds, registry=self.registry
            )

        self._transitions = counter("pod_transitions_total", "Changes of the pod's state", "from", "to")
        self._requests = counter("requests_total", "Requests by route and status", "route", "status")
        self._wait = histogram("request_wait_seconds", "How long requests waited for the pod", WAIT_BUCKETS)
        self._first_byte = histogram(
            "time_to_first_byte_seconds", "From the forwarding to the first byte", FIRST_BYTE_BUCKETS
        )
        self._bytes = counter("response_bytes_total", "Bytes of the pod's answers")
        self._cut = counter("responses_cut_total", "Answers that the pod broke off")
        self._gone = counter("clients_gone_total", "Clients that left before the end")
        self._calls = counter("provider_calls_total", "Calls to providers", "provider", "call", "outcome")
        self._call_seconds = histogram(
            "provider_call_seconds", "Their duration", CALL_BUCKETS, "provider", "call", "outcome"
        )
        self._wakes = counter("wakes_total", "Starts that were asked for", "outcome")
        for pod in self._pods:
            for one in (self._bytes, self._cut, self._gone):
                one.labels(pod)
            for outcome in ("allowed", "denied", "budget"):
                self._wakes.labels(pod, outcome)

    # --- the feature --------------------------------------------------------------------------

    def routes(self) -> ApiRoutes:
        """Return `/metrics` on the main port."""
        return {"/metrics": dict.fromkeys(("GET", "HEAD"), ApiRoute(self.serve, scope="metrics"))}

    def on_event(self, event: LifecycleEvent) -> None:
        """Count an event."""
        if isinstance(event, BudgetThresholdCrossed) or event.pod not in self._pods:
            return
        pod, figures = event.pod, self._pods[event.pod]
        figures.use.on_event(event)
        match event:
            case StateChanged():
                if event.was_status is not event.status:
                    self._transitions.labels(
                        pod, event.was_status or _UNKNOWN, event.status or _UNKNOWN
                    ).inc()
                if event.was is StateName.STOPPED and event.now is StateName.CALLING_START:
                    self._wakes.labels(pod, "allowed").inc()
            case WakeRefused():
                self._wakes.labels(pod, "denied").inc()
            case SessionEnded():
                figures.ended_cost += event.cost or 0
            case ProviderCalled():
                labels = pod, event.provider, event.call, event.outcome
                self._calls.labels(*labels).inc()
                self._call_seconds.labels(*labels).observe(event.seconds)

    async def start(self) -> None:
        """Listen on the address of their own. Raises CannotListen: it is taken."""
        if self._address is None:
            return
        runner = web.ServerRunner(web.Server(self._serve_openly, access_log=None))
        await runner.setup()
        self._server = runner
        host, port = self._address
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            said = error.strerror or type(error).__name__
            raise CannotListen(f"metrics.listen: {host} port {port} cannot be used: {said}") from error

    async def aclose(self) -> None:
        """Stop listening."""
        if self._server is not None:
            await self._server.cleanup()

    async def serve(self, _: RequestContext) -> web.StreamResponse:
        """Answer a scrape."""
        return web.Response(body=generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE})

    async def _serve_openly(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/metrics" or request.method not in ("GET", "HEAD"):
            return web.Response(status=404, text="only GET /metrics is here\n")
        return web.Response(body=generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE})

    def observe(self, log: RequestLog) -> RequestLog:
        """Return a log that counts each request and hands it on."""
        return ObservedLog(log, self._count_request)

    def _count_request(self, line: Mapping[str, Any]) -> None:
        method, path, status, ending = line["method"], line["path"], line["status"], line["ending"]
        pod = line["pod"] or self._first
        self._requests.labels(pod, route_name(method, path), str(status)).inc()
        if status == _BUDGET_STATUS:
            self._wakes.labels(pod, "budget").inc()
        if status == CLIENT_CLOSED_STATUS or ending == "client_lost":
            self._gone.labels(pod).inc()
        elif ending:
            self._cut.labels(pod).inc()
        if line["run"] is not None:
            self._wait.labels(pod).observe((line["waited_ms"] or 0) / 1000)
            self._bytes.labels(pod).inc(line["bytes_out"] or 0)

    # --- values that are read when they are scraped -----------------------------------------------

    def collect(self) -> Iterable[Metric]:
        """Return the gauges and sums of this moment; called by the registry."""
        state = GaugeMetricFamily("gpugate_pod_state", "1 for the present one", labels=("pod", "state"))
        waiting = GaugeMetricFamily("gpugate_requests_waiting", "Requests that wait", labels=("pod",))
        in_flight = GaugeMetricFamily(
            "gpugate_requests_in_flight", "Requests that use the pod", labels=("pod",)
        )
        stops = GaugeMetricFamily("gpugate_unproved_stops", "Stops not yet confirmed", labels=("pod",))
        use = CounterMetricFamily("gpugate_session_seconds", "Billed time by use", labels=("pod", "use"))
        cost = CounterMetricFamily("gpugate_cost", "Estimated cost", labels=("pod", "currency"))
        for name, pod in self._pods.items():
            status = pod.lifecycle.status_now()
            for one in Status:
                state.add_metric((name, one), float(status is not None and status.status is one))
            waiting.add_metric((name,), status.waiting if status is not None else 0)
            in_flight.add_metric((name,), status.in_flight if status is not None else 0)
            stops.add_metric((name,), pod.lifecycle.unconfirmed_stops)
            pod.use.advance()
            for what, seconds in pod.use.seconds.items():
                use.add_metric((name, what), seconds)
            open_cost = (status.estimated_cost if status is not None else None) or 0
            pod.shown_cost = max(pod.shown_cost, float(pod.ended_cost + open_cost))
            cost.add_metric((name, self._currency), pod.shown_cost)
        yield from (state, waiting, in_flight, stops, use, cost)
        yield GaugeMetricFamily(
            "gpugate_budget_used_ratio", "Spent part of the month's budget", value=self.budget_ratio()
        )
