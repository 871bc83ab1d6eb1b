"""Forwards one request and its response, byte for byte.

    relay = Relay()
    pool = Pool(endpoint)
    return await relay.forward(request, pool, Outgoing(...), Answer(...))

It runs under `web.Server(handler, handler_cancellation=True, auto_decompress=False)`. Without the first, a
client that hangs up is not noticed; without the second, aiohttp would decompress a streamed upload whose
headers go on saying that it is compressed (docs/ollama.md#bodies-and-decompression).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiohttp import ClientConnectionResetError, StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from attrs import define, field, frozen

from gpugate.relay.exchange import Exchange
from gpugate.relay.headers import given_length
from gpugate.relay.pool import ConnectionPool, Upstream, UpstreamExchangeError
from gpugate.relay.response_parser import LAST_CHUNK, as_chunk
from gpugate.relay.response_policy import RelayOutcome, ResponsePolicy

_SMALL = 64 * 1024  # a body up to this size goes out with its head, in one write
_PIECE = 256 * 1024
_BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "DELETE", "TRACE"})


MIN_RATE = 1024
"""Bytes per second that a request's body must bring (docs/api.md#limits)."""


class PacedBody:
    """A request's body as it comes, for as long as it comes at `MIN_RATE` or faster.

    Only the time counts in which the body is waited for, so that a slow upstream is not held against it.

    Args:
        limit_s: over so much time the rate is taken (`server.body_timeout`).
    """

    def __init__(self, reader: StreamReader, limit_s: float) -> None:
        self._reader = reader
        self._limit_s = self._left_s = limit_s
        self._missing = limit_s * MIN_RATE

    async def readany(self) -> bytes:
        """Return what has come; empty at the end.

        Raises:
            TimeoutError: it comes too slowly.
            aiohttp.web.RequestPayloadError: its framing is broken.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(self._left_s):
            piece = await self._reader.readany()
        if not piece and (broken := self._reader.exception()) is not None:
            raise broken
        self._missing -= len(piece)
        self._left_s -= loop.time() - began
        if self._missing <= 0:
            self._left_s, self._missing = self._limit_s, self._limit_s * MIN_RATE
        return piece


@define
class UpstreamRequest:
    """A request to be sent to the upstream.

    Attributes:
        method: as the client sent it.
        target: path and query as the client sent them, without the endpoint's own path.
        headers: the client's, raw; the relay leaves out what must not cross.
        body: what is sent; a `PacedBody` is streamed, with the client's Content-Length or else in chunks.
    """

    method: str
    target: str
    headers: Iterable[tuple[bytes, bytes]] = field(repr=False)
    body: bytes | PacedBody | None = field(default=None, repr=False)


class RelayedResponse(web.StreamResponse):
    """A response that has been written already, so that aiohttp has nothing left to do.

    Attributes:
        outcome: how it ended.
        bytes_sent: bytes written to the client, the head included.
    """

    def __init__(self, status: int, *, ending: RelayOutcome, keep_alive: bool, sent: int) -> None:
        # Not aiohttp's own `__init__`: it makes headers, cookies and more, all of which have left already.
        self._sent_status = status
        self.outcome = ending
        self.bytes_sent = sent
        self._keeps_alive = keep_alive

    def __repr__(self) -> str:
        """Show status and outcome; aiohttp's own needs a response that it has written itself."""
        return f"<Relayed {self.status} {self.outcome.value}, {self.bytes_sent} bytes>"

    @property
    def status(self) -> int:
        """The status that was sent."""
        return self._sent_status

    @property
    def complete(self) -> bool:
        """Whether the client was sent the whole response."""
        return self.outcome is RelayOutcome.COMPLETE

    @property
    def prepared(self) -> bool:
        """True: the head has been sent."""
        return True

    @property
    def keep_alive(self) -> bool:
        """Whether the client's connection may serve another request."""
        return self._keeps_alive

    @property
    def body_length(self) -> int:
        """What an access log counts."""
        return self.bytes_sent

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Do nothing: the head is written."""
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: the end is written, or must not be."""


def _length(upstream_request: UpstreamRequest) -> int | None:
    """The length of the request's body; None for chunks, below 0 for no body at all."""
    body = upstream_request.body
    if isinstance(body, PacedBody):
        return given_length(upstream_request.headers)
    if not body and upstream_request.method in _BODILESS:
        return -1
    return len(body or b"")


class _Upload:
    """A request body that is not sent together with its head; sending it can be interrupted between its
    pieces.

    Args:
        length: `_length` of its request.
    """

    def __init__(self, body: bytes | PacedBody, length: int | None) -> None:
        self._body = body
        self.done = False
        self._left = length
        self._at = 0

    async def send(self, upstream: Upstream) -> None:
        """Write the rest, no faster than the upstream takes it.

        Raises:
            ValueError: a streamed body is not as long as its Content-Length.
            TimeoutError: the client sends too slowly.
            aiohttp.web.RequestPayloadError: the client's framing of it is broken.
        """
        while True:
            await upstream.drained()
            piece = await self._next()
            if upstream.closed:  # uvloop, unlike asyncio, raises if it is written to then
                return
            if not piece:
                self.done = True
                if self._left is None:
                    upstream.transport.write(LAST_CHUNK)
                elif self._left:
                    raise ValueError("the body is shorter than its Content-Length")
                return
            if self._left is None:
                upstream.transport.write(as_chunk(piece))
                continue
            self._left -= len(piece)
            if self._left < 0:
                raise ValueError("the body is longer than its Content-Length")
            upstream.transport.write(piece)

    async def _next(self) -> bytes:
        if isinstance(self._body, PacedBody):
            return await self._body.readany()
        start, self._at = self._at, self._at + _PIECE
        return self._body[start : self._at]


@frozen
class Relay:
    """Forwards requests.

    Attributes:
        stall_s: a client that takes no byte of its response for so long is given up.
    """

    stall_s: float = 120.0

    async def forward(
        self,
        request: web.BaseRequest,
        pool: ConnectionPool,
        upstream_request: UpstreamRequest,
        policy: ResponsePolicy,
    ) -> RelayedResponse:
        """Send the request, relay the response; return when the client has all of it.

        There is no time limit: a model may load for minutes before the first byte. If an idle connection
        turns out to be stale, the request is sent once more on a new one; streamed bodies, which cannot be
        sent
        twice, always get a new one. A response that breaks after its first byte does not raise: see
        `RelayedResponse.outcome`.

        Raises:
            ResponseIntercepted: the policy kept the response from the client.
            UpstreamExchangeError: no byte of a response has left for the client; whether to try again is the
                caller's decision. A streamed body may have been read in part.
            ValueError: a malformed request (see `RequestHeads.write`), or a streamed body of a wrong length.
            TimeoutError: a streamed body comes too slowly.
            aiohttp.web.RequestPayloadError: the client's framing of a streamed body is broken.
            aiohttp.ClientConnectionResetError: the client is gone already.
            asyncio.CancelledError: the client hung up; the upstream's connection is closed.
        """
        sending = self._send_if_idle(request, pool, upstream_request, policy)
        if sending is not None:
            try:
                return await sending.result()
            except UpstreamExchangeError as gone:
                if gone.got_bytes:
                    raise
        head, length = self._head(
            request, pool, upstream_request, policy
        )  # before a connection is made for nothing
        upstream = await pool.connect()
        try:
            return await self._send_over(upstream, request, head, length, upstream_request, policy).result()
        except UpstreamExchangeError as gone:
            gone.sent_twice = sending is not None
            raise

    def _send_if_idle(
        self,
        request: web.BaseRequest,
        pool: ConnectionPool,
        upstream_request: UpstreamRequest,
        policy: ResponsePolicy,
    ) -> PendingRelay | None:
        """Send the request over an idle connection at once; None if there is none or it must not be used.

        Raises:
            ValueError: see `forward`.
            aiohttp.ClientConnectionResetError: see `forward`.
        """
        if isinstance(upstream_request.body, PacedBody):
            return None
        head, length = self._head(request, pool, upstream_request, policy)
        upstream = pool.acquire_idle()
        if upstream is None:
            return None
        return self._send_over(upstream, request, head, length, upstream_request, policy)

    @staticmethod
    def _head(
        request: web.BaseRequest,
        pool: ConnectionPool,
        upstream_request: UpstreamRequest,
        policy: ResponsePolicy,
    ) -> tuple[bytes, int | None]:
        if request.transport is None:
            raise ClientConnectionResetError("the client is gone")
        length = _length(upstream_request)
        return (
            pool.heads.write(
                upstream_request.method,
                upstream_request.target,
                upstream_request.headers,
                length=length,
                identity=policy.headers_sent or policy.sink is not None,
            ),
            length,
        )

    def _send_over(
        self,
        upstream: Upstream,
        request: web.BaseRequest,
        head: bytes,
        length: int | None,
        upstream_request: UpstreamRequest,
        policy: ResponsePolicy,
    ) -> PendingRelay:
        client = request.transport
        if client is None:
            upstream.abort()
            raise ClientConnectionResetError("the client is gone")
        exchange = Exchange(request, client, upstream_request.method, policy)
        exchange.begin(upstream)
        body, upload = upstream_request.body, None
        if isinstance(body, PacedBody) or (body and len(body) > _SMALL):
            upload, exchange.uploading = _Upload(body, length), True
            body = None
        if not exchange.over:
            upstream.transport.write(head + body if body else head)
        return PendingRelay(exchange, upstream, upload, self.stall_s)


class PendingRelay:
    """A request that has been sent over one connection, and whose response is coming."""

    __slots__ = ("_exchange", "_stall_s", "_upload", "_upstream")

    def __init__(
        self, exchange: Exchange, upstream: Upstream, upload: _Upload | None, stall_s: float
    ) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._upload = upload
        self._stall_s = stall_s

    def _abort(self) -> None:
        """Close both connections."""
        self._upstream.abort()
        if self._exchange.head is not None:
            self._exchange.abandon_client(self._stall_s)

    async def result(self) -> RelayedResponse:
        """Wait for the end of the response; see `Relay.forward`."""
        exchange, upstream = self._exchange, self._upstream
        try:
            while not exchange.over:
                if exchange.paused or self._upload is not None:
                    await self._step(exchange)
                else:
                    await exchange.wait_changed()
        except BaseException as error:
            self._abort()
            if exchange.head is None or not isinstance(error, Exception):
                raise
        if exchange.reusable and self._upload is None and not upstream.sending:
            exchange.resume()
            upstream.release()
        else:
            upstream.abort()
        if exchange.failure is not None:
            raise exchange.failure
        if exchange.outcome is RelayOutcome.UPSTREAM_LOST:
            exchange.finish_broken(self._stall_s)
        elif exchange.outcome is RelayOutcome.COMPLETE and not await exchange.client_drained(self._stall_s):
            exchange.abandon_client(0)
        return _relayed(exchange)

    async def _step(self, exchange: Exchange) -> None:
        """Do what is rare: wait for a slow client, or continue the upload."""
        if exchange.paused:
            if await exchange.client_drained(self._stall_s):
                exchange.resume()
            else:
                exchange.abandon_client(0)
        elif self._upload is not None:
            await exchange.run_interruptible(self._upload.send(self._upstream))
            if self._upload.done:
                self._upload, exchange.uploading = None, False


def _relayed(exchange: Exchange) -> RelayedResponse:
    head, ending = exchange.head, exchange.outcome
    assert head is not None
    assert ending is not None
    return RelayedResponse(
        head.status, ending=ending, keep_alive=exchange.keep_alive, sent=exchange.bytes_sent
    )
