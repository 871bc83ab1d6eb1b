"""The mapped ports of simulated instances: new numbers for every run, and behind them the real service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from attrs import define, field

from gpugate.tasks import spawn
from gpugate_testing.clouds.pods import SimPod

CHUNK = 64 * 1024


@define
class _Mapped:
    """The ports of one run of one instance."""

    run: float
    outer: dict[int, int]
    servers: list[asyncio.Server] = field(factory=list)


@define
class Ports:
    """Docker's port map of each instance, as Vast.ai shows it.

    Attributes:
        upstreams: the URL of the service behind an inner port; without one the number leads nowhere.
    """

    upstreams: dict[int, str] = field(factory=dict)
    _mapped: dict[str, _Mapped] = field(factory=dict)
    _pipes: set[asyncio.Task[Any]] = field(factory=set)
    _last: int = 40_000

    async def of(self, pod: SimPod, inner: Mapping[str, Any]) -> dict[str, Any] | None:
        """The map of an instance that runs; `inner` are its ports, from its `-p` options."""
        if pod.uptime_s is None or pod.running_since is None:
            await self._close(pod.id)
            return None
        mapped = self._mapped.get(pod.id)
        if mapped is None or mapped.run != pod.running_since:
            await self._close(pod.id)
            mapped = self._mapped[pod.id] = _Mapped(pod.running_since, {})
            for port in inner:
                mapped.outer[int(port)] = await self._open(pod, int(port), mapped)
        return {
            f"{port}/tcp": [
                {"HostIp": "::", "HostPort": str(outer)},
                {"HostIp": "0.0.0.0", "HostPort": str(outer)},
            ]
            for port, outer in mapped.outer.items()
        }

    def outer(self, pod: SimPod, port: int) -> int | None:
        """The number that this inner port had when the instance was last shown."""
        mapped = self._mapped.get(pod.id)
        return mapped.outer.get(port) if mapped is not None and mapped.run == pod.running_since else None

    async def aclose(self) -> None:
        """Close every port and connection."""
        for pod_id in list(self._mapped):
            await self._close(pod_id)
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _open(self, pod: SimPod, port: int, mapped: _Mapped) -> int:
        if port not in self.upstreams:
            self._last += 1
            return self._last
        run = mapped.run

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            pipe = spawn(self._pipe(pod, run, port, reader, writer), "vast:pipe")
            self._pipes.add(pipe)
            pipe.add_done_callback(self._pipes.discard)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        mapped.servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _pipe(
        self, pod: SimPod, run: float, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Bytes both ways while this run lasts; nobody listens before the service is up."""
        try:
            if not pod.serves or pod.running_since != run:
                return
            parts = urlsplit(self.upstreams[port])
            back, forth = await asyncio.open_connection(parts.hostname, parts.port)
            try:

                def lasts() -> bool:
                    return pod.serves and pod.running_since == run

                ways = [
                    spawn(_copy(reader, forth, lasts), "vast:up"),
                    spawn(_copy(back, writer, lasts), "vast:down"),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
            finally:
                forth.close()
        except OSError:
            pass  # one end is gone: so is the other now
        finally:
            writer.close()

    async def _close(self, pod_id: str) -> None:
        mapped = self._mapped.pop(pod_id, None)
        for server in mapped.servers if mapped is not None else ():
            server.close()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, lasts: Callable[[], bool]) -> None:
    """Copy until either end closes, or the container has ended, which is noticed at its next bytes."""
    try:
        while (chunk := await source.read(CHUNK)) and lasts():
            sink.write(chunk)
            await sink.drain()
    except OSError:
        pass  # the end of one way is the end of both
