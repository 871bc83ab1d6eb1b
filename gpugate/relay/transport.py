"""The way to a pod's service: URL and TLS policy, the errors of a failed call, and operations on sockets."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import hmac
import re
import select
import socket
import ssl
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any
from weakref import ref

import aiohttp
from attrs import frozen

from gpugate.provider_api import Endpoint

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@frozen
class TlsPolicy:
    """`Endpoint.tls`, parsed.

    Attributes:
        verify: the chain and the host's name are checked.
        ca_file: the only trusted authorities; empty: the system's.
        fingerprint: SHA-256 (hex) of the only certificate that is accepted; empty: any.
    """

    verify: bool = True
    ca_file: str = ""
    fingerprint: str = ""

    @classmethod
    def of(cls, text: str) -> TlsPolicy:
        """Read "system", "insecure", "sha256:<hex>" (colons allowed) or the path of a CA file.

        Raises:
            ValueError: the fingerprint is not 64 hex digits, or there is no text.
        """
        if text == "system":
            return cls()
        if text == "insecure":
            return cls(verify=False)
        if text.startswith("sha256:"):
            fingerprint = text.removeprefix("sha256:").replace(":", "").lower()
            if not _FINGERPRINT.fullmatch(fingerprint):
                raise ValueError("a sha256 fingerprint has 64 hex digits")
            return cls(verify=False, fingerprint=fingerprint)
        if not text:
            raise ValueError('tls is "system", "insecure", "sha256:<hex>" or the path of a CA file')
        return cls(ca_file=text)

    def accepts(self, certificate: bytes | None) -> bool:
        """Say whether this certificate (DER) is the pinned one; always true where none is pinned."""
        if not self.fingerprint:
            return True
        seen = hashlib.sha256(certificate or b"").hexdigest()
        return hmac.compare_digest(seen, self.fingerprint)


@lru_cache(maxsize=32)
def context(policy: TlsPolicy) -> ssl.SSLContext:
    """Return the context for a policy. Kept, as reading the system's authorities takes tens of ms.

    Raises:
        OSError: the CA file cannot be read, or holds no certificate (`ssl.SSLError`).
    """
    made = ssl.create_default_context(cafile=policy.ca_file or None)
    if not policy.verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    made.set_alpn_protocols(["http/1.1"])
    return made


CALL_ERRORS = (aiohttp.ClientError, OSError, TimeoutError, ValueError)
"""What aiohttp raises when a call fails."""


def url_of(endpoint: Endpoint, path: str) -> str:
    """Return the URL of a path below the endpoint's own."""
    return endpoint.url.rstrip("/") + path


def ssl_option(endpoint: Endpoint) -> Any:
    """Return aiohttp's `ssl=` argument for the endpoint's TLS policy."""
    policy = TlsPolicy.of(endpoint.tls)
    if policy.fingerprint:
        return aiohttp.Fingerprint(bytes.fromhex(policy.fingerprint))
    return context(policy) if policy.ca_file or not policy.verify else True


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
        # A timer with the transport itself would keep it in memory when it is gone.
        asyncio.get_running_loop().call_later(flush_s, _abort_if_there, ref(transport))


def _abort_if_there(transport: ref[asyncio.Transport]) -> None:
    if (there := transport()) is not None:
        there.abort()


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
