"""Handlers of chats and completions in every dialect."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from gpugate_demo import translate
from gpugate_demo.chunk_writer import EndedEarly
from gpugate_demo.context import TEXT, Call, Handler, answer, refuse, refuse_early
from gpugate_demo.dialects import JSON_PLAIN, NATIVE, Anthropic, Native, OpenAiChat, OpenAiCompletions
from gpugate_demo.faults import ErrorLine
from gpugate_demo.generation import CHAT_TYPES, GENERATE_TYPES, Api, TextJob
from gpugate_demo.go_decoder import Body, Refused, decode
from gpugate_demo.responses import Responses
from gpugate_demo.text_generator import GenerationRequest

if TYPE_CHECKING:
    from gpugate_demo.ollama import SimulatedOllama


async def chat(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /api/chat: streams unless told otherwise."""
    request = decode(await call.body(), "ChatRequest", CHAT_TYPES)
    return await _generate_in(ollama, call, NATIVE, "chat", request, request.get("stream", True))


async def generate(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /api/generate: streams unless told otherwise."""
    request = decode(await call.body(), "GenerateRequest", GENERATE_TYPES)
    return await _generate_in(ollama, call, NATIVE, "generate", request, request.get("stream", True))


async def openai_chat(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    return await _translated(ollama, call, translate.chat, OpenAiChat, "chat")


async def openai_completions(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /v1/completions."""
    return await _translated(ollama, call, translate.completion, OpenAiCompletions, "generate")


async def responses(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /v1/responses."""
    body = await call.body()
    try:
        if call.request.headers.get("Content-Encoding") == "zstd":
            raise Refused(400, "failed to decompress zstd body")  # no such decoder in the standard library
        asked, native = translate.response(body)
    except Refused as refused:
        return refuse_early(Responses("", 0), refused)
    dialect = Responses(str(native["model"]), ollama.number(), asked.get("instructions"))
    return await _generate_in(ollama, call, dialect, "chat", native, asked.get("stream", False))


async def messages(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /v1/messages."""
    body = await call.body()
    try:
        asked, native = translate.messages(body)
    except Refused as refused:
        return refuse_early(Anthropic("", ollama.number()), refused)
    dialect = Anthropic(str(native["model"]), ollama.number())
    return await _generate_in(ollama, call, dialect, "chat", native, asked.get("stream", False))


async def transcriptions(ollama: SimulatedOllama, call: Call) -> web.StreamResponse:
    """POST /v1/audio/transcriptions: multipart in, JSON or plain text out."""
    body = await call.body()
    if b'name="file"' not in body:
        return refuse_early(OpenAiChat("", 0), Refused(400, "file is required"))
    text = "".join(ollama.reply(GenerationRequest("transcribe", "the model", "")))
    if b"\r\ntext\r\n" in body:
        return answer(text.encode(), TEXT)
    return answer(orjson.dumps({"text": text}) + b"\n", JSON_PLAIN)


async def _translated(
    ollama: SimulatedOllama,
    call: Call,
    read: Callable[[bytes], tuple[Body, Body]],
    kind: type[OpenAiChat],
    api: Api,
) -> web.StreamResponse:
    body = await call.body()
    try:
        asked, native = read(body)
    except Refused as refused:
        return refuse_early(kind("", 0), refused)
    usage = bool((asked.get("stream_options") or {}).get("include_usage"))
    dialect = kind(str(native["model"]), ollama.number(), include_usage=usage)
    return await _generate_in(ollama, call, dialect, api, native, asked.get("stream", False))


async def _generate_in(
    ollama: SimulatedOllama, call: Call, dialect: Native, api: Api, request: Body, stream: bool
) -> web.StreamResponse:
    try:
        job = ollama.generation.accept(api, request)
    except Refused as refused:
        return refuse(dialect, refused)
    if isinstance(job, TextJob):
        if stream:
            return await _stream(ollama, call, dialect, job)
        event = await ollama.generation.whole(job)
    else:
        event = job
    if stream and dialect is not NATIVE:
        return answer(dialect.chunk(event), dialect.stream_type)
    if isinstance(call.fault, ErrorLine):
        return refuse(dialect, Refused(500, call.fault.text))
    return answer(dialect.whole(event), dialect.whole_type)


async def _stream(ollama: SimulatedOllama, call: Call, dialect: Native, job: TextJob) -> web.StreamResponse:
    outlet = call.outlet(dialect.stream_type, dialect.stream_headers)
    try:
        async for event in ollama.generation.events(job):
            if chunk := dialect.chunk(event):
                await outlet.send(chunk)
        return await outlet.finish()
    except EndedEarly as early:
        if early.text is not None:
            if not outlet.response.prepared:
                return refuse(dialect, Refused(500, early.text))
            await outlet.raw(dialect.failed(early.text))
        return outlet.response


HANDLERS: dict[str, Handler] = {
    "chat": chat,
    "generate": generate,
    "openai_chat": openai_chat,
    "openai_completions": openai_completions,
    "responses": responses,
    "messages": messages,
    "transcriptions": transcriptions,
}
