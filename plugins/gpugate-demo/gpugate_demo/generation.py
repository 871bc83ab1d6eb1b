"""Ollama's native chat and generate: turns a decoded request into events.

Every other surface translates to and from these events, as Ollama's own middleware does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Literal

from attrs import frozen

from gpugate_demo.go_decoder import Body, Refused, Types
from gpugate_demo.store import Model, Store, keep_alive_s, load_options, valid_name
from gpugate_demo.text_generator import GenerationRequest, ImageFacts, Reply, decoded, image_facts

Event = dict[str, Any]
Api = Literal["chat", "generate"]

CHAT_TYPES: Types = {
    "model": "string",
    "messages": "[]api.Message",
    "stream": "bool",
    "tools": "[]api.Tool",
    "options": "map[string]interface {}",
    "top_logprobs": "int",
}
GENERATE_TYPES: Types = {
    "model": "string",
    "prompt": "string",
    "suffix": "string",
    "system": "string",
    "template": "string",
    "images": "[]string",
    "stream": "bool",
    "raw": "bool",
    "options": "map[string]interface {}",
    "top_logprobs": "int",
}


@frozen
class TextJob:
    """An accepted request that is answered with text."""

    api: Api
    model: Model
    name: str
    asked: GenerationRequest
    prompt_count: int
    limit: int | None
    keep_s: float | None
    began_ns: int
    load_options: tuple[object, ...]


def timestamp() -> str:
    """Now, as Go prints a time: nanoseconds and a Z."""
    now = time.time_ns()
    return f"{datetime.fromtimestamp(now // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{now % 10**9:09d}Z"


def text_of(event: Event) -> str:
    """The text of one event, whichever api it belongs to."""
    message = event.get("message")
    return str(message["content"]) if message is not None else str(event.get("response", ""))


class Generation:
    """Validates requests and produces the events of their replies.

    Args:
        tokens_per_second: pace of the pieces; 0 sends them as fast as they go.
        load_s: how long a model takes to load that is not loaded yet.
    """

    def __init__(self, store: Store, reply: Reply, *, tokens_per_second: float, load_s: float) -> None:
        self._store = store
        self._reply = reply
        self._pause_s = 1.0 / tokens_per_second if tokens_per_second > 0 else 0.0
        self._load_s = load_s

    def accept(self, api: Api, request: Body) -> TextJob | Event:
        """A job, or the single event of a load or unload. Raises Refused."""
        began_ns = time.monotonic_ns()
        keep_s = _keep_alive(request)
        model, name = self._model(api, request)
        asked = _asked(api, name, request)
        empty = not request.get("messages") if api == "chat" else not request.get("prompt")
        if empty and keep_s == 0:
            self._store.unload(model)
            return _event(api, name, "", done_reason="unload")
        self._check_capabilities(api, model, name, request)
        if empty:
            self._store.load(model, keep_s, load_options(request))
            return _event(api, name, "", done_reason="load")
        words = sum(len(text.split()) for text in _texts(api, request))
        limit, options = _limit(request), load_options(request)
        return TextJob(api, model, name, asked, words + 10, limit, keep_s, began_ns, options)

    async def events(self, job: TextJob) -> AsyncIterator[Event]:
        """The events of a job, at the pace that was asked for; the last one has `done`."""
        fresh = self._store.load(job.model, None, job.load_options)
        if fresh and self._load_s:
            await asyncio.sleep(self._load_s)
        loaded_ns = time.monotonic_ns()
        count = 0
        pieces = iter(self._reply(job.asked))
        try:
            for piece in islice(pieces, job.limit):
                await self._keep_pace(loaded_ns, count)
                count += 1
                yield _event(job.api, job.name, piece)
            cut = job.limit is not None and count == job.limit and next(pieces, None) is not None
            yield _final(job, "length" if cut else "stop", count, loaded_ns)
        finally:
            # Its time in memory counts from the end.
            self._store.load(job.model, job.keep_s, job.load_options)

    async def whole(self, job: TextJob) -> Event:
        """The one event of a request that does not stream."""
        parts: list[str] = []
        last: Event = {}
        async for last in self.events(job):
            parts.append(text_of(last))
        return _with_text(last, "".join(parts))

    async def _keep_pace(self, since_ns: int, count: int) -> None:
        due_s = (count + 1) * self._pause_s - (time.monotonic_ns() - since_ns) / 1e9
        await asyncio.sleep(max(0.0, due_s))  # without a pace too: an endless reply must not hold the loop

    def _model(self, api: Api, request: Body) -> tuple[Model, str]:
        name = str(request.get("model", ""))
        if not name and api == "chat":
            raise Refused(400, "model is required")
        if name and not valid_name(name):
            raise Refused(400, "invalid model name")
        model = self._store.find(name) if name else None
        if model is None:
            raise Refused(404, f"model '{name}' not found")
        return model, name

    def _check_capabilities(self, api: Api, model: Model, name: str, request: Body) -> None:
        if request.get("think") not in (None, False, "") and "thinking" not in model.capabilities:
            raise Refused(400, f'"{name}" does not support thinking')
        if "completion" not in model.capabilities:
            raise Refused(400, f'"{name}" does not support {api}')
        for wanted, field in (("tools", "tools"), ("insert", "suffix")):
            if request.get(field) and wanted not in model.capabilities:
                raise Refused(400, f"registry.ollama.ai/library/{model.name} does not support {wanted}")


def _keep_alive(request: Body) -> float | None:
    try:
        return keep_alive_s(request.get("keep_alive"))
    except ValueError as error:
        raise Refused(400, str(error)) from None


def _limit(request: Body) -> int | None:
    wanted = request.get("options", {}).get("num_predict")
    return wanted if isinstance(wanted, int) and wanted >= 0 else None


def _texts(api: Api, request: Body) -> list[str]:
    if api == "generate":
        return [str(request.get("system", "")), str(request.get("prompt", ""))]
    return [str(message.get("content") or "") for message in request.get("messages", [])]


def _images(images: Iterable[object]) -> tuple[ImageFacts, ...]:
    try:
        return tuple(image_facts(decoded(image)) for image in images)
    except ValueError as error:
        raise Refused(400, str(error)) from None


def _asked(api: Api, name: str, request: Body) -> GenerationRequest:
    if api == "generate":
        pictures = _images(request.get("images", []))
        prompt, system = str(request.get("prompt", "")), str(request.get("system", ""))
        return GenerationRequest(api, name, prompt, system, pictures, request.get("format"))
    messages = request.get("messages", [])
    said = {"user": "", "system": ""}
    for message in messages:
        said[str(message.get("role", ""))] = str(message.get("content") or "")
    pictures = _images(image for message in messages for image in message.get("images") or [])
    return GenerationRequest(
        api, name, said["user"], said["system"], pictures, request.get("format"), len(messages)
    )


def _event(api: Api, name: str, text: str, *, done_reason: str | None = None) -> Event:
    event: Event = {"model": name, "created_at": timestamp()}
    if api == "chat":
        event["message"] = {"role": "assistant", "content": text}
    else:
        event["response"] = text
    event["done"] = done_reason is not None
    if done_reason is not None:
        event["done_reason"] = done_reason
    return event


def _final(job: TextJob, reason: str, count: int, loaded_ns: int) -> Event:
    now_ns = time.monotonic_ns()
    event = _event(job.api, job.name, "", done_reason=reason)
    if job.api == "generate":
        event["context"] = list(range(1, job.prompt_count + count + 1))
    event |= {
        "total_duration": now_ns - job.began_ns,
        "load_duration": loaded_ns - job.began_ns,
        "prompt_eval_count": job.prompt_count,
        "prompt_eval_duration": 1_000_000,
        "eval_count": count,
        "eval_duration": max(1, now_ns - loaded_ns),
    }
    return event


def _with_text(event: Event, text: str) -> Event:
    if "message" in event:
        return {**event, "message": {**event["message"], "content": text}}
    return {**event, "response": text}
