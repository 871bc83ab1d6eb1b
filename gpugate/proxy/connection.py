"""One client's connection: aiohttp's, answering in one task or none; it must not know what is asked.

aiohttp starts a task for each request, so that its context variables end with it. There are none here,
and a task is a tenth of a small request's cost (docs/ollama.md#where-the-time-goes). What `start` does beside
that is aiohttp 3.14's, and relies on what is private there: `tests/web/test_connection.py` says when to
look again.

A request whose bytes have been seen before means what it meant then: aiohttp's parser need not read
them again, and where the `Desk` can send it on at once no task need wake up. All else, and all that turns out
to be less simple than it looked, is aiohttp's as ever (`_hand_over`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from typing import Any, Protocol, TypeVar

from aiohttp import StreamReader, web
from aiohttp.http import HttpVersion11, StreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
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

_LONGEST_KNOWN = 2048  # bytes
_MOST_KNOWN = 256
_NEVER = -1

Malformed = Callable[[web.BaseRequest], web.StreamResponse]
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Begun(Protocol):
    """A request that was sent on, and whose answer comes without a task of its own."""

    def ended(self) -> web.StreamResponse | None:
        """The answer, if all of it was written; None if there is more to do: then `finish` or `abandon`."""

    def finish(self) -> Awaitable[web.StreamResponse]:
        """Do what is left; from now on `news` is not called any more."""

    def abandon(self) -> None:
        """The client is gone."""


class Familiar(Protocol):
    """A request that was asked before."""

    @property
    def message(self) -> RawRequestMessage:
        """As the parser read it, but for what is secret."""


FamiliarT = TypeVar("FamiliarT", bound=Familiar)


class Desk(Protocol[FamiliarT]):
    """Who sends on at once what needs no thought, and says what that is."""

    def learn(self, message: RawRequestMessage) -> FamiliarT | None:
        """What to keep of a request without a body, if it may come again and needs no thought then."""

    def begin(self, familiar: FamiliarT, request: web.BaseRequest, news: Callable[[], None]) -> Begun | None:
        """Send it on now; None: not now, and nothing has happened. Must not raise.

        `news` is called, never at once, whenever there may be something new to learn of `Begun.ended`.
        """


class NoDesk:
    """For servers that have nothing to send on."""

    def learn(self, message: RawRequestMessage) -> None:
        """Nothing is."""

    def begin(self, familiar: Familiar, request: web.BaseRequest, news: Callable[[], None]) -> None:
        """Never asked for."""


class Known:
    """Familiar requests by what their bytes hash to: who reads our memory finds no token."""

    def __init__(self, learn: Callable[[RawRequestMessage], Familiar | None]) -> None:
        self._learn = learn
        self._familiar: dict[bytes, Familiar] = {}

    def get(self, data: bytes) -> Familiar | None:
        """The request of these bytes, if it is familiar."""
        return self._familiar.get(sha256(data).digest()) if len(data) <= _LONGEST_KNOWN else None

    def learn(self, data: bytes, message: RawRequestMessage) -> None:
        """Keep what may be asked again; `data` is all of the request and nothing else."""
        if len(data) > _LONGEST_KNOWN or message.method != "GET" or message.version != HttpVersion11:
            return
        if message.should_close or message.upgrade or message.chunked:
            return
        familiar = self._learn(message)
        if familiar is None:
            return
        if len(self._familiar) >= _MOST_KNOWN:
            self._familiar.clear()
        self._familiar[sha256(data).digest()] = familiar


class Connection(RequestHandler):
    """aiohttp's, without a task for each request, with another answer to what is no HTTP, and an eye on
    clients that vanish.

    aiohttp's answer would show the offending bytes to the client and the log: after a wrong Content-Length
    they are the rest of somebody's prompt, and a malformed header may be the one with the token.
    """

    __slots__ = (
        "_begun",
        "_close_then",
        "_desk",
        "_fed",
        "_handed",
        "_known",
        "_last",
        "_malformed",
        "_swift",
    )

    def __init__(
        self,
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        malformed: Malformed,
        desk: Desk[Any],
        known: Known,
        **options: Any,
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self._malformed = malformed
        self._desk = desk
        self._known = known
        self._swift: web.BaseRequest | None = None  # the request that `_begun` answers
        self._begun: Begun | None = None
        self._handed: tuple[web.BaseRequest, Begun] | None = None  # the same, waiting for our task
        self._close_then = False
        # Whether the parser stands between two requests: how much it was fed behind the last time it did
        # (never again, if that cannot be told), and the body of the one request that began there.
        self._fed = 0
        self._last: StreamReader = EMPTY_PAYLOAD

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; see `RequestHandler`."""
        super().connection_made(transport)
        _watch(transport.get_extra_info("socket"))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give up what is under way; see `RequestHandler`."""
        begun = self._handed[1] if self._handed is not None else self._begun
        self._handed = self._swift = self._begun = None
        if begun is not None:
            begun.abandon()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the client's bytes; see `RequestHandler`."""
        if self._begun is not None and data:
            self._hand_over()  # another request, which waits for its turn with aiohttp
        elif data and self._between_requests and self._begin_at_once(data):
            return
        self._feed(data)

    def close(self) -> None:
        """Close when the present request is answered; see `RequestHandler`."""
        if self._begun is not None:
            self._close_then = True
        else:
            super().close()

    def _process_keepalive(self) -> None:
        if self._begun is not None:
            self._keepalive_handle = None  # not idle; set again behind the answer
        else:
            super()._process_keepalive()

    # --- without a task -----------------------------------------------------------------------

    @property
    def _between_requests(self) -> bool:
        """Whether all that came is answered, and the next byte begins a request."""
        if self._messages or self._request_in_progress or self._close or self._force_close:
            return False
        return self._fed == self._last.total_bytes and self._last.is_eof() and not self._upgraded

    def let_go(self, payload: StreamReader) -> None:
        """Forget the reader of a body that was read to its end."""
        if payload is self._last:
            self._last = EMPTY_PAYLOAD
            if self._fed != _NEVER:
                self._fed -= payload.total_bytes

    def _feed(self, data: bytes) -> None:
        """Let aiohttp's parser have it, and see where that leaves it."""
        queued, fresh = len(self._messages), self._handed is None and self._between_requests
        super().data_received(data)
        if self._fed == _NEVER or not data:
            return
        if not fresh:
            self._fed = self._fed + len(data) if len(self._messages) == queued else _NEVER
            return
        end = data.find(b"\r\n\r\n") + 4
        if len(self._messages) != 1 or end < 4:
            self._fed = _NEVER
            return
        message, self._last = self._messages[0]
        self._fed = len(data) - end
        if not self._fed and self._last is EMPTY_PAYLOAD and isinstance(message, RawRequestMessage):
            self._known.learn(data, message)

    def _begin_at_once(self, data: bytes) -> bool:
        familiar = self._known.get(data)
        manager, factory, task = self._manager, self._request_factory, self._task_handler
        if familiar is None or manager is None or factory is None or task is None:
            return False
        request = factory(familiar.message, EMPTY_PAYLOAD, self, StreamWriter(self, self._loop), task)
        begun = self._desk.begin(familiar, request, self._news)
        if begun is None:
            return False
        self._swift, self._begun = request, begun
        manager.requests_count += 1
        self._request_count += 1
        self._request_in_progress = True
        return True

    def _news(self) -> None:
        if self._begun is None:
            return
        response = self._begun.ended()
        if response is None:
            self._hand_over()
            return
        self._begun = self._swift = None
        self._request_in_progress = False
        if self._handler_waiter is not None:
            self._handler_waiter.set_result(None)
        self._keepalive = bool(response.keep_alive)
        if self._keepalive and not self._close_then and not self._force_close:
            self._wait_for_more()
        else:
            super().close()
            self._end()

    def _hand_over(self) -> None:
        """Let the connection's task do the rest, as it would have done all of it."""
        assert self._swift is not None
        assert self._begun is not None
        self._handed, self._swift, self._begun = (self._swift, self._begun), None, None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._close_then:
            super().close()

    # --- in the connection's task -------------------------------------------------------------

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
            if not self._messages and self._handed is None:
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

    def _next(self) -> tuple[web.BaseRequest, Handler]:
        """The oldest request that came."""
        if self._handed is not None:
            (request, begun), self._handed = self._handed, None
            return request, lambda _: begun.finish()
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


def let_go_of_body(request: web.BaseRequest) -> None:
    """Forget the reader of a body that was read to its end: a held request is a kilobyte lighter without."""
    if isinstance(request.protocol, Connection):
        request.protocol.let_go(request._payload)
        request._payload = request._cache["content"] = EMPTY_PAYLOAD


def _watch(sock: socket.socket | None) -> None:
    """Let the kernel find out whether the client is still there."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for name, level, value in _WATCHED:
        option = getattr(socket, name, None)
        if option is not None:
            with suppress(OSError):  # gone already, or a system that knows the name only
                sock.setsockopt(level, option, value)
