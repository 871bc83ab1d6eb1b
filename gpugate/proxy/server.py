"""The listening server: aiohttp's low-level `web.Server` with limits and TCP options of its own.

Not a `web.Application`, which costs 20 to 37 microseconds more per request
(docs/ollama.md#where-the-time-goes).
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from math import inf
from typing import Any, cast

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpParser, HttpProcessingError, HttpRequestParser, HttpVersion11, RawRequestMessage
from aiohttp.web_protocol import ERROR, MAX_MSG_QUEUE_SIZE

from gpugate.errors import GateError, InvalidRequest
from gpugate.tasks import CrashHandler, spawn

FIRST_HEAD_TIMEOUT_S = 30.0
"""How long a new connection may take to send the head of its first request, against slow-loris attacks."""

ACCEPT_RETRY_S = 1.0
"""The pause in accepting connections when the system has no descriptor left."""

_ACCEPTS_AT_ONCE = 64
_WARN_AGAIN_S = 60.0
_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

LINGER_S = 1.0
"""How long what a client still sends is read off behind the last response of its connection: closed with
unread bytes, the kernel would send a reset, and the client might lose the response."""

SERVER_HEADER = "gpugate"
"""The `Server` header: without versions, whose known holes could be looked up."""

_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked", re.IGNORECASE)
_READ_BUFFER = 256 * 1024  # aiohttp's own
_PARSER_OPTIONS: dict[str, Any] = {
    "auto_decompress": False,
    "max_line_size": 16 * 1024,
    "max_field_size": 32 * 1024,
}
OPTIONS: dict[str, Any] = {"access_log": None, **_PARSER_OPTIONS}

_UNREADABLE = RawRequestMessage(
    *(ERROR.method, ERROR.path, HttpVersion11, ERROR.headers, ERROR.raw_headers),
    *(True, None, False, False, ERROR.url),
)
"""What stands for a request that could not be parsed; aiohttp's own would be answered in HTTP/1.0."""

_TCP_OPTIONS = (  # a client that vanished without closing is noticed after 30 + 3 * 10 s
    ("SO_KEEPALIVE", socket.SOL_SOCKET, 1),
    ("TCP_KEEPIDLE", socket.IPPROTO_TCP, 30),
    ("TCP_KEEPINTVL", socket.IPPROTO_TCP, 10),
    ("TCP_KEEPCNT", socket.IPPROTO_TCP, 3),
    # Where it exists, this is the limit for all three: no keepalive answered, no byte acknowledged, no byte
    # read. For the last one it is the relay's own limit (`Relay.stall_s`).
    ("TCP_USER_TIMEOUT", socket.IPPROTO_TCP, 120_000),
)

MalformedHandler = Callable[[web.BaseRequest, GateError], web.Response]
RequestHandlerFunction = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Http2Preface(HttpProcessingError):
    """The client speaks HTTP/2 without having asked (RFC 9113 3.3)."""

    code = 400


class RequestParser:
    """aiohttp's parser, which also tells the reader of a body that its framing is broken.

    aiohttp leaves that reader waiting for ever, and answers only when its handler has given up.
    """

    def __init__(self, parser: HttpRequestParser) -> None:
        self._parser = parser
        self._body: StreamReader | None = None
        self._is_broken = False
        self._is_no_request = False  # not the error itself, whose traceback would keep what was received

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> Any:
        """Parse; behind the broken framing of a body everything is dropped.

        Behind what is no request every piece is an error: aiohttp queues a few of these, and then reads no
        more until the connection is closed.

        A head with a chunked body behind it is parsed first: what is broken there is the body's matter, and
        aiohttp would forget the request.
        """
        end = 0
        if self._body is None or self._body.is_eof():
            end = data.find(b"\r\n\r\n") + 4
        if 4 <= end < len(data) and _CHUNKED.search(data, 0, end):
            messages, upgraded, rest = self._feed(data[:end])
            if not upgraded and not self._is_broken:
                more, upgraded, rest = self._feed(data[end:])
                messages = (*messages, *more)
            return messages, upgraded, rest
        return self._feed(data)

    def _feed(self, data: bytes) -> Any:
        if self._is_no_request:
            raise HttpProcessingError(code=400, message="no request can follow what was no request")
        if self._is_broken:
            return (), False, b""
        try:
            parsed = self._parser.feed_data(data)
        except HttpProcessingError as error:
            self._is_broken = True
            if self._body is not None and not self._body.is_eof():
                self._body.set_exception(web.RequestPayloadError("the body's framing is broken"))
                self._body.feed_eof()  # nobody need wait for the rest of it
                return (), False, b""
            self._is_no_request = True
            if "PRI" in error.message.partition("\n")[0]:
                raise Http2Preface from error
            raise
        if parsed[0]:
            self._body = parsed[0][-1][1]
        return parsed


class _LastResponse(web.Response):
    """The response to what could not be parsed, behind which the connection is closed."""

    def __init__(self, response: web.Response, request: web.BaseRequest) -> None:
        super().__init__(status=response.status, body=response.body, headers=response.headers)
        self._answered = request
        self.force_close()

    async def write_eof(self, data: bytes = b"") -> None:
        """Send it, and read off what still comes."""
        await super().write_eof(data)
        await _linger(self._answered)


async def _linger(request: web.BaseRequest) -> None:
    """Tell the client that nothing more comes, and wait until it closes; cancelled when it has."""
    if request.transport is not None and not request.transport.is_closing():
        with suppress(OSError, NotImplementedError):
            request.transport.write_eof()
        await asyncio.sleep(LINGER_S)


class ClientConnection(web.RequestHandler):
    """A client's connection: aiohttp's, with a limit for the first head and our answer to malformed requests.

    aiohttp's answer to a malformed request would show the offending bytes to the client and the log: after a
    wrong Content-Length they are the rest of a prompt, and a malformed header may be the one with the token.
    """

    __slots__ = ("_answer_malformed", "_head_timer", "_on_crash")

    def __init__(
        self, server: web.Server, malformed: MalformedHandler, on_crash: CrashHandler, keepalive_s: float
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(server, loop=loop, keepalive_timeout=keepalive_s, **OPTIONS)
        parser = HttpRequestParser(
            self,
            loop,
            _READ_BUFFER,
            payload_exception=web.RequestPayloadError,
            max_headers=self.max_headers,
            max_msg_queue_size=MAX_MSG_QUEUE_SIZE,
            **_PARSER_OPTIONS,
        )
        BaseProtocol.__init__(  # the only public way to a parser of one's own
            self, loop, cast("HttpParser[Any]", RequestParser(parser))
        )
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
        if status != 400:
            response = super().handle_error(request, status, exc, message)
            response.headers["Server"] = SERVER_HEADER
            return response
        is_http2 = isinstance(exc, Http2Preface)
        error = InvalidRequest(
            "use HTTP/1.1: HTTP/2 is not understood" if is_http2 else "the request is malformed"
        )
        answer = self._answer_malformed(request, error)
        answer.headers["Server"] = SERVER_HEADER
        return _LastResponse(answer, request)

    def log_exception(self, *args: Any, **more: Any) -> None:
        """Log a fault; that a body which nobody reads has broken framing is none."""
        if not isinstance(more.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **more)


class GatewayServer(web.Server):
    """`web.Server` that closes connections whose first request does not come.

    Args:
        handler: handles requests.
        malformed: answers malformed requests without showing any of their bytes.
        on_crash: called when a connection's task has failed.
        keepalive_s: how long an idle connection is kept (`server.keepalive`).

    Attributes:
        on_connection_lost: called when a connection is gone.
    """

    on_connection_lost: Callable[[], None] | None = None

    def __init__(
        self,
        handler: RequestHandlerFunction,
        malformed: MalformedHandler,
        on_crash: CrashHandler,
        keepalive_s: float = 620.0,
    ) -> None:
        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            cast(ClientConnection, request.protocol).head_arrived()
            response = await handler(request)
            if not response.prepared:
                response.headers["Server"] = SERVER_HEADER
                if "Upgrade" in request.headers:  # aiohttp leaves what follows it unread
                    response.force_close()
                if request.content.exception() is not None:
                    await _send_last(request, response)
            return response

        super().__init__(answer, request_factory=_make_request, handler_cancellation=True)
        self.on_crash = on_crash
        self._malformed = malformed
        self._keepalive_s = keepalive_s

    def __call__(self) -> web.RequestHandler:
        return ClientConnection(self, self._malformed, self.on_crash, self._keepalive_s)

    async def aclose(self, patience_s: float) -> None:
        """Close idle connections, and the others when their requests end or `patience_s` is over."""
        await asyncio.sleep(0)  # requests that came with the last connections have begun then
        self.pre_shutdown()
        await self.shutdown(patience_s)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """See `web.Server`."""
        super().connection_lost(handler, exc)
        if self.on_connection_lost is not None:
            self.on_connection_lost()


def _make_request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    if message is ERROR:
        message = _UNREADABLE
    return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())


async def _send_last(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Send the response to a request whose body broke: what follows on its connection is no request."""
    response.force_close()
    await response.prepare(request)
    await response.write_eof()
    await _linger(request)


class Listener:
    """Accepts connections. Where descriptors run out, new connections wait in the system's backlog.

    Not the loop's own server: with a backlog of 4096, CPython 3.11's tries as many times to accept, each time
    with a traceback, and nothing bounds the connections, so that no descriptor would be left for the pod's
    stop.

    Args:
        most: so many connections at a time.
        warn: called when connections have to wait, once a minute at most.

    Attributes:
        addresses: where it listens, as `socket.getsockname` tells it.
    """

    def __init__(
        self, server: GatewayServer, sockets: Sequence[socket.socket], most: int, warn: Callable[[str], None]
    ) -> None:
        self.addresses: list[tuple[Any, ...]] = [one.getsockname() for one in sockets]
        self._server = server
        self._sockets = list(sockets)
        self._most = most
        self._warn = warn
        self._loop = asyncio.get_running_loop()
        self._open = 0
        self._retry: asyncio.TimerHandle | None = None
        self._warned_at = -inf
        server.on_connection_lost = self._on_connection_lost
        self._resume()

    @property
    def port(self) -> int:
        """The port of all addresses."""
        return int(self.addresses[0][1])

    def close(self) -> None:
        """Accept no more; open connections stay. Idempotent."""
        if self._retry is not None:
            self._retry.cancel()
        self._pause()
        for one in self._sockets:
            one.close()
        self._sockets.clear()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            if self._open >= self._most:
                self._pause(f"{self._open} connections are open, as many as the limit of descriptors allows")
                return
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _NO_RESOURCES:
                    return  # that client is gone already
                self._pause(f"no connection can be accepted: {error.strerror}")
                self._retry = self._loop.call_later(ACCEPT_RETRY_S, self._resume)
                return
            self._open += 1
            accepted.setblocking(False)
            spawn(self._serve(accepted), "client connection", on_crash=self._server.on_crash)

    async def _serve(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._server, accepted)
        except OSError:  # gone already, before it was a connection
            accepted.close()
            self._on_connection_lost()

    def _on_connection_lost(self) -> None:
        is_waiting = self._open >= self._most or self._retry is not None
        self._open -= 1
        if is_waiting:
            self._resume()

    def _pause(self, why: str = "") -> None:
        for one in self._sockets:
            self._loop.remove_reader(one)
        if why and self._loop.time() - self._warned_at >= _WARN_AGAIN_S:
            self._warned_at = self._loop.time()
            self._warn(f"{why}; new ones wait")

    def _resume(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for one in self._sockets:
            self._loop.add_reader(one, self._accept, one)


def _set_tcp_options(sock: socket.socket | None) -> None:
    """Set the options by which the kernel notices that a client is gone."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for name, level, value in _TCP_OPTIONS:
        option = getattr(socket, name, None)
        if option is not None:
            with suppress(OSError):  # closed already, or a system without the option
                sock.setsockopt(level, option, value)
