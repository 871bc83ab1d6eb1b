"""Sends filler while a request waits (`queue.heartbeat`), so that no proxy in between cuts a silent
connection.

The price is the status code: 200 is sent with the first filler, and a later failure comes as in mid-stream
(docs/api.md#heartbeat).
"""

from __future__ import annotations

import asyncio

import orjson
from aiohttp import ClientConnectionResetError

from gpugate.errors import GateError, UpstreamBroken
from gpugate.lifecycle.lease import Lease, ServingPod
from gpugate.proxy.error_format import Dialect, stream_error
from gpugate.proxy.request_context import RequestContext
from gpugate.relay.relay import RelayedResponse
from gpugate.relay.response_parser import LAST_CHUNK, as_chunk
from gpugate.relay.response_policy import RelayOutcome

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
JSON = "application/json"


class Heartbeat:
    """The filler of one held request; a client of HTTP/1.0 gets it without chunks, and then the end.

    Attributes:
        headers_sent: status 200 and the first filler have been sent.
    """

    def __init__(self, context: RequestContext, interval_s: float, *, streams: bool) -> None:
        self.headers_sent = False
        self._context = context
        self._interval_s = interval_s
        self._in_chunks = context.request.version >= (1, 1)
        native = context.dialect in (Dialect.OLLAMA, Dialect.ENVELOPE)
        if streams:
            self._content_type = NDJSON if native else SSE
        else:
            self._content_type = f"{JSON}; charset=utf-8" if native else JSON

    async def wait_for_pod(self, lease: Lease) -> ServingPod:
        """Wait for the pod, and send filler meanwhile.

        Raises:
            GateError: the request was rejected.
        """
        while True:
            try:
                async with asyncio.timeout(self._interval_s):
                    return await lease.wait_admitted()
            except TimeoutError:
                await self.send_filler()

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
        """Send what clients ignore, the first time with the head of the response."""
        filler = b": waiting\n\n" if self._content_type == SSE else b" "
        opening = b"" if self.headers_sent else self._response_head()
        self.headers_sent = True
        self._write(opening + self._framed(filler))

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
