"""The origins in `server.cors_origins`: which are allowed there, and which of a browser's they stand for."""

from __future__ import annotations

import re

ANY = "*"
SHAPE = (
    'each must be "*", "null" or an origin such as "https://chat.example.org" or "http://localhost:*" '
    "(one * in host or port), without a path"
)

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._*-]+)(?::([0-9]{1,5}|\*))?", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
# What a star in a host stands for: never a slash, a colon or an @, so that it cannot leave its place.
_HOST_STAR, _PORT_STAR = "[a-z0-9._-]+", "(?::[0-9]+)?"


def origin_pattern(text: str) -> str | None:
    """Return an expression for the origins, in lower case, that `text` stands for; None if it is no origin.

    A browser leaves the default port out, so it is left out here, too; a star stands for it as well. A
    host in other letters than ASCII never comes from a browser: it has to be written as "xn--...".
    """
    text = text.lower() if text.isascii() else ""
    if text == ANY:
        return ".*"
    if text == "null":
        return text
    found = _ORIGIN.fullmatch(text)
    if found is None or text.count("*") > 1 or not _is_port(found[3]):
        return None
    scheme, host, port = found.groups()
    host = re.escape(host).replace(r"\*", _HOST_STAR)
    if port is None or port == _DEFAULT_PORTS.get(scheme):
        return f"{re.escape(scheme)}://{host}"
    return f"{re.escape(scheme)}://{host}{_PORT_STAR if port == '*' else f':{int(port)}'}"


def is_origin(text: str) -> bool:
    """Return whether `text` may stand in `server.cors_origins`."""
    return origin_pattern(text) is not None


def _is_port(port: str | None) -> bool:
    return port is None or port == "*" or 0 < int(port) < 65536
