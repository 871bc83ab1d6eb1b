"""Client sessions that send every request to a test's own server, whatever the URL.

aiohttp's `UnixConnector` takes every URL, https too, to one socket of this machine. So a provider that
calls its cloud through the session it was given needs no setting to be tested against a broken cloud.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
from attrs import field, frozen

AGENT = {"User-Agent": "gpugate/contract"}
"""A cloud's CDN may refuse clients without one (docs/providers.md#user-agent)."""


@frozen
class BadResponse:
    """A response that no provider may accept.

    Attributes:
        status: of the answer; 0: the connection is closed instead.
        short_of: so many bytes of the announced body never come.
        proves_nothing: no conclusion about the pod may be drawn from it: `inspect` has to raise.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(factory=dict, hash=False)
    short_of: int = 0
    proves_nothing: bool = True


_HTML = {"Content-Type": "text/html"}
_JSON = {"Content-Type": "application/json"}
_PAGE = b"<html><head><title>Just a moment...</title></head></html>"

WRONGS: Mapping[str, BadResponse] = {
    "closed": BadResponse(0),
    "half an answer": BadResponse(200, b'{"id": "', _JSON, short_of=100),
    "200 and a page": BadResponse(200, _PAGE, _HTML),
    "200 and nothing": BadResponse(200),
    "200 and an object without content": BadResponse(200, b"{}", _JSON, proves_nothing=False),
    "200 and null": BadResponse(200, b"null", _JSON, proves_nothing=False),
    "200 and a number": BadResponse(200, b"7", _JSON, proves_nothing=False),
    "200 and bytes that are no text": BadResponse(200, b"\xff\xfe\x00{", _JSON),
    "302": BadResponse(302, b"", {"Location": "/login"}),
    "400": BadResponse(400, b'{"error": "bad request"}', _JSON, proves_nothing=False),
    "401": BadResponse(401, b'{"error": "who are you?"}', _JSON),
    "403 of a CDN": BadResponse(403, b"error code: 1010", _HTML),
    "404 page": BadResponse(404, _PAGE, _HTML, proves_nothing=False),
    "429": BadResponse(429, b"too frequent", {"Retry-After": "soon"}),
    "500": BadResponse(500, b'{"error": "internal"}', _JSON),
    "502 page": BadResponse(502, _PAGE, _HTML),
    "503": BadResponse(503, b"", {"Retry-After": "1"}),
}


@asynccontextmanager
async def good_session() -> AsyncIterator[aiohttp.ClientSession]:
    """A session like the gateway's."""
    async with aiohttp.ClientSession(headers=AGENT, cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session


@asynccontextmanager
async def cut_session(*traces: aiohttp.TraceConfig) -> AsyncIterator[aiohttp.ClientSession]:
    """A session in which every request fails to connect."""
    async with _session_to(Path("/nonexistent/cut"), *traces) as session:
        yield session


@asynccontextmanager
async def wrong_session(wrong: BadResponse | None) -> AsyncIterator[aiohttp.ClientSession]:
    """A session in which every request gets this response; None: no response at all."""
    folder = Path(tempfile.mkdtemp(prefix="wire-"))  # short: a socket's path has 107 bytes at most
    writers: set[asyncio.StreamWriter] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            if wrong is None:
                await reader.read()  # ends when the client gives up
            elif wrong.status:
                writer.write(_written(wrong))
                await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_unix_server(answer, folder / "s")
        try:
            async with _session_to(folder / "s") as session:
                yield session
        finally:
            server.close()
            for writer in writers:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _session_to(path: Path, *traces: aiohttp.TraceConfig) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(str(path), force_close=True),
        trace_configs=list(traces),
        headers=AGENT,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def _written(wrong: BadResponse) -> bytes:
    headers = {
        **wrong.headers,
        "Content-Length": str(len(wrong.body) + wrong.short_of),
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {wrong.status} Wrong", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + wrong.body
