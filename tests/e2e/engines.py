"""Engines beside Ollama, each with the manners of the real one: what a gateway in front of it meets.

vLLM, SGLang: docs.vllm.ai (online serving), docs.sglang.ai (native API). llama.cpp: tools/server/README.md.
TabbyAPI: its wiki. What they have in common is /v1; they differ in health, keys, errors and lists.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web
from aiohttp.test_utils import TestServer
from attrs import define, field

KEY = "a-key-of-the-engine"
BEARER = {"Authorization": f"Bearer {KEY}"}
_PUBLIC = frozenset({"/health", "/slots", "/props", "/version"})


@define
class Engine:
    """One engine with one model.

    Attributes:
        name: whose manners it has.
        model: the one that it serves.
        health: its answer when it is up.
        loading: its answer to everything while it loads; None: it does not listen yet.
        no_key: the body of its 401.
        unknown: the body of its 404 for another model; None: it answers by any name.
        entry: what its entry in /v1/models has beside the id.
        list_more: what its /v1/models has beside the list.
        public: paths that need no key.
        native: POST paths outside of /v1.
        is_loading: it still loads its model.
        asked: method and path of each request.
        keys: the credentials that came with them.
    """

    name: str
    model: str
    health: Callable[[], web.Response]
    no_key: Mapping[str, Any]
    unknown: Mapping[str, Any] | None
    entry: Mapping[str, Any]
    loading: Mapping[str, Any] | None = None
    list_more: Mapping[str, Any] = field(factory=dict)
    public: frozenset[str] = _PUBLIC
    native: tuple[str, ...] = ("/tokenize",)
    is_loading: bool = False
    url: str = ""
    asked: list[str] = field(factory=list)
    keys: list[dict[str, str]] = field(factory=list)

    @property
    def calls(self) -> list[str]:
        """What was asked of it but for its health and its list."""
        return [call for call in self.asked if call not in ("GET /health", "GET /v1/models")]

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Engine]:
        """Listen, until the end."""
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        for path in ("/v1/rerank", "/v1/completions", *self.native):
            app.router.add_post(path, self._other)
        for path in ("/slots", "/v1/lora", "/api/tags", "/api/version"):  # some copy Ollama's
            app.router.add_get(path, self._other)
        async with TestServer(app) as server:
            self.url = str(server.make_url("")).rstrip("/")
            yield self

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        sent = {
            name: request.headers[name] for name in ("Authorization", "X-Api-Key") if name in request.headers
        }
        self.keys.append(sent)
        if self.is_loading:
            if self.loading is None:
                assert request.transport is not None
                request.transport.abort()
            return web.json_response(self.loading, status=503)
        if request.path not in self.public and KEY not in " ".join(sent.values()):
            return web.json_response(self.no_key, status=401)
        return await handler(request)

    async def _health(self, request: web.Request) -> web.Response:
        return self.health()

    async def _models(self, request: web.Request) -> web.Response:
        entry = {"id": self.model, "object": "model", "created": 1_750_000_000, **self.entry}
        return web.json_response({**self.list_more, "object": "list", "data": [entry]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        if body.get("model", self.model) != self.model and self.unknown is not None:
            return web.json_response(self.unknown, status=404)
        if not body.get("stream"):
            message = {"role": "assistant", "content": "Hi", "tool_calls": [], "refusal": None}
            choice = {"index": 0, "message": message, "finish_reason": "stop", "stop_reason": None}
            return web.json_response({"id": "c-1", "choices": [choice], "prompt_logprobs": None})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await response.write(self.stream)
        return response

    async def _other(self, request: web.Request) -> web.Response:
        return web.json_response({"path": request.path})

    @property
    def stream(self) -> bytes:
        """The bytes of a streamed answer."""
        chunks = [{"role": "assistant", "content": ""}, {"content": f"Hi from {self.name}"}, {}]
        events = [orjson.dumps({"choices": [{"index": 0, "delta": delta}]}) for delta in chunks]
        return b"".join(b"data: %b\n\n" % event for event in [*events, b"[DONE]"])


def _openai_error(message: str, kind: str, code: int) -> Mapping[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def vllm() -> Engine:
    """It listens once the model is loaded; its health has no body, and its key guards /v1 alone."""
    return Engine(
        "vLLM",
        "Qwen/Qwen2.5-7B-Instruct",
        web.Response,
        {"error": "Unauthorized"},
        _openai_error("The model `x` does not exist.", "NotFoundError", 404),
        {"owned_by": "vllm", "root": "Qwen/Qwen2.5-7B-Instruct", "parent": None, "max_model_len": 32768},
        public=_PUBLIC | {"/tokenize", "/score"},
        native=("/tokenize", "/score"),
    )


def llama_cpp() -> Engine:
    """It listens while it loads, answers by any name of a model, and its list looks like Ollama's as well."""
    return Engine(
        "llama.cpp",
        "gemma-3-270m.gguf",
        lambda: web.json_response({"status": "ok"}),
        _openai_error("Invalid API Key", "authentication_error", 401),
        None,
        {"owned_by": "llamacpp", "meta": {"n_ctx_train": 32768}},
        loading=_openai_error("Loading model", "unavailable_error", 503),
        list_more={"models": [{"name": "gemma-3-270m.gguf", "model": "gemma-3-270m.gguf", "size": ""}]},
        public=frozenset({"/health"}),
        native=("/tokenize", "/infill", "/completion"),
    )


def sglang() -> Engine:
    """Its health is a 503 without a body until its first token was made."""
    return Engine(
        "SGLang",
        "meta-llama/Llama-3.1-8B-Instruct",
        web.Response,
        {"error": "Unauthorized"},
        None,
        {"owned_by": "sglang", "root": "meta-llama/Llama-3.1-8B-Instruct", "max_model_len": 131072},
        loading={},
        native=("/generate", "/tokenize"),
    )


def tabby_api() -> Engine:
    """It takes its key as `X-Api-Key`, too, and says `detail` where others say `error`."""
    return Engine(
        "TabbyAPI",
        "Llama-3.1-8B-exl2",
        lambda: web.json_response({"status": "healthy", "issues": []}),
        {"detail": "Please provide an API key"},
        None,
        {"owned_by": "tabbyAPI", "logging": None, "parameters": None},
        public=frozenset({"/health"}),
        native=("/api-less/tokenize",),
    )


ENGINES: Mapping[str, Callable[[], Engine]] = {
    "vllm": vllm,
    "llama.cpp": llama_cpp,
    "sglang": sglang,
    "tabbyapi": tabby_api,
}


async def loaded_after(engine: Engine, seconds: float) -> None:
    """Let the engine load for so long."""
    engine.is_loading = True
    await asyncio.sleep(seconds)
    engine.is_loading = False
