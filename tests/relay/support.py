"""A scripted upstream, a gateway around the relay and a raw client: all on 127.0.0.1, all byte by byte."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from aiohttp import web
from attrs import define, field

from gpugate.provider_api import Endpoint
from gpugate.relay.pool import ConnectionPool
from gpugate.relay.relay import PacedBody, Relay, RelayedResponse, UpstreamRequest
from gpugate.relay.response_policy import ResponsePolicy

BOUND_S = 10.0


@define
class Wire:
    """One end of a connection, with what tests do to it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        """Read one head, its empty line included."""
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), BOUND_S)

    async def exactly(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), BOUND_S)

    async def until(self, mark: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(mark), BOUND_S)

    async def rest(self) -> bytes:
        """Read to the end of the connection; a reset raises ConnectionResetError."""
        return await asyncio.wait_for(self.reader.read(), BOUND_S)

    async def gone(self) -> None:
        """Wait until the other side has closed or reset."""
        with suppress(ConnectionError):
            while await asyncio.wait_for(self.reader.read(65536), BOUND_S):
                pass

    def hang_up(self) -> None:
        """End with a FIN."""
        self.writer.transport.abort()

    def reset(self) -> None:
        """End with a RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Wire], Awaitable[None]]


@define
class FakePod:
    """An upstream that does to each connection what its script says."""

    port: int = 0
    connections: int = 0
    heads: list[bytes] = field(factory=list)
    tls: bool = False

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}")


@asynccontextmanager
async def fake_pod(script: Script, *, secure: ssl.SSLContext | None = None) -> AsyncIterator[FakePod]:
    pod = FakePod(tls=secure is not None)
    running: set[asyncio.Task[None]] = set()
    crashes: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pod.connections += 1
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await script(Wire(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except Exception as error:
            crashes.append(error)
        finally:
            running.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=secure, limit=1 << 20)
    pod.port = server.sockets[0].getsockname()[1]
    try:
        yield pod
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=BOUND_S)
        await asyncio.sleep(0)
        assert not crashes, crashes


Arrange = Callable[[web.BaseRequest, UpstreamRequest, ResponsePolicy], None]


@define
class Gateway:
    """The relay behind a real aiohttp server."""

    pool: ConnectionPool
    port: int = 0
    ended: list[RelayedResponse | BaseException] = field(factory=list)
    server: web.Server | None = None
    handlers: set[asyncio.Task[object]] = field(factory=set)
    _clients: list[Wire] = field(factory=list)
    _news: asyncio.Event = field(factory=asyncio.Event)

    def note(self, outcome: RelayedResponse | BaseException) -> None:
        self.ended.append(outcome)
        self._news.set()

    async def outcome(self, number: int = 1) -> RelayedResponse | BaseException:
        """Return how request `number` (from 1) ended, once it has."""
        async with asyncio.timeout(BOUND_S):
            while len(self.ended) < number:
                self._news.clear()
                await self._news.wait()
        return self.ended[number - 1]

    async def client(self, receive_buffer: int | None = None) -> Wire:
        """Connect to it; the connection is closed with the gateway, if not before."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        wire = Wire(*await asyncio.open_connection(sock=sock, limit=1 << 22))
        self._clients.append(wire)
        return wire

    def cut_handlers(self) -> None:
        """Do what aiohttp does to handlers that outlast a shutdown."""
        assert self.server is not None
        for task in self.handlers:
            task.cancel()
        for connection in self.server.connections:
            connection.force_close()

    def close(self) -> None:
        self.pool.abort()
        for wire in self._clients:
            wire.writer.transport.abort()


@asynccontextmanager
async def gateway(
    endpoint: Endpoint,
    *,
    answer: Callable[[], ResponsePolicy] = ResponsePolicy,
    relay: Relay | None = None,
    pool: ConnectionPool | None = None,
    committed_head: bytes = b"",
    target: str | None = None,
    linger_s: float = 0.2,
    lengths: Sequence[int] = (),
    send_buffer: int | None = None,
    body_limit_s: float = 30.0,
) -> AsyncIterator[Gateway]:
    """Forward everything; bodies are streamed for /stream..., and read before otherwise."""
    relay = relay or Relay()
    gate = Gateway(pool or ConnectionPool(endpoint))

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        body: bytes | PacedBody = PacedBody(request.content, body_limit_s)
        task = asyncio.current_task()
        assert task is not None
        gate.handlers.add(task)
        task.add_done_callback(gate.handlers.discard)
        try:
            if not request.path.startswith("/stream"):
                body = await request.content.read()
            if committed_head:
                assert request.transport is not None
                request.transport.write(committed_head)
            headers = request.raw_headers
            if lengths:  # tell one after the other instead of the client's
                headers = [(b"Content-Length", b"%d" % lengths[len(gate.ended)])]
            outgoing = UpstreamRequest(
                request.method,
                request.path_qs if target is None else target,
                headers,
                body,
            )
            relayed = await relay.forward(request, gate.pool, outgoing, answer())
        except Exception as error:
            gate.note(error)
            return web.Response(status=502, text=f"{type(error).__name__}: {error}")
        except BaseException as error:
            gate.note(error)
            raise
        gate.note(relayed)
        return relayed

    server = web.Server(
        handle, handler_cancellation=True, auto_decompress=False, access_log=None, lingering_time=linger_s
    )
    gate.server = server
    runner = web.ServerRunner(server, shutdown_timeout=0.2)
    await runner.setup()
    sock = socket.create_server(("127.0.0.1", 0), backlog=128)
    if send_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    await web.SockSite(runner, sock).start()
    gate.port = sock.getsockname()[1]
    try:
        yield gate
    finally:
        gate.close()
        await runner.cleanup()
        await asyncio.sleep(0)


def get(path: str = "/api/tags", *lines: str, version: str = "1.1", method: str = "GET") -> bytes:
    """Return a raw request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: gate", *lines, "", ""]).encode()


def post(body: bytes, path: str = "/api/chat", *lines: str) -> bytes:
    """Return a raw request with a counted body."""
    return get(path, f"Content-Length: {len(body)}", *lines, method="POST") + body


def counted(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    """Return a raw answer with a counted body."""
    head = [f"HTTP/1.1 {status}", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


def chunked(*pieces: bytes, last: bool = True) -> bytes:
    """Return `pieces` as chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + (b"0\r\n\r\n" if last else b"")


def streamed_head(content_type: str = "application/x-ndjson", *lines: str) -> bytes:
    """Return the head of a chunked answer."""
    head = ["HTTP/1.1 200 OK", f"Content-Type: {content_type}", *lines, "Transfer-Encoding: chunked", "", ""]
    return "\r\n".join(head).encode()


def once(answer: bytes, *, close: bool = False) -> Script:
    """Answer each request without a body with these bytes."""

    async def script(wire: Wire) -> None:
        while True:
            await wire.head()
            await wire.send(answer)
            if close:
                return

    return script


def as_script(answer: bytes, then: str = "close") -> Script:
    """Answer one request without a body with these bytes, then "close", "reset" or "stay"."""

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(answer)
        if then == "reset":
            await asyncio.sleep(0.02)  # a reset must not overtake the bytes before it
            wire.reset()
        elif then == "stay":
            await wire.gone()

    return script
