"""Handlers of the read-only endpoints: version, status, tags, ps, show, model lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from gpugate_demo import catalogue, model_transfer
from gpugate_demo.context import TEXT, Call, Handler, answer, refuse
from gpugate_demo.dialects import JSON_PLAIN, OpenAiChat
from gpugate_demo.go_decoder import Refused, decode

if TYPE_CHECKING:
    from gpugate_demo.ollama import SimulatedOllama


async def root(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """GET, HEAD /."""
    return answer(b"Ollama is running", TEXT)


async def version(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """GET, HEAD /api/version."""
    return answer(orjson.dumps({"version": ollama.version}))


async def status(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """GET /api/status: no cloud here."""
    return answer(orjson.dumps({"cloud": {"disabled": True, "source": "env"}}))


async def recommendations(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """GET /api/experimental/model-recommendations: none."""
    return answer(orjson.dumps({"recommendations": []}))


async def account(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """What needs an account at ollama.com: there is none."""
    await call.body()
    return answer(
        orjson.dumps({"error": "unauthorized", "signin_url": "https://ollama.com/connect"}), status=401
    )


async def tags(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """GET, HEAD /api/tags."""
    return answer(orjson.dumps(catalogue.tags(ollama.store)))


async def ps(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """GET /api/ps."""
    return answer(orjson.dumps(catalogue.running(ollama.store)))


async def show(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /api/show."""
    request = decode(await call.body(), "ShowRequest", {"model": "string", "name": "string"})
    name = model_transfer.name_of(request)
    if not name:
        raise Refused(400, "model is required")
    model = ollama.store.find(name)
    if model is None:
        raise Refused(404, f"model '{name}' not found")
    return answer(orjson.dumps(catalogue.show(model)))


async def openai_models(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """GET /v1/models."""
    return answer(orjson.dumps(catalogue.openai_models(ollama.store)) + b"\n", JSON_PLAIN)


async def openai_model(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """GET /v1/models/{name}."""
    model = ollama.store.find(call.parameter)
    if model is None:
        return refuse(OpenAiChat("", 0), Refused(404, f"model '{call.parameter}' not found"))
    found = catalogue.openai_model(call.parameter, model.modified_at)
    return answer(orjson.dumps(found) + b"\n", JSON_PLAIN)


HANDLERS: dict[str, Handler] = {
    "root": root,
    "version": version,
    "status": status,
    "recommendations": recommendations,
    "account": account,
    "tags": tags,
    "ps": ps,
    "show": show,
    "openai_models": openai_models,
    "openai_model": openai_model,
}
