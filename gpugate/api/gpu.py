"""The endpoints for health and for the pod's status, start and stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.metadata import version

import attrs
from aiohttp import web

from gpugate.api.routing import ApiRoute, ApiRoutes
from gpugate.errors import InvalidRequest
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.status import PodStatus
from gpugate.proxy.auth import subject_of
from gpugate.proxy.error_format import success
from gpugate.proxy.request_context import RequestContext

_SECONDS = ("uptime_seconds", "idle_seconds", "stops_in_seconds", "ready_in_seconds")


class GpuApi:
    """`/api/v1/health` and `/api/v1/gpu/*`, without the events."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._version = version("gpugate")

    def routes(self) -> ApiRoutes:
        """Return the endpoints."""
        health = ApiRoute(self.health, public=True)
        return {
            "/api/v1/health": {"GET": health, "HEAD": health},
            "/api/v1/gpu/status": {"GET": ApiRoute(self.status)},
            "/api/v1/gpu/start": {"POST": ApiRoute(self.start, scope="pod")},
            "/api/v1/gpu/stop": {"POST": ApiRoute(self.stop, scope="pod")},
            "/api/v1/gpu": {"DELETE": ApiRoute(self.stop, scope="pod")},
        }

    async def health(self, call: RequestContext) -> web.StreamResponse:
        """Answer without touching the pod."""
        return _answer(
            call, {"status": "ok", "version": self._version, "pod": self._lifecycle.current_status}
        )

    async def status(self, call: RequestContext) -> web.StreamResponse:
        """Return what is known of the pod; unknown is null."""
        return _answer(call, status_json(await self._lifecycle.status()))

    async def start(self, call: RequestContext) -> web.StreamResponse:
        """Start the pod; idempotent."""
        self._lifecycle.start(subject_of(call.user))
        return _answer(call, status_json(await self._lifecycle.status()), 202)

    async def stop(self, call: RequestContext) -> web.StreamResponse:
        """Stop the pod; 409 while requests wait or run, unless forced."""
        self._lifecycle.stop(force=_flag(call, "force"))
        return _answer(call, status_json(await self._lifecycle.status()), 202)


def _answer(call: RequestContext, data: object, status: int = 200) -> web.Response:
    body = success(data, call.request_id, time.time())
    return web.Response(status=status, body=body, content_type="application/json")


def _flag(call: RequestContext, name: str) -> bool:
    value = call.request.query.get(name, "false").lower()
    if value in ("true", "1", "yes", ""):
        return True
    if value in ("false", "0", "no"):
        return False
    raise InvalidRequest(f"{name}: must be true or false")


def status_json(status: PodStatus) -> Mapping[str, object]:
    """Return the `data` of `GET /api/v1/gpu/status`, seconds and money rounded."""
    data = attrs.asdict(status)
    for name in _SECONDS:
        if data[name] is not None:
            data[name] = round(data[name], 3)
    if status.estimated_cost is not None:
        data["estimated_cost"] = round(status.estimated_cost, 6)
    return data
