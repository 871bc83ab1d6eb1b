"""What every simulated cloud is: an HTTP server on loopback, its pods, its bill and its faults.

A cloud adds its paths and the words of its answers. It must not know any plugin.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Sequence
from decimal import Decimal
from typing import Any, Self

import orjson
from aiohttp import web
from attrs import define, frozen

from gpugate.provider_api import Phase
from gpugate_testing.clouds.clocks import Clock, LoopClock
from gpugate_testing.clouds.faults import (
    Fault,
    Faults,
    Garbage,
    Hang,
    Html1010,
    Http,
    LostResponse,
    Reset,
)
from gpugate_testing.clouds.pods import Delays, SimPod

BLOCKED_AGENTS = re.compile(r"^$|^python|^curl/0|bot", re.IGNORECASE)
"""User-Agents that a CDN refuses; aiohttp's own begins with "Python" (docs/providers.md#user-agent)."""
API_KEY = "sim-key-5e2f7c"

Handler = Callable[[web.Request, Fault | None], Awaitable[web.StreamResponse]]


@frozen
class Operation:
    """One call of the cloud's API; `name` is what faults and records call it."""

    method: str
    path: str
    name: str
    handler: Handler


@define
class RecordedCall:
    """One call that arrived, for tests; `status` is None where no answer was sent."""

    operation: str
    pod_id: str | None
    at: float
    status: int | None = None


class Cloud(ABC):
    """A cloud on 127.0.0.1; `async with` starts and stops it.

    Attributes:
        pods: every pod there ever was, by id; a deleted one stays, with its bill.
        faults: what shall go wrong.
        asked: the API's calls, oldest first.
        violations: what a strict cloud did not like: unknown fields, no User-Agent, too many calls.
        list_lag_s: a new pod is in no list for so long.
        terminated_shows: a deleted pod is still shown, as one that is gone.
        tls: its certificate; None: plain HTTP.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        delays: Delays | None = None,
        strict: bool = True,
        api_key: str = API_KEY,
    ) -> None:
        self.clock = clock or LoopClock()
        self.delays = delays or Delays()
        self.strict = strict
        self.api_key = api_key
        self.pods: dict[str, SimPod] = {}
        self.faults = Faults()
        self.asked: list[RecordedCall] = []
        self.violations: list[str] = []
        self.list_lag_s = 0.0
        self.terminated_shows = False
        self.port = 0
        self.tls: ssl.SSLContext | None = None
        self._runner: web.AppRunner | None = None

    # --- what a cloud adds --------------------------------------------------------------------

    @abstractmethod
    def operations(self) -> Sequence[Operation]:
        """Its API."""

    @abstractmethod
    def hourly_rate(self, pod: SimPod) -> Decimal:
        """What this pod costs per hour while it is billed, in USD."""

    @abstractmethod
    def refusal(self, status: int, words: str) -> web.Response:
        """An error in the cloud's own shape; statuses 401 and 429 are asked for from here."""

    @abstractmethod
    def refuse_rate(self, operation: str, fault: Fault | None) -> web.Response | None:
        """The 429 for a caller that asks too often or is told so by a `RateLimit`; None lets it pass."""

    def extend(self, app: web.Application) -> None:  # noqa: B027  (optional)
        """Add what is not API, such as an edge proxy."""

    # --- life ---------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen on a free port."""
        app = web.Application(client_max_size=1 << 20)
        for operation in self.operations():
            app.router.add_route(operation.method, operation.path, self._serve(operation))
        self.extend(app)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.05, auto_decompress=False
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self.tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # --- the bill and the record --------------------------------------------------------------

    @property
    def billed_s(self) -> float:
        """Billed seconds of all pods, up to now."""
        return sum(pod.billed_s for pod in self.pods.values())

    def bill(self) -> dict[str, Decimal]:
        """What each pod has cost up to now, in USD, by its id; pods that cost nothing are left out."""
        return {
            pod.id: self.hourly_rate(pod) * Decimal(pod.billed_s) / 3600
            for pod in self.pods.values()
            if pod.billed_s
        }

    @property
    def starts(self) -> int:
        """Accepted starts of all pods."""
        return sum(pod.starts for pod in self.pods.values())

    @property
    def billing(self) -> list[SimPod]:
        """The pods that cost money now."""
        return [pod for pod in self.pods.values() if pod.look() in pod.billed_in]

    def count(self, operation: str) -> int:
        """How often this was asked."""
        return sum(1 for asked in self.asked if asked.operation == operation)

    def fail(self, operation: str, fault: Fault, times: int | None = 1) -> None:
        """Let the next `times` calls go wrong; None: all of them."""
        self.faults.plan(operation, fault, times)

    def add(self, pod: SimPod) -> SimPod:
        """Let the cloud have this pod."""
        self.pods[pod.id] = pod
        return pod

    def find(self, request: web.Request, *, stale: bool = False) -> SimPod | None:
        """The pod that a path names; `stale`: also one that is gone by now."""
        pod = self.pods.get(request.match_info["id"])
        if pod is None or (stale and pod.was is not None):
            return pod
        return None if pod.look() is Phase.GONE and not self.terminated_shows else pod

    def is_hidden(self, pod: SimPod) -> bool:
        """It is too new for a read that lags behind."""
        return pod.made and self.clock.now() < pod.created_at + self.list_lag_s

    def is_listed(self, pod: SimPod, *, stale: bool) -> bool:
        """A stale list does not know the pods made since, and still shows those that are gone."""
        if stale and (pod.was is not None or pod.made):
            return pod.was is not None and pod.was.phase is not Phase.GONE
        return not self.is_hidden(pod) and (pod.look() is not Phase.GONE or self.terminated_shows)

    # --- one call -----------------------------------------------------------------------------

    def _serve(self, operation: Operation) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def serve(request: web.Request) -> web.StreamResponse:
            asked = RecordedCall(operation.name, request.match_info.get("id"), self.clock.now())
            self.asked.append(asked)
            response = await self._answer(operation, request)
            if not response.prepared:
                asked.status = response.status
            return response

        return serve

    async def _answer(self, operation: Operation, request: web.Request) -> web.StreamResponse:
        if (refused := self._at_the_door(request)) is not None:
            return refused
        fault = self.faults.take(operation.name)
        if (refused := self.refuse_rate(operation.name, fault)) is not None:
            return refused
        match fault:
            case Http(status, body, headers):
                return _response(status, body, headers)
            case Html1010():
                return web.Response(status=403, text="error code: 1010")
            case Reset(mid_body=False):
                return _dropped(request)
            case Hang(seconds):
                await self.clock.sleep(seconds)
                return await operation.handler(request, None)
            case Reset(mid_body=True):
                return await _half(request, await operation.handler(request, None))
            case LostResponse(seconds):
                await operation.handler(request, None)
                await self.clock.sleep(seconds)
                return _dropped(request)
            case Garbage(body):
                await operation.handler(request, None)
                return web.Response(body=body, content_type="text/html")
            case _:
                return await operation.handler(request, fault)

    def _at_the_door(self, request: web.Request) -> web.Response | None:
        """The CDN's and the API's first look: who calls?"""
        agent = request.headers.get("User-Agent", "")
        if self.strict and BLOCKED_AGENTS.search(agent):
            self.violations.append(f"User-Agent {agent!r}")
            return web.Response(status=403, text="error code: 1010")
        given = request.headers.get("Authorization", "")
        if not given.startswith("Bearer "):
            self.violations.append("no bearer token")
            return self.refusal(401, "missing bearer token")
        if given != f"Bearer {self.api_key}":
            return self.refusal(401, "invalid bearer token")
        return None

    async def fields(self, request: web.Request, known: Collection[str]) -> tuple[dict[str, Any], list[str]]:
        """The JSON object of a request, and the fields in it that are not `known` (noted when strict)."""
        try:
            given = orjson.loads(await request.read())
        except orjson.JSONDecodeError:
            given = None
        if not isinstance(given, dict):
            return {}, ["$: must be an object"]
        unknown = [f"$: additional properties '{key}' not allowed" for key in given if key not in known]
        self.violations += unknown
        return given, unknown if self.strict else []


def _response(status: int, body: object, headers: Any) -> web.Response:
    if isinstance(body, bytes):
        return web.Response(status=status, body=body, headers=headers)
    return web.Response(
        status=status, body=orjson.dumps(body), headers={"Content-Type": "application/json", **headers}
    )


def _dropped(request: web.Request) -> web.Response:
    """Nothing at all: the connection is reset, and what is returned reaches nobody."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


async def _half(request: web.Request, whole: web.StreamResponse) -> web.StreamResponse:
    """Half of an answer, then a closed connection."""
    body = whole.body if isinstance(whole, web.Response) and isinstance(whole.body, bytes) else b"{}"
    response = web.StreamResponse(status=whole.status, headers={"Content-Type": "application/json"})
    response.content_length = len(body) + 1
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    await asyncio.sleep(0)  # so that the half is on its way before the end
    if request.transport is not None:
        request.transport.close()
    return response
