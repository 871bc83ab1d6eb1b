"""What a caller of the relay may want of a response, and what it is told of it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from attrs import define, frozen

from gpugate.relay.response_parser import Head

INTERCEPTED_LIMIT = 64 * 1024
"""Bytes kept of a response that the client does not get."""

_ENDS_BLOCK = (b"\n\n", b"\r\n\r\n", b"\n\r\n", b"\r\r")


@frozen
class Truncation:
    """Where a response broke off.

    Attributes:
        status: of the upstream's response.
        content_type: of the upstream's response, in lower case, with its parameters.
        tail: the last bytes of payload that left for the client, at most four.
    """

    status: int
    content_type: str
    tail: bytes

    @property
    def ends_line(self) -> bool:
        """Whether the next byte would begin a line."""
        return not self.tail or self.tail.endswith(b"\n")

    @property
    def ends_block(self) -> bool:
        """Whether an empty line came last, so that a new event may begin."""
        return not self.tail or self.tail.endswith(_ENDS_BLOCK)


@frozen
class ErrorTail:
    """What is appended to a response that broke off.

    Attributes:
        payload: bytes of body to append.
        clean_end: end the body in order (Server-Sent Events); otherwise the connection is closed with the
            body unfinished. A response that is ended by nothing but the closing of the connection gets the
            payload only with this, as it must otherwise be reset.
        padding: one byte that may be repeated behind the payload where a chunk must be filled.
    """

    payload: bytes
    clean_end: bool
    padding: bytes = b"\n"


@frozen
class CapturedBody:
    """The body of a 200 response that ended in order: without chunks, but not decompressed."""

    body: bytes
    content_type: str
    content_encoding: str


class ResponseIntercepted(Exception):
    """The upstream responded, and `ResponsePolicy.intercept` kept the response from the client.

    Attributes:
        status, content_type: the upstream's.
        body: its payload without chunks, cut off at `INTERCEPTED_LIMIT`; empty if `ResponsePolicy.sink` took
            it.
        complete: it came to its end in order.
        compressed: the content-encoding of a 200 that was declined for it, else empty. It was not read.
    """

    def __init__(self, head: Head, body: bytes, *, complete: bool = False) -> None:
        self.status = head.status
        self.content_type = head.get(b"content-type").decode("latin-1")
        self.body = body
        self.complete = complete
        self.compressed = ""
        if head.status == 200 and head.compressed:
            self.compressed = head.get(b"content-encoding").decode("latin-1")
        super().__init__(f"the upstream responded with {head.status}")


@define
class ResponsePolicy:
    """What the caller wants of a response. The hooks are called on the loop; they must be quick and not
    raise.

    One that raises all the same is reported to the loop's exception handler. `on_head`, `error_tail` and
    `capture` then count as not given; `intercept` and `sink` break the response, which cannot go on without
    their word.

    Attributes:
        extra_head: whole header lines to add, each with its CRLF; upstream headers so named are dropped.
        intercept: asked once with the head, before anything leaves: True keeps this response from the client;
            `ResponseIntercepted` is raised with it instead. So it is with a compressed 200 where
            `headers_sent` or a `sink` had it asked for uncompressed.
        sink: gets the payload of a declined 200, piece by piece as it comes; False: it wants no more, and
            the response ends here.
        on_head: called once, with the status, when the first byte is about to leave for the client.
        error_tail: asked when the upstream is lost in mid-response: what to append, or None for nothing. Not
            asked where nothing can be appended: a body with a content-encoding or a told length, a break
            inside a chunk's size.
        capture: called once with the body of a 200 that ended in order and is not larger than `capture_limit`
            bytes.
        headers_sent: a 200 head has been sent by the caller: no head is written, and the body goes out in
            chunks whatever the upstream's; to a client that speaks HTTP/1.0, up to the end of the connection.
    """

    extra_head: bytes = b""
    intercept: Callable[[Head], bool] | None = None
    sink: Callable[[bytes], bool] | None = None
    on_head: Callable[[int], None] | None = None
    error_tail: Callable[[Truncation], ErrorTail | None] | None = None
    capture: Callable[[CapturedBody], None] | None = None
    capture_limit: int = 4 * 1024 * 1024
    headers_sent: bool = False


class RelayOutcome(Enum):
    """How a response ended."""

    COMPLETE = "complete"
    UPSTREAM_LOST = "upstream lost"
    CLIENT_LOST = "client lost"
