"""Connections through the API to a Pod: bytes unchanged, many at once, and a break that is seen as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from gpugate_kubernetes import KubernetesConfig
from gpugate_kubernetes.cluster import Cluster
from gpugate_kubernetes.port_forward import PortForward
from gpugate_testing.clouds import Delays, Http, KubernetesSim
from kubernetes_support import Files

AT_ONCE = Delays(provision_s=0, start_s=0, ready_s=0, stop_s=0)
BYTES = bytes(range(256)) * 4096


@pytest.fixture
async def cloud() -> AsyncIterator[KubernetesSim]:
    """A Pod whose service sends back what it gets, and ends when it has got a megabyte."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = len(BYTES)
        while left and (piece := await reader.read(1 << 16)):
            left -= len(piece)
            writer.write(piece)
            await writer.drain()
        writer.close()

    async with (
        await asyncio.start_server(echo, "127.0.0.1", 0) as server,
        KubernetesSim(delays=AT_ONCE) as cloud,
    ):
        cloud.service.upstream = server.sockets[0].getsockname()[1]
        cloud.scale_to(1)
        yield cloud


@pytest.fixture
async def forward(cloud: KubernetesSim, tmp_path: Path) -> AsyncIterator[PortForward]:
    kubeconfig = Files(tmp_path).kubeconfig(cloud.url, cloud.api_key)
    cluster = Cluster(KubernetesConfig(kubeconfig=kubeconfig))
    forward = PortForward(cluster, 11434)
    yield forward
    await forward.aclose()
    await cluster.aclose()


async def sent(url: str, data: bytes) -> bytes:
    """What comes back, until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    try:
        writer.write(data)
        await writer.drain()
        return await reader.read(-1)
    finally:
        writer.close()


async def test_bytes(cloud: KubernetesSim, forward: PortForward) -> None:
    """The same, of several connections at once; the port stays the same."""
    url = await forward.to([cloud.replicas[0].name])

    assert [BYTES] * 3 == await asyncio.gather(*(sent(url, BYTES) for _ in range(3)))
    assert url == await forward.to([cloud.replicas[0].name])


async def test_a_service_that_does_not_listen(cloud: KubernetesSim, forward: PortForward) -> None:
    """The error that comes beside the data is a reset, not the end of an answer."""
    cloud.service.upstream = 0
    url = await forward.to([cloud.replicas[0].name])

    with pytest.raises(ConnectionResetError):
        await sent(url, b"GET / HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize("pods", [[], ["nobody"]])
async def test_a_pod_that_is_not_there(forward: PortForward, pods: list[str]) -> None:
    """The connection ends at once, and the next one is as good as ever."""
    url = await forward.to(pods)
    with suppress(ConnectionResetError):
        assert await sent(url, b"x") == b""


async def test_the_api_refuses(cloud: KubernetesSim, forward: PortForward) -> None:
    """As one without the right to do it."""
    url = await forward.to([cloud.replicas[0].name])
    cloud.fail("portforward", Http(403))
    with suppress(ConnectionResetError):
        assert await sent(url, b"x") == b""
    assert await sent(url, BYTES) == BYTES


async def test_it_is_closed_in_mid_air(cloud: KubernetesSim, forward: PortForward) -> None:
    """What is open is cut."""
    url = await forward.to([cloud.replicas[0].name])
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    writer.write(b"half")
    assert await reader.read(4) == b"half"
    await forward.aclose()
    async with asyncio.timeout(5):
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
