"""One client's connection: aiohttp's, answering in one task; it must not know what is asked.

aiohttp starts a task for each request, so that its context variables end with it. There are none here,
and a task is a tenth of what a small request costs (facts/hot-path.md section 3). What `start` does beside
that is aiohttp 3.14's, and relies on what is private there: `tests/web/test_connection.py` says when to
look again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.http import StreamWriter
from aiohttp.web_protocol import _PAYLOAD_ACCESS_ERROR as _READ_TOO_LATE
from aiohttp.web_protocol import ERROR, RequestHandler, _ErrInfo

_WATCHED = (  # a client that vanished without a word is found after 30 + 3 * 10 s
    ("SO_KEEPALIVE", socket.SOL_SOCKET, 1),
    ("TCP_KEEPIDLE", socket.IPPROTO_TCP, 30),
    ("TCP_KEEPINTVL", socket.IPPROTO_TCP, 10),
    ("TCP_KEEPCNT", socket.IPPROTO_TCP, 3),
    # Where there is this one it is the limit of all three ways to be silent: no keepalive answered, no
    # byte acknowledged, no byte taken. It is the relay's own limit for the last one (`Relay.stall_s`).
    ("TCP_USER_TIMEOUT", socket.IPPROTO_TCP, 120_000),
)

Malformed = Callable[[web.BaseRequest], web.StreamResponse]


class Connection(RequestHandler):
    """aiohttp's, without a task for each request, with another answer to what is no HTTP, and an eye on
    clients that vanish.

    aiohttp's answer would show the offending bytes to the client and the log: after a wrong Content-Length
    they are the rest of somebody's prompt, and a malformed header may be the one with the token.
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

    async def start(self) -> None:
        """Answer requests, one after the other, until the connection is to be closed."""
        while not self._force_close:
            if not self._messages:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            request, handler = self._next()
            try:
                response, lost = await self._handle_request(request, None, handler)
                if lost:
                    break
                self._keepalive = bool(response.keep_alive)
                if not request._payload.is_eof():
                    await self._read_off(request._payload)
                request._payload.set_exception(_READ_TOO_LATE)
            except ConnectionError:  # the client is gone
                break
            except Exception as error:
                self.log_exception("Unhandled exception", exc_info=error)
                self.force_close()
            except BaseException:  # cancelled: the client hung up, or the server goes down
                self.force_close()
                raise
            finally:
                request._task = None  # type: ignore[assignment]  # a cycle
            if not self._keepalive or self._close or self._force_close:
                break
            self._wait_for_more()
        self._end()

    def _next(self) -> tuple[web.BaseRequest, Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]]:
        """The oldest request that came."""
        message, payload = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        manager, factory, handler = self._manager, self._request_factory, self._request_handler
        assert manager is not None
        assert factory is not None
        assert handler is not None
        manager.requests_count += 1
        if isinstance(message, _ErrInfo):
            handler, message = self._make_error_handler(message), ERROR
        task = self._task_handler or asyncio.current_task(self._loop)
        assert task is not None
        return factory(message, payload, self, StreamWriter(self, self._loop), task), handler

    async def _read_off(self, payload: StreamReader) -> None:
        """Read what is left of a body, for a while, so that the client gets to read its answer."""
        if not self._force_close and self._lingering_time:
            try:
                async with asyncio.timeout(self._lingering_time):
                    while not payload.is_eof():
                        await payload.readany()
            except TimeoutError:
                pass
        if not payload.is_eof() and not self._force_close:
            self.close()

    def _wait_for_more(self) -> None:
        due = self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(due, self._process_keepalive)

    def _end(self) -> None:
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()


def _watch(sock: socket.socket | None) -> None:
    """Let the kernel find out whether the client is still there."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for name, level, value in _WATCHED:
        option = getattr(socket, name, None)
        if option is not None:
            with suppress(OSError):  # gone already, or a system that knows the name only
                sock.setsockopt(level, option, value)
