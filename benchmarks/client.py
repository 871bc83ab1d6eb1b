"""A client that can leave at any moment, and looks at the gateway's status; knows nothing of measuring."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import time
from typing import Any

from attrs import define, field

from benchmarks.load import Request
from benchmarks.processes import Unavailable

HANG_UP_HARD = struct.pack("ii", 1, 0)


def connect(port: int, limit_s: float = 10.0) -> socket.socket:
    """A plain connection."""
    return socket.create_connection(("127.0.0.1", port), timeout=limit_s)


def send(sock: socket.socket, token: str, request: Request) -> None:
    """Send the whole request."""
    head = (
        f"{request.method} {request.path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(request.body)}\r\n\r\n"
    )
    sock.sendall((head + request.body).encode())


def receive(sock: socket.socket, what: bytes) -> bytes:
    """Read until `what` has come; Unavailable if the answer is not 200, or ends."""
    got = b""
    while what not in got:
        try:
            block = sock.recv(65536)
        except TimeoutError:
            raise Unavailable("no answer in time") from None
        if not block:
            raise Unavailable(f"the connection was closed after {got[:80]!r}")
        got += block
        if not b"HTTP/1.1 200".startswith(got[:12]):
            raise Unavailable(f"not the expected answer: {got[:200]!r}")
    return got


def hang_up(sock: socket.socket, *, hard: bool) -> int:
    """Close, with a reset if `hard`; returns the moment just before (CLOCK_MONOTONIC, ns)."""
    if hard:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HANG_UP_HARD)
    at = time.monotonic_ns()
    sock.close()
    return at


@define
class Gate:
    """The gateway's own endpoints, over one connection."""

    port: int
    token: str
    _http: http.client.HTTPConnection | None = field(default=None)

    def status(self, query: str = "") -> dict[str, Any]:
        """`GET /api/v1/gpu/status`, its data."""
        return self._ask("GET", f"/api/v1/gpu/status{query}")

    def waiting(self) -> int:
        """How many requests wait."""
        return int(self.status()["waiting"])

    def start(self, query: str = "") -> None:
        """`POST /api/v1/gpu/start`."""
        self._ask("POST", f"/api/v1/gpu/start{query}")

    def healthy(self) -> bool:
        """Whether the gateway itself answers."""
        try:
            self._ask("GET", "/api/v1/health")
        except (OSError, http.client.HTTPException, Unavailable):
            self.close()
            return False
        return True

    def close(self) -> None:
        """Let the connection go."""
        if self._http:
            with contextlib.suppress(OSError):
                self._http.close()
        self._http = None

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        self._http = self._http or http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        self._http.request(method, path, headers={"Authorization": f"Bearer {self.token}"})
        answer = self._http.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise Unavailable(f"{method} {path}: {answer.status} {text[:120]!r}")
        data: dict[str, Any] = json.loads(text)["data"]
        return data
