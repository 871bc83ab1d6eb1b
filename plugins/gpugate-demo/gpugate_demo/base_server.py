"""The base of the simulated HTTP servers: listens on this machine, records requests, applies faults."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable

from aiohttp import web
from attrs import define, field
from multidict import CIMultiDict

from gpugate_demo.faults import (
    Answer,
    BreakAfter,
    CloseBeforeHead,
    Fault,
    Faults,
    Garbage,
    Hang,
    HangAfter,
    NotReady,
    Slow,
)

STOP_WAIT_S = 1.0
RST = struct.pack("ii", 1, 0)


@define
class RecordedRequest:
    """A request that the server received.

    Attributes:
        body: what was kept of its body; empty for uploads, and beyond the server's `keep_bodies`.
        body_size: bytes of the body that were read.
        status: of the answer, once its head was sent.
        finished: the answer was sent to its end.
        cancelled: the client went away before that.
        severed: a fault closed the connection.
        at: `time.monotonic()` of its arrival.
    """

    method: str
    path: str
    query: str
    headers: CIMultiDict[str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    body_size: int = 0
    status: int | None = None
    finished: bool = False
    cancelled: bool = False
    severed: bool = False
    at: float = field(factory=time.monotonic)
    _whole: bytes | None = field(default=None, repr=False)


Handler = Callable[[web.BaseRequest, RecordedRequest, Fault | None], Awaitable[web.StreamResponse]]


class BaseServer:
    """A server on `host`; port 0 lets the system choose. `async with` starts and stops it.

    Attributes:
        faults: what shall go wrong.
        seen: the latest requests, oldest first.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, max_seen: int = 1000, keep_bodies: int = 1 << 20
    ) -> None:
        self.host = host
        self.port = port
        self.faults = Faults()
        self.seen: deque[RecordedRequest] = deque(maxlen=max_seen)
        self._keep_bodies = keep_bodies
        self._changed = asyncio.Event()
        self._in_flight = 0
        self._server: asyncio.Server | None = None
        self._web: web.Server | None = None

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        return f"http://{self.host}:{self.port}"

    @property
    def open_connections(self) -> int:
        """Connections that clients hold open."""
        return len(self._web.connections) if self._web else 0

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return self._in_flight

    def calls(self, path: str) -> list[RecordedRequest]:
        """The recorded requests of `path`, oldest first."""
        return [seen for seen in self.seen if seen.path == path]

    async def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """Wait until `condition` holds, looking whenever a request changes; TimeoutError if it never does."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def __aenter__(self) -> BaseServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen. Raises: OSError, the port is taken."""
        self._web = web.Server(
            self._serve, handler_cancellation=True, access_log=None, auto_decompress=False, lingering_time=1.0
        )
        self._server = await asyncio.get_running_loop().create_server(self._web, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and drop open connections."""
        if self._server is None or self._web is None:
            return
        self._server.close()
        for _ in range(3):  # one that has just been accepted shows up a turn of the loop later
            self._abort_connections(self._web)
            await asyncio.sleep(0)
        try:
            await self.until(lambda: self._in_flight == 0, STOP_WAIT_S)
        except TimeoutError:
            await self._web.shutdown(0.01)  # 0 would mean no limit
        await self._web.shutdown(0.01)
        self._server = self._web = None

    @staticmethod
    def _abort_connections(server: web.Server) -> None:
        for connection in server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    async def handle(
        self, request: web.BaseRequest, seen: RecordedRequest, fault: Fault | None
    ) -> web.StreamResponse:
        """Answer one request; `fault` is one that spoils the answer under way, or None."""
        raise NotImplementedError

    async def read_body(self, request: web.BaseRequest, seen: RecordedRequest) -> bytes:
        """Read the whole body and record it; a second call returns the same bytes."""
        if seen._whole is not None:
            return seen._whole
        body = seen._whole = await request.content.read()
        seen.body_size = len(body)
        if len(body) <= self._keep_bodies:
            seen.body = body
        return body

    def notify(self) -> None:
        """Wake all tasks that wait in `until`."""
        self._changed.set()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = CIMultiDict(request.headers)
        seen = RecordedRequest(request.method, request.path, request.raw_path.partition("?")[2], headers)
        self.seen.append(seen)
        self._in_flight += 1
        self.notify()
        try:
            response = await self._with_fault(request, seen)
            if not response.prepared:
                await response.prepare(request)
            seen.status = response.status
            if not isinstance(response, web.WebSocketResponse):
                await response.write_eof()
            seen.finished = True
            return response
        except (asyncio.CancelledError, ConnectionError):
            seen.cancelled = not seen.severed
            raise
        finally:
            seen._whole = None
            self._in_flight -= 1
            self.notify()

    async def _with_fault(self, request: web.BaseRequest, seen: RecordedRequest) -> web.StreamResponse:
        fault = self.faults.take(request.path)
        if fault is not None:
            if isinstance(fault, Answer | CloseBeforeHead | Garbage | Hang):
                await self.read_body(request, seen)
            spoiled = await _instead(request, seen, fault)
            if spoiled is not None:
                return spoiled
        response = await self.handle(request, seen, fault)
        if isinstance(response, web.Response) and isinstance(fault, BreakAfter | HangAfter):
            return await _spoiled(request, seen, response, fault)
        return response


async def _instead(
    request: web.BaseRequest, seen: RecordedRequest, fault: Fault
) -> web.StreamResponse | None:
    """Return the response that replaces the real one, or None to send the real one."""
    if isinstance(fault, Answer):
        response = web.Response(status=fault.status, body=fault.body, headers=dict(fault.headers))
        response.headers["Content-Type"] = fault.content_type
        return response
    if isinstance(fault, NotReady) and not fault.until.is_set():
        response = web.Response(status=fault.status, body=fault.body)
        response.headers["Content-Type"] = fault.content_type
        return response
    if isinstance(fault, CloseBeforeHead):
        await asyncio.sleep(fault.delay_s)
        await drop_connection(request, seen, reset=fault.reset)
    if isinstance(fault, Garbage):
        if request.transport is not None:
            request.transport.write(fault.data)
        await drop_connection(request, seen, reset=False)
    if isinstance(fault, Hang):
        await (fault.until or asyncio.Event()).wait()
    if isinstance(fault, Slow):
        await asyncio.sleep(fault.first_s)
    return None


async def drop_connection(request: web.BaseRequest, seen: RecordedRequest, *, reset: bool) -> None:
    """Close the connection under an unfinished answer; ends in CancelledError, never returns."""
    transport = request.transport
    seen.severed = True
    if transport is not None and not transport.is_closing():
        if reset:
            await asyncio.sleep(0.005)  # what was written leaves first: a reset drops what is still here
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            transport.abort()
        else:
            transport.close()
    await asyncio.Event().wait()  # the lost connection cancels this handler


async def _spoiled(
    request: web.BaseRequest, seen: RecordedRequest, whole: web.Response, fault: BreakAfter | HangAfter
) -> web.StreamResponse:
    """An answer that is no stream, in two halves with the fault between them (or before, for 0 chunks)."""
    body = whole.body if isinstance(whole.body, bytes) else b""
    response = web.StreamResponse(status=whole.status, headers=whole.headers)
    response.content_length = len(body)
    await response.prepare(request)
    seen.status = response.status
    half = len(body) // 2 if fault.chunks else 0
    await response.write(body[:half])
    if isinstance(fault, BreakAfter):
        await drop_connection(request, seen, reset=fault.reset)
    else:
        await (fault.until or asyncio.Event()).wait()
    await response.write(body[half:])
    return response
