"""One answer on its way from the upstream to the client; it must not know pods, dialects or JSON.

All that happens per chunk happens in `Exchange.data_received`: a step of the walker, one write. The one
coroutine of a request sleeps meanwhile, and is woken (`wait_changed`) for what is rare: the end, a loss, a
client that reads too slowly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum
from typing import TypeVar

from aiohttp import web

from gpugate.relay.headers import response_head
from gpugate.relay.pool import FailureKind, Upstream, UpstreamExchangeError
from gpugate.relay.response_parser import (
    LAST_CHUNK,
    BodyEnd,
    Head,
    ResponseFraming,
    UpstreamProtocolError,
    as_chunk,
)
from gpugate.relay.response_policy import (
    INTERCEPTED_LIMIT,
    CapturedBody,
    RelayOutcome,
    ResponseIntercepted,
    ResponsePolicy,
    Truncation,
)
from gpugate.relay.sockets import close_within, reset, unacked_bytes
from gpugate.tasks import report_crash, spawn

T = TypeVar("T")
R = TypeVar("R")


class _BodyFraming(Enum):
    """What is done to the body's bytes before they are written."""

    AS_IS = 1
    WRAPPED = 2  # put into our chunks: the head was ours
    UNFRAMED = 3  # taken out of the upstream's chunks: the client speaks HTTP/1.0


class Exchange:
    """One answer on its way down; the `Listener` of an `Upstream` while it lasts.

    Attributes:
        outcome: how the answer ended, None while it lasts.
        failure: why there will be no answer; nothing has been written to the client then.
        head: the answer's head, once it has left for the client.
        keep_alive: the client's connection may serve another request after this answer.
        paused: the client reads too slowly, and the upstream is not read.
        reusable: the upstream's connection has ended this answer exactly where it said.
        bytes_sent: bytes written to the client.
        uploading: set by the owner while the request's body is on its way.
    """

    # On the class, as most answers leave them as they are.
    outcome: RelayOutcome | None = None
    failure: UpstreamExchangeError | ResponseIntercepted | None = None
    head: Head | None = None
    paused = False
    reusable = False
    bytes_sent = 0
    uploading = False
    _body_framing = _BodyFraming.AS_IS
    _converts = False
    _ends_by_closing = False
    _captured: list[bytes] | None = None
    _captured_size = 0
    _intercepted_body: bytearray | None = None
    _intercepted_head: Head  # of an answer that is declined
    _got_bytes = False
    _upstream: Upstream
    _waiter: asyncio.Future[None] | None = None
    _deadline: asyncio.Timeout | None = None

    def __init__(
        self, request: web.BaseRequest, client: asyncio.Transport, method: str, answer: ResponsePolicy
    ) -> None:
        self.keep_alive = (  # behind an Upgrade aiohttp leaves the rest of the connection unread
            request.keep_alive and request.version >= (1, 1) and "Upgrade" not in request.headers
        )
        self._request = request
        self._client = client
        self._protocol = request.protocol
        self._policy = answer
        self._framing = ResponseFraming(method)

    # What its owner does.

    def begin(self, upstream: Upstream) -> None:
        """Listen to `upstream` from now on."""
        self._upstream = upstream
        upstream.attach_listener(self)
        if upstream.closed:  # before it could be lent
            self._break("closed")

    @property
    def over(self) -> bool:
        """Whether nothing more will come from the upstream."""
        return self.outcome is not None or self.failure is not None

    def wait_changed(self) -> asyncio.Future[None]:
        """To be awaited: the answer is over, or the client reads too slowly."""
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        if self.outcome is not None or self.failure is not None or self.paused:
            self._wake()
        return waiter

    async def run_interruptible(self, work: Awaitable[None], limit_s: float | None = None) -> bool:
        """Do `work` until it is done (True), until something has `wait_changed`, or for `limit_s` (False)."""
        deadline = asyncio.timeout(limit_s)
        try:
            async with deadline:
                self._deadline = deadline
                await work
        except TimeoutError:
            if not deadline.expired():
                raise
            return False
        finally:
            self._deadline = None
        return True

    @property
    def client_full(self) -> bool:
        """Whether the client has to read before more can be written."""
        return self._protocol.writing_paused

    async def client_drained(self, stall_s: float) -> bool:
        """Wait until the client has read, or the upstream is lost; False: it took nothing for `stall_s`."""
        if not self._protocol.writing_paused:
            return True
        over, left = self.over, unacked_bytes(self._client)
        # A task, as aiohttp's drain() cannot be waited for again once a wait for it was given up.
        drain = spawn(self._drain(), "relay: a slow client")
        try:
            while self._protocol.writing_paused and self.over == over:
                if await self.run_interruptible(asyncio.shield(drain), stall_s) or self.over != over:
                    continue
                before, left = left, unacked_bytes(self._client)
                if left >= before:
                    return False
        finally:
            drain.cancel()
        return True

    async def _drain(self) -> None:
        with suppress(ConnectionError):  # the request's own task is told as well
            await self._request.writer.drain()

    def resume(self) -> None:
        """Read the upstream again, if there was a pause."""
        if self.paused and not self._upstream.closed:
            self._upstream.transport.resume_reading()
        self.paused = False

    def abandon_client(self, flush_s: float) -> None:
        """End an answer that has begun, as its client reads nothing, sends nonsense, or is gone."""
        self.outcome, self.reusable = RelayOutcome.CLIENT_LOST, False
        self.close_truncated(flush_s)

    def finish_broken(self, flush_s: float) -> None:
        """After a loss: write the last words, if there are any, and close the client's connection."""
        words = self._error_tail() if self._protocol.connected else None
        if words is None:
            self.close_truncated(flush_s)
            return
        self.bytes_sent += len(words)
        self._client.write(words)
        close_within(self._client, flush_s)

    def close_truncated(self, flush_s: float) -> None:
        """Close the client's connection so that nobody can take the answer for complete.

        What was written before still goes out, for at most `flush_s`, except where the mere end of the
        connection would read as the end of the answer: there the connection is reset.
        """
        self.keep_alive = False
        if self._ends_by_closing:
            reset(self._client)
        else:
            close_within(self._client, flush_s)

    def _error_tail(self) -> bytes | None:
        head, ask = self.head, self._policy.error_tail
        if head is None or ask is None or head.get(b"content-encoding").lower() not in (b"", b"identity"):
            return None
        chunked = self._body_framing is _BodyFraming.AS_IS and not self._ends_by_closing
        if chunked and self._framing.finish_with(b"") is None:
            return None
        cut = Truncation(head.status, _text(head, b"content-type"), self._framing.tail)
        epitaph = _guarded(ask, cut)
        if epitaph is None:
            return None
        self.keep_alive = False
        if self._ends_by_closing:
            return epitaph.payload if epitaph.clean_end else None
        words: bytes | None = as_chunk(epitaph.payload)
        if chunked:
            padding = epitaph.padding if epitaph.clean_end else b""
            words = self._framing.finish_with(epitaph.payload, padding=padding)
        return words + LAST_CHUNK if words is not None and epitaph.clean_end else words

    # What the upstream does.

    def data_received(self, data: bytes) -> None:
        """Write the upstream's bytes on. The hot path: all that is done per chunk is done here."""
        if self.outcome is not None or self.failure is not None:
            self.reusable = False
            return
        if self._protocol.transport is None:  # the client is gone, and our task about to be cancelled
            self._upstream.transport.abort()
            return
        framing, begun = self._framing, None
        if self.head is None:
            begun = self._read_head(data)
            if begun is None:
                return
            data = framing.rest
        try:
            ended = framing.body(data)
        except UpstreamProtocolError:
            self._break("garbage")
            return
        if framing.excess:
            data = data[: -framing.excess]
        if self._converts:
            data = self._convert(data, ended)
        if begun is not None:
            data = self._head_for_client(begun) + data
        self.bytes_sent += len(data)
        self._client.write(data)
        if ended:
            self._complete()
        elif self._protocol.writing_paused and not self.paused:
            self.paused = True
            self._upstream.transport.pause_reading()
            self._wake()

    def lost(self, *, ended: bool) -> None:
        """Take note that the upstream's connection is no more."""
        if not self.over:
            if self._intercepted_body is not None:
                complete = ended and self._framing.may_end_here
                self.failure = ResponseIntercepted(
                    self._intercepted_head, bytes(self._intercepted_body), complete=complete
                )
                self._wake()
            elif ended and self.head is not None and self._framing.may_end_here:
                if self._body_framing is _BodyFraming.WRAPPED and self._protocol.connected:
                    self._client.write(LAST_CHUNK)
                self._complete()
            else:
                self._break("closed")
        self.reusable = False

    def _read_head(self, data: bytes) -> Head | None:
        if self._intercepted_body is not None:
            self._intercept(self._intercepted_head, data)
            return None
        self._got_bytes = True
        try:
            head = self._framing.head(data)
        except UpstreamProtocolError:
            self._break("garbage")
            return None
        if head is None:
            return None
        declines = self._policy.intercept
        if declines is not None and declines(head):
            self._intercepted_body, self._intercepted_head, self._framing.parts = bytearray(), head, []
            self._intercept(head, self._framing.rest)
            return None
        self._choose_body_framing(head)
        return head

    def _intercept(self, head: Head, data: bytes) -> None:
        """Collect an answer that is not passed on."""
        declined, parts = self._intercepted_body, self._framing.parts
        assert declined is not None
        assert parts is not None
        garbage = ended = False
        try:
            ended = self._framing.body(data)
        except UpstreamProtocolError:
            garbage = True
        payload = b"".join(parts)
        parts.clear()
        if self._policy.sink is not None and head.status == 200:
            self._policy.sink(payload)
            self.reusable = ended and head.keep and not self._framing.excess
        else:
            declined += payload
        if ended or garbage or len(declined) >= INTERCEPTED_LIMIT:
            self.failure = ResponseIntercepted(head, bytes(declined[:INTERCEPTED_LIMIT]), complete=ended)
            self._wake()

    def _choose_body_framing(self, head: Head) -> None:
        answer, counted = self._policy, head.body is BodyEnd.COUNTED
        if answer.headers_sent:
            self._body_framing = _BodyFraming.AS_IS if head.body is BodyEnd.CHUNKED else _BodyFraming.WRAPPED
        elif head.body is BodyEnd.CHUNKED and self._request.version < (1, 1):
            self._body_framing = _BodyFraming.UNFRAMED
            self._ends_by_closing = True
        elif head.body is BodyEnd.UNTIL_CLOSE:
            self._ends_by_closing = True
        if self._body_framing is not _BodyFraming.AS_IS:
            self._converts, self._framing.parts = True, []
        if answer.capture is None or head.status != 200 or head.length > answer.capture_limit:
            return
        self._captured = []
        if counted and not self._converts:
            self._framing.parts = self._captured  # no larger than it said, so nobody need look at each
        else:
            self._converts, self._framing.parts = True, []

    def _head_for_client(self, head: Head) -> bytes:
        """The first byte is about to leave: return the head for the client."""
        self.head = head
        if self._policy.on_head is not None:
            _guarded(self._policy.on_head, head.status)
        if self._policy.headers_sent:
            return b""
        old = head.line.startswith(b"HTTP/1.0")  # its client would not expect more on this connection
        if self._ends_by_closing or self.uploading or old:
            self.keep_alive = False
        opening = response_head(
            head,
            extra=self._policy.extra_head,
            close=not self.keep_alive,
            unframed=self._body_framing is _BodyFraming.UNFRAMED,
        )
        self._request.writer.output_size += len(opening)  # so that aiohttp never answers a second time
        return opening

    def _convert(self, data: bytes, ended: bool) -> bytes:
        """Put the body into another framing, or collect it, or both."""
        parts = self._framing.parts or []
        payload = b"".join(parts)
        parts.clear()
        if self._captured is not None:
            self._captured.append(payload)
            self._captured_size += len(payload)
            if self._captured_size > self._policy.capture_limit:
                self._captured = None
        if self._body_framing is _BodyFraming.WRAPPED:
            return as_chunk(payload) + (LAST_CHUNK if ended else b"")
        return payload if self._body_framing is _BodyFraming.UNFRAMED else data

    def _complete(self) -> None:
        head, tap = self.head, self._policy.capture
        assert head is not None
        self.outcome = RelayOutcome.COMPLETE
        self.reusable = head.keep and not self._framing.excess
        self._wake()  # before anything is called that could fail: nobody else wakes the owner
        if self._captured is not None and tap is not None:
            body = b"".join(self._captured)
            _guarded(tap, CapturedBody(body, _text(head, b"content-type"), _text(head, b"content-encoding")))

    def _break(self, why: FailureKind) -> None:
        if self.head is None:
            self.failure = UpstreamExchangeError(why, reused=self._upstream.reused, got_bytes=self._got_bytes)
        else:
            self.outcome = RelayOutcome.UPSTREAM_LOST
        self._wake()

    def _wake(self) -> None:
        """Let the owner look."""
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
            self._waiter = None
        elif self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time())


def _guarded(hook: Callable[[T], R], value: T) -> R | None:
    """Call a hook of the `ResponsePolicy`; one that raises is reported, and the answer goes on without it."""
    try:
        return hook(value)
    except Exception as error:
        report_crash("relay: a hook of an answer", error, None)
        return None


def _text(head: Head, name: bytes) -> str:
    return head.get(name).decode("latin-1").lower()
