"""The listening server: aiohttp's low-level `web.Server` with limits and TCP options of its own.

Not a `web.Application`, which costs 20 to 37 microseconds more per request
(docs/ollama.md#where-the-time-goes).
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

from aiohttp import web

from gpugate.tasks import CrashHandler

FIRST_HEAD_TIMEOUT_S = 30.0
"""How long a new connection may take to send the head of its first request, against slow-loris attacks."""

SELF_CHECK_TIMEOUT_S = 5.0
"""How long the server may take to answer the request that it sends to itself at start-up."""

_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}

BACKLOG = 4096
SERVER_HEADER = "gpugate"
"""The `Server` header: without versions, whose known holes could be looked up."""

OPTIONS: dict[str, Any] = {
    "access_log": None,
    "auto_decompress": False,
    "keepalive_timeout": 75.0,
    "max_line_size": 16 * 1024,
    "max_field_size": 32 * 1024,
}

_TCP_OPTIONS = (  # a client that vanished without closing is noticed after 30 + 3 * 10 s
    ("SO_KEEPALIVE", socket.SOL_SOCKET, 1),
    ("TCP_KEEPIDLE", socket.IPPROTO_TCP, 30),
    ("TCP_KEEPINTVL", socket.IPPROTO_TCP, 10),
    ("TCP_KEEPCNT", socket.IPPROTO_TCP, 3),
    # Where it exists, this is the limit for all three: no keepalive answered, no byte acknowledged, no byte
    # read. For the last one it is the relay's own limit (`Relay.stall_s`).
    ("TCP_USER_TIMEOUT", socket.IPPROTO_TCP, 120_000),
)

MalformedHandler = Callable[[web.BaseRequest], web.StreamResponse]
RequestHandlerFunction = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ClientConnection(web.RequestHandler):
    """A client's connection: aiohttp's, with a limit for the first head and our answer to malformed requests.

    aiohttp's answer to a malformed request would show the offending bytes to the client and the log: after a
    wrong Content-Length they are the rest of a prompt, and a malformed header may be the one with the token.
    """

    __slots__ = ("_answer_malformed", "_head_timer", "_on_crash")

    def __init__(self, server: web.Server, malformed: MalformedHandler, on_crash: CrashHandler) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(server, loop=loop, **OPTIONS)
        self._answer_malformed = malformed
        self._on_crash = on_crash
        self._head_timer = loop.call_later(FIRST_HEAD_TIMEOUT_S, self.force_close)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve the connection; see `RequestHandler`."""
        super().connection_made(transport)
        _set_tcp_options(transport.get_extra_info("socket"))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel the request under way; see `RequestHandler`."""
        self._head_timer.cancel()
        super().connection_lost(exc)

    def head_arrived(self) -> None:
        """End the limit for the first head; called for each request."""
        self._head_timer.cancel()

    async def start(self) -> None:
        """Serve the connection to its end, in a task that aiohttp starts and does not await.

        aiohttp catches what a handler raises, but not its own errors. Those are reported, and the client's
        connection is closed, so that it does not wait for ever.
        """
        try:
            await super().start()
        except Exception as error:
            self._on_crash("client connection", error)
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that could not be parsed (400), or whose handler failed; see `RequestHandler`."""
        if status == 400:
            response = self._answer_malformed(request)
            response.force_close()
        else:
            response = super().handle_error(request, status, exc, message)
        response.headers["Server"] = SERVER_HEADER
        return response


class GatewayServer(web.Server):
    """`web.Server` that closes connections whose first request does not come.

    Args:
        handler: handles requests.
        malformed: answers malformed requests without showing any of their bytes.
        on_crash: called when a connection's task has failed.
    """

    def __init__(
        self, handler: RequestHandlerFunction, malformed: MalformedHandler, on_crash: CrashHandler
    ) -> None:
        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            cast(ClientConnection, request.protocol).head_arrived()
            response = await handler(request)
            if not response.prepared:
                response.headers["Server"] = SERVER_HEADER
                if "Upgrade" in request.headers:  # aiohttp leaves what follows it unread
                    response.force_close()
            return response

        super().__init__(answer, handler_cancellation=True)
        self._malformed = malformed
        self._on_crash = on_crash

    def __call__(self) -> web.RequestHandler:
        return ClientConnection(self, self._malformed, self._on_crash)


class SelfCheckFailed(Exception):
    """The server listens, but does not answer a request to itself; the message says how."""


async def listen(runner: web.ServerRunner, host: str, port: int) -> int:
    """Open the listening socket; return its port.

    Raises:
        OSError: the address is taken or not available.
    """
    await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    return int(runner.addresses[0][1])


async def check_self(runner: web.ServerRunner, path: str) -> None:
    """Check that `GET path` is answered with 200 where this runner listens.

    Raises:
        SelfCheckFailed: it is not, within `SELF_CHECK_TIMEOUT_S`.
    """
    address = runner.addresses[0]
    host, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    host, port = _LOOPBACK_OF.get(host, host), address[1]
    asked = f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(SELF_CHECK_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(asked.encode())
                status = await reader.readline()
                await reader.read()
            finally:
                writer.transport.abort()
    except TimeoutError:
        said = f"no answer within {SELF_CHECK_TIMEOUT_S:g} s"
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or type(error).__name__
    else:
        if status.startswith(b"HTTP/1.1 200 "):
            return
        said = f"the answer was {status[:40].decode('ascii', 'replace').strip()!r}"
    raise SelfCheckFailed(f"it listens on {host} port {port}, and does not answer its own GET {path}: {said}")


def raise_file_limit() -> None:
    """Two descriptors a stream (docs/ollama.md#descriptors): raise the limit as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            return


def _set_tcp_options(sock: socket.socket | None) -> None:
    """Set the options by which the kernel notices that a client is gone."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for name, level, value in _TCP_OPTIONS:
        option = getattr(socket, name, None)
        if option is not None:
            with suppress(OSError):  # closed already, or a system without the option
                sock.setsockopt(level, option, value)
