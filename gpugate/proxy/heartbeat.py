"""Sends filler while a request waits (`queue.heartbeat`), so that no proxy in between cuts a silent
connection, and lines of progress (`queue.progress`).

The price is the status code: 200 is sent with the first of them, and a later failure comes as in mid-stream
(docs/api.md#heartbeat).
"""

from __future__ import annotations

import asyncio
from math import inf

import orjson
from aiohttp import ClientConnectionResetError

from gpugate.errors import GateError, UpstreamBroken
from gpugate.lifecycle.lease import Lease, ServingPod
from gpugate.ollama.progress_lines import LOOK_EVERY_S, ProgressLines
from gpugate.proxy.error_format import Dialect, stream_error
from gpugate.proxy.request_context import RequestContext
from gpugate.relay.relay import RelayedResponse
from gpugate.relay.response_parser import LAST_CHUNK, as_chunk
from gpugate.relay.response_policy import RelayOutcome

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
JSON = "application/json"


class Heartbeat:
    """What one held request is sent; a client of HTTP/1.0 gets it without chunks, and then the end.

    Args:
        interval_s: after so long without a byte filler is sent; 0: never.
        lines: tells the client what is waited for; None: nothing does.

    Attributes:
        headers_sent: status 200 and the first filler or line have been sent.
    """

    def __init__(
        self,
        context: RequestContext,
        interval_s: float,
        *,
        streams: bool,
        lines: ProgressLines | None = None,
    ) -> None:
        self.headers_sent = False
        self._context = context
        self._interval_s = interval_s or inf
        self._lines = lines
        self._in_chunks = context.request.version >= (1, 1)
        native = context.dialect in (Dialect.OLLAMA, Dialect.ENVELOPE)
        if streams:
            self._content_type = NDJSON if native else SSE
        else:
            self._content_type = f"{JSON}; charset=utf-8" if native else JSON

    async def wait_for_pod(self, lease: Lease) -> ServingPod:
        """Wait for the pod; send filler and lines meanwhile.

        Raises:
            GateError: the request was rejected.
        """
        loop, lines = asyncio.get_running_loop(), self._lines
        filler_at = loop.time() + self._interval_s
        look_at = inf if lines is None else loop.time() + LOOK_EVERY_S
        while True:
            try:
                async with asyncio.timeout_at(min(filler_at, look_at)):
                    return await lease.wait_admitted()
            except TimeoutError:
                now = loop.time()
            line = b""
            if lines is not None and now >= look_at:
                line, look_at = lines.next_line(lease, now), now + LOOK_EVERY_S
            if line:
                self._send(line)
            elif now >= filler_at:
                await self.send_filler()
            else:
                continue
            filler_at = now + self._interval_s

    def finish_with_error(self, error: GateError) -> RelayedResponse:
        """End a response of which only filler has been sent."""
        context = self._context
        return self._finish(
            stream_error(context.dialect, error, self._content_type, request_id=context.request_id)
        )

    def finish_with_upstream_error(self, refusal: bytes) -> RelayedResponse:
        """End with the pod's own error body, as its status cannot be sent any more."""
        try:
            words = orjson.dumps(orjson.loads(refusal))
        except orjson.JSONDecodeError:
            return self.finish_with_error(UpstreamBroken("the pod's service refused the request"))
        if self._content_type == SSE:
            name = b"event: error\n" if self._context.dialect is Dialect.ANTHROPIC else b""
            words = name + b"data: " + words + b"\n\n"
        return self._finish(words + b"\n" if self._content_type == NDJSON else words)

    def finish_with_body(self, answer: bytes) -> RelayedResponse:
        """End with the whole response."""
        return self._finish(answer, clean=True)

    def _finish(self, words: bytes, *, clean: bool = False) -> RelayedResponse:
        """Write the last bytes. An error ends NDJSON out of order; SSE and JSON are whole with it."""
        context = self._context
        clean = clean or self._content_type != NDJSON
        self._write(self._framed(words) + (LAST_CHUNK if clean and self._in_chunks else b""))
        if not clean and context.request.transport is not None:
            context.request.transport.close()
        outcome = RelayOutcome.COMPLETE if clean else RelayOutcome.UPSTREAM_LOST
        return RelayedResponse(
            200, ending=outcome, keep_alive=clean and self._keeps_alive, sent=context.bytes_sent
        )

    @property
    def _keeps_alive(self) -> bool:
        return self._in_chunks and self._context.request.keep_alive

    def _framed(self, payload: bytes) -> bytes:
        return as_chunk(payload) if self._in_chunks else payload

    async def send_filler(self) -> None:
        """Send what clients ignore."""
        self._send(b": waiting\n\n" if self._content_type == SSE else b" ")

    def _send(self, payload: bytes) -> None:
        """Send a part of the body, the first time with the head of the response."""
        opening = b"" if self.headers_sent else self._response_head()
        self.headers_sent = True
        self._write(opening + self._framed(payload))

    def _response_head(self) -> bytes:
        kind = self._content_type.encode("ascii")
        framing = b"Transfer-Encoding: chunked\r\n" if self._in_chunks else b""
        keep = b"" if self._keeps_alive else b"Connection: close\r\n"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nCache-Control: no-cache\r\n"
        return head + framing + keep + self._context.extra_head + b"\r\n"

    def _write(self, data: bytes) -> None:
        transport = self._context.request.transport
        if transport is None:
            raise ClientConnectionResetError("the client is gone")
        if not self._context.bytes_sent:
            # so that aiohttp never starts a response of its own to this request
            self._context.request.writer.output_size += len(data)
        self._context.bytes_sent += len(data)
        transport.write(data)
