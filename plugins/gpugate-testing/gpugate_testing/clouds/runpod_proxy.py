"""The HTTP proxy in front of RunPod's pods: it answers for a pod that is not there, and gives up on silence.

Reached by path, `/edge/{pod id}/{port}/...`, or by the Host header as the real one is,
`{pod id}-{port}.proxy...` (docs/providers.md#silent-requests). It knows no API.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from gpugate_testing.clouds.clocks import Clock
from gpugate_testing.clouds.faults import Fault, Faults, Hang, Html1010, Http, Reset
from gpugate_testing.clouds.pods import SimPod

SILENCE_S = 100.0
"""Longest pause before the first byte, and between bytes (docs/providers.md#silent-requests)."""
_HOST = re.compile(r"^([a-z0-9]+)-(\d+)\.proxy\.", re.IGNORECASE)
_OWN_HOP = ("connection", "keep-alive", "transfer-encoding", "host", "upgrade", "te", "trailer")
_CHUNK = 64 * 1024


class RunPodProxy:
    """Forwards to the services of running pods.

    Attributes:
        upstreams: by port inside the pod, the base URL of what really answers.
        passed: how many requests reached a service.

    Args:
        faults: `Http`, `Hang`, `Reset` and `Html1010` planned for the operation "edge".
    """

    def __init__(self, clock: Clock, pods: Mapping[str, SimPod], faults: Faults) -> None:
        self.silence_s = SILENCE_S
        self.upstreams: dict[int, str] = {}
        self.passed = 0
        self._clock = clock
        self._pods = pods
        self._faults = faults
        self._session: aiohttp.ClientSession | None = None

    def extend(self, app: web.Application) -> None:
        """Add its routes to a cloud's application."""
        app.router.add_route("*", "/edge/{pod}/{port}{tail:.*}", self._by_path)
        app.middlewares.append(self._by_host)
        app.cleanup_ctx.append(self._client)

    async def _client(self, _: web.Application):  # type: ignore[no-untyped-def]  # aiohttp's own protocol
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        yield
        await self._session.close()

    @web.middleware
    async def _by_host(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        found = _HOST.match(request.headers.get("Host", ""))
        if found is None:
            return await handler(request)
        return await self._answer(request, found[1], found[2], request.raw_path)

    async def _by_path(self, request: web.Request) -> web.StreamResponse:
        parts = request.match_info
        tail = request.raw_path.removeprefix(f"/edge/{parts['pod']}/{parts['port']}")
        return await self._answer(request, parts["pod"], parts["port"], tail or "/")

    async def _answer(self, request: web.Request, pod_id: str, port: str, path: str) -> web.StreamResponse:
        fault: Fault | None = self._faults.take("edge")
        match fault:
            case Http(status, body, headers):
                return web.Response(
                    status=status, body=body if isinstance(body, bytes) else b"", headers=headers
                )
            case Html1010():
                return web.Response(status=403, text="error code: 1010")
            case Reset():
                return _cut(request)
            case Hang(seconds):
                await self._clock.sleep(min(seconds, self.silence_s))
                if seconds >= self.silence_s:
                    return _page(524, "A timeout occurred")
        pod = self._pods.get(pod_id)
        if pod is None or pod.uptime_s is None or f"{port}/http" not in pod.spec.get("ports", ()):
            return _page(404, "404 page not found")
        upstream = self.upstreams.get(int(port))
        if not pod.serves or upstream is None:
            return _page(502, "Bad gateway")
        return await self._forward(request, upstream + path)

    async def _forward(self, request: web.Request, url: str) -> web.StreamResponse:
        assert self._session is not None
        call = self._session.request(
            request.method,
            url,
            headers=_end_to_end(request.headers),
            data=request.content if request.body_exists else None,
            allow_redirects=False,
        )
        try:
            answer = await self._clock.within(self.silence_s, _await(call))
        except TimeoutError:
            return _page(524, "A timeout occurred")
        except aiohttp.ClientError:
            return _page(502, "Bad gateway")
        self.passed += 1
        try:
            return await self._relay(request, answer)
        finally:
            answer.close()

    async def _relay(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
        await response.prepare(request)
        try:
            while chunk := await self._clock.within(self.silence_s, _next(answer)):
                await response.write(chunk)
        except (TimeoutError, aiohttp.ClientError):
            return _cut(request, response)
        await response.write_eof()
        return response


async def _await(call: Awaitable[aiohttp.ClientResponse]) -> aiohttp.ClientResponse:
    return await call


async def _next(answer: aiohttp.ClientResponse) -> bytes:
    """The next piece of the body as it came; empty at its end."""
    return await answer.content.read(_CHUNK)


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _OWN_HOP)


def _page(status: int, words: str) -> web.Response:
    """An HTML page, as a CDN shows it to a browser."""
    body = f"<html><head><title>{status}: {words}</title></head></html>"
    return web.Response(status=status, text=body, content_type="text/html")


def _cut(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response(status=500)
