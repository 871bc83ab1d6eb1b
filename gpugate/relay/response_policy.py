"""What a caller may want of an answer, and may learn of it; values only, they must not know connections."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from attrs import define, frozen

from gpugate.relay.response_parser import Head

DECLINED_LIMIT = 64 * 1024
"""Bytes kept of an answer that is not passed on."""

_ENDS_BLOCK = (b"\n\n", b"\r\n\r\n", b"\n\r\n", b"\r\r")


@frozen
class Cut:
    """Where an answer broke.

    Attributes:
        status: of the upstream's answer.
        content_type: of the upstream's answer, in lower case, with its parameters.
        tail: the last bytes of payload that left for the client, at most four.
    """

    status: int
    content_type: str
    tail: bytes

    @property
    def started(self) -> bool:
        """Whether any payload of the upstream's has left for the client."""
        return bool(self.tail)

    @property
    def ends_line(self) -> bool:
        """Whether the next byte would begin a line."""
        return not self.tail or self.tail.endswith(b"\n")

    @property
    def ends_block(self) -> bool:
        """Whether an empty line came last, so that a new event may begin."""
        return not self.tail or self.tail.endswith(_ENDS_BLOCK)


@frozen
class Epitaph:
    """What is said after an answer that broke.

    Attributes:
        payload: bytes of body to append.
        clean_end: end the body in order (SSE); else the connection is closed with the body unfinished. An
            answer whose end is told by nothing but the closing of the connection gets its payload only
            with this, as it must otherwise be reset.
        padding: one byte that may be repeated behind the payload where a chunk must be filled.
    """

    payload: bytes
    clean_end: bool
    padding: bytes = b"\n"


@frozen
class Tapped:
    """The body of a 200 answer that ended in order: without chunks, but not decoded."""

    body: bytes
    content_type: str
    content_encoding: str


class AnswerDeclined(Exception):
    """The upstream answered, and its answer is not passed on: `Answer.declines` said so.

    Attributes:
        status, content_type: the upstream's.
        body: its payload without chunks, cut off at `DECLINED_LIMIT`; empty if `Answer.keep` took it.
        complete: it came to its end in order.
    """

    def __init__(self, head: Head, body: bytes, *, complete: bool = False) -> None:
        self.status = head.status
        self.content_type = head.get(b"content-type").decode("latin-1")
        self.body = body
        self.complete = complete
        super().__init__(f"the upstream answered {head.status}")


@define
class Answer:
    """What the caller wants of an answer. The hooks are called on the loop; they must be quick and not raise.

    One that raises all the same is reported to the loop's exception handler. `on_head`, `epitaph` and `tap`
    then count as not given; `declines` and `keep` break the answer, which cannot go on without their word.

    Attributes:
        extra_head: whole header lines to add, each with its CRLF; upstream headers so named are dropped.
        declines: asked once with the head, before anything leaves: True keeps this answer from the client;
            `AnswerDeclined` is raised with it instead.
        keep: gets the payload of a declined 200, piece by piece as it comes, all of it.
        on_head: called once, with the status, when the first byte is about to leave for the client.
        epitaph: asked when the upstream is lost in mid-answer: what to append, or None for nothing. Not
            asked where nothing can be appended: a body with a content-encoding or a told length, a break
            inside a chunk's size.
        tap: called once with the body of a 200 that ended in order and is not larger than `tap_limit` bytes.
        committed: a 200 head with `Transfer-Encoding: chunked` has been sent by the caller (to a client that
            speaks HTTP/1.1): no head is written, and the body goes out in chunks whatever the upstream's.
    """

    extra_head: bytes = b""
    declines: Callable[[Head], bool] | None = None
    keep: Callable[[bytes], None] | None = None
    on_head: Callable[[int], None] | None = None
    epitaph: Callable[[Cut], Epitaph | None] | None = None
    tap: Callable[[Tapped], None] | None = None
    tap_limit: int = 4 * 1024 * 1024
    committed: bool = False


class Ending(Enum):
    """How an answer ended."""

    COMPLETE = "complete"
    UPSTREAM_LOST = "upstream lost"
    CLIENT_LOST = "client lost"
