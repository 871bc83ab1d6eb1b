"""A server that behaves like Ollama 0.32 without any model.

Routes, content types, refusals and stream endings follow docs/ollama.md#routes. Where a
fault is planned (`faults`), it misbehaves as told.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from http import HTTPStatus

import orjson
from aiohttp import web

from gpugate_demo import routes_embeddings, routes_info, routes_models, routes_text
from gpugate_demo.base_server import BaseServer, RecordedRequest
from gpugate_demo.context import Call, answer
from gpugate_demo.faults import Fault
from gpugate_demo.generation import Generation
from gpugate_demo.go_decoder import Refused
from gpugate_demo.router import (
    Found,
    NotThere,
    Redirected,
    WrongMethod,
    cors,
    find,
    host_allowed,
    preflight_headers,
)
from gpugate_demo.store import DEFAULT_MODELS, Model, Store
from gpugate_demo.text_generator import Reply, default_reply

VERSION = "0.32.15"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_HANDLERS = {
    **routes_info.HANDLERS,
    **routes_text.HANDLERS,
    **routes_embeddings.HANDLERS,
    **routes_models.HANDLERS,
}


class SimulatedOllama(BaseServer):
    """An Ollama on loopback: `async with SimulatedOllama() as ollama: ... ollama.url`.

    Args:
        models: what is on its disk.
        reply: what its models say; default `reply.honest(seed)`.
        tokens_per_second: pace of the answers; 0 as fast as they go.
        seed: the same seed, the same texts, ids and vectors.
        load_s: how long an unloaded model takes to load.
        check_host: refuse strange Host headers, as an Ollama that listens on loopback does.
        origins: Origins accepted beside the local ones (OLLAMA_ORIGINS).
        unpullable: names that the registry does not know; all others can be pulled.
        host, port, max_seen, keep_bodies: see `BaseServer`.
    """

    def __init__(
        self,
        *,
        models: Iterable[Model] = DEFAULT_MODELS,
        reply: Reply | None = None,
        tokens_per_second: float = 0.0,
        seed: int = 0,
        load_s: float = 0.0,
        version: str = VERSION,
        check_host: bool | None = None,
        origins: Iterable[str] = (),
        unpullable: Iterable[str] = (),
        host: str = "127.0.0.1",
        port: int = 0,
        max_seen: int = 1000,
        keep_bodies: int = 1 << 20,
    ) -> None:
        super().__init__(host=host, port=port, max_seen=max_seen, keep_bodies=keep_bodies)
        self.store = Store.of(models)
        self.version = version
        self.reply = reply or default_reply(seed)
        self.generation = Generation(
            self.store,
            lambda asked: self.reply(asked),
            tokens_per_second=tokens_per_second,
            load_s=load_s,
        )
        self._check_host = host in _LOOPBACK if check_host is None else check_host
        self._origins = tuple(origins)
        self.unpullable = frozenset(unpullable)
        self.seed = seed
        self._draw = random.Random(seed)

    async def __aenter__(self) -> SimulatedOllama:
        await self.start()
        return self

    async def handle(
        self, request: web.BaseRequest, seen: RecordedRequest, fault: Fault | None
    ) -> web.StreamResponse:
        """Answer as Ollama would."""
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin", "")
        verdict = cors(request.method, host, origin, self._origins)
        if isinstance(verdict, int):
            headers = preflight_headers(origin) if verdict == 204 else None
            return web.Response(status=verdict, headers=headers)
        if self._check_host and not host_allowed(host):
            return web.Response(status=403)
        target = find(request.method, request.path)
        if isinstance(target, Found):
            call = Call(self, request, seen, fault, target.parameter, verdict)
            try:
                response = await _HANDLERS[target.name](self, call)
            except Refused as refused:
                response = answer(orjson.dumps({"error": refused.text}), status=refused.status)
        else:
            response = _without_handler(request, target)
        if not response.prepared:
            response.headers.update(verdict)
        return response

    def number(self) -> int:
        """The next number for an id; the same row of them under the same seed."""
        return self._draw.randrange(1 << 48)


def _without_handler(request: web.BaseRequest, target: Redirected | WrongMethod | NotThere) -> web.Response:
    if isinstance(target, WrongMethod):
        response = answer(b"405 method not allowed", "text/plain", 405)
        response.headers["Allow"] = target.allow
        return response
    if isinstance(target, NotThere):
        return answer(b"404 page not found", "text/plain", 404)
    location = target.location + (f"?{request.query_string}" if request.query_string else "")
    page = f'<a href="{location}">{HTTPStatus(target.status).phrase}</a>.\n\n'.encode()
    with_page = request.method in ("GET", "HEAD")
    response = answer(page if with_page else b"", "text/html; charset=utf-8", target.status)
    response.headers["Location"] = location
    return response
