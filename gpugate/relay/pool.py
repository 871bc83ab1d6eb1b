"""Keep-alive connections to one endpoint, and their pool."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Literal, Protocol, cast

from gpugate.provider_api import Endpoint
from gpugate.relay.headers import Address, RequestHeads
from gpugate.relay.transport import TlsPolicy, context

_ABOUT_NOW_S = 0.001  # a timer may come a rounding too early, and would be set again and again
_KEEPALIVE = (  # a peer that vanished without a word is found after 30 + 3 * 10 s
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", None), 30),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPINTVL", None), 10),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPCNT", None), 3),
)

LARGE_READ = 64 * 1024
"""Bytes of one read after which other connections have their turn before the next one.

uvloop reads up to 32 times 256 KiB from a socket in one go, and to parse that much of a body of one-byte
chunks takes 0.1 s each time.
"""

FailureKind = Literal["connect", "tls", "timeout", "closed", "garbage"]


class UpstreamExchangeError(Exception):
    """The upstream broke before the first byte of a response had left for the client.

    Attributes:
        kind: "connect" (refused, unreachable, no such name), "tls" (its certificate is not accepted),
            "timeout" (of connecting), "closed" (after the request was, or was being, sent), "garbage" (it
            does not speak HTTP).
        connecting: no connection was made, so the upstream has not seen the request.
        reused: it broke on a connection that had served before.
        got_bytes: some bytes of a response had come.
        sent_twice: the request had been sent before, over an idle connection that turned out to be stale.
    """

    def __init__(self, kind: FailureKind, *, reused: bool = False, got_bytes: bool = False) -> None:
        self.kind = kind
        self.connecting = kind in ("connect", "tls", "timeout")
        self.reused = reused
        self.got_bytes = got_bytes
        self.sent_twice = False
        super().__init__(f"upstream: {kind}")


class ConnectionListener(Protocol):
    """Receives what comes from the upstream on a connection in use."""

    def data_received(self, data: bytes) -> None:
        """Take the next bytes."""

    def lost(self, *, ended: bool) -> None:
        """Take note that the connection is no more; `ended`: the upstream closed its side in order."""


class Upstream(asyncio.Protocol):
    """One keep-alive connection, used by one exchange at a time.

    Attributes:
        transport: its transport, from the moment that the pool hands it out.
        reused: it has served before.
    """

    __slots__ = (
        *("_drained", "_ended", "_listener", "_pool", "_paused", "_yields"),
        *("closed", "idle_since", "reused", "transport"),
    )

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._listener: ConnectionListener | None = None
        self._drained: asyncio.Future[None] | None = None
        self._ended = False
        self._paused = False
        self._yields = False
        self.closed = False
        self.reused = False
        self.idle_since = 0.0
        self.transport: asyncio.Transport

    def attach_listener(self, listener: ConnectionListener) -> None:
        """Give what comes from now on to `listener`."""
        self._listener = listener

    def release(self) -> None:
        """Return the connection to the pool; the response must have ended exactly where it said."""
        self._listener = None
        self.reused = True
        self._pool.return_idle(self)

    def abort(self) -> None:
        """Close at once; the listener is not called any more. Idempotent."""
        self._listener = None
        self.closed = True
        self._pool.discard(self)
        self.transport.abort()

    def pause_reading(self) -> None:
        """Read nothing until `resume_reading`; called by the listener."""
        self._paused = True
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again; called by the listener."""
        self._paused = False
        if not self._yields and not self.closed:
            self.transport.resume_reading()

    @property
    def sending(self) -> bool:
        """Whether some of what was written is still in the transport's buffer."""
        return self.transport.get_write_buffer_size() > 0

    async def drained(self) -> None:
        """Wait until more may be written; also returns when the connection is lost."""
        if self._drained is not None:
            await asyncio.shield(
                self._drained
            )  # a cancelled wait must not cancel the future for the next one

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        self.transport = cast(asyncio.Transport, transport)
        self._pool.register(self)
        sock = transport.get_extra_info("socket")
        for level, option, value in _KEEPALIVE:
            if option is not None:
                with suppress(OSError):  # the peer may be gone already, which shows soon enough
                    sock.setsockopt(level, option, value)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._listener is None:
            # Nothing was asked: what comes now could not be told from the next response.
            self.abort()
            return
        self._listener.data_received(data)
        if len(data) >= LARGE_READ and not (self._paused or self._yields or self.closed):
            self._yields = True
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        self._yields = False
        if not self._paused and not self.closed:
            self.transport.resume_reading()

    def eof_received(self) -> None:
        """See `asyncio.Protocol`."""
        self._ended = _closed_in_order(self.transport)
        self.transport.abort()  # not `close`, which would wait for a peer that is gone to take the rest

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self.closed = True
        self._pool.discard(self)
        self.resume_writing()
        if self._listener is not None:
            listener, self._listener = self._listener, None
            listener.lost(ended=self._ended and exc is None)

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None


def _closed_in_order(transport: asyncio.Transport) -> bool:
    """Whether the upstream itself ended the connection: over TLS only its close_notify alert proves that.

    A bare FIN can be forged by whatever sits between the two. asyncio reports both ends as the same EOF,
    and only the TLS object knows which one it was; uvloop reports a bare FIN as an error and never calls
    this for it. The read takes no byte from the response: at EOF nothing is delivered any more, and a byte
    that is still there is one that asyncio lost.
    """
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        return True
    try:
        return bool(tls.read(1) == b"")
    except ssl.SSLZeroReturnError:  # close_notify has been received, and ours has been sent
        return True
    except ssl.SSLError:  # it expects more: the connection was cut
        return False


class ConnectionPool:
    """The connections to one endpoint: idle ones last in, first out; as many as are asked for.

    Args:
        endpoint: where they go; its `tls` says whom to trust.
        connect_timeout_s: for the name, the connection and the TLS handshake together.
        max_idle_s: an idle connection older than this is closed. Should be below the upstream's own limit.

    Attributes:
        heads: writes the heads of its requests.

    Raises:
        ValueError: the endpoint's URL, a header of it or its `tls` is malformed.
    """

    def __init__(
        self, endpoint: Endpoint, *, connect_timeout_s: float = 10.0, max_idle_s: float = 60.0
    ) -> None:
        self.endpoint = endpoint
        self.address = Address.of(endpoint.url)
        self.heads = RequestHeads(self.address, endpoint.headers)
        self._tls = TlsPolicy.of(endpoint.tls)
        self._connect_timeout_s = connect_timeout_s
        self._max_idle_s = max_idle_s
        self._closed = False
        self._all: set[Upstream] = set()
        self._idle: list[Upstream] = []
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def closed(self) -> bool:
        """Whether it hands out no more connections."""
        return self._closed

    @property
    def idle(self) -> int:
        """How many connections are idle."""
        return len(self._idle)

    @property
    def in_use(self) -> int:
        """How many connections are in use."""
        return len(self._all) - len(self._idle)

    def acquire_idle(self) -> Upstream | None:
        """Return the idle connection used last, if there is one."""
        while self._idle:
            upstream = self._idle.pop()
            if not upstream.closed and not upstream.transport.is_closing():
                return upstream
        return None

    async def connect(self) -> Upstream:
        """Make a new connection.

        Raises:
            UpstreamExchangeError: with `connecting` set. Also when the pool is closed.
        """
        if self._closed:
            raise UpstreamExchangeError("connect")
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                upstream = await self._open()
        except TimeoutError as error:
            raise UpstreamExchangeError("timeout") from error
        except ssl.SSLError as error:
            raise UpstreamExchangeError("tls") from error
        except (OSError, UnicodeError) as error:  # the latter: a host's name that cannot be one
            raise UpstreamExchangeError("connect") from error
        if self.closed:  # while we waited
            upstream.abort()
            raise UpstreamExchangeError("connect")
        return upstream

    async def _open(self) -> Upstream:
        secure = context(self._tls) if self.address.secure else None
        _, upstream = await asyncio.get_running_loop().create_connection(
            lambda: Upstream(self), self.address.host, self.address.port, ssl=secure
        )
        wire = upstream.transport.get_extra_info("ssl_object")
        if secure and not self._tls.accepts(wire.getpeercert(binary_form=True)):
            upstream.abort()
            raise UpstreamExchangeError("tls")
        return upstream

    def register(self, upstream: Upstream) -> None:
        """Add a new connection."""
        self._all.add(upstream)

    def return_idle(self, upstream: Upstream) -> None:
        """Take back a connection whose exchange has ended in order."""
        if self._closed or upstream.closed or upstream.transport.is_closing():
            upstream.abort()
            return
        loop = asyncio.get_running_loop()
        upstream.idle_since = loop.time()
        self._idle.append(upstream)
        if self._sweep is None:
            self._sweep = loop.call_later(self._max_idle_s, self._close_old)

    def discard(self, upstream: Upstream) -> None:
        """Remove a connection that is closed."""
        self._all.discard(upstream)
        if upstream in self._idle:
            self._idle.remove(upstream)

    def close(self) -> None:
        """Hand out no more connections and close idle ones; exchanges under way go on to their end."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for upstream in self._idle.copy():
            upstream.abort()

    def abort(self) -> None:
        """Close, and break the exchanges under way: the pod is lost."""
        self.close()
        for upstream in list(self._all):
            upstream.transport.abort()  # its exchange is told, unlike with `Upstream.abort`

    def _close_old(self) -> None:
        """Close what has been idle for too long; the oldest stand in front."""
        self._sweep = None
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._max_idle_s + _ABOUT_NOW_S
        while self._idle and self._idle[0].idle_since <= oldest:
            self._idle[0].abort()
        if self._idle:
            due = self._idle[0].idle_since + self._max_idle_s
            self._sweep = loop.call_at(due, self._close_old)
