"""The framing against h11, byte by byte and in any pieces."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpugate.relay.response_parser import (
    LAST_CHUNK,
    MAX_HEAD,
    MAX_INTERIM,
    MAX_PADDING,
    MAX_SIZE_LINE,
    MAX_TRAILERS,
    BodyEnd,
    ResponseFraming,
    UpstreamProtocolError,
    as_chunk,
    parse_head,
)
from tests.relay.support import chunked, counted, streamed_head


class Reading:
    """What our framing makes of the pieces of an answer."""

    def __init__(self, method: str, pieces: list[bytes], *, eof: bool = False) -> None:
        self.framing = ResponseFraming(method)
        self.framing.parts = []
        self.head = None
        self.ended = False
        self.behind = b""
        for piece in pieces:
            self._take(piece)
        if eof and not self.ended and self.head is not None:
            self.ended = self.framing.may_end_here

    def _take(self, piece: bytes) -> None:
        if self.ended:
            self.behind += piece
            return
        if self.head is None:
            self.head = self.framing.head(piece)
            if self.head is None:
                return
            piece = self.framing.rest
        self.ended = self.framing.body(piece)
        if self.framing.excess:
            self.behind += piece[-self.framing.excess :]

    @property
    def payload(self) -> bytes:
        return b"".join(self.framing.parts or [])


def by_h11(method: str, raw: bytes, *, eof: bool = False) -> tuple[int, bytes, bool, bytes]:
    """Return status, payload, whether it ended, and what is behind the end, as h11 sees it."""
    reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    request = h11.Request(method=method, target="/", headers=[("Host", "x")])
    reader.send(request)
    reader.send(h11.EndOfMessage())
    reader.receive_data(raw)
    if eof:
        reader.receive_data(b"")
    status, payload = 0, b""
    while True:
        event = reader.next_event()
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            payload += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return status, payload, True, reader.trailing_data[0]
        elif event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
            return status, payload, False, b""


def cut_up(raw: bytes, cuts: list[int]) -> list[bytes]:
    """Cut `raw` at these places (taken modulo its length)."""
    places = sorted({cut % (len(raw) + 1) for cut in cuts} | {0, len(raw)})
    return [raw[a:b] for a, b in pairwise(places)]


cuts = st.lists(st.integers(0, 1 << 20), max_size=30)
texts = st.binary(max_size=300)
pieces_of_body = st.lists(st.binary(min_size=1, max_size=80), max_size=8)
extensions = st.sampled_from([b"", b";x=1", b';q="a b"', b";"])
trailers = st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: b\r\nC: d e\r\n"])


@st.composite
def answers(draw):
    """Return (method, whether it needs the end of the connection, raw bytes) of a sound answer."""
    method = draw(st.sampled_from(["GET", "POST", "HEAD"]))
    status = draw(st.sampled_from([200, 201, 204, 304, 404, 500]))
    interim = draw(
        st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n"])
    )
    minor = draw(st.sampled_from([0, 1]))
    start = interim + b"HTTP/1.%d %d Some Reason\r\nX-A: 1\r\nX-a:  two \r\n" % (minor, status)
    bare = method == "HEAD" or status in (204, 304)
    form = draw(st.sampled_from(["counted", "chunked", "until close"]))
    if form == "chunked" and minor == 1:
        start += b"Transfer-Encoding: Chunked\r\n\r\n"
        if bare:
            return method, False, start
        for piece in draw(pieces_of_body):
            start += b"%X%b\r\n%b\r\n" % (len(piece), draw(extensions), piece)
        return method, False, start + b"0" + draw(extensions) + b"\r\n" + draw(trailers) + b"\r\n"
    body = draw(texts)
    if form == "counted":
        return method, False, start + b"Content-Length: %d\r\n\r\n" % len(body) + (b"" if bare else body)
    return method, not bare, start + b"\r\n" + (b"" if bare else body)


@settings(deadline=None)
@given(answers(), cuts)
def test_sound_answer_in_any_pieces(answer, cuts):
    """However the bytes come, payload and end are where h11 sees them."""
    method, eof, raw = answer

    seen = Reading(method, cut_up(raw, cuts), eof=eof)

    assert seen.head is not None
    assert by_h11(method, raw, eof=eof) == (seen.head.status, seen.payload, seen.ended, seen.behind)
    assert seen.ended


@settings(deadline=None)
@given(answers(), cuts, st.binary(min_size=1, max_size=40))
def test_bytes_behind_the_end(answer, cuts, more):
    """What follows a finished answer is excess, to the byte, and never payload."""
    method, eof, raw = answer
    if eof:
        return

    seen = Reading(method, cut_up(raw + more, cuts))

    assert seen.ended
    assert more == seen.behind


@settings(deadline=None)
@given(answers(), cuts, st.data())
def test_damaged_answer(answer, cuts, data):
    """What we take for a whole answer, h11 takes for the same one, or refuses."""
    method, eof, raw = answer
    at = data.draw(st.integers(0, len(raw) - 1))
    new = data.draw(
        st.sampled_from([b"", b"\r", b"\n", b"\0", b" ", b":", b"0", b"f", b"\r\n", b"g", b"-", b"+"])
    )
    gone = data.draw(st.integers(0, 2))
    raw = raw[:at] + new + raw[at + gone :]
    try:
        seen = Reading(method, cut_up(raw, cuts), eof=eof)
    except UpstreamProtocolError:
        return
    if not seen.ended:
        return
    try:
        theirs = by_h11(method, raw, eof=eof)
    except h11.RemoteProtocolError:
        return

    assert seen.head is not None
    assert theirs == (seen.head.status, seen.payload, True, seen.behind)


breaks = st.tuples(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.integers(0))


def broken_off(pieces: list[bytes], cut: int) -> tuple[bytes, Reading]:
    """Return a chunked answer that breaks somewhere in its body, and what we made of it."""
    head = streamed_head()
    whole = head + chunked(*pieces)
    sent = whole[: len(head) + cut % (len(whole) - len(head))]
    return sent, Reading("GET", [sent])


def inside_a_line(sent: bytes) -> bool:
    """Whether these bytes end within a chunk-size line, or behind the last chunk's."""
    line = sent.rpartition(b"\r\n")[2] if not sent.endswith(b"0\r\n") else b"0"
    return line.rstrip(b"\r").strip(b"0123456789abcdef") == b""


@settings(deadline=None)
@given(breaks, st.binary(max_size=60))
def test_broken_off_chunks_are_ended_in_order(where, words):
    """With padding, any break comes to a clean end with the words as payload, or is said to be hopeless."""
    sent, seen = broken_off(*where)

    more = seen.framing.finish_with(words, padding=b"\n")

    if more is None:
        assert inside_a_line(sent)
        return
    _, payload, ended, behind = by_h11("GET", sent + more + LAST_CHUNK)
    assert (ended, behind) == (True, b"")
    assert payload.startswith(seen.payload + words)
    assert payload[len(seen.payload + words) :].strip(b"\n") == b""


@settings(deadline=None)
@given(breaks, st.binary(max_size=60))
def test_broken_off_chunks_are_left_unfinished(where, words):
    """Without padding the words come through as payload, and nobody sees an end."""
    sent, seen = broken_off(*where)

    more = seen.framing.finish_with(words)

    if more is None:
        assert inside_a_line(sent)
        return
    _, payload, ended, _ = by_h11("GET", sent + more)
    assert (seen.payload + words, False) == (payload, ended)


@settings(deadline=None)
@given(pieces_of_body, cuts, st.sampled_from(["chunked", "counted", "until close"]))
def test_tail_is_the_last_of_the_payload(pieces, cuts, form):
    """The last four bytes of payload are known, whatever framing lies between them."""
    body = b"".join(pieces)
    raw = {
        "chunked": streamed_head() + chunked(*pieces),
        "counted": counted(body),
        "until close": b"HTTP/1.1 200 OK\r\n\r\n" + body,
    }[form]
    framing = ResponseFraming("GET")
    head = None
    for piece in cut_up(raw, cuts):
        if head is None:
            head = framing.head(piece)
            piece = framing.rest if head else b""
        if head is not None:
            framing.body(piece)

    assert body[-4:] == framing.tail


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Content-Length: 5\r\nContent-Length: 5",
        b"Content-Length: 5, 5",
        b"Content-Length: +5",
        b"Content-Length: 0x5",
        b"Content-Length: 5_0",
        b"Content-Length: -1",
        b"Content-Length:",
        b"Content-Length : 5",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: identity",
        b"X-A: 1\r\n folded",
        b"X-A: 1\r\n\tContent-Length: 5",
        b"X-A",
        b": no name",
        b"X-A: a\rb",
        b"X-A: a\nContent-Length: 5",
        b"X-A: a\0b",
    ],
)
def test_ambiguous_head(lines):
    """A head that two readers could understand differently is refused."""
    with pytest.raises(UpstreamProtocolError):
        ResponseFraming("GET").head(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n\r\n")


@pytest.mark.parametrize(
    "start",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/2 200\r\n",
        b"\r\n",
        b"<html>",
        b"H" * 7,
        b"\x16\x03\x01",
        b" HTTP/1.1 200 OK",
    ],
)
def test_not_http(start):
    """Something else than HTTP is refused at its first bytes, not after a wait for the end of a head."""
    with pytest.raises(UpstreamProtocolError):
        ResponseFraming("GET").head(start)


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1 20",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/1.1 200OK",
        b"HTTP/1.1 099 x",
    ],
)
def test_malformed_status_line(line):
    """A status line is three digits behind HTTP/1.0 or HTTP/1.1."""
    with pytest.raises(UpstreamProtocolError):
        ResponseFraming("GET").head(line + b"\r\n\r\n")


def test_switching_protocols():
    """Nobody asked for another protocol."""
    with pytest.raises(UpstreamProtocolError):
        ResponseFraming("GET").head(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")


def test_endless_head():
    """A head is refused when it grows beyond its limit, in one piece or in many."""
    with pytest.raises(UpstreamProtocolError):
        ResponseFraming("GET").head(b"HTTP/1.1 200 OK\r\nX: " + b"a" * MAX_HEAD)
    with pytest.raises(UpstreamProtocolError):
        Reading("GET", [b"HTTP/1.1 200 OK\r\n", *[b"X-A: 1234567890\r\n"] * MAX_HEAD])


INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"


@pytest.mark.parametrize("bytewise", [False, True])
def test_interim_answers_are_skipped(bytewise):
    """As many as a server may send, in one piece or in many."""
    raw = INTERIM * MAX_INTERIM + counted(b"x")

    seen = Reading("GET", cut_up(raw, list(range(len(raw)))) if bytewise else [raw])

    assert (seen.head.status, seen.payload, seen.ended) == (200, b"x", True)


LARGE_INTERIM = b"HTTP/1.1 103 Hints\r\nLink: " + b"a" * (MAX_HEAD // 2) + b"\r\n\r\n"


@pytest.mark.parametrize("raw", [INTERIM * (MAX_INTERIM + 1), LARGE_INTERIM * 2])
@pytest.mark.parametrize("in_one", [False, True])
def test_endless_interim_answers(raw, in_one):
    """Their number and their size together are bounded: otherwise one pod keeps the gateway busy."""
    pieces = [raw] if in_one else [piece + b"\r\n\r\n" for piece in raw.split(b"\r\n\r\n")[:-1]]
    with pytest.raises(UpstreamProtocolError):
        Reading("GET", pieces)


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\n",
        b"HTTP/1.1 200 OK\r\r\n\r",
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\n",
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_bare_line_ends(start, bytewise):
    """A head of lone LFs or CRs is refused when the first one comes: its end would never be found."""
    with pytest.raises(UpstreamProtocolError):
        Reading("GET", cut_up(start, list(range(len(start)))) if bytewise else [start])


@pytest.mark.parametrize("code", [c for c in range(32) if c not in b"\t\r\n"] + [127])
def test_control_characters(code):
    """No value of a header, trailer or chunk extension has one."""
    bad = b"a" + bytes([code]) + b"b"
    for raw in (
        [b"HTTP/1.1 200 OK\r\nX: " + bad + b"\r\n\r\n"],
        [streamed_head(), b"0\r\nX: " + bad],
        [streamed_head(), b"1;x=" + bad + b"\r\nx\r\n"],
        [streamed_head(), b"1;x=" + bad],
    ):
        with pytest.raises(UpstreamProtocolError):
            Reading("GET", raw)


@pytest.mark.parametrize(
    "line",
    [
        b"no field line",
        b": 1",
        b" X: 1",
        b"X : 1",
        b"Content-Length: 5",
        b"transfer-encoding: chunked",
        b"Connection: close",
        b"Trailer: X",
        b"Host: x",
        b"Content-Encoding: gzip",
        b"Content-Type: text/html",
        b"Set-Cookie: a=b",
        b"X-Gpugate-Code: X",
        b"Access-Control-Allow-Origin: *",
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_trailers_that_are_refused(line, bytewise):
    """A trailer is a field line, and none that frames or that no head may hand on."""
    body = b"0\r\n" + line + b"\r\n\r\n"
    with pytest.raises(UpstreamProtocolError):
        Reading("GET", [streamed_head(), *(cut_up(body, list(range(len(body)))) if bytewise else [body])])


def test_names_and_status_lines_are_bounded():
    """They are remembered by the thousand, so that long ones would fill the memory."""
    for raw in (b"HTTP/1.1 200 " + b"O" * 2000, b"HTTP/1.1 200 OK\r\n" + b"X" * 2000 + b": 1"):
        with pytest.raises(UpstreamProtocolError):
            ResponseFraming("GET").head(raw + b"\r\n\r\n")


@pytest.mark.parametrize(
    "body",
    [
        b"g\r\n",
        b"\r\n",
        b"-1\r\n",
        b"0x5\r\n",
        b"+5\r\n",
        b" 5\r\n",
        b"5\nabcde",
        b"5\rabcde",
        b"5 5\r\n",
        b"1000000000000000\r\n",
        b"0000000000000001\r\n",
        b"1 x\r\na\r\n",
        b"3\r\nabcd\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabc\r\r",
        b"0\r\nX-A: 1\n\r\n",
        b"0\r\nX\r-A: 1\r\n\r\n",
        b"0\r\nX: \0\r\n\r\n",
        b"1;" + b"e" * MAX_SIZE_LINE + b"e",
        b"1;" + b"e" * MAX_SIZE_LINE + b"e\r\na\r\n",
        b"1" + b" " * MAX_SIZE_LINE,
        b"0\r\n" + b"X-A: 1\r\n" * (MAX_TRAILERS // 8 + 1),
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_broken_chunks(body, bytewise):
    """Broken chunk framing is refused, whole or byte by byte."""
    pieces = [body[i : i + 1] for i in range(len(body))] if bytewise else [body]
    with pytest.raises(UpstreamProtocolError):
        Reading("GET", [streamed_head(), *pieces])


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=5), max_size=40), cuts, st.booleans())
def test_tiny_chunks_in_any_pieces(pieces, cuts, collecting):
    """Payload and tail of chunks of a few bytes, which are stepped over many at once."""
    framing = ResponseFraming("GET")
    framing.head(streamed_head())
    framing.parts = [] if collecting else None
    ended = [framing.body(piece) for piece in cut_up(chunked(*pieces), cuts)]

    assert ended[-1]
    assert framing.tail == b"".join(pieces)[-4:]
    assert b"".join(framing.parts or []) == (b"".join(pieces) if collecting else b"")


def test_blanks_behind_a_chunk_size():
    """As RFC 9112 tells recipients: `2 ;x=1` is a size."""
    for raw in (b"2 ;x=1\r\nab\r\n0\r\n\r\n", b"2\t \r\nab\r\n0 ;y\r\n\r\n"):
        for pieces in ([raw], cut_up(raw, list(range(len(raw))))):
            seen = Reading("GET", [streamed_head(), *pieces])

            assert (seen.payload, seen.ended) == (b"ab", True)


def test_padding_is_bounded():
    """A chunk with more owed than anybody would pad is left unfinished."""
    framing = ResponseFraming("GET")
    framing.head(streamed_head())
    framing.body(b"%x\r\nabc" % (MAX_PADDING + 100))

    assert framing.finish_with(b"words", padding=b"\n") is None
    assert framing.finish_with(b"words") == b"words"


def test_other_bodies_cannot_be_finished():
    """A counted body has no room for words; one that ends with the connection takes them as they are."""
    framing = ResponseFraming("GET")
    framing.head(counted(b"12345")[:-2])

    assert framing.finish_with(b"words") is None

    framing = ResponseFraming("GET")
    framing.head(b"HTTP/1.1 200 OK\r\n\r\n")

    assert framing.finish_with(b"words") == b"words"


def test_head_as_a_value():
    """A head knows its fields in order, its body and whether the connection lives on."""
    head = parse_head(b"HTTP/1.1 200 OK\r\nB: 2\r\nContent-Length: 3\r\nConnection: X, Close", "GET")

    assert (head.body, head.length, head.keep) == (BodyEnd.COUNTED, 3, False)
    assert [name for name, _ in head.fields] == [b"b", b"content-length", b"connection"]
    assert (head.get(b"b"), head.get(b"c")) == (b"2", b"")


def test_empty_chunk_is_no_chunk():
    """Nothing as a chunk is nothing, as it would be the last chunk."""
    assert as_chunk(b"") == b""
    assert as_chunk(b"abc") == b"3\r\nabc\r\n"
