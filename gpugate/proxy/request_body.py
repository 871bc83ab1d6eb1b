"""Reads a request's body whole, bounded in size and in silence; knows nothing of what is in it."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gpugate.errors import InvalidRequest, PayloadTooLarge

BODY_STALL_S = 60.0
"""Longest pause between two pieces of a body: who sends slower is cut off with a 400."""

MAX_BODY_KEY = "server.max_body"

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def send_continue(request: web.BaseRequest) -> None:
    """Tell a client that asked first (`Expect: 100-continue`) to send; `web.Server` does not."""
    if "Expect" in request.headers and request.headers["Expect"].lower() == "100-continue":
        transport = request.transport
        if transport is not None and not request.content.total_bytes:
            transport.write(_CONTINUE)


def check_content_length(request: web.BaseRequest, limit: int, key: str = MAX_BODY_KEY) -> None:
    """Refuse by the announced length, before a byte is read.

    Raises:
        PayloadTooLarge: `Content-Length` is over `limit` bytes.
    """
    length = request.content_length
    if length is not None and length > limit:
        raise _too_large(limit, key)


def _too_large(limit: int, key: str) -> PayloadTooLarge:
    named = f" ({key})" if key else ""
    return PayloadTooLarge(f"request body is larger than {limit} bytes{named}")


async def read_body(request: web.BaseRequest, limit: int, key: str = MAX_BODY_KEY) -> bytes:
    """Return the whole body.

    Args:
        key: the setting that `limit` is from; empty if none is.

    Raises:
        PayloadTooLarge: it is over `limit` bytes.
        InvalidRequest: it stopped coming, or its framing is broken.
    """
    content = request.content
    if content.is_eof() and content.total_bytes <= limit:
        if not content.total_bytes:
            return b""
        return content.read_nowait(-1)
    check_content_length(request, limit, key)
    send_continue(request)
    body = bytearray()  # not a list of pieces: those leave holes between a thousand bodies that are held
    try:
        while not content.at_eof():
            async with asyncio.timeout(BODY_STALL_S):
                piece = await content.readany()
            if len(body) + len(piece) > limit:
                raise _too_large(limit, key)
            body += piece
    except TimeoutError as error:
        raise InvalidRequest("the request body stopped coming") from error
    except (web.RequestPayloadError, HttpProcessingError, ValueError) as error:
        raise InvalidRequest("the request body is malformed") from error
    return bytes(body)
