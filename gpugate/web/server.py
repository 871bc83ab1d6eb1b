"""The listening side: aiohttp's low-level server with our limits, and a guard against slow heads.

Why not an Application: hot-path.md section 3 (20 to 37 us a request). Knows sockets, not pods.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

HEAD_LIMIT_S = 30.0
"""A new connection has so long to send the head of its first request (slow loris)."""

KEEPALIVE_S = 75.0
BACKLOG = 4096
SOFTWARE = "gpugate"
"""What `Server` says: not which versions a stranger could look up the holes of."""

LONGEST_LINE = 16 * 1024
LONGEST_FIELD = 32 * 1024

_WATCHED = (  # a client that vanished without a word is found after 30 + 3 * 10 s
    ("SO_KEEPALIVE", socket.SOL_SOCKET, 1),
    ("TCP_KEEPIDLE", socket.IPPROTO_TCP, 30),
    ("TCP_KEEPINTVL", socket.IPPROTO_TCP, 10),
    ("TCP_KEEPCNT", socket.IPPROTO_TCP, 3),
    # Where there is this one it is the limit of all three ways to be silent: no keepalive answered, no
    # byte acknowledged, no byte taken. It is the relay's own limit for the last one (`Relay.stall_s`).
    ("TCP_USER_TIMEOUT", socket.IPPROTO_TCP, 120_000),
)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Malformed = Callable[[web.BaseRequest], web.StreamResponse]


class _Request(web.BaseRequest):
    """aiohttp's, whose answers do not tell what gpugate is made of."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers["Server"] = SOFTWARE


class _Connection(RequestHandler):
    """aiohttp's, with another answer to what is no HTTP, and an eye on clients that vanish.

    Its own would show the offending bytes to the client and the log: after a wrong Content-Length they
    are the rest of somebody's prompt, and a malformed header may be the one with the token.
    """

    __slots__ = ("_malformed",)

    def __init__(
        self, server: web.Server, *, loop: asyncio.AbstractEventLoop, malformed: Malformed, **options: Any
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self._malformed = malformed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; see `RequestHandler`."""
        super().connection_made(transport)
        _watch(transport.get_extra_info("socket"))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be parsed; see `RequestHandler`."""
        if status != 400:
            return super().handle_error(request, status, exc, message)
        response = self._malformed(request)
        response.force_close()
        return response


class GuardedServer(web.Server):
    """`web.Server` that drops connections whose first request does not come.

    Args:
        handler: answers requests.
        malformed: answers what is none; must not look into it.
    """

    def __init__(self, handler: Handler, malformed: Malformed) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            keepalive_timeout=KEEPALIVE_S,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_FIELD,
            request_factory=self._request,
        )
        self._malformed = malformed

    def __call__(self) -> RequestHandler:
        connection = _Connection(self, loop=self._loop, malformed=self._malformed, **self._kwargs)
        asyncio.get_running_loop().call_later(HEAD_LIMIT_S, _expect_request, connection)
        return connection

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        # Behind an Upgrade aiohttp leaves the rest of the connection unread: nothing may be hoped for there.
        if message.upgrade:
            message = message._replace(should_close=True)
        return _Request(message, payload, protocol, writer, task, self._loop)


def _watch(sock: socket.socket | None) -> None:
    """Let the kernel find out whether the client is still there."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for name, level, value in _WATCHED:
        option = getattr(socket, name, None)
        if option is not None:
            with suppress(OSError):  # gone already, or a system that knows the name only
                sock.setsockopt(level, option, value)


def _expect_request(connection: RequestHandler) -> None:
    # No public attribute says so, and counting in the handler would cost every request.
    if not connection._request_count:
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
