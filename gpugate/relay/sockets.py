"""Socket operations that an asyncio transport lacks, such as noticing that a peer left while it is not
read.
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def unacked_bytes(transport: asyncio.Transport) -> int:
    """Return how many bytes the other side has not acknowledged.

    The transport's own count stands still while megabytes leave the kernel's buffer, which asks for more only
    when a third of it is empty.
    """
    here = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is None:  # closed, to uvloop
        return here
    with suppress(OSError, ValueError):  # closed, to asyncio, or a system that cannot be asked
        (queued,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))
        return here + int(queued)
    return here


def close_within(transport: asyncio.Transport, flush_s: float) -> None:
    """Close in order; what the other side has not taken after `flush_s` is dropped."""
    if not flush_s:
        transport.abort()
        return
    transport.close()
    if transport.get_write_buffer_size():
        asyncio.get_running_loop().call_later(flush_s, transport.abort)


def reset(transport: asyncio.Transport) -> None:
    """Close with a RST, which no reader can take for an end."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError, ValueError):  # closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


@contextmanager
def detect_disconnect(transport: asyncio.Transport | None) -> Iterator[None]:
    """Abort the connection at once when the other side closes or resets it, also while nobody reads it.

    A paused transport hears of neither (docs/ollama.md#paused-sockets). An end that waits behind
    more bytes than the system's buffers take has not arrived, and is found when reading goes on; so is every
    end where the system has no epoll.
    """
    sock = None if transport is None else transport.get_extra_info("socket")
    if transport is None or sock is None or sock.fileno() < 0 or not hasattr(select, "epoll"):
        yield
        return
    loop = asyncio.get_running_loop()
    # The loop itself must not watch a transport's socket twice, but it may watch who watches it.
    with select.epoll() as watch:
        watch.register(sock.fileno(), select.EPOLLRDHUP)
        loop.add_reader(watch.fileno(), _abort, loop, watch, transport)
        try:
            yield
        finally:
            loop.remove_reader(watch.fileno())


def _abort(loop: asyncio.AbstractEventLoop, watch: select.epoll, transport: asyncio.Transport) -> None:
    if watch.poll(0):
        loop.remove_reader(watch.fileno())
        transport.abort()
