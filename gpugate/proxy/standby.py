"""What a gateway answers while another one is active: 503 to everything (docs/api.md#two-gateways)."""

from __future__ import annotations

import time
from collections.abc import Callable

import orjson
from aiohttp import web

from gpugate.config.schema import Server
from gpugate.errors import GateError, StandingBy
from gpugate.ollama.routes import split_path_token
from gpugate.proxy.error_format import dialect_of, error_body, request_id
from gpugate.proxy.listening import listen
from gpugate.proxy.server import GatewayServer, Listener
from gpugate.tasks import CrashHandler

HEALTH = "/api/v1/health"
RETRY_AFTER_S = 1.0
CLOSE_S = 0.2


class StandbyServer:
    """Listens where the gateway would, until that one begins."""

    def __init__(self, settings: Server, warn: Callable[[str], None], on_crash: CrashHandler) -> None:
        self._settings = settings
        self._warn = warn
        self._server = GatewayServer(self._answer, self._answer_malformed, on_crash)
        self._listener: Listener | None = None

    def open(self) -> int:
        """Listen, and return the port. Raises CannotListen."""
        self._listener = listen(self._server, self._settings.host, self._settings.port, self._warn)
        return self._listener.port

    async def aclose(self) -> None:
        """Free the address. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            await self._server.aclose(CLOSE_S)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        split = split_path_token(path) if path.startswith("/k/") else None
        return _refusal(split[1] if split else path, StandingBy(retry_after_s=RETRY_AFTER_S), request)

    def _answer_malformed(self, request: web.BaseRequest, error: GateError) -> web.Response:
        return _refusal("", error, request)


def _refusal(path: str, error: GateError, request: web.BaseRequest) -> web.Response:
    number = request_id(request.headers.get("X-Request-Id"))
    status, body, headers = error_body(dialect_of(path), error, number, time.time())
    if path == HEALTH:
        body = orjson.dumps({**orjson.loads(body), "data": {"status": "standby"}})
    response = web.Response(status=status, body=body, headers={**dict(headers), "X-Request-Id": number})
    if request.can_read_body:
        response.force_close()  # nobody reads it
    return response
