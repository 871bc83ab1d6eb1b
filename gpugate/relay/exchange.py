"""One response on its way from the upstream to the client.

Theory of operation. The upstream's bytes are written to the client's transport as they come, in the callback
in which they arrive (`Exchange.data_received`): one step of the parser, which finds the borders of chunks but
copies nothing, and one write. No task wakes up for a chunk. The request's own task waits (`wait_changed`) and
is woken only for what is rare:

- the response is over: `outcome` is set if something of it has left for the client, else `failure`;
- the client reads too slowly: `paused` is set, and the upstream is not read until the client has drained.

Four things are decided once, when the head is complete, and never per chunk:

1. `ResponsePolicy.intercept` may keep the response from the client; it is collected instead (`_intercept`).
2. `_BodyFraming`: whether the body's framing fits the client. It does in nearly all responses (`AS_IS`).
3. Whether the body is captured, for the catalogue.
4. `_ends_by_closing`: whether nothing but the end of the connection tells the client where the body ends.

A response that has started and then breaks is the hard case: no status can be sent any more, and it must not
look complete. What the client gets is decided in `_error_tail` and `close_truncated`.
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
from gpugate.relay.transport import close_within, reset, unacked_bytes
from gpugate.tasks import report_crash, spawn

T = TypeVar("T")
R = TypeVar("R")


class _BodyFraming(Enum):
    """What is done to the body's bytes before they are written."""

    AS_IS = 1
    WRAPPED = 2  # put into chunks: the gateway has sent a head that announces chunks
    UNFRAMED = 3  # taken out of the upstream's chunks: the client speaks HTTP/1.0


class Exchange:
    """One response; the `ConnectionListener` of its `Upstream` while it lasts.

    Attributes:
        outcome: how the response ended, None while it lasts.
        failure: why there will be no response; nothing has been written to the client then.
        head: the response's head, once it has left for the client.
        keep_alive: the client's connection may serve another request after this response.
        paused: the client reads too slowly, and the upstream is not read.
        reusable: the response ended exactly where it said, so the upstream's connection may be used again.
        bytes_sent: written to the client, the head included.
        uploading: set by the owner while the request's body is being sent.
    """

    # On the class, as most responses leave them as they are.
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
    _intercepted_head: Head
    _got_bytes = False
    _upstream: Upstream
    _waiter: asyncio.Future[None] | None = None
    _deadline: asyncio.Timeout | None = None

    def __init__(
        self, request: web.BaseRequest, client: asyncio.Transport, method: str, policy: ResponsePolicy
    ) -> None:
        self.keep_alive = (  # behind an Upgrade aiohttp leaves the rest of the connection unread
            request.keep_alive and request.version >= (1, 1) and "Upgrade" not in request.headers
        )
        self._request = request
        self._client = client
        self._protocol = request.protocol
        self._policy = policy
        self._framing = ResponseFraming(method)

    # --- called by the request's task -----------------------------------------------------------

    def begin(self, upstream: Upstream) -> None:
        """Receive what comes from `upstream` from now on."""
        self._upstream = upstream
        upstream.attach_listener(self)
        if upstream.closed:  # before it had a listener
            self._break("closed")

    @property
    def over(self) -> bool:
        """Whether nothing more will come from the upstream."""
        return self.outcome is not None or self.failure is not None

    def wait_changed(self) -> asyncio.Future[None]:
        """Return a future that is done when the response is over or the client reads too slowly."""
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        if self.outcome is not None or self.failure is not None or self.paused:
            self._wake()
        return waiter

    async def run_interruptible(self, work: Awaitable[None], limit_s: float | None = None) -> bool:
        """Await `work`; return False if a change (see `wait_changed`) or `limit_s` came first."""
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

    async def client_drained(self, stall_s: float) -> bool:
        """Wait until the client has read, or the upstream is lost; False: it took no byte for `stall_s`."""
        if not self._protocol.writing_paused:
            return True
        over, left = self.over, unacked_bytes(self._client)
        # A task, as aiohttp's drain() cannot be awaited again once a wait for it was cancelled.
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
        """Read the upstream again after a pause."""
        if self.paused:
            self._upstream.resume_reading()
        self.paused = False

    def abandon_client(self, flush_s: float) -> None:
        """End a response that has started, as its client reads nothing, sends nonsense, or is gone."""
        self.outcome, self.reusable = RelayOutcome.CLIENT_LOST, False
        self.close_truncated(flush_s)

    def finish_broken(self, flush_s: float) -> None:
        """End a response whose upstream was lost: send the error tail, if there is one, and close."""
        tail = self._error_tail() if self._protocol.connected else None
        if tail is None:
            self.close_truncated(flush_s)
            return
        self.bytes_sent += len(tail)
        self._client.write(tail)
        close_within(self._client, flush_s)

    def close_truncated(self, flush_s: float) -> None:
        """Close the client's connection so that no client can take the response for complete.

        What was written before still goes out, for at most `flush_s`, except where the mere end of the
        connection would read as the end of the response: there the connection is reset.
        """
        self.keep_alive = False
        if self._ends_by_closing:
            reset(self._client)
        else:
            close_within(self._client, flush_s)

    def _error_tail(self) -> bytes | None:
        """Return the bytes that end a broken response, None for none.

        1. Nothing can be appended to a compressed body.
        2. Nor where the break lies inside a chunk's size line, or the body's length was announced.
        3. The policy decides whether the content can carry an error, and whether it may then end cleanly.
        4. Where only the end of the connection ends the body: the payload, but only with a clean end, as the
           connection is reset otherwise.
        5. In the upstream's own chunks: the payload fills the broken chunk. One that is too short for it is
           padded if the end is clean, and leaves the chunk unfinished otherwise.
        6. In chunks of the gateway's own: one more chunk.
        7. A clean end gets the last chunk; without it every HTTP library reports an incomplete body.
        """
        head, error_tail = self.head, self._policy.error_tail
        if head is None or error_tail is None:
            return None
        if head.compressed:  # (1)
            return None
        in_upstream_chunks = self._body_framing is _BodyFraming.AS_IS and not self._ends_by_closing
        if in_upstream_chunks and self._framing.finish_with(b"") is None:  # (2)
            return None
        truncation = Truncation(head.status, _text(head, b"content-type"), self._framing.tail)
        tail = _call_hook(error_tail, truncation)  # (3)
        if tail is None:
            return None
        self.keep_alive = False
        if self._ends_by_closing:  # (4)
            return tail.payload if tail.clean_end else None
        data: bytes | None
        if in_upstream_chunks:  # (5)
            data = self._framing.finish_with(tail.payload, padding=tail.padding if tail.clean_end else b"")
        else:  # (6)
            data = as_chunk(tail.payload)
        return data + LAST_CHUNK if data is not None and tail.clean_end else data  # (7)

    # --- called by the upstream's connection ----------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Write the upstream's bytes to the client. The hot path: all the work per chunk is done here."""
        if self.outcome is not None or self.failure is not None:
            self.reusable = False
            return
        if (
            self._protocol.transport is None
        ):  # the client is gone, and the request's task about to be cancelled
            self._upstream.transport.abort()
            return
        framing, new_head = self._framing, None
        if self.head is None:
            new_head = self._read_head(data)
            if new_head is None:
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
        if new_head is not None:
            data = self._head_for_client(new_head) + data
        self.bytes_sent += len(data)
        self._client.write(data)
        if ended:
            self._complete()
        elif self._protocol.writing_paused and not self.paused:
            self.paused = True
            self._upstream.pause_reading()
            self._wake()

    def lost(self, *, ended: bool) -> None:
        """End the response as the upstream's connection is lost; `ended`: the upstream closed it in order."""
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
        intercept = self._policy.intercept
        if (intercept is not None and intercept(head)) or (self._policy.headers_sent and head.compressed):
            self._intercepted_body, self._intercepted_head, self._framing.parts = bytearray(), head, []
            self._intercept(head, self._framing.rest)
            return None
        self._choose_body_framing(head)
        return head

    def _intercept(self, head: Head, data: bytes) -> None:
        """Collect a response that the client does not get, unless it is a 200 that cannot be read."""
        if head.status == 200 and head.compressed:
            self.failure = ResponseIntercepted(head, b"")
            self._wake()
            return
        collected, parts = self._intercepted_body, self._framing.parts
        assert collected is not None
        assert parts is not None
        enough = ended = False
        try:
            ended = self._framing.body(data)
        except UpstreamProtocolError:
            enough = True
        payload = b"".join(parts)
        parts.clear()
        if self._policy.sink is not None and head.status == 200:
            enough = not self._policy.sink(payload) or enough
            self.reusable = ended and head.keep and not self._framing.excess
        else:
            collected += payload
        if ended or enough or len(collected) >= INTERCEPTED_LIMIT:
            self.failure = ResponseIntercepted(head, bytes(collected[:INTERCEPTED_LIMIT]), complete=ended)
            self._wake()

    def _choose_body_framing(self, head: Head) -> None:
        policy, counted = self._policy, head.body is BodyEnd.COUNTED
        old = self._request.version < (1, 1)
        if policy.headers_sent and not old:
            self._body_framing = _BodyFraming.AS_IS if head.body is BodyEnd.CHUNKED else _BodyFraming.WRAPPED
        elif head.body is BodyEnd.CHUNKED and old:
            self._body_framing = _BodyFraming.UNFRAMED
            self._ends_by_closing = True
        elif policy.headers_sent or head.body is BodyEnd.UNTIL_CLOSE:
            self._ends_by_closing = True
        if self._body_framing is not _BodyFraming.AS_IS:
            self._converts, self._framing.parts = True, []
        if policy.capture is None or head.status != 200 or head.length > policy.capture_limit:
            return
        self._captured = []
        if counted and not self._converts:
            self._framing.parts = self._captured  # no larger than announced, so the parts need not be counted
        else:
            self._converts, self._framing.parts = True, []

    def _head_for_client(self, head: Head) -> bytes:
        """Return the head for the client; called when the first byte is about to leave."""
        self.head = head
        if self._policy.on_head is not None:
            _call_hook(self._policy.on_head, head.status)
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
        self._request.writer.output_size += len(opening)  # so that aiohttp never responds a second time
        return opening

    def _convert(self, data: bytes, ended: bool) -> bytes:
        """Put the body into another framing, or capture it, or both."""
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
        head, capture = self.head, self._policy.capture
        assert head is not None
        self.outcome = RelayOutcome.COMPLETE
        self.reusable = head.keep and not self._framing.excess
        self._wake()  # before a hook is called, which may fail
        if self._captured is not None and capture is not None:
            body = b"".join(self._captured)
            captured = CapturedBody(body, _text(head, b"content-type"), _text(head, b"content-encoding"))
            _call_hook(capture, captured)

    def _break(self, kind: FailureKind) -> None:
        """End the response before its end; before its first byte that is a failure that may be retried."""
        if self.head is None:
            self.failure = UpstreamExchangeError(
                kind, reused=self._upstream.reused, got_bytes=self._got_bytes
            )
        else:
            self.outcome = RelayOutcome.UPSTREAM_LOST
        self._wake()

    def _wake(self) -> None:
        """Wake the request's task."""
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
            self._waiter = None
        elif self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time())


def _call_hook(hook: Callable[[T], R], value: T) -> R | None:
    """Call a hook of the policy; one that raises is reported, and the response goes on without it."""
    try:
        return hook(value)
    except Exception as error:
        report_crash("relay: a hook of a response policy", error, None)
        return None


def _text(head: Head, name: bytes) -> str:
    return head.get(name).decode("latin-1").lower()
