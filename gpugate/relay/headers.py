"""Which header lines are forwarded, in which direction.

A forwarded line keeps its place, its case and its bytes. Hop-by-hop headers are dropped in both directions
(RFC 9110 section 7.6.1), and so is what a pod says of its own origin (`is_for_clients`). The client's
credentials for the gateway (`Authorization`, `X-Api-Key`, `Cookie`) are not sent upstream, nor copies of them
or of the URL, which may hold a path token, by a reverse proxy or a browser; nor is its `Origin`, which Ollama
would refuse (docs/ollama.md#content-types-and-headers), nor `X-Gpugate-Pod`, which is for the gateway.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from attrs import frozen

from gpugate.relay.response_parser import BodyEnd, Head, is_for_clients, tokens

_NOT_FORWARDED = frozenset(
    b"authorization connection content-length cookie expect host x-gpugate-pod keep-alive origin te trailer "
    b"transfer-encoding upgrade x-api-key "
    b"api-key x-forwarded-access-token x-forwarded-authorization x-original-authorization "
    b"referer x-forwarded-uri x-original-uri x-original-url x-rewrite-url".split()
)
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"content-encoding"})
_UNFRAMED = frozenset({b"transfer-encoding", b"trailer"})
_ENCODINGS = frozenset({b"accept-encoding"})
_ADDED_TO = frozenset({b"vary"})
_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"/[\x21-\x7e\x80-\xff]*")
_DEFAULT_PORT = {"http": 80, "https": 443}


@frozen
class Address:
    """The parts of an endpoint's URL.

    Attributes:
        host: name or address, without the brackets of IPv6.
        port: the URL's, or its scheme's.
        secure: https.
        authority: the value for `Host`.
        prefix: the URL's path without a slash at its end; put in front of each target.
    """

    host: str
    port: int
    secure: bool
    authority: bytes
    prefix: bytes

    @classmethod
    def of(cls, url: str) -> Address:
        """Parse a base URL.

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


@lru_cache(maxsize=1024)
def _goes_up(name: bytes) -> bool:
    lower = name.lower()
    return lower not in _NOT_FORWARDED and not lower.startswith(b"proxy-")


class RequestHeads:
    """Writes the heads of the requests for one endpoint.

    Args:
        address: where they go.
        own: the endpoint's own headers; they replace the client's of the same name.

    Raises:
        ValueError: one of `own` could break out of its line.
    """

    def __init__(self, address: Address, own: Mapping[str, str]) -> None:
        self._prefix = address.prefix
        self._taken = frozenset(name.lower().encode("latin-1") for name in own)
        lines = [f"{name}: {value}".encode("latin-1") for name, value in own.items()]
        if b"host" not in self._taken:
            lines.insert(0, b"Host: " + address.authority)
        self._own = _joined(lines)

    def write(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[bytes, bytes]],
        *,
        length: int | None,
        identity: bool = False,
    ) -> bytes:
        """Write a head, its closing empty line included.

        Args:
            headers: the client's, as they came.
            length: of the body; None for chunks, below 0 for no body at all.
            identity: ask for a body that is not compressed, whatever the client accepts.

        Raises:
            ValueError: method, target or a header could break out of its line.
        """
        path = target.encode("utf-8", "surrogateescape")
        if not _METHOD.fullmatch(method) or not _TARGET.fullmatch(path):
            raise ValueError("the request line is malformed")
        lines = [b"%b %b%b HTTP/1.1\r\n%b" % (method.encode(), self._prefix, path, self._own)]
        lines += self._crossing(headers, self._taken | _ENCODINGS if identity else self._taken)
        if identity:
            lines.append(b"Accept-Encoding: identity")
        if length is None:
            lines.append(b"Transfer-Encoding: chunked")
        elif length >= 0:
            lines.append(b"Content-Length: %d" % length)
        return _joined(lines, within=self._own.count(b"\n") + 1) + b"\r\n\r\n"

    @staticmethod
    def _crossing(headers: Iterable[tuple[bytes, bytes]], drop: frozenset[bytes]) -> list[bytes]:
        crossing = []
        for name, value in headers:
            if _goes_up(name):
                crossing.append((name, value))
            elif name.lower() == b"connection":
                drop |= tokens(value)
        if drop:
            crossing = [field for field in crossing if field[0].lower() not in drop]
        return [name + b": " + value for name, value in crossing]


def _joined(lines: list[bytes], within: int = 0) -> bytes:
    """Join lines, the first of which may hold `within` line breaks already; no other may hold any."""
    text, breaks = b"\r\n".join(lines), len(lines) - 1 + within
    if not (text.count(b"\r") == text.count(b"\n") == breaks) or b"\0" in text:
        raise ValueError("a request header holds a line break")
    return text


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
    """Write the head of a response for the client, its closing empty line included.

    Args:
        head: the upstream's.
        extra: whole header lines to add, each with its CRLF; they replace the upstream's, but for `Vary`.
        close: say that the connection will be closed.
        unframed: the body goes out without its chunks (to a client that speaks HTTP/1.0).
    """
    taken = _one_name(extra[: extra.find(b":")]) if extra.count(b"\n") == 1 else _names(extra)
    wishes, out = head.written
    if wishes != (taken, unframed):
        out = _crossing_down(head, taken, unframed)
        head.written = (taken, unframed), out
    end = b"Connection: close\r\n\r\n" if close else b"\r\n"
    return b"%b%b%b" % (out, extra, end)


@lru_cache(maxsize=64)
def _one_name(name: bytes) -> frozenset[bytes]:
    return frozenset({name.lower()}) - _ADDED_TO


def _names(lines: bytes) -> frozenset[bytes]:
    return frozenset([line.partition(b":")[0].lower() for line in lines.split(b"\r\n")]) - _ADDED_TO


def _crossing_down(head: Head, taken: frozenset[bytes], unframed: bool) -> bytes:
    """Return the status line and the forwarded headers."""
    drop = taken | (head.nominated - _FRAMING)
    if head.body is BodyEnd.NONE or (unframed and head.body is BodyEnd.CHUNKED):
        drop |= _UNFRAMED
    if head.status == 204:
        drop |= _FRAMING
    own = b"HTTP/1.1" + head.line[8:]  # the version is each hop's own (RFC 9110 section 6.2)
    lines = [own, *(field for name, field in head.fields if name not in drop and is_for_clients(name))]
    return b"\r\n".join(lines) + b"\r\n"
