"""One request on its way through the gateway: what was asked, by whom, its body, and what is logged of it."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gpugate.errors import InvalidRequest, PayloadTooLarge
from gpugate.proxy.auth import User
from gpugate.proxy.error_format import Dialect, dialect_of

BODY_STALL_S = 60.0
"""Longest pause between two pieces of a body, in seconds; a slower client gets a 400."""

MAX_BODY_KEY = "server.max_body"

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestContext:
    """What is known of one request while it is answered.

    Attributes:
        path: the raw path without query and without a path token; may be logged.
        query: what stood behind the question mark.
        token_prefix: the path token's part of the path, a secret; empty without one.
        user: who the token belongs to, once it is verified.
        extra_head: header lines that every response to this request carries, each with its CRLF.
        waited_ms: how long it waited for the pod, 0 if it did not.
        run_id: the pod's run that served it, 0 if none.
        bytes_sent: written to the client by the relay or as filler.
        outcome: how its response ended, if not completely.
        refusal: for the log, why it was refused with 401 or 403.
    """

    # On the class, as most requests leave them as they are.
    user: User | None = None
    extra_head = b""
    waited_ms = 0
    run_id = 0
    bytes_sent = 0
    outcome = ""
    refusal = ""

    def __init__(
        self, request: web.BaseRequest, request_id: str, path: str, query: str, token_prefix: str
    ) -> None:
        self.request = request
        self.request_id = request_id
        self.method = request.method
        self.path = path
        self.query = query
        self.token_prefix = token_prefix

    @property
    def dialect(self) -> Dialect:
        """The shape of its errors; worked out only where one is needed."""
        return dialect_of(self.path)

    def upstream_target(self, upstream_path: str) -> str:
        """Return path and query to ask the pod for."""
        return f"{upstream_path}?{self.query}" if self.query else upstream_path

    def note_wait(self, waited_s: float, run_id: int) -> None:
        """Take note of the pod's run and, if the request waited, of how long: in the log and a header."""
        self.run_id = run_id
        if waited_s > 0 and not self.waited_ms:
            self.waited_ms = max(1, round(waited_s * 1000))
            self.extra_head += b"X-Gpugate-Waited-Ms: %d\r\n" % self.waited_ms


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
