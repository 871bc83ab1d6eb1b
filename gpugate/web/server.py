"""The listening side: aiohttp's low-level server with our limits, and a guard against slow heads.

Why not an Application: docs/ollama.md#where-the-time-goes (20 to 37 us a request). Knows sockets, not pods.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from gpugate.web.connection import Connection, Desk, Handler, Known, Malformed, NoDesk

HEAD_LIMIT_S = 30.0
"""A new connection has so long to send the head of its first request (slow loris)."""

ANSWER_LIMIT_S = 5.0
"""Longest that the server may take over its first request, which is its own."""

_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}

KEEPALIVE_S = 75.0
BACKLOG = 4096
SOFTWARE = "gpugate"
"""What `Server` says: not which versions a stranger could look up the holes of."""

LONGEST_LINE = 16 * 1024
LONGEST_FIELD = 32 * 1024


class _Request(web.BaseRequest):
    """aiohttp's, whose answers do not tell what gpugate is made of."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers["Server"] = SOFTWARE


class GuardedServer(web.Server):
    """`web.Server` that drops connections whose first request does not come.

    Args:
        handler: answers requests.
        malformed: answers what is none; must not look into it.
        desk: sends on at once what needs no thought.
    """

    def __init__(self, handler: Handler, malformed: Malformed, desk: Desk[Any] | None = None) -> None:
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
        self._desk: Desk[Any] = desk or NoDesk()
        self._known = Known(self._desk.learn)

    def __call__(self) -> RequestHandler:
        connection = Connection(
            self,
            loop=self._loop,
            malformed=self._malformed,
            desk=self._desk,
            known=self._known,
            **self._kwargs,
        )
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


def _expect_request(connection: RequestHandler) -> None:
    # No public attribute says so, and counting in the handler would cost every request.
    if not connection._request_count:
        connection.force_close()


class NotAnswering(Exception):
    """The server listens, and does not answer a request to itself; the text says how."""


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


async def answer_itself(runner: web.ServerRunner, path: str) -> None:
    """See that `GET path` is answered with 200 where this runner listens.

    Raises:
        NotAnswering: it is not, within `ANSWER_LIMIT_S`.
    """
    address = runner.addresses[0]
    host, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    host, port = _REACHED_AT.get(host, host), address[1]
    asked = f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(asked.encode())
                status = await reader.readline()
                await reader.read()
            finally:
                writer.transport.abort()
    except TimeoutError:
        said = f"no answer within {ANSWER_LIMIT_S:g} s"
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or type(error).__name__
    else:
        if status.startswith(b"HTTP/1.1 200 "):
            return
        said = f"the answer was {status[:40].decode('ascii', 'replace').strip()!r}"
    raise NotAnswering(f"it listens on {host} port {port}, and does not answer its own GET {path}: {said}")


def raise_file_limit() -> None:
    """Two descriptors a stream (docs/ollama.md#descriptors): take what the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            return
