"""The endpoints for health and for the pods' status, start and stop, and requests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.metadata import version

from aiohttp import web

from gpugate.api.events import status_json, wait_known
from gpugate.api.routing import ApiRoute, ApiRoutes
from gpugate.errors import InvalidRequest
from gpugate.fleet import POD_HEADER, Fleet, FleetPod
from gpugate.proxy.auth import subject_of
from gpugate.proxy.error_format import success
from gpugate.proxy.request_context import RequestContext

MAX_LISTED = 200
"""How many requests `GET /api/v1/gpu/requests` lists at most."""


class GpuApi:
    """`/api/v1/health` and `/api/v1/gpu/*`, without the events (docs/api.md#endpoints)."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._version = version("gpugate")

    def routes(self) -> ApiRoutes:
        """Return the endpoints."""
        health = ApiRoute(self.health, public=True)
        return {
            "/api/v1/health": {"GET": health, "HEAD": health},
            "/api/v1/gpu/status": {"GET": ApiRoute(self.status)},
            "/api/v1/gpu/requests": {"GET": ApiRoute(self.requests)},
            "/api/v1/gpu/start": {"POST": ApiRoute(self.start, scope="pod")},
            "/api/v1/gpu/stop": {"POST": ApiRoute(self.stop, scope="pod")},
            "/api/v1/gpu": {"DELETE": ApiRoute(self.stop, scope="pod")},
        }

    async def health(self, call: RequestContext) -> web.StreamResponse:
        """Answer without touching the pod."""
        status = self._fleet.first.lifecycle.current_status
        return _answer(call, {"status": "ok", "version": self._version, "pod": status})

    async def status(self, call: RequestContext) -> web.StreamResponse:
        """Return what is known of the pod, and in `pods` of all of them; unknown is null."""
        data = await self._status_of(self._pod(call))
        pods = [{"pod": pod.name, **status_json(pod.lifecycle.status_now())} for pod in self._fleet]
        return _answer(call, {**data, "pods": pods})

    def _pod(self, call: RequestContext) -> FleetPod:
        """Return the pod of `?pod=`, else of the header, else the first. Raises PathNotFound."""
        name = call.request.query.get("pod", call.request.headers.get(POD_HEADER))
        return self._fleet.first if name is None else self._fleet.named(name)

    async def _status_of(self, pod: FleetPod) -> Mapping[str, object]:
        """Return the data of one pod.

        Raises:
            ProviderUnavailable: what the pod does is not known yet, and there is no other one.
        """
        await wait_known(pod.lifecycle, alone=self._fleet.only is not None)
        return status_json(pod.lifecycle.status_now())

    async def requests(self, call: RequestContext) -> web.StreamResponse:
        """Return who waits and who is served; other users' requests only with the scope `cost`."""
        user = call.user
        seen = [
            {
                "request_id": one.request_id,
                "user": one.user,
                "pod": pod.name,
                "state": "waiting" if one.waiting else "in_flight",
                "seconds": round(one.seconds, 3),
            }
            for pod in self._fleet
            for one in pod.lifecycle.open_requests()
            if user is not None and (user.has_scope("cost") or one.user == user.subject)
        ]
        return _answer(call, {"requests": seen[:MAX_LISTED], "count": len(seen)})

    async def start(self, call: RequestContext) -> web.StreamResponse:
        """Start the pod; idempotent."""
        pod = self._pod(call)
        pod.lifecycle.start(subject_of(call.user), call.request.headers.get("User-Agent", ""))
        return _answer(call, await self._status_of(pod), 202)

    async def stop(self, call: RequestContext) -> web.StreamResponse:
        """Stop the pod; 409 while requests wait or run, unless forced."""
        pod = self._pod(call)
        pod.lifecycle.stop(force=_flag(call, "force"))
        return _answer(call, await self._status_of(pod), 202)


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
