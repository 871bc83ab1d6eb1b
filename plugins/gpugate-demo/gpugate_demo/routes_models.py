"""Handlers that change models: pull, push, create, copy, delete, blobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from gpugate_demo import model_transfer
from gpugate_demo.chunk_writer import EndedEarly
from gpugate_demo.context import Call, Handler, answer
from gpugate_demo.dialects import JSON_PLAIN, NATIVE
from gpugate_demo.go_decoder import Body, Refused, decode

if TYPE_CHECKING:
    from gpugate_demo.ollama import SimulatedOllama


async def pull(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /api/pull."""
    request = decode(await call.body(), "PullRequest", model_transfer.PULL_TYPES)
    name = model_transfer.check_pull(request)
    return await _progress(call, request, model_transfer.pull(ollama.store, name, ollama.unpullable))


async def push(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /api/push."""
    request = decode(await call.body(), "PushRequest", model_transfer.PULL_TYPES)
    return await _progress(
        call, request, model_transfer.push(ollama.store, model_transfer.check_push(request))
    )


async def create(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /api/create."""
    request = decode(await call.body(), "CreateRequest", model_transfer.CREATE_TYPES)
    name = model_transfer.check_create(ollama.store, request)
    return await _progress(call, request, model_transfer.create(ollama.store, name, request))


async def copy(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /api/copy."""
    model_transfer.copy(ollama.store, decode(await call.body(), "CopyRequest", model_transfer.COPY_TYPES))
    return answer(b"")


async def delete(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """DELETE /api/delete."""
    model_transfer.delete(
        ollama.store, decode(await call.body(), "DeleteRequest", model_transfer.DELETE_TYPES)
    )
    return answer(b"")


async def blob_head(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """HEAD /api/blobs/{digest}."""
    if model_transfer.check_digest(call.parameter) not in ollama.store.blobs:
        raise Refused(404, f'blob "{call.parameter}" not found')
    return answer(b"")


async def blob_create(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /api/blobs/{digest}: 201 for a new one, 200 for one that is there."""
    digest = model_transfer.check_digest(call.parameter)
    if digest in ollama.store.blobs:
        return answer(b"")
    upload = model_transfer.Upload(digest)
    async for chunk in call.request.content.iter_any():
        upload.feed(chunk)
        call.seen.body_size = upload.size
    upload.finish(ollama.store)
    return answer(b"", status=201)


async def _progress(
    call: Call, request: Body, steps: AsyncIterator[model_transfer.Progress]
) -> web.StreamResponse:
    if request.get("stream") is False:
        return await _last_of(steps)
    outlet = call.outlet(NATIVE.stream_type)
    try:
        async for step in steps:
            await outlet.send(orjson.dumps(step) + b"\n")
            await asyncio.sleep(0)
        return await outlet.finish()
    except (model_transfer.TransferFailed, EndedEarly) as failed:
        text = failed.text if isinstance(failed, EndedEarly) else str(failed)
        if text is not None:
            if not outlet.response.prepared:
                return answer(orjson.dumps({"error": text}), JSON_PLAIN, 500)
            await outlet.raw(NATIVE.failed(text))
        return outlet.response


async def _last_of(steps: AsyncIterator[model_transfer.Progress]) -> web.Response:
    last: model_transfer.Progress = {}
    try:
        async for step in steps:
            last = step
    except model_transfer.TransferFailed as failed:
        return answer(orjson.dumps({"error": str(failed)}), JSON_PLAIN, 500)
    return answer(orjson.dumps(last), JSON_PLAIN)


HANDLERS: dict[str, Handler] = {
    "pull": pull,
    "push": push,
    "create": create,
    "copy": copy,
    "delete": delete,
    "blob_head": blob_head,
    "blob_create": blob_create,
}
