"""One request on its way through the gateway: what was asked, by whom, its body, and what is logged of it."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from attrs import frozen

from gpugate.errors import BodyTooSlow, InvalidRequest, PayloadTooLarge, UnknownTransferCoding
from gpugate.lifecycle.lease import WakeRequest
from gpugate.proxy.auth import User, subject_of
from gpugate.proxy.error_format import Dialect, dialect_of
from gpugate.relay.relay import PacedBody

_MALFORMED = "the request body is malformed"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestContext:
    """What is known of one request while it is answered.

    Attributes:
        path: the raw path without query and without a path token; may be logged.
        query: what stood behind the question mark.
        token_prefix: the path token's part of the path, a secret; empty without one.
        user: who the token belongs to, once it is verified.
        extra_head: header lines that every response to this request carries, each with its CRLF.
        pod: the pod that it is for, where there are several; else empty.
        waited_ms: how long it waited for the pod, 0 if it did not.
        run_id: the pod's run that served it, 0 if none.
        body_bytes: how much of its body is kept while it waits.
        bytes_sent: written to the client by the relay or as filler.
        outcome: how its response ended, if not completely.
        refusal: for the log, why it was refused with 401 or 403.
    """

    # On the class, as most requests leave them as they are.
    user: User | None = None
    extra_head = b""
    pod = ""
    waited_ms = 0
    run_id = 0
    body_bytes = 0
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

    def wake_request(self, model: str | None) -> WakeRequest:
        """Return what the wake rules are asked for this request; its path decoded, as routes are matched."""
        return WakeRequest(
            user=subject_of(self.user),
            model=model or "",
            path=unquote(self.path),
            agent=self.request.headers.get("User-Agent", ""),
        )

    def note_wait(self, waited_s: float, run_id: int) -> None:
        """Take note of the pod's run and, if the request waited, of how long: in the log and a header."""
        self.run_id = run_id
        if waited_s > 0 and not self.waited_ms:
            self.waited_ms = max(1, round(waited_s * 1000))
            self.extra_head += b"X-Gpugate-Waited-Ms: %d\r\n" % self.waited_ms


def check_transfer_coding(request: web.BaseRequest) -> None:
    """Refuse a body that was coded before it was cut into chunks (RFC 9112 6.1).

    Raises:
        UnknownTransferCoding: the `Transfer-Encoding` is not chunked alone.
    """
    codings = ",".join(request.headers.getall("Transfer-Encoding"))
    if codings.strip().lower() != "chunked":
        raise UnknownTransferCoding


def send_continue(request: web.BaseRequest) -> None:
    """Tell a client that asked first (`Expect: 100-continue`) to send; `web.Server` does not.

    Not a client of HTTP/1.0, which knows no such response (RFC 9110 10.1.1).
    """
    if "Expect" in request.headers and request.headers["Expect"].lower() == "100-continue":
        transport = request.transport
        if transport is not None and request.version >= (1, 1) and not request.content.total_bytes:
            transport.write(_CONTINUE)


@frozen
class BodyLimits:
    """What bounds the bodies that are read whole.

    Attributes:
        max_body: bytes of one body (`server.max_body`).
        timeout_s: see `PacedBody`.
        key: the setting that `max_body` is from; empty if none is.
    """

    max_body: int
    timeout_s: float
    key: str = "server.max_body"

    def too_large(self) -> PayloadTooLarge:
        """Return the error of a larger body."""
        named = f" ({self.key})" if self.key else ""
        return PayloadTooLarge(f"request body is larger than {self.max_body} bytes{named}")


def whole_body(request: web.BaseRequest, limits: BodyLimits) -> bytes | None:
    """Return a body that has come completely, None for one that is still coming.

    Raises:
        PayloadTooLarge: it is over the limit, or says so; nothing was read.
        InvalidRequest: its framing is broken.
    """
    content = request.content
    if max(content.total_bytes, request.content_length or 0) > limits.max_body:
        raise limits.too_large()
    if not content.is_eof():
        return None
    if content.exception() is not None:
        raise InvalidRequest(_MALFORMED)
    return content.read_nowait(-1) if content.total_bytes else b""


async def read_body(
    request: web.BaseRequest, limits: BodyLimits, hold: Callable[[int], None] | None = None
) -> bytes:
    """Return the whole body.

    Args:
        hold: called before bytes are kept, with their number; may refuse them by raising.

    Raises:
        PayloadTooLarge: it is over the limit.
        BodyTooSlow: it comes too slowly.
        InvalidRequest: its framing is broken.
    """
    if (whole := whole_body(request, limits)) is not None:
        return whole
    told = request.content_length or 0
    if hold is not None:
        hold(told)
    send_continue(request)
    pieces = PacedBody(request.content, limits.timeout_s)
    body = bytearray()  # not a list of pieces: those leave holes between a thousand bodies that are held
    try:
        while piece := await pieces.readany():
            if len(body) + len(piece) > limits.max_body:
                raise limits.too_large()
            if hold is not None and not told:
                hold(len(piece))
            body += piece
    except TimeoutError as error:
        raise BodyTooSlow from error
    except (web.RequestPayloadError, HttpProcessingError, ValueError) as error:
        raise InvalidRequest(_MALFORMED) from error
    return bytes(body)
