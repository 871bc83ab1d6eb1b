"""Which header lines cross the gateway, in which direction; it must not know connections or bodies.

What crosses keeps its order, its case and its bytes. What is about one hop only is dropped on both ways
(RFC 9110 section 7.6.1), and what belongs to the gateway's own caller does not go up: its `Authorization`
is the gateway's key, and Ollama would refuse its `Origin` (facts/ollama-and-clients.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from attrs import frozen

from gpugate.relay.framing import Body, Head, tokens

_ONE_HOP = frozenset({b"connection", b"keep-alive", b"upgrade"})
_NOT_UP = _ONE_HOP | {
    b"authorization",
    b"content-length",
    b"expect",
    b"host",
    b"origin",
    b"te",
    b"trailer",
    b"transfer-encoding",
}
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"content-encoding"})
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"/[\x21-\x7e\x80-\xff]*")
_DEFAULT_PORT = {"http": 80, "https": 443}


@frozen
class Address:
    """Where an endpoint's URL points to.

    Attributes:
        host: name or address, without the brackets of IPv6.
        port: the URL's, or its scheme's.
        secure: https.
        authority: the value for `Host`.
        prefix: the URL's path without a slash at its end; put before each target.
    """

    host: str
    port: int
    secure: bool
    authority: bytes
    prefix: bytes

    @classmethod
    def of(cls, url: str) -> Address:
        """Take a base URL apart.

        Raises:
            ValueError: it is not http or https, has no host, or carries a user, a query or a fragment.
        """
        parts = urlsplit(url)
        if parts.scheme not in _DEFAULT_PORT or not parts.hostname:
            raise ValueError("an endpoint's URL begins with http:// or https:// and a host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("an endpoint's URL has no user, query or fragment")
        prefix = parts.path.rstrip("/").encode("ascii")
        authority = parts.netloc.encode("idna" if not parts.netloc.isascii() else "ascii")
        if (prefix and not _TARGET.fullmatch(prefix)) or not _TARGET.fullmatch(b"/" + authority):
            raise ValueError("an endpoint's URL has blanks or control characters")
        port = parts.port or _DEFAULT_PORT[parts.scheme]
        return cls(parts.hostname, port, parts.scheme == "https", authority, prefix)


def request_head(
    method: str,
    target: str,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    address: Address,
    own: Mapping[str, str],
    length: int | None,
    drop: frozenset[bytes] = frozenset(),
) -> bytes:
    """Write the head of a request to the upstream, its closing empty line included.

    Args:
        headers: the client's, as they came.
        own: the endpoint's; they take the place of the client's of the same name.
        length: of the body; None for chunks, below 0 for no body at all.
        drop: lower-case names of the client's that stay behind besides the usual ones.

    Raises:
        ValueError: method, target or a header could break out of its line.
    """
    taken = {name.lower().encode("latin-1") for name in own}
    lines = [_request_line(method, target, address)]
    if b"host" not in taken:
        lines.append(b"Host: " + address.authority)
    lines += _crossing(headers, _NOT_UP | drop | taken)
    lines += [f"{name}: {value}".encode("latin-1") for name, value in own.items()]
    if length is None:
        lines.append(b"Transfer-Encoding: chunked")
    elif length >= 0:
        lines.append(b"Content-Length: %d" % length)
    head = b"\r\n".join(lines)
    if not (head.count(b"\r") == head.count(b"\n") == len(lines) - 1) or b"\0" in head:
        raise ValueError("a request header holds a line break")
    return head + b"\r\n\r\n"


def _request_line(method: str, target: str, address: Address) -> bytes:
    verb = method.encode("latin-1", "replace")
    path = target.encode("utf-8", "surrogateescape")
    if not _METHOD.fullmatch(verb) or not _TARGET.fullmatch(path):
        raise ValueError("the request line is malformed")
    return b"%b %b%b HTTP/1.1" % (verb, address.prefix, path)


def _crossing(headers: Iterable[tuple[bytes, bytes]], drop: frozenset[bytes]) -> list[bytes]:
    named = [(name.lower(), name, value) for name, value in headers]
    for lower, _, value in named:
        if lower == b"connection":
            drop |= tokens(value)
    return [
        b"%b: %b" % (name, value)
        for lower, name, value in named
        if lower not in drop and not lower.startswith(b"proxy-")
    ]


def given_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Return the Content-Length that the client gave, or None.

    Raises:
        ValueError: it is no number.
    """
    for name, value in headers:
        if name.lower() == b"content-length":
            return int(value)
    return None


def response_head(head: Head, *, extra: bytes, close: bool, unframed: bool) -> bytes:
    """Write the head of an answer for the client, its closing empty line included.

    Args:
        head: the upstream's.
        extra: whole header lines to add, each with its CRLF; they take the place of the upstream's.
        close: say that the connection will be closed.
        unframed: the body goes out without its chunks (to a client that speaks HTTP/1.0).
    """
    drop = {line.partition(b":")[0].lower() for line in extra.split(b"\r\n")} if extra else set()
    for name, line in head.fields:
        if name == b"connection":
            drop |= tokens(line.partition(b":")[2]) - _FRAMING
    drop |= _ONE_HOP
    if unframed and head.body is Body.CHUNKED:
        drop |= {b"transfer-encoding", b"trailer"}
    lines = [head.line]
    lines += [line for name, line in head.fields if name not in drop and not name.startswith(b"proxy-")]
    out = b"\r\n".join(lines) + b"\r\n" + extra
    return out + b"Connection: close\r\n\r\n" if close else out + b"\r\n"
