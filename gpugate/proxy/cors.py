"""Which web pages may call (CORS), decided by the `Origin` header alone.

A page that is not in `server.cors_origins` gets 403 with an empty body for its preflight, as Ollama
does, so that its console says that the server refused. Other requests are never refused for their Origin:
they need a token anyway, and without the allow header the browser keeps the response from the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gpugate.config.origins import ANY, is_origin, origin_pattern

EXPOSED = "X-Request-Id, X-Gpugate-Waited-Ms, X-Gpugate-Code, Retry-After"
_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_HEADERS = "Authorization, Content-Type, Accept, X-Request-Id"
_MAX_AGE_S = 86400  # browsers cap it: Chromium at two hours, Firefox at a day
_MAX_ASKED = 2048  # characters of Access-Control-Request-Headers that are echoed

_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*", re.ASCII)
Header = tuple[str, str]


class Cors:
    """The rules of `server.cors_origins`.

    Args:
        origins: such as "https://chat.example.org"; "*" allows every page, and a `*` inside one stands
            for a part of a host's name or for a port: "https://*.example.org", "http://localhost:*".

    Raises:
        ValueError: one is no origin; the configuration's check has found it before.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        listed = tuple(origins)
        if wrong := [origin for origin in listed if not is_origin(origin)]:
            raise ValueError(f"no origin: {wrong[0]!r}")
        self._anybody = ANY in listed
        self._pattern = re.compile("|".join(filter(None, map(origin_pattern, listed)))) if listed else None

    def allows(self, origin: str) -> bool:
        """Say whether pages of this origin may call."""
        if self._pattern is None or not origin.isascii():  # lower() turns a few other letters into ours
            return False
        return self._anybody or self._pattern.fullmatch(origin.lower()) is not None

    def headers_for(self, origin: str | None) -> bytes:
        """Extra head lines, each with its CRLF, of any response to this origin; empty if not allowed."""
        if origin is None or not self.allows(origin):
            return b""
        return b"".join(f"{name}: {value}\r\n".encode("ascii") for name, value in self._allowing(origin))

    def preflight(
        self, origin: str, asked_headers: str | None = None, *, asked_private_network: bool = False
    ) -> tuple[int, list[Header]]:
        """Status and headers of the empty answer to `OPTIONS` with an Origin; no token is needed.

        Args:
            origin: the page's.
            asked_headers: `Access-Control-Request-Headers`. Echoed, since `*` would not cover
                Authorization, and OpenAI's library sends a dozen of its own.
            asked_private_network: whether `Access-Control-Request-Private-Network: true` came: a page
                from the internet asks for a gateway at home.
        """
        vary = ("Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers")
        if not self.allows(origin):
            return 403, [vary]
        named = asked_headers.strip() if asked_headers is not None else ""
        sane = len(named) <= _MAX_ASKED and _NAMES.fullmatch(named)
        headers = [
            *(header for header in self._allowing(origin) if header[0] != "Vary"),
            ("Access-Control-Allow-Methods", _METHODS),
            ("Access-Control-Allow-Headers", named if sane else _HEADERS),
            ("Access-Control-Max-Age", str(_MAX_AGE_S)),
            vary,
        ]
        if asked_private_network:
            headers.append(("Access-Control-Allow-Private-Network", "true"))
        return 204, headers

    def _allowing(self, origin: str) -> list[Header]:
        exposed = ("Access-Control-Expose-Headers", EXPOSED)
        if self._anybody:
            return [("Access-Control-Allow-Origin", "*"), exposed]
        return [("Access-Control-Allow-Origin", origin), exposed, ("Vary", "Origin")]
