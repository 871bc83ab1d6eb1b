"""Handlers of the embedding endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from gpugate_demo import embedding
from gpugate_demo.context import Call, Handler, answer, refuse, refuse_early
from gpugate_demo.dialects import JSON_PLAIN, OpenAiChat
from gpugate_demo.go_decoder import Refused, decode

if TYPE_CHECKING:
    from gpugate_demo.ollama import SimulatedOllama


async def embed(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /api/embed."""
    request = decode(await call.body(), "EmbedRequest", embedding.EMBED_TYPES)
    vectors, tokens = embedding.many(embedding.model_of(ollama.store, request), request, ollama.seed)
    found: dict[str, Any] = {"model": request["model"], "embeddings": vectors}
    found |= {"total_duration": 1_000_000, "load_duration": 100_000, "prompt_eval_count": tokens}
    return answer(orjson.dumps(found))


async def embeddings(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /api/embeddings, the older one."""
    request = decode(await call.body(), "EmbeddingRequest", embedding.EMBEDDINGS_TYPES)
    model = embedding.model_of(ollama.store, request, older=True)
    prompt = str(request.get("prompt", ""))
    found = embedding.vector(model, prompt, ollama.seed) if prompt else []
    return answer(orjson.dumps({"embedding": found}))


async def openai_embeddings(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /v1/embeddings."""
    body = await call.body()
    try:
        request = decode(body, "EmbedRequest", embedding.OPENAI_TYPES, empty="EOF")
        encoding = str(request.get("encoding_format", "float"))
        if encoding.lower() not in ("float", "base64"):
            supported = "Supported values: ['float', 'base64']."
            raise Refused(400, f"Invalid value for 'encoding_format' = {encoding}. {supported}")
        if request.get("input") in (None, []):
            raise Refused(400, "invalid input")
    except Refused as refused:
        return refuse_early(OpenAiChat("", 0), refused)
    try:
        model = embedding.model_of(ollama.store, request)
        vectors, tokens = embedding.many(model, request, ollama.seed)
    except Refused as refused:
        return refuse(OpenAiChat("", 0), refused)
    found = embedding.openai_list(request["model"], vectors, tokens, encoding)
    return answer(orjson.dumps(found) + b"\n", JSON_PLAIN)


HANDLERS: dict[str, Handler] = {
    "embed": embed,
    "embeddings": embeddings,
    "openai_embeddings": openai_embeddings,
}
