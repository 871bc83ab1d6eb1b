"""A local port whose connections go through the cluster's API to a Pod, one websocket each.

The protocol is `v4.channel.k8s.io` (docs/providers.md#kubernetes-port-forward): each frame begins with a
byte, 0 for data and 1 for an error; the first frame of each of the two holds the port's number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from socket import SO_LINGER, SOL_SOCKET
from struct import pack

import aiohttp

from gpugate import ProviderError
from gpugate.tasks import spawn
from gpugate_kubernetes.cluster import Cluster

DATA, ERROR = 0, 1
PIECE = 64 * 1024


class PortForward:
    """Listens on 127.0.0.1 from the first `to` on, at a port that stays the same."""

    def __init__(self, cluster: Cluster, port: int) -> None:
        self._cluster = cluster
        self._port = port
        self._pods: Sequence[str] = ()
        self._turns = count()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def to(self, pods: Sequence[str]) -> str:
        """Send new connections to these Pods in turn; return the URL of the local port."""
        self._pods = pods
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def aclose(self) -> None:
        """Stop listening, and cut what is open."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = spawn(self._serve(reader, writer), "kubernetes:port-forward")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection; whatever breaks, its client sees a connection that ends."""
        try:
            with suppress(aiohttp.ClientError, OSError, ProviderError, TimeoutError):
                pod = self._pods[next(self._turns) % len(self._pods)] if self._pods else ""
                if pod:
                    await self._carry(pod, reader, writer)
        finally:
            writer.close()

    async def _carry(self, pod: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with await self._cluster.open_port_forward(pod, self._port) as socket:
            up = spawn(self._send(reader, socket), "kubernetes:port-forward:up", on_crash=lambda *_: None)
            try:
                await self._receive(socket, writer)
            finally:
                up.cancel()
                await asyncio.gather(up, return_exceptions=True)

    async def _send(self, reader: asyncio.StreamReader, socket: aiohttp.ClientWebSocketResponse) -> None:
        while piece := await reader.read(PIECE):
            await socket.send_bytes(bytes([DATA]) + piece)
        await socket.close()

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse, writer: asyncio.StreamWriter) -> None:
        begun: set[int] = set()
        async for frame in socket:
            if frame.type is not aiohttp.WSMsgType.BINARY or not frame.data:
                continue
            channel = frame.data[0]
            if channel not in begun:
                begun.add(channel)  # the port's number
            elif channel == ERROR:
                _reset(writer)
                return
            else:
                writer.write(frame.data[1:])
                await writer.drain()
        if socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE:
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by a reset: an end in good order would look like the end of an answer."""
    socket = writer.get_extra_info("socket")
    socket.setsockopt(SOL_SOCKET, SO_LINGER, pack("ii", 1, 0))
    writer.transport.abort()
