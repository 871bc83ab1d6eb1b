"""One answer on its way from the upstream to the client; it must not know pods, dialects or JSON.

All that happens per chunk happens in `Exchange.data_received`: a step of the walker, one write. The one
coroutine of a request sleeps meanwhile, and is woken (`changed`) for what is rare: the end, a loss, a
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
from gpugate.relay.pool import Upstream, UpstreamGone, Why
from gpugate.relay.response_parser import LAST_CHUNK, BadAnswer, Body, Framing, Head, as_chunk
from gpugate.relay.response_policy import DECLINED_LIMIT, Answer, AnswerDeclined, Cut, Ending, Tapped
from gpugate.relay.sockets import close_within, reset, untaken
from gpugate.tasks import report_crash, spawn

T = TypeVar("T")
R = TypeVar("R")


class _Outlet(Enum):
    """What is done to the body's bytes before they are written."""

    AS_IS = 1
    WRAPPED = 2  # put into our chunks: the head was ours
    UNFRAMED = 3  # taken out of the upstream's chunks: the client speaks HTTP/1.0


class Exchange:
    """One answer on its way down; the `Listener` of an `Upstream` while it lasts.

    Attributes:
        ending: how the answer ended, None while it lasts.
        gone: why there will be no answer; nothing has been written to the client then.
        head: the answer's head, once it has left for the client.
        keep_alive: the client's connection may serve another request after this answer.
        paused: the client reads too slowly, and the upstream is not read.
        reusable: the upstream's connection has ended this answer exactly where it said.
        sent: bytes written to the client.
        uploading: set by the owner while the request's body is on its way.
    """

    # On the class, as most answers leave them as they are.
    ending: Ending | None = None
    gone: UpstreamGone | AnswerDeclined | None = None
    head: Head | None = None
    paused = False
    reusable = False
    sent = 0
    uploading = False
    _outlet = _Outlet.AS_IS
    _converts = False
    _ends_by_closing = False
    _taps: list[bytes] | None = None
    _tapped = 0
    _declined: bytearray | None = None
    _refused: Head  # of an answer that is declined
    _heard = False
    _upstream: Upstream
    _waiter: asyncio.Future[None] | None = None
    _deadline: asyncio.Timeout | None = None

    def __init__(
        self, request: web.BaseRequest, client: asyncio.Transport, method: str, answer: Answer
    ) -> None:
        self.keep_alive = (  # behind an Upgrade aiohttp leaves the rest of the connection unread
            request.keep_alive and request.version >= (1, 1) and "Upgrade" not in request.headers
        )
        self._request = request
        self._client = client
        self._protocol = request.protocol
        self._answer = answer
        self._framing = Framing(method)

    # What its owner does.

    def begin(self, upstream: Upstream) -> None:
        """Listen to `upstream` from now on."""
        self._upstream = upstream
        upstream.lend(self)
        if upstream.closed:  # before it could be lent
            self._break("closed")

    @property
    def over(self) -> bool:
        """Whether nothing more will come from the upstream."""
        return self.ending is not None or self.gone is not None

    def changed(self) -> asyncio.Future[None]:
        """To be awaited: the answer is over, or the client reads too slowly."""
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        if self.ending is not None or self.gone is not None or self.paused:
            self._wake()
        return waiter

    async def meanwhile(self, work: Awaitable[None], limit_s: float | None = None) -> bool:
        """Do `work` until it is done (True), until something has `changed`, or for `limit_s` (False)."""
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
        over, left = self.over, untaken(self._client)
        # A task, as aiohttp's drain() cannot be waited for again once a wait for it was given up.
        drain = spawn(self._drain(), "relay: a slow client")
        try:
            while self._protocol.writing_paused and self.over == over:
                if await self.meanwhile(asyncio.shield(drain), stall_s) or self.over != over:
                    continue
                before, left = left, untaken(self._client)
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

    def give_up(self, flush_s: float) -> None:
        """End an answer that has begun, as its client reads nothing, sends nonsense, or is gone."""
        self.ending, self.reusable = Ending.CLIENT_LOST, False
        self.cut(flush_s)

    def conclude(self, flush_s: float) -> None:
        """After a loss: write the last words, if there are any, and close the client's connection."""
        words = self._last_words() if self._protocol.connected else None
        if words is None:
            self.cut(flush_s)
            return
        self.sent += len(words)
        self._client.write(words)
        close_within(self._client, flush_s)

    def cut(self, flush_s: float) -> None:
        """Close the client's connection so that nobody can take the answer for complete.

        What was written before still goes out, for at most `flush_s`, except where the mere end of the
        connection would read as the end of the answer: there the connection is reset.
        """
        self.keep_alive = False
        if self._ends_by_closing:
            reset(self._client)
        else:
            close_within(self._client, flush_s)

    def _last_words(self) -> bytes | None:
        head, ask = self.head, self._answer.epitaph
        if head is None or ask is None or head.get(b"content-encoding").lower() not in (b"", b"identity"):
            return None
        chunked = self._outlet is _Outlet.AS_IS and not self._ends_by_closing
        if chunked and self._framing.finish_with(b"") is None:
            return None
        cut = Cut(head.status, _text(head, b"content-type"), self._framing.tail)
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
        if self.ending is not None or self.gone is not None:
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
        except BadAnswer:
            self._break("garbage")
            return
        if framing.excess:
            data = data[: -framing.excess]
        if self._converts:
            data = self._convert(data, ended)
        if begun is not None:
            data = self._announce(begun) + data
        self.sent += len(data)
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
            if self._declined is not None:
                complete = ended and self._framing.may_end_here
                self.gone = AnswerDeclined(self._refused, bytes(self._declined), complete=complete)
                self._wake()
            elif ended and self.head is not None and self._framing.may_end_here:
                if self._outlet is _Outlet.WRAPPED and self._protocol.connected:
                    self._client.write(LAST_CHUNK)
                self._complete()
            else:
                self._break("closed")
        self.reusable = False

    def _read_head(self, data: bytes) -> Head | None:
        if self._declined is not None:
            self._decline(self._refused, data)
            return None
        self._heard = True
        try:
            head = self._framing.head(data)
        except BadAnswer:
            self._break("garbage")
            return None
        if head is None:
            return None
        declines = self._answer.declines
        if declines is not None and declines(head):
            self._declined, self._refused, self._framing.parts = bytearray(), head, []
            self._decline(head, self._framing.rest)
            return None
        self._choose_outlet(head)
        return head

    def _decline(self, head: Head, data: bytes) -> None:
        """Collect an answer that is not passed on."""
        declined, parts = self._declined, self._framing.parts
        assert declined is not None
        assert parts is not None
        garbage = ended = False
        try:
            ended = self._framing.body(data)
        except BadAnswer:
            garbage = True
        payload = b"".join(parts)
        parts.clear()
        if self._answer.keep is not None and head.status == 200:
            self._answer.keep(payload)
            self.reusable = ended and head.keep and not self._framing.excess
        else:
            declined += payload
        if ended or garbage or len(declined) >= DECLINED_LIMIT:
            self.gone = AnswerDeclined(head, bytes(declined[:DECLINED_LIMIT]), complete=ended)
            self._wake()

    def _choose_outlet(self, head: Head) -> None:
        answer, counted = self._answer, head.body is Body.COUNTED
        if answer.committed:
            self._outlet = _Outlet.AS_IS if head.body is Body.CHUNKED else _Outlet.WRAPPED
        elif head.body is Body.CHUNKED and self._request.version < (1, 1):
            self._outlet = _Outlet.UNFRAMED
            self._ends_by_closing = True
        elif head.body is Body.UNTIL_CLOSE:
            self._ends_by_closing = True
        if self._outlet is not _Outlet.AS_IS:
            self._converts, self._framing.parts = True, []
        if answer.tap is None or head.status != 200 or head.length > answer.tap_limit:
            return
        self._taps = []
        if counted and not self._converts:
            self._framing.parts = self._taps  # no larger than it said, so nobody need look at each
        else:
            self._converts, self._framing.parts = True, []

    def _announce(self, head: Head) -> bytes:
        """The first byte is about to leave: return the head for the client."""
        self.head = head
        if self._answer.on_head is not None:
            _guarded(self._answer.on_head, head.status)
        if self._answer.committed:
            return b""
        old = head.line.startswith(b"HTTP/1.0")  # its client would not expect more on this connection
        if self._ends_by_closing or self.uploading or old:
            self.keep_alive = False
        opening = response_head(
            head,
            extra=self._answer.extra_head,
            close=not self.keep_alive,
            unframed=self._outlet is _Outlet.UNFRAMED,
        )
        self._request.writer.output_size += len(opening)  # so that aiohttp never answers a second time
        return opening

    def _convert(self, data: bytes, ended: bool) -> bytes:
        """Put the body into another framing, or collect it, or both."""
        parts = self._framing.parts or []
        payload = b"".join(parts)
        parts.clear()
        if self._taps is not None:
            self._taps.append(payload)
            self._tapped += len(payload)
            if self._tapped > self._answer.tap_limit:
                self._taps = None
        if self._outlet is _Outlet.WRAPPED:
            return as_chunk(payload) + (LAST_CHUNK if ended else b"")
        return payload if self._outlet is _Outlet.UNFRAMED else data

    def _complete(self) -> None:
        head, tap = self.head, self._answer.tap
        assert head is not None
        self.ending = Ending.COMPLETE
        self.reusable = head.keep and not self._framing.excess
        self._wake()  # before anything is called that could fail: nobody else wakes the owner
        if self._taps is not None and tap is not None:
            body = b"".join(self._taps)
            _guarded(tap, Tapped(body, _text(head, b"content-type"), _text(head, b"content-encoding")))

    def _break(self, why: Why) -> None:
        if self.head is None:
            self.gone = UpstreamGone(why, reused=self._upstream.reused, heard=self._heard)
        else:
            self.ending = Ending.UPSTREAM_LOST
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
    """Call a hook of the `Answer`; one that raises is reported, and the answer goes on without it."""
    try:
        return hook(value)
    except Exception as error:
        report_crash("relay: a hook of an answer", error, None)
        return None


def _text(head: Head, name: bytes) -> str:
    return head.get(name).decode("latin-1").lower()
