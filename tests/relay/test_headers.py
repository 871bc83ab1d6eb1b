"""Which header lines cross, and what can never be smuggled into a head."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpugate.relay.headers import Address, RequestHeads, given_length, response_head
from gpugate.relay.response_parser import parse_head

HOME = Address.of("http://pod:11434/base")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://pod", Address("pod", 80, False, b"pod", b"")),
        ("https://pod/", Address("pod", 443, True, b"pod", b"")),
        ("http://127.0.0.1:11434/a/b/", Address("127.0.0.1", 11434, False, b"127.0.0.1:11434", b"/a/b")),
        ("http://[::1]:80", Address("::1", 80, False, b"[::1]:80", b"")),
        ("https://a-11434.proxy.net", Address("a-11434.proxy.net", 443, True, b"a-11434.proxy.net", b"")),
    ],
)
def test_address(url, expected):
    """A base URL says where to connect, what `Host` to name and what to put before a path."""
    assert expected == Address.of(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "pod:11434",
        "ftp://pod",
        "http://",
        "http://u:p@pod",
        "http://pod?x=1",
        "http://pod#x",
        "http://pod/ü",
    ],
)
def test_impossible_address(url):
    """What cannot be an endpoint's base URL is refused at once."""
    with pytest.raises(ValueError):
        Address.of(url)


@pytest.mark.parametrize("own", [{"X": "1\r\nY: 2"}, {"X\n": "1"}, {"X": "\0"}, {"X": "1\n"}])
def test_own_header_with_a_line_break(own):
    """An endpoint's header that could break out of its line is refused when the endpoint is set up."""
    with pytest.raises(ValueError):
        RequestHeads(HOME, own)


def test_own_host():
    """An endpoint may name another host than its address."""
    head = RequestHeads(HOME, {"host": "virtual"}).write("GET", "/", [], length=-1)

    assert head == b"GET /base/ HTTP/1.1\r\nhost: virtual\r\n\r\n"


@pytest.mark.parametrize(
    ("length", "line"), [(None, b"Transfer-Encoding: chunked\r\n"), (0, b"Content-Length: 0\r\n"), (-1, b"")]
)
def test_body_line(length, line):
    """The end of the body is told by us, whatever the client told."""
    client = [(b"content-length", b"99"), (b"Transfer-Encoding", b"gzip, chunked"), (b"A", b"1")]

    head = RequestHeads(HOME, {}).write("POST", "/x", client, length=length)

    assert head == b"POST /base/x HTTP/1.1\r\nHost: pod:11434\r\nA: 1\r\n" + line + b"\r\n"


def test_nominated_headers():
    """What a Connection header lists, wherever it stands, belongs to the hop; so does what we drop."""
    client = [(b"B", b"1"), (b"Accept-Encoding", b"x"), (b"connection", b"b ,C"), (b"c", b"2"), (b"D", b"3")]

    head = RequestHeads(HOME, {}).write("GET", "/", client, length=-1, identity=True)

    assert head == b"GET /base/ HTTP/1.1\r\nHost: pod:11434\r\nD: 3\r\nAccept-Encoding: identity\r\n\r\n"


@settings(deadline=None)
@given(
    st.sampled_from(["GET", "PO ST", "", "GET\r\n", "GÉT"]),
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.lists(st.tuples(st.binary(min_size=1, max_size=6), st.binary(max_size=8)), max_size=4),
)
@example("GET", "\r\nHost: evil", [])
@example("GET", "?", [(b"A", b"1\r\nB: 2")])
@example("GET", "?", [(b"A\r\nB", b"")])
def test_nothing_breaks_out_of_its_line(method, path, headers):
    """A head that is written has one line for each header and no other; else there is a ValueError."""
    try:
        head = RequestHeads(HOME, {}).write(method, "/" + path, headers, length=-1)
    except ValueError:
        return

    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert lines[0].count(b" ") == 2
    assert len(lines) <= 2 + len(headers)
    assert not any(c in b"\r\n\0" for line in lines for c in line)


def test_given_length():
    """The client's Content-Length is found in any case."""
    assert given_length([(b"A", b"1"), (b"content-LENGTH", b"12")]) == 12
    assert given_length([(b"A", b"1")]) is None


def test_response_head_unframed():
    """Without chunks there is no word of chunks."""
    head = parse_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\nA: 1", "GET")

    assert response_head(head, extra=b"", close=True, unframed=True) == (
        b"HTTP/1.1 200 OK\r\nA: 1\r\nConnection: close\r\n\r\n"
    )
    assert response_head(head, extra=b"B: 2\r\n", close=False, unframed=False) == (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\nA: 1\r\nB: 2\r\n\r\n"
    )


def handed_on(
    *lines: bytes, extra: bytes = b"", method: str = "GET", status: bytes = b"200 OK"
) -> list[bytes]:
    """Return the header lines of a pod's head that a client gets."""
    head = parse_head(b"\r\n".join([b"HTTP/1.1 " + status, *lines]), method)
    written = response_head(head, extra=extra, close=False, unframed=False)
    return written.removesuffix(b"\r\n\r\n").split(b"\r\n")[1:]


@pytest.mark.parametrize(
    "line",
    [
        b'Alt-Svc: h3=":443"',
        b"Strict-Transport-Security: max-age=1",
        b"NEL: {}",
        b"Report-To: {}",
        b'Reporting-Endpoints: a="b"',
        b"Clear-Site-Data: *",
        b"Set-Cookie: a=b",
        b"Access-Control-Allow-Origin: *",
        b"access-control-expose-headers: X",
        b"X-Gpugate-Code: POD_STOPPED",
        b"x-gpugate-waited-ms: 1",
        b"Keep-Alive: timeout=5",
        b"Proxy-Authenticate: Basic",
        b"Upgrade: h2c",
    ],
)
def test_what_belongs_to_the_pods_own_origin(line):
    """A header that speaks for the pod's address, its edge or the gateway does not reach the client."""
    assert handed_on(b"A: 1", line, b"Content-Length: 0") == [b"A: 1", b"Content-Length: 0"]


def test_vary_is_appended_to():
    """What the pod's answer depends on stays true beside what the gateway's does."""
    extra = b"X-Request-Id: 1\r\nVary: Origin\r\n"

    lines = handed_on(b"Vary: Accept-Encoding", b"X-Request-Id: pod", extra=extra)

    assert lines == [b"Vary: Accept-Encoding", b"X-Request-Id: 1", b"Vary: Origin"]
    assert handed_on(b"Vary: A", extra=b"Vary: Origin\r\n") == [b"Vary: A", b"Vary: Origin"]


@pytest.mark.parametrize(
    ("method", "status", "length"),
    [("HEAD", b"200 OK", True), ("GET", b"204 No Content", False), ("GET", b"304 Not Modified", True)],
)
def test_no_body_no_framing(method, status, length):
    """An answer without a body does not say how it is framed: `http.client` would wait for chunks."""
    assert handed_on(b"Transfer-Encoding: chunked", b"Trailer: X", b"A: 1", method=method, status=status) == [
        b"A: 1"
    ]
    told = [b"Content-Length: 5"]
    assert handed_on(*told, method=method, status=status) == (told if length else [])
