"""`GET /api/v1/gpu/events`, the status as JSON, and Server-Sent Events as the response of other endpoints."""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, cast

import attrs
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp_sse import EventSourceResponse, sse_response
from attrs import frozen

from gpugate.api.routing import ApiRoute, ApiRoutes
from gpugate.errors import GateError, InvalidRequest, ProviderUnavailable
from gpugate.lifecycle.lease import Lease, ServingPod
from gpugate.lifecycle.status import (
    BudgetThresholdCrossed,
    LifecycleEvent,
    ModelPulling,
    PodStatus,
    ProviderCalled,
    ProviderProblem,
    QueueChanged,
    ReplicasAsked,
    RequestWaited,
    SessionEnded,
    SessionStarted,
    StateChanged,
    WakeRefused,
)
from gpugate.observability.event_log import describe_transition
from gpugate.proxy.error_format import dump
from gpugate.proxy.request_context import RequestContext
from gpugate.proxy.server import SERVER_HEADER

_SECONDS = (
    *("uptime_seconds", "idle_seconds", "stops_in_seconds"),
    *("ready_in_seconds", "ready_in_p90_seconds"),
)

MAX_KEPT = 512
"""How many events are kept for readers that come back with `Last-Event-ID`."""
MAX_LAG = 1024
"""How many events a reader may lag behind before it is disconnected."""
_NUMBER = re.compile("[1-9][0-9]{0,17}")  # events count from 1; Python's int refuses some thousand digits
STATUS_WAIT_S = 5.0
"""How long a status is waited for while it is not known yet what runs."""
MANY_STATUS_WAIT_S = 1.0
"""The same where there are other pods, of which it may be known."""
PING_S = 15.0
SEND_S = 120.0
"""How long a client may read nothing before it is disconnected: the pod that it holds costs money."""


@frozen
class _Event:
    number: int
    kind: str
    data: object


class StatusSource(Protocol):
    """Of a lifecycle: the pod's status."""

    def status_now(self) -> PodStatus | None:
        """Return the status; None while it is not known."""

    async def status(self, patience_s: float) -> PodStatus:
        """Wait until the status is known, and return it; raise ProviderUnavailable."""


async def wait_known(pod: StatusSource, *, alone: bool) -> None:
    """Wait until a pod's status is known; where there are other pods, not for long.

    Raises:
        ProviderUnavailable: it is not known yet, and there is no other pod.
    """
    try:
        await pod.status(STATUS_WAIT_S if alone else MANY_STATUS_WAIT_S)
    except ProviderUnavailable:
        if alone:
            raise


class SseBroadcaster:
    """Numbers the events of all pods and sends them to every reader of `GET /api/v1/gpu/events`.

    Args:
        pods: by name; asked for their status, for `state` events and for a new reader.
    """

    def __init__(self, pods: Mapping[str, StatusSource]) -> None:
        self._pods = pods
        self._last_states: dict[str, object] = {}
        self._boot = os.urandom(4).hex()
        self._number = 0
        self._kept: deque[_Event] = deque(maxlen=MAX_KEPT)
        self._readers: set[asyncio.Queue[_Event | None]] = set()

    def on_event(self, news: LifecycleEvent) -> None:
        """Take news from the lifecycle; never blocks."""
        if isinstance(news, StateChanged):
            self._on_transition(news)
        elif not isinstance(news, ProviderCalled | ReplicasAsked | RequestWaited | WakeRefused):
            self._add(*_as_event(news))

    def _on_transition(self, news: StateChanged) -> None:
        """A step within one status is no news to clients."""
        state = (news.status, news.provider, news.run_id)
        status = self._pods[news.pod].status_now()
        if state == self._last_states.get(news.pod) or status is None:
            return
        self._last_states[news.pod] = state
        more = {
            "was": news.was_status,
            "run": news.run_id,
            "at": news.at,
            "message": describe_transition(news),
        }
        self._add("state", {"pod": news.pod, **status_json(status), **more})

    def _add(self, kind: str, data: object) -> None:
        self._number += 1
        event = _Event(self._number, kind, data)
        self._kept.append(event)
        for reader in self._readers:
            if reader.qsize() < MAX_LAG:
                reader.put_nowait(event)
            elif reader.qsize() == MAX_LAG:
                reader.put_nowait(None)

    async def aclose(self) -> None:
        """End every stream; called at shutdown."""
        for reader in self._readers:
            reader.put_nowait(None)

    def routes(self) -> ApiRoutes:
        """Return the endpoint."""
        return {"/api/v1/gpu/events": {"GET": ApiRoute(self.events)}}

    async def events(self, call: RequestContext) -> web.StreamResponse:
        """Stream the pod's events until the client leaves."""

        replay = call.request.query.get("replay", "0")
        if not replay.isascii() or not replay.isdigit() or len(replay) > 4:
            raise InvalidRequest(f"replay: must be a number of past events, at most {MAX_KEPT}")
        last_id = call.request.headers.get("Last-Event-ID")
        return await self.serve(call.request, _headers(call), self._present, last_id, int(replay))

    async def _present(self) -> Sequence[object]:
        """Return the data of a `state` event for each pod whose status is known; wait for the first one's."""
        await wait_known(next(iter(self._pods.values())), alone=len(self._pods) == 1)
        found = [(name, pod.status_now()) for name, pod in self._pods.items()]
        return [{"pod": name, **status_json(status)} for name, status in found if status is not None]

    async def serve(
        self,
        request: web.BaseRequest,
        headers: dict[str, str],
        present: Callable[[], Awaitable[Sequence[object]]],
        last_id: str | None,
        replay: int = 0,
    ) -> web.StreamResponse:
        """Stream events until the client leaves.

        They begin after `last_id`; if that is not known any more, with the last `replay` events and the
        present state of each pod.

        Args:
            present: returns the data of the `state` events that a new reader gets.
        """
        reader: asyncio.Queue[_Event | None] = asyncio.Queue()
        now = await present() if self._after(last_id) is None else []
        # No await from here until the reader is registered: no event may be missed or sent twice.
        opening = self._after(last_id)
        if opening is None:
            past = [event for event in self._kept if event.number > self._number - replay]
            opening = [*past, *(_Event(self._number, "state", data) for data in now)]
        self._readers.add(reader)
        try:
            async with sse_response(
                cast(web.Request, request),  # it only needs a BaseRequest
                ping_interval=PING_S,
                sep="\n",
                headers=headers,
                response_cls=_EventResponse,
            ) as stream:
                for event in opening:
                    await self._send(stream, event)
                while (event_or_end := await reader.get()) is not None:
                    await self._send(stream, event_or_end)
                return stream
        finally:
            self._readers.discard(reader)

    async def _send(self, stream: EventSourceResponse, event: _Event) -> None:
        data = dump(event.data).decode()
        await stream.send(data, event=event.kind, id=f"{self._boot}-{event.number}")

    def _after(self, last_id: str | None) -> list[_Event] | None:
        """Return the kept events after this id; None: not an id of this process, or too old."""
        boot, _, number = (last_id or "").partition("-")
        if boot != self._boot or not _NUMBER.fullmatch(number):
            return None
        last = int(number)
        oldest = self._kept[0].number if self._kept else self._number + 1
        if last > self._number or last + 1 < oldest:
            return None
        return [event for event in self._kept if event.number > last]


def _as_event(
    news: QueueChanged
    | SessionStarted
    | SessionEnded
    | ProviderProblem
    | ModelPulling
    | BudgetThresholdCrossed,
) -> tuple[str, object]:
    match news:
        case QueueChanged():
            return "queue", {"pod": news.pod, "waiting": news.waiting, "in_flight": news.in_flight}
        case SessionStarted():
            return "session", {
                "event": "began",
                "pod": news.pod,
                "provider": news.provider,
                "pod_id": news.report.pod_id,
                "run": news.run_id,
                "cause": news.cause,
                "at": news.at,
            }
        case SessionEnded():
            return "session", {
                "event": "ended",
                "pod": news.pod,
                "provider": news.provider,
                "run": news.run_id,
                "cause": news.cause,
                "began_at": news.began_at,
                "cost": None if news.cost is None else round(news.cost, 6),
                "at": news.at,
            }
        case ModelPulling():
            progress = attrs.asdict(news.progress)
            return "pull", {"pod": news.pod, "provider": news.provider, **progress, "goes_on": news.goes_on}
        case BudgetThresholdCrossed():
            return "budget", {
                "percent": news.percent,
                "spent": round(news.spent, 6),
                "budget": news.budget,
                "month": news.month,
            }
        case ProviderProblem():
            return "provider_error", {
                "pod": news.pod,
                "provider": news.provider,
                "message": news.message,
                "reason": news.reason,
                "alarm": news.alarm,
                "at": news.at,
            }


class _EventResponse(EventSourceResponse):
    """Events; to HTTP/1.0, which knows no chunks, only the end of the connection is their end."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the head."""
        if request.version < (1, 1):
            self.force_close()
            self.headers["Connection"] = "close"
        return await super().prepare(request)


class SseResponse:
    """One response made of events; `async with` ends it.

    The head is sent with the first event or heartbeat comment: until then an error is a plain error response
    (docs/api.md#service-events).

    Args:
        beat_s: seconds between heartbeat comments while the pod is waited for; 0: none.
    """

    def __init__(self, call: RequestContext, beat_s: float = 0.0) -> None:
        self._call = call
        self._beat_s = beat_s
        self._response: EventSourceResponse | None = None
        self._preparing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._response is not None:
            self._response.stop_streaming()
            await self._response.wait()

    async def send(self, event: str, data: object) -> None:
        """Send one event; `data` is what JSON can hold."""
        response = await self._prepared()
        try:
            await response.send(dump(data).decode(), event=event)
        except TimeoutError as error:
            raise ConnectionResetError("the client reads nothing") from error

    async def wait_for_pod(self, lease: Lease) -> ServingPod:
        """Wait for the pod, and send heartbeat comments meanwhile if they are configured.

        Raises:
            GateError: the request was refused.
        """
        while True:
            try:
                async with asyncio.timeout(self._beat_s or None):
                    return await lease.wait_admitted()
            except TimeoutError:
                await self.send_filler()

    async def send_filler(self) -> None:
        """Send a comment, which clients ignore."""
        response = await self._prepared()
        await response.write(b": waiting\n\n")

    async def _prepared(self) -> EventSourceResponse:
        async with self._preparing:  # filler may come from another task than the events
            if self._response is None:
                response = _EventResponse(
                    headers=_headers(self._call),
                    sep="\n",
                    allow_all_methods=True,
                    ping_interval=PING_S,
                    send_timeout=SEND_S,
                )
                await response.prepare(self._call.request)
                self._response = response
        return self._response

    async def finish_with_error(self, error: GateError) -> None:
        """Send an error event. Raises the error itself if nothing has been sent yet."""
        if self._response is None:
            raise error
        await self.send("error", {"code": error.code, "message": " ".join(error.message.split())})

    @property
    def response(self) -> EventSourceResponse:
        """The response, once its first event is sent."""
        assert self._response is not None
        return self._response


def wants_only_events(accept: str | None) -> bool:
    """Return whether the client accepts Server-Sent Events and nothing else."""
    ranges = [part.partition(";")[0].strip().lower() for part in (accept or "").split(",")]
    return {one for one in ranges if one} == {"text/event-stream"}


def _headers(call: RequestContext) -> dict[str, str]:
    """Return the headers that every response of this request has."""
    lines = call.extra_head.decode("ascii").split("\r\n")
    return {"Server": SERVER_HEADER, **dict(line.split(": ", 1) for line in lines if line)}


def status_json(status: PodStatus | None) -> dict[str, object]:
    """Return the `data` of `GET /api/v1/gpu/status` for one pod, without its name; seconds and money rounded.

    Each is None for a status that is not known.
    """
    if status is None:
        return {key.name: None for key in attrs.fields(PodStatus) if key.name not in ("pod", "pulling")}
    data = attrs.asdict(status)
    del data["pod"]
    if status.pulling is None:
        del data["pulling"]
    for name in _SECONDS:
        if data[name] is not None:
            data[name] = round(data[name], 3)
    if status.replicas is None:
        del data["replicas"]
    if status.estimated_cost is not None:
        data["estimated_cost"] = round(status.estimated_cost, 6)
    return data
