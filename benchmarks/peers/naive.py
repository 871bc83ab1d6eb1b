"""The plain aiohttp proxy: an Application, a ClientSession, a token checked for each request."""

from __future__ import annotations

import os
import sys

import aiohttp
import jwt
from aiohttp import web
from aiohttp.typedefs import Handler

UPSTREAM = web.AppKey("upstream", str)
SECRET = web.AppKey("secret", str)
SESSION = web.AppKey("session", aiohttp.ClientSession)
NOT_FORWARDED = {"host", "authorization", "connection", "content-length", "transfer-encoding"}
NOT_RETURNED = {"connection", "content-length", "transfer-encoding"}


@web.middleware
async def authorize(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        jwt.decode(token, request.app[SECRET], algorithms=["HS256"])
    except jwt.PyJWTError:
        return web.json_response({"error": "unauthorized"}, status=401)
    return await handler(request)


async def proxy(request: web.Request) -> web.StreamResponse:
    headers = {name: value for name, value in request.headers.items() if name.lower() not in NOT_FORWARDED}
    body = await request.read() if request.body_exists else None
    url = request.app[UPSTREAM] + request.path_qs
    async with request.app[SESSION].request(request.method, url, headers=headers, data=body) as upstream:
        kept = {name: value for name, value in upstream.headers.items() if name.lower() not in NOT_RETURNED}
        response = web.StreamResponse(status=upstream.status, headers=kept)
        await response.prepare(request)
        async for chunk in upstream.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


async def session(app: web.Application):  # type: ignore[no-untyped-def]
    timeout = aiohttp.ClientTimeout(total=None)
    app[SESSION] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
    yield
    await app[SESSION].close()


def main(port: str, upstream: str) -> None:
    app = web.Application(middlewares=[authorize])
    app[UPSTREAM], app[SECRET] = upstream, os.environ["BENCH_SECRET"]
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", proxy)
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, print=None, backlog=4096)


if __name__ == "__main__":
    main(*sys.argv[1:])
