"""Begins to listen, and checks that the gateway answers."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable, Sequence
from typing import Any

from gpugate.proxy.addresses import listening_sockets
from gpugate.proxy.server import GatewayServer, Listener

SELF_CHECK_TIMEOUT_S = 5.0
"""How long the server may take to answer the request that it sends to itself at start-up."""

_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class SelfCheckFailed(Exception):
    """The server listens, but does not answer a request to itself; the message says how."""


def listen(server: GatewayServer, hosts: Sequence[str], port: int, warn: Callable[[str], None]) -> Listener:
    """Accept connections for `server` at each of the addresses.

    Raises:
        CannotListen: one of them is taken or not available.
    """
    return Listener(server, listening_sockets(hosts, port), most_connections(), warn)


def most_connections() -> int:
    """Return how many clients the limit of descriptors has room for.

    Each may need a second one, to the pod; 32 are kept for files and for calls to the provider, above all the
    stop.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, soft // 2 - 32)


async def check_self(address: tuple[Any, ...], path: str) -> None:
    """Check that `GET path` is answered with 200 at the address of a listener.

    Raises:
        SelfCheckFailed: it is not, within `SELF_CHECK_TIMEOUT_S`.
    """
    host, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    host, port = _LOOPBACK_OF.get(host, host), address[1]
    asked = f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(SELF_CHECK_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(asked.encode())
                status = await reader.readline()
                await reader.read()
            finally:
                writer.transport.abort()
    except TimeoutError:
        said = f"no answer within {SELF_CHECK_TIMEOUT_S:g} s"
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or type(error).__name__
    else:
        if status.startswith(b"HTTP/1.1 200 "):
            return
        said = f"the answer was {status[:40].decode('ascii', 'replace').strip()!r}"
    raise SelfCheckFailed(f"it listens on {host} port {port}, and does not answer its own GET {path}: {said}")


def raise_file_limit() -> None:
    """Two descriptors a stream (docs/ollama.md#descriptors): raise the limit as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            return
