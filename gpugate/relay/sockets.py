"""What a transport does not do by itself: unread bytes, bounded closing, resets; it must not know HTTP."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from contextlib import suppress


def untaken(transport: asyncio.Transport) -> int:
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
