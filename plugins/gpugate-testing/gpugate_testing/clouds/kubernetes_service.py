"""What leads to the Pods of a simulated cluster: a NodePort, and the API's port-forward. It knows no API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from aiohttp import WSMsgType, web

from gpugate.tasks import spawn

PIECE = 64 * 1024
DATA, ERROR = b"\x00", b"\x01"
PROTOCOL = "v4.channel.k8s.io"


class SimService:
    """Carries connections to `upstream` while a Pod is ready; others are cut at once.

    Attributes:
        upstream: port on 127.0.0.1 of what really answers.
        node_port: where it listens.
    """

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        self.upstream = 0
        self.node_port = 0
        self._is_ready = is_ready
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.node_port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """End all connections, as the end of a Pod does."""
        for writer in list(self._open):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with suppress(OSError):
                if self._is_ready() and self.upstream:
                    await self._pipe(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection("127.0.0.1", self.upstream)
        up = spawn(_copy(reader, there), "cloud:service", on_crash=lambda *_: None)
        try:
            await _copy(back, writer)
        finally:
            up.cancel()
            there.close()

    async def forward(self, request: web.Request, port: int) -> web.StreamResponse:
        """A port-forward: channel 0 carries bytes, channel 1 errors; both begin with the port's number."""
        socket = web.WebSocketResponse(protocols=(PROTOCOL,))
        await socket.prepare(request)
        for channel in (DATA, ERROR):
            await socket.send_bytes(channel + port.to_bytes(2, "little"))
        if not self._is_ready() or not self.upstream:
            await socket.send_bytes(ERROR + b"an error occurred forwarding: connection refused")
            await socket.close()
            return socket
        back, there = await asyncio.open_connection("127.0.0.1", self.upstream)
        down = spawn(_send(back, socket), "cloud:port-forward", on_crash=lambda *_: None)
        try:
            async for frame in socket:
                if frame.type is WSMsgType.BINARY and frame.data[:1] == DATA:
                    there.write(frame.data[1:])
                    await there.drain()
        finally:
            down.cancel()
            there.close()
        return socket


async def _send(reader: asyncio.StreamReader, socket: web.WebSocketResponse) -> None:
    while piece := await reader.read(PIECE):
        await socket.send_bytes(DATA + piece)
    await socket.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
    if not writer.is_closing():
        writer.close()
