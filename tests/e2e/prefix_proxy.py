"""A reverse proxy that serves a gateway below a path prefix, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from aiohttp import web


@contextmanager
def serve_below_prefix(prefix: str, port: int) -> Iterator[int]:
    """Serve `http://127.0.0.1:<port>/` below `prefix`; yields the proxy's own port."""
    opened = threading.Event()
    loop = asyncio.new_event_loop()
    ports: list[int] = []
    done = asyncio.Event()

    async def forward(request: web.Request) -> web.StreamResponse:
        url = f"http://127.0.0.1:{port}{request.raw_path.removeprefix(prefix)}"
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                url,
                headers={name: value for name, value in request.headers.items() if name != "Host"},
                data=await request.read() or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None),
            ) as answer,
        ):
            hop = ("Transfer-Encoding", "Content-Length", "Connection")
            headers = {name: value for name, value in answer.headers.items() if name not in hop}
            response = web.StreamResponse(status=answer.status, headers=headers)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            return response

    async def serve() -> None:
        app = web.Application()
        app.router.add_route("*", prefix + "/{rest:.*}", forward)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ports.append(runner.addresses[0][1])
        opened.set()
        await done.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="prefix proxy")
    thread.start()
    opened.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)
        loop.close()
