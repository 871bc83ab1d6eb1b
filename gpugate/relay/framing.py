"""Where an answer begins and ends: HTTP/1.1 framing of bytes passing by; it must not know sockets.

The walker never copies a body and never joins one: it steps from chunk border to chunk border inside the
bytes it is shown, so that the same bytes can be written on as they came (facts/hot-path.md section 3).
It is strict, because whoever reads the bytes after us may be lenient in another way: a length told twice,
a length beside chunks, folded header lines and lone CRs or LFs are refused (`BadAnswer`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import ClassVar

from attrs import frozen

MAX_HEAD = 64 * 1024
"""Bytes of a head, or of a trailer section, before it is refused."""

MAX_SIZE_LINE = 4 * 1024
"""Bytes of one chunk-size line with its extensions."""

MAX_PADDING = 64 * 1024
"""Bytes of padding that `Framing.finish_with` writes at most."""

LAST_CHUNK = b"0\r\n\r\n"

_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[^\r\n]*|[ \t]*)\r\n")
_SIZE_LINE_START = re.compile(rb"[0-9A-Fa-f]{1,16}(?:;[^\r\n]*|[ \t]*)\r?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_TAIL = 4  # bytes: the longest mark that anyone looks for is CRLF CRLF


class BadAnswer(Exception):
    """The upstream's bytes are not an HTTP/1.1 answer that can be passed on safely."""


class Body(Enum):
    """How the end of a body is told."""

    NONE = "none"
    COUNTED = "counted"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


@frozen
class Head:
    """The head of an answer.

    Attributes:
        status: three digits, never 1xx.
        line: the status line as it came, without CRLF.
        fields: each header as (lower-case name, line as it came without CRLF), in order.
        body: how its end is told.
        length: bytes of a counted body, else 0.
        keep: the upstream will take another request on this connection.
        rest: the bytes behind the head that came along with it.
    """

    status: int
    line: bytes
    fields: list[tuple[bytes, bytes]]
    body: Body
    length: int
    keep: bool
    rest: bytes

    def get(self, name: bytes) -> bytes:
        """Return the value of the first header of this lower-case name, or nothing."""
        for known, line in self.fields:
            if known == name:
                return line.partition(b":")[2].strip(b" \t")
        return b""


def _fields(lines: list[bytes]) -> tuple[list[tuple[bytes, bytes]], dict[bytes, bytes]]:
    """Return all headers, and the values of those that say where the body ends."""
    fields: list[tuple[bytes, bytes]] = []
    framing: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        # A folded line begins with a blank, which no name contains, so it is refused here as well.
        if not colon or not name or name.translate(None, _TOKEN):
            raise BadAnswer("a header line is malformed")
        name = name.lower()
        fields.append((name, line))
        if name in (b"content-length", b"transfer-encoding", b"connection"):
            value = value.strip(b" \t")
            if name not in framing:
                framing[name] = value
            elif name == b"connection":
                framing[name] += b"," + value
            else:
                raise BadAnswer("the body's end is told twice")
    return fields, framing


def tokens(value: bytes) -> set[bytes]:
    """Return the members of a comma-separated header value, in lower case."""
    return {token.strip(b" \t") for token in value.lower().split(b",")} - {b""}


def _body_of(status: int, method: str, minor: bytes, framing: dict[bytes, bytes]) -> tuple[Body, int]:
    length, coding = framing.get(b"content-length"), framing.get(b"transfer-encoding")
    if length is not None and not _LENGTH.fullmatch(length):
        raise BadAnswer("content-length is no number")
    if coding is not None:
        if length is not None:
            raise BadAnswer("content-length and transfer-encoding together")
        if coding.lower() != b"chunked" or minor == b"0":
            raise BadAnswer("transfer-encoding is not supported")
    if method == "HEAD" or status in (204, 304):
        return Body.NONE, 0
    if coding is not None:
        return Body.CHUNKED, 0
    if length is not None:
        return Body.COUNTED, int(length)
    return Body.UNTIL_CLOSE, 0


def parse_head(block: bytes, method: str, rest: bytes) -> Head:
    """Read one head, given without its closing empty line.

    Raises:
        BadAnswer: it is malformed, or its body's end is told in two ways.
    """
    lines = block.split(b"\r\n")
    if not (block.count(b"\n") == block.count(b"\r") == len(lines) - 1) or b"\0" in block:
        raise BadAnswer("a lone CR, LF or NUL in the head")
    start = _STATUS_LINE.fullmatch(lines[0])
    if start is None:
        raise BadAnswer("the status line is malformed")
    minor, status = start[1], int(start[2])
    fields, framing = _fields(lines[1:])
    body, length = _body_of(status, method, minor, framing)
    keep = (
        minor == b"1"
        and body is not Body.UNTIL_CLOSE
        and b"close" not in tokens(framing.get(b"connection", b""))
    )
    return Head(status, lines[0], fields, body, length, keep, rest)


def as_chunk(payload: bytes) -> bytes:
    """Return `payload` as one chunk; nothing for nothing, as an empty chunk would be the last one."""
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""


class _Phase(Enum):
    SIZE = 1  # in, or before, a chunk-size line
    DATA = 2
    DATA_END = 3  # in the CRLF behind a chunk's data
    TRAILER = 4
    END = 5


class Framing:
    """One answer's framing: first `head` until it gives one, then `body` until it says True.

    Attributes:
        excess: how many of the bytes last shown to `body` are behind the end of the answer.
        parts: a list to collect the body's payload in, without the framing; None to collect nothing.
    """

    __slots__ = ("_body", "_line", "_method", "_owed", "_phase", "_tail", "_trailers", "excess", "parts")

    def __init__(self, method: str) -> None:
        self.excess = 0
        self.parts: list[bytes] | None = None
        self._method = method
        self._body = Body.NONE
        self._owed = 0  # of a counted body, or of the present chunk
        self._phase = _Phase.SIZE
        self._line = b""  # what came of an unfinished line or head
        self._trailers = 0  # bytes of the trailer section
        self._tail = b""

    def head(self, data: bytes) -> Head | None:
        """Take the next bytes; return the head once it is there. Interim answers (1xx) are skipped.

        Raises:
            BadAnswer: this is no HTTP answer, or its head is larger than `MAX_HEAD`.
        """
        known = len(self._line)
        data = self._line + data if known else data
        searched = max(0, known - 3)
        while True:
            if data[:7] != b"HTTP/1."[: len(data)]:
                raise BadAnswer("the answer does not begin as HTTP/1 does")
            end = data.find(b"\r\n\r\n", searched)
            if end < 0 or end > MAX_HEAD:
                break
            head = parse_head(data[:end], self._method, data[end + 4 :])
            if head.status >= 200:
                self._line = b""
                self._body, self._owed = head.body, head.length
                return head
            if head.status == 101:
                raise BadAnswer("the upstream switched protocols unasked")
            data, searched = head.rest, 0
        if len(data) > MAX_HEAD:
            raise BadAnswer("the head is too large")
        self._line = data
        return None

    def body(self, data: bytes) -> bool:
        """Take the next bytes of the body; return True when the answer ends in them.

        Raises:
            BadAnswer: the chunk framing is broken.
        """
        if self._body is Body.CHUNKED:
            return self._walk(data)
        if self._body is Body.UNTIL_CLOSE:
            self._see(data, 0, len(data))
            return False
        payload = min(self._owed, len(data))
        self._see(data, 0, payload)
        self._owed -= payload
        self.excess = len(data) - payload
        return self._owed == 0

    @property
    def may_end_here(self) -> bool:
        """Whether the answer is complete if the upstream ends the connection now."""
        return self._body is Body.UNTIL_CLOSE

    @property
    def tail(self) -> bytes:
        """The last bytes of payload so far, at most four."""
        return self._tail

    def finish_with(self, payload: bytes, *, padding: bytes = b"") -> bytes | None:
        """Return the bytes that bring a broken-off body to a border with `payload` added.

        The last chunk is not among them. If the break lies inside a chunk, the payload's first bytes
        fill it. A payload too short for that is followed by `padding` (one byte, at most `MAX_PADDING`
        times), or, without padding, leaves the chunk unfinished. None: it cannot be done, as the body
        is counted, or the break lies inside a chunk-size line or the trailers.
        """
        if self._body is Body.UNTIL_CLOSE:
            return payload
        if self._body is not Body.CHUNKED or self._phase in (_Phase.TRAILER, _Phase.END):
            return None
        if self._phase is _Phase.SIZE:
            return None if self._line else as_chunk(payload)
        if self._phase is _Phase.DATA_END:
            return b"\r\n"[len(self._line) :] + as_chunk(payload)
        return self._fill(payload, padding)

    def _fill(self, payload: bytes, padding: bytes) -> bytes | None:
        missing = self._owed - len(payload)
        if missing > 0:
            if not padding:
                return payload
            return None if missing > MAX_PADDING else payload + padding * missing + b"\r\n"
        return payload[: self._owed] + b"\r\n" + as_chunk(payload[self._owed :])

    def _see(self, data: bytes, start: int, end: int) -> None:
        """Note a stretch of payload."""
        if end - start >= _TAIL:
            self._tail = data[end - _TAIL : end]
        else:
            self._tail = (self._tail + data[start:end])[-_TAIL:]
        if self.parts is not None:
            self.parts.append(data[start:end])

    def _walk(self, data: bytes) -> bool:
        at, end = 0, len(data)
        while at < end and self._phase is not _Phase.END:
            if self._phase is _Phase.SIZE and not self._line:
                at = self._whole_chunks(data, at)
                if at == end:
                    break
            at = self._steps[self._phase](self, data, at)
        self.excess = end - at
        return self._phase is _Phase.END

    def _whole_chunks(self, data: bytes, at: int) -> int:
        """Step over chunks that lie in `data` from end to end, the normal case; return where they stop."""
        match, end, collecting = _SIZE_LINE.match, len(data), self.parts is not None
        seen = 0
        while line := match(data, at):
            start = line.end()
            stop = start + int(line[1], 16)
            if stop == start or stop + 2 > end or data[stop : stop + 2] != b"\r\n":
                break
            if stop - start >= _TAIL and not collecting:
                seen = stop  # its tail is cut out once, behind the loop
            else:
                if seen:
                    self._tail, seen = data[seen - _TAIL : seen], 0
                self._see(data, start, stop)
            at = stop + 2
        if seen:
            self._tail = data[seen - _TAIL : seen]
        return at

    def _take_line(self, data: bytes, at: int) -> int:
        """Add to `_line` up to the next LF; return where that ended."""
        found = data.find(b"\n", at)
        stop = found + 1 if found >= 0 else len(data)
        self._line += data[at:stop]
        return stop

    def _step_size(self, data: bytes, at: int) -> int:
        at = self._take_line(data, at)
        if line := _SIZE_LINE.fullmatch(self._line):
            self._owed, self._line = int(line[1], 16), b""
            self._phase = _Phase.DATA if self._owed else _Phase.TRAILER
        elif len(self._line) > MAX_SIZE_LINE or not _SIZE_LINE_START.fullmatch(self._line):
            raise BadAnswer("a chunk-size line is malformed")
        return at

    def _step_data(self, data: bytes, at: int) -> int:
        stop = min(at + self._owed, len(data))
        self._see(data, at, stop)
        self._owed -= stop - at
        if not self._owed:
            self._phase = _Phase.DATA_END
        return stop

    def _step_data_end(self, data: bytes, at: int) -> int:
        stop = at + 2 - len(self._line)
        self._line += data[at:stop]
        if not b"\r\n".startswith(self._line):
            raise BadAnswer("a chunk is longer than it said")
        if len(self._line) == 2:
            self._phase, self._line = _Phase.SIZE, b""
        return min(stop, len(data))

    def _step_trailer(self, data: bytes, at: int) -> int:
        stop = self._take_line(data, at)
        self._trailers += stop - at
        if self._trailers > MAX_HEAD or b"\r" in self._line[:-2] or b"\0" in self._line:
            raise BadAnswer("the trailers are malformed")
        if self._line.endswith(b"\n"):
            if not self._line.endswith(b"\r\n"):
                raise BadAnswer("the trailers are malformed")
            if self._line == b"\r\n":
                self._phase = _Phase.END
            self._line = b""
        return stop

    _steps: ClassVar[Mapping[_Phase, Callable[[Framing, bytes, int], int]]] = {
        _Phase.SIZE: _step_size,
        _Phase.DATA: _step_data,
        _Phase.DATA_END: _step_data_end,
        _Phase.TRAILER: _step_trailer,
    }
