"""Finds where an HTTP/1.1 response begins and ends, in bytes that are forwarded as they are.

The parser neither copies nor joins a body: it steps from chunk border to chunk border inside the bytes it is
given, so that the same bytes can be written as they came (docs/ollama.md#where-the-time-goes). It is strict,
because the client's parser may be lenient in another way: two lengths, a length beside chunks, folded header
lines, control characters and lone CRs or LFs are refused (`UpstreamProtocolError`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from itertools import chain
from typing import ClassVar, Final

from attrs import define, field

MAX_HEAD = 64 * 1024
"""Bytes of a head, together with the interim ones (1xx) before it, before it is refused."""

MAX_INTERIM = 100
"""Interim responses before one response."""

MAX_TRAILERS = 8 * 1024
"""Bytes of a trailer section before it is refused."""

MAX_SIZE_LINE = 4 * 1024
"""Bytes of the extensions in one chunk-size line."""

MAX_PADDING = 64 * 1024
"""Bytes of padding that `ResponseFraming.finish_with` writes at most."""

LAST_CHUNK = b"0\r\n\r\n"

_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_MAX_NAME = 256  # bytes; names are cached by the thousand
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f\x7f]{0,256})?")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # but tab, CR and LF
_LONE = re.compile(rb"(?<!\r)\n|\r(?=[^\n])")
_EXTENSION = rb"[ \t]{0,64}(?:;[^\x00-\x08\x0a-\x1f\x7f]{0,%d})?" % MAX_SIZE_LINE
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:\r\n|%b\r\n)" % _EXTENSION)  # the usual form first: faster
_SIZE_LINE_START = re.compile(rb"[0-9A-Fa-f]{1,15}%b\r?" % _EXTENSION)
_TINY = rb"1\r\n(.)\r\n|2\r\n(..)\r\n|3\r\n(...)\r\n"
_TINY_CHUNK = re.compile(_TINY, re.DOTALL)
_TINY_CHUNKS = re.compile(rb"(?:%b){4,}+" % _TINY.replace(b"(", b"(?:"), re.DOTALL)
_TELLS_END = frozenset({b"content-length", b"transfer-encoding", b"connection"})
_NOT_FOR_CLIENTS = frozenset(
    b"alt-svc clear-site-data connection keep-alive nel report-to reporting-endpoints set-cookie "
    b"strict-transport-security upgrade".split()
)
_NOT_FOR_CLIENTS_PREFIXES = (b"access-control-", b"proxy-", b"x-gpugate-")
_NEVER_TRAILERS = _NOT_FOR_CLIENTS | frozenset(
    b"content-encoding content-length content-range content-type host te trailer transfer-encoding".split()
)
_NOTHING: frozenset[bytes] = frozenset()
_CACHED_HEAD_SIZE = (
    2048  # bytes: heads up to here are remembered, as a server's differ by little but the second
)
_TAIL = 4  # bytes: the longest mark that is looked for is CRLF CRLF


class UpstreamProtocolError(Exception):
    """The upstream's bytes are no HTTP/1.1 response that can be forwarded safely."""


class BodyEnd(Enum):
    """What marks the end of a body."""

    NONE = "none"
    COUNTED = "counted"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


@define(eq=False)
class Head:
    """The head of a response; one object for all heads that are alike, so it is never changed.

    Attributes:
        status: three digits, never 1xx.
        line: the status line as it came, without CRLF.
        fields: each header as (lower-case name, line as it came without CRLF), in order.
        nominated: lower-case names that its Connection header lists, "close" among them.
        body: what marks the body's end.
        length: bytes of a counted body, else 0.
        keep: the upstream will take another request on this connection.
        written: the cache of `headers.response_head`: its last arguments and result.
    """

    status: int
    line: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    nominated: frozenset[bytes]
    body: BodyEnd
    length: int
    keep: bool
    written: tuple[object, bytes] = field(default=(None, b""), init=False)

    def get(self, name: bytes) -> bytes:
        """Return the value of the first header of this lower-case name, or nothing."""
        for known, line in self.fields:
            if known == name:
                return line.partition(b":")[2].strip(b" \t")
        return b""

    @property
    def compressed(self) -> bool:
        """Whether the body has a content-encoding."""
        return self.get(b"content-encoding").lower() not in (b"", b"identity")


# Header names and status lines are few and come again and again, so what they mean is cached.


@lru_cache(maxsize=1024)
def _lower(name: bytes) -> bytes:
    # A folded line begins with a blank, which no name contains, so it is refused here as well.
    if not 0 < len(name) <= _MAX_NAME or name.translate(None, _TOKEN):
        raise UpstreamProtocolError("a header line is malformed")
    return name.lower()


@lru_cache(maxsize=1024)
def is_for_clients(lower: bytes) -> bool:
    """Say whether a response's header of this lower-case name is handed on.

    Not what belongs to one hop, nor what speaks for the pod's own origin (cookies, CORS, other addresses,
    reports, HTTPS for ever), which is not the one that the client talks to, nor the gateway's own names.
    """
    return lower not in _NOT_FOR_CLIENTS and not lower.startswith(_NOT_FOR_CLIENTS_PREFIXES)


@lru_cache(maxsize=256)
def _status(line: bytes) -> tuple[bytes, int]:
    start = _STATUS_LINE.fullmatch(line)
    if start is None:
        raise UpstreamProtocolError("the status line is malformed")
    return start[1], int(start[2])


def _fields(lines: list[bytes]) -> tuple[list[tuple[bytes, bytes]], dict[bytes, bytes]]:
    """Return all headers, and the values of those that say where the body ends."""
    fields: list[tuple[bytes, bytes]] = []
    framing: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise UpstreamProtocolError("a header line is malformed")
        lower = _lower(name)
        fields.append((lower, line))
        if lower in _TELLS_END:
            value = value.strip(b" \t")
            if lower not in framing:
                framing[lower] = value
            elif lower == b"connection":
                framing[lower] += b"," + value
            else:
                raise UpstreamProtocolError("two header lines give the body's end")
    return fields, framing


def tokens(value: bytes) -> frozenset[bytes]:
    """Return the members of a comma-separated header value, in lower case."""
    return frozenset(token.strip(b" \t") for token in value.lower().split(b",")) - {b""}


def _body_of(status: int, method: str, minor: bytes, framing: dict[bytes, bytes]) -> tuple[BodyEnd, int]:
    length, coding = framing.get(b"content-length"), framing.get(b"transfer-encoding")
    if length is not None and not (length.isdigit() and len(length) < 19):
        raise UpstreamProtocolError("content-length is no number")
    if coding is not None:
        if length is not None:
            raise UpstreamProtocolError("content-length and transfer-encoding together")
        if coding.lower() != b"chunked" or minor == b"0":
            raise UpstreamProtocolError("transfer-encoding is not supported")
    if method == "HEAD" or status in (204, 304):
        return BodyEnd.NONE, 0
    if coding is not None:
        return BodyEnd.CHUNKED, 0
    if length is not None:
        return BodyEnd.COUNTED, int(length)
    return BodyEnd.UNTIL_CLOSE, 0


def parse_head(block: bytes, method: str) -> Head:
    """Read one head, given without its closing empty line.

    Raises:
        UpstreamProtocolError: it is malformed, or its body's end is given in two ways.
    """
    lines = block.split(b"\r\n")
    if not (block.count(b"\n") == block.count(b"\r") == len(lines) - 1) or _CONTROL.search(block):
        raise UpstreamProtocolError("a lone CR or LF, or another control character, in the head")
    line = lines.pop(0)
    minor, status = _status(line)
    fields, framing = _fields(lines)
    body, length = _body_of(status, method, minor, framing)
    nominated = tokens(framing[b"connection"]) if b"connection" in framing else _NOTHING
    keep = minor == b"1" and body is not BodyEnd.UNTIL_CLOSE and b"close" not in nominated
    return Head(status, line, tuple(fields), nominated, body, length, keep)


def _check_trailer(line: bytes) -> None:
    """Refuse a trailer that is no field line, that frames, or that would not be handed on in a head."""
    name, colon, _ = line.partition(b":")
    lower = _lower(name)
    if not colon or lower in _NEVER_TRAILERS or lower.startswith(_NOT_FOR_CLIENTS_PREFIXES):
        raise UpstreamProtocolError("a trailer that must not be one")


_parse_head_cached = lru_cache(maxsize=256)(parse_head)  # responses within one second have the same head


def as_chunk(payload: bytes) -> bytes:
    """Return `payload` as one chunk; nothing for nothing, as an empty chunk would be the last one."""
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""


# Where the walker stands. Plain numbers, as looking up an Enum's member costs more than a step.
_SIZE: Final = 1  # in, or before, a chunk-size line
_DATA: Final = 2
_DATA_END: Final = 3  # in the CRLF behind a chunk's data
_TRAILER: Final = 4
_END: Final = 5


class ResponseFraming:
    """The framing of one response: call `head` until it returns one, then `body` until it returns True.

    Attributes:
        excess: how many of the bytes last given to `body` are behind the end of the response.
        parts: a list to collect the body's payload in, without the framing; None to collect nothing.
        rest: the bytes behind the head that came along with it.
    """

    # On the class, as most responses come in one piece and leave them as they are.
    excess = 0
    parts: list[bytes] | None = None
    rest = b""
    _chunked = False
    _until_close = False
    _remaining = 0  # of a counted body, or of the present chunk
    _phase: int = _SIZE
    _line = b""  # what came of an unfinished line, or head and the interim ones before it
    _head_at = _searched = 0  # in `_line`: where the present head begins, and its end may
    _interim = 0
    _trailers = 0  # bytes of the trailer section
    _tail = b""

    def __init__(self, method: str) -> None:
        self._method = method

    def head(self, data: bytes) -> Head | None:
        """Take the next bytes; return the head once it is there. Interim responses (1xx) are skipped.

        Raises:
            UpstreamProtocolError: this is no HTTP response, or its head is larger than `MAX_HEAD`.
        """
        if self._line:
            data = self._line + data
        start, searched = self._head_at, self._searched
        while 0 <= (end := data.find(b"\r\n\r\n", searched)) <= MAX_HEAD:
            block = data[start:end]
            head = (_parse_head_cached if len(block) <= _CACHED_HEAD_SIZE else parse_head)(
                block, self._method
            )
            start = searched = end + 4
            if head.status >= 200:
                self._begin(head, data[start:])
                return head
            self._interim += 1
            if head.status == 101 or self._interim > MAX_INTERIM:
                raise UpstreamProtocolError("another protocol, or nothing but interim responses")
        if data[start : start + 7] != b"HTTP/1."[: len(data) - start]:
            raise UpstreamProtocolError("the response does not begin as HTTP/1 does")
        if len(data) > MAX_HEAD or _LONE.search(data, searched):
            raise UpstreamProtocolError("the head is too large, or has a lone CR or LF")
        self._line, self._head_at, self._searched = data, start, max(start, len(data) - 3)
        return None

    def _begin(self, head: Head, rest: bytes) -> None:
        self._line, self.rest = b"", rest
        if head.body is BodyEnd.COUNTED:
            self._remaining = head.length
        else:
            self._chunked = head.body is BodyEnd.CHUNKED
            self._until_close = head.body is BodyEnd.UNTIL_CLOSE

    def body(self, data: bytes) -> bool:
        """Take the next bytes of the body; return True when the response ends in them.

        Raises:
            UpstreamProtocolError: the chunk framing is broken.
        """
        if self._chunked:
            return self._walk(data)
        if self._until_close:
            self._note_payload(data, 0, len(data))
            return False
        payload = min(self._remaining, len(data))
        self._note_payload(data, 0, payload)
        self._remaining -= payload
        self.excess = len(data) - payload
        return self._remaining == 0

    @property
    def may_end_here(self) -> bool:
        """Whether the response is complete if the upstream closes the connection now."""
        return self._until_close

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
        if self._until_close:
            return payload
        if not self._chunked or self._phase in (_TRAILER, _END):
            return None
        if self._phase is _SIZE:
            return None if self._line else as_chunk(payload)
        if self._phase is _DATA_END:
            return b"\r\n"[len(self._line) :] + as_chunk(payload)
        return self._fill(payload, padding)

    def _fill(self, payload: bytes, padding: bytes) -> bytes | None:
        missing = self._remaining - len(payload)
        if missing > 0:
            if not padding:
                return payload
            return None if missing > MAX_PADDING else payload + padding * missing + b"\r\n"
        return payload[: self._remaining] + b"\r\n" + as_chunk(payload[self._remaining :])

    def _note_payload(self, data: bytes, start: int, end: int) -> None:
        """Keep the last bytes of a piece of payload, and the piece itself where it is collected."""
        if end - start >= _TAIL:
            self._tail = data[end - _TAIL : end]
        else:
            self._tail = (self._tail + data[start:end])[-_TAIL:]
        if self.parts is not None:
            self.parts.append(data[start:end])

    def _walk(self, data: bytes) -> bool:
        at, end = 0, len(data)
        while at < end and self._phase is not _END:
            if self._phase is _SIZE and not self._line:
                at = self._whole_chunks(data, at)
                if at == end:
                    break
            at = self._steps[self._phase](self, data, at)
        self.excess = end - at
        return self._phase is _END

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
                if stop - at < _TAIL + 3 and (run := _TINY_CHUNKS.match(data, at)):
                    at = self._tiny_chunks(data, at, run.end())
                    continue
                self._note_payload(data, start, stop)
            at = stop + 2
        if seen:
            self._tail = data[seen - _TAIL : seen]
        return at

    def _tiny_chunks(self, data: bytes, at: int, end: int) -> int:
        """Step over a run of chunks of one to three bytes, too many for a step of Python each."""
        payload = b"".join(chain.from_iterable(_TINY_CHUNK.findall(data, at, end)))
        self._note_payload(payload, 0, len(payload))
        return end

    def _take_line(self, data: bytes, at: int) -> int:
        """Add to `_line` up to the next LF; return where that ended."""
        found = data.find(b"\n", at)
        stop = found + 1 if found >= 0 else len(data)
        self._line += data[at:stop]
        return stop

    def _step_size(self, data: bytes, at: int) -> int:
        at = self._take_line(data, at)
        if line := _SIZE_LINE.fullmatch(self._line):
            self._remaining, self._line = int(line[1], 16), b""
            self._phase = _DATA if self._remaining else _TRAILER
        elif not _SIZE_LINE_START.fullmatch(self._line):
            raise UpstreamProtocolError("a chunk-size line is malformed")
        return at

    def _step_data(self, data: bytes, at: int) -> int:
        stop = min(at + self._remaining, len(data))
        self._note_payload(data, at, stop)
        self._remaining -= stop - at
        if not self._remaining:
            self._phase = _DATA_END
        return stop

    def _step_data_end(self, data: bytes, at: int) -> int:
        stop = at + 2 - len(self._line)
        self._line += data[at:stop]
        if not b"\r\n".startswith(self._line):
            raise UpstreamProtocolError("a chunk is longer than it said")
        if len(self._line) == 2:
            self._phase, self._line = _SIZE, b""
        return min(stop, len(data))

    def _step_trailer(self, data: bytes, at: int) -> int:
        stop = self._take_line(data, at)
        self._trailers += stop - at
        if self._trailers > MAX_TRAILERS or _CONTROL.search(data, at, stop) or _LONE.search(self._line):
            raise UpstreamProtocolError("the trailers are malformed")
        if self._line == b"\r\n":
            self._phase = _END
        if self._line.endswith(b"\n"):
            if self._phase is not _END:
                _check_trailer(self._line)
            self._line = b""
        return stop

    _steps: ClassVar[Mapping[int, Callable[[ResponseFraming, bytes, int], int]]] = {
        _SIZE: _step_size,
        _DATA: _step_data,
        _DATA_END: _step_data_end,
        _TRAILER: _step_trailer,
    }
