"""One HTTP call on its way through the gate: what was asked, by whom, and what the log line will say."""

from __future__ import annotations

from aiohttp import web

from gpugate.proxy.auth import User
from gpugate.proxy.error_format import Dialect, dialect_of


class RequestContext:
    """What is known of one request while it is answered.

    Attributes:
        path: the raw path without query and without a path token; what may be logged.
        query: what stood behind the question mark.
        token_prefix: the path token's part of the path, a secret; empty without one.
        extra_head: header lines that every answer to this call carries.
        waited_ms: how long it waited for the pod, 0 if it did not.
        run_id: the pod's run that served it, 0 if none.
        bytes_sent: bytes written by the relay.
        outcome: how its answer ended, if not completely.
    """

    # On the class, as most calls leave them as they are.
    user: User | None = None
    extra_head = b""
    waited_ms = 0
    run_id = 0
    bytes_sent = 0
    outcome = ""

    def __init__(self, request: web.BaseRequest, request_id: str, path: str, query: str, prefix: str) -> None:
        self.request = request
        self.request_id = request_id
        self.method = request.method
        self.path = path
        self.query = query
        self.token_prefix = prefix

    @property
    def dialect(self) -> Dialect:
        """The shape of its errors; asked for only where something went wrong."""
        return dialect_of(self.path)

    def upstream_target(self, upstream_path: str) -> str:
        """What to ask the pod for."""
        return f"{upstream_path}?{self.query}" if self.query else upstream_path
