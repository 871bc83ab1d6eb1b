"""The listening side: aiohttp's low-level server with our limits, and a guard against slow heads.

Why not an Application: hot-path.md section 3 (20 to 37 us a request). Knows sockets, not pods.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

HEAD_LIMIT_S = 30.0
"""A new connection has so long to send the head of its first request (slow loris)."""

KEEPALIVE_S = 75.0
BACKLOG = 4096
LONGEST_LINE = 16 * 1024
LONGEST_FIELD = 32 * 1024

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class GuardedServer(web.Server):
    """`web.Server` that drops connections whose first request does not come."""

    def __init__(self, handler: Handler) -> None:
        super().__init__(
            self._heard,
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            keepalive_timeout=KEEPALIVE_S,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_FIELD,
        )
        self._handler = handler
        self._silent: set[RequestHandler] = set()

    def __call__(self) -> RequestHandler:
        connection = super().__call__()
        self._silent.add(connection)
        asyncio.get_running_loop().call_later(HEAD_LIMIT_S, self._expect, connection)
        return connection

    async def _heard(self, request: web.BaseRequest) -> web.StreamResponse:
        self._silent.discard(request.protocol)
        return await self._handler(request)

    def _expect(self, connection: RequestHandler) -> None:
        if connection in self._silent:
            self._silent.discard(connection)
            connection.force_close()


async def listen(runner: web.ServerRunner, host: str, port: int) -> int:
    """Open the listening socket; return its port.

    Raises:
        OSError: the address is taken or cannot be had.
    """
    site = web.TCPSite(runner, host, port, backlog=BACKLOG)
    await site.start()
    server = site._server
    sockets: list[socket.socket] = list(server.sockets) if server is not None else []  # type: ignore[attr-defined]
    return int(sockets[0].getsockname()[1]) if sockets else port


def raise_file_limit() -> None:
    """Two descriptors a stream (facts/hot-path.md 6.12): take what the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            return
