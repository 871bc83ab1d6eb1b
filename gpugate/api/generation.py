"""The generation endpoints: code, story, image, fantasy (docs/api.md#services).

A request is checked completely before a lease is requested, so an invalid one starts no pod.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import orjson
from aiohttp import web
from attrs import define, evolve, field, frozen

from gpugate.api.events import SseResponse, wants_only_events
from gpugate.api.routing import ApiRoute, ApiRoutes
from gpugate.errors import GateError, InvalidRequest, UpstreamBroken, UpstreamTimeout
from gpugate.fleet import POD_HEADER, Fleet, FleetPod
from gpugate.generation.code_assist import FAILURE, PATH, CodeAssist, CodeQuestion, CodeStream
from gpugate.generation.fantasy import Fantasy, FantasyService
from gpugate.generation.image_format import DecodedImage, decode_image
from gpugate.generation.images import MAX_SEED, GeneratedImage, ImageJob, ImageService, random_seed
from gpugate.generation.stories import StoryRequest, StoryService
from gpugate.generation.text_model import GenerationFailed, OllamaTextModel, OnText
from gpugate.generation.workflows import ImageRequest
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.leased_call import LeasedCall, PodUnreachable
from gpugate.proxy.auth import subject_of
from gpugate.proxy.error_format import success
from gpugate.proxy.heartbeat import Heartbeat
from gpugate.proxy.request_context import BodyLimits, RequestContext, read_body

SMALL = 256 * 1024
"""Longest Base64 text that is decoded on the event loop; longer ones would block it for too long."""
_DECODER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="image")
"""Decodes one image at a time: each further thread would take turns from the event loop."""


@frozen
class JsonRequest:
    """The fields of a body. A null counts as absent; unknown fields are ignored."""

    fields: Mapping[str, Any] = field(repr=False)

    def text(self, name: str, *, needed: bool = False) -> str:
        """Return a text, "" if it is absent. Raises InvalidRequest, with `needed` also if it is absent or
        blank.
        """
        value = self.fields.get(name)
        if value is None and not needed:
            return ""
        if not isinstance(value, str):
            raise InvalidRequest(f"{name}: must be text" if value is not None else f"{name}: is needed")
        if needed and not value.strip():
            raise InvalidRequest(f"{name}: is empty")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return a boolean. Raises InvalidRequest."""
        value = self.fields.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name}: must be true or false")
        return value

    def number(self, name: str, least: int, most: int) -> int | None:
        """Return a whole number, None if it is absent. Raises InvalidRequest."""
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InvalidRequest(f"{name}: must be a whole number from {least} to {most}")
        return value

    async def image(self, *, needed: bool = False) -> DecodedImage | None:
        """Return the image in `image_base64` or `imageBase64`. Raises InvalidRequest."""
        names = [name for name in ("image_base64", "imageBase64") if self.fields.get(name) is not None]
        if not names and not needed:
            return None
        name = next(
            (name for name in names if self.text(name).strip()), names[0] if names else "image_base64"
        )
        text = self.text(name, needed=True)
        if len(text) <= SMALL:
            return decode_image(text, name)
        return await asyncio.get_running_loop().run_in_executor(_DECODER, decode_image, text, name)


async def read_json(call: RequestContext, limits: BodyLimits, fleet: Fleet) -> JsonRequest:
    """The body's fields. Raises RequestError: too large, not JSON, no object; QueueFull."""
    with fleet.reading_body(call.request.headers.get(POD_HEADER)) as hold:
        body = await read_body(call.request, limits, hold)
    call.body_bytes = len(body)
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("the body is not JSON") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object")
    return JsonRequest(fields)


SIDE_LIMITS = (64, 2048)
_LANGUAGE = re.compile(r"[\w+#./ -]{0,40}")


@frozen
class GenerationApi:
    """The four endpoints.

    Attributes:
        picture_pod: the pod with ComfyUI.
        heartbeat_s: seconds between fillers while the pod is waited for (`queue.heartbeat`); 0: none.
    """

    fleet: Fleet
    picture_pod: FleetPod
    texts: OllamaTextModel
    coding: CodeAssist
    code_stream: CodeStream
    stories: StoryService
    images: ImageService
    fantasies: FantasyService
    limits: BodyLimits
    heartbeat_s: float = 0.0

    def routes(self) -> ApiRoutes:
        """Return the endpoints."""
        return {
            "/api/v1/code/assist": {"POST": ApiRoute(self.code, scope="chat")},
            "/api/v1/story/generate": {"POST": ApiRoute(self.story, scope="chat")},
            "/api/v1/image/generate": {"POST": ApiRoute(self.image, scope="chat")},
            "/api/v1/fantasy/generate": {"POST": ApiRoute(self.fantasy, scope="chat")},
        }

    def _pod_for(self, call: RequestContext, model: str | None) -> FleetPod:
        """Return the pod for a model, and the one with ComfyUI for a picture; raises PathNotFound."""
        name = call.request.headers.get(POD_HEADER)
        if name is not None:
            return self.fleet.named(name)
        return self.picture_pod if model is None else self.fleet.pod_for(model)

    @contextmanager
    def _lease(
        self, call: RequestContext, pod: FleetPod, model: str | None, failure: str = ""
    ) -> Iterator[LeasedCall]:
        """Hold one lease for all that a request does with a pod; `failure` begins a refusal's message."""
        if self.fleet.only is None:
            call.pod = pod.name
        pod.require(model, failure)
        with pod.lifecycle.acquire(
            model=model,
            user=subject_of(call.user),
            request_id=call.request_id,
            purpose=call.path.removeprefix("/api/v1/").partition("/")[0],
            body_bytes=call.body_bytes,
            asks=lambda: call.wake_request(model),
        ) as lease:
            yield LoggedCall(pod.lifecycle, lease, call=call)

    async def _event_response(
        self, call: RequestContext, leased: LeasedCall, send_events: Callable[[SseResponse], Awaitable[None]]
    ) -> web.StreamResponse:
        """Respond with events, with comments while the pod is waited for; an error is the last event."""
        async with SseResponse(call, self.heartbeat_s) as stream:
            leased.wait_for_pod = stream.wait_for_pod
            if self.heartbeat_s > 0:
                leased.send_filler, leased.filler_s = stream.send_filler, self.heartbeat_s
            try:
                await send_events(stream)
            except GateError as error:
                await stream.finish_with_error(error)
            return stream.response

    def _heartbeat(self, call: RequestContext, leased: LeasedCall, *, streams: bool) -> Heartbeat | None:
        """Return the heartbeat of any other response, None if it is not configured."""
        if self.heartbeat_s <= 0:
            return None
        heartbeat = Heartbeat(call, self.heartbeat_s, streams=streams)
        leased.wait_for_pod = heartbeat.wait_for_pod
        leased.send_filler, leased.filler_s = heartbeat.send_filler, self.heartbeat_s
        return heartbeat

    async def _complete_response(
        self, call: RequestContext, leased: LeasedCall, work: Awaitable[object]
    ) -> web.StreamResponse:
        """Respond with the result of `work` in the success envelope."""
        heartbeat = self._heartbeat(call, leased, streams=False)
        try:
            body = success(await work, call.request_id, time.time())
        except GateError as error:
            if heartbeat is None or not heartbeat.headers_sent:
                raise
            return heartbeat.finish_with_error(error)
        if heartbeat is not None and heartbeat.headers_sent:
            return heartbeat.finish_with_body(body)
        return web.Response(body=body, content_type="application/json")

    # --- code ---------------------------------------------------------------------------------

    async def code(self, call: RequestContext) -> web.StreamResponse:
        """Answer a question about code: relayed as Ollama streams it, as events, or complete."""
        body = await read_json(call, self.limits, self.fleet)
        question = _question(body)
        streams = body.flag("stream", True)
        model = self.coding.model_for(question)
        pod = self._pod_for(call, model)
        with self._lease(call, pod, model, FAILURE) as leased:
            if not streams:
                return await self._complete_response(call, leased, self._code_json(leased, question, model))
            if wants_only_events(call.request.headers.get("Accept")):
                return await self._code_events(call, leased, question)
            heartbeat = self._heartbeat(call, leased, streams=True)
            chat = orjson.dumps(self.coding.chat(question))
            try:
                return await self.code_stream.stream(call, leased, pod.pools, chat, model, heartbeat)
            except GateError as error:
                if heartbeat is None or not heartbeat.headers_sent:
                    raise
                return heartbeat.finish_with_error(error)

    async def _code_json(self, leased: LeasedCall, question: CodeQuestion, model: str) -> object:
        return {"answer": await self._ask_model(leased, question), "model": model}

    async def _ask_model(
        self, leased: LeasedCall, question: CodeQuestion, on_text: OnText | None = None
    ) -> str:
        """Ask the coding model. With `on_text` the response counts as started with the first piece."""
        body = self.coding.chat(question)

        async def work(pod: ServingPod) -> str:
            parts: list[str] = []

            async def add(text: str) -> None:
                parts.append(text)
                if on_text is not None:
                    leased.mark_response_started()
                    await on_text(text)

            await self.texts.stream_to(pod.endpoints["ollama"], PATH, body, add)
            return "".join(parts)

        try:
            return await leased.run(work)
        except GenerationFailed as error:
            if error.timed_out:
                raise UpstreamTimeout(f"{FAILURE}: {error}; it may still run") from error
            raise UpstreamBroken(f"{FAILURE}: {error}") from error
        except PodUnreachable as error:
            model = self.coding.model_for(question)
            raise UpstreamBroken(f"{FAILURE}: the model {model!r} did not answer: {error}") from error

    async def _code_events(
        self, call: RequestContext, leased: LeasedCall, question: CodeQuestion
    ) -> web.StreamResponse:
        async def send_events(stream: SseResponse) -> None:
            async def on_text(delta: str) -> None:
                await stream.send("code", {"delta": delta})

            await self._ask_model(leased, question, on_text)
            await stream.send("done", {"model": self.coding.model_for(question)})

        return await self._event_response(call, leased, send_events)

    # --- story --------------------------------------------------------------------------------

    async def story(self, call: RequestContext) -> web.StreamResponse:
        """Stream a story as events."""
        story = await self._read_story(call)
        with self._lease(call, self._pod_for(call, story.model), story.model, story.failure) as leased:

            async def send_events(stream: SseResponse) -> None:
                await self.stories.generate(leased, story, FantasyStream(stream).story)
                await stream.send("done", {"model": story.model})

            return await self._event_response(call, leased, send_events)

    async def _read_story(self, call: RequestContext) -> StoryRequest:
        """Read the request. Its body is released: the request may wait for minutes."""
        body = await read_json(call, self.limits, self.fleet)
        return self.stories.request(body.text("prompt"), await body.image())

    # --- image and fantasy --------------------------------------------------------------------

    async def image(self, call: RequestContext) -> web.StreamResponse:
        """Generate an image; with `stream` its progress is sent as events."""
        body = await read_json(call, self.limits, self.fleet)
        workflow, metadata = body.text("workflow") or None, body.flag("metadata", False)
        job = self.images.job(_image_request(body), workflow, metadata=metadata)
        if body.fields.get("seed") is not None:
            job.workflow.need_seed()
        streams = body.flag("stream", False)
        with self._lease(call, self._pod_for(call, None), None) as leased:
            if not streams:
                return await self._complete_response(call, leased, self._image_result(leased, job))

            async def send_events(stream: SseResponse) -> None:
                image = await self.images.generate(leased, job, FantasyStream(stream).image)
                await stream.send("result", _image_json(image))

            return await self._event_response(call, leased, send_events)

    async def _image_result(self, leased: LeasedCall, job: ImageJob) -> object:
        return _image_json(await self.images.generate(leased, job))

    async def fantasy(self, call: RequestContext) -> web.StreamResponse:
        """Generate a story about an image and an illustration, under one lease."""
        story, illustrated, streams = await self._read_fantasy(call)
        pod, picture_pod = self._pod_for(call, story.model), self._pod_for(call, None)
        with ExitStack() as leases:
            leased = leases.enter_context(self._lease(call, pod, story.model, story.failure))
            pictures = leased
            if illustrated and picture_pod is not pod:  # asked for at once: it may start meanwhile
                pictures = leases.enter_context(self._lease(call, picture_pod, None))
            if not streams:
                result = self._fantasy_result(leased, story, illustrated, pictures)
                return await self._complete_response(call, leased, result)

            async def send_events(stream: SseResponse) -> None:
                fantasy = await self.fantasies.generate(
                    leased,
                    story,
                    illustrated=illustrated,
                    listener=FantasyStream(stream),
                    pictures=pictures,
                )
                await stream.send("result", _fantasy_json(fantasy))

            return await self._event_response(call, leased, send_events)

    async def _read_fantasy(self, call: RequestContext) -> tuple[StoryRequest, bool, bool]:
        """Return the story request, whether to illustrate, and whether to stream; the body is released."""
        body = await read_json(call, self.limits, self.fleet)
        prompt, illustrated = body.text("prompt"), body.flag("include_image", True)
        streams = body.flag("stream", False)
        image = await body.image(needed=True)
        assert image is not None
        return self.fantasies.story_request(image, prompt), illustrated, streams

    async def _fantasy_result(
        self, leased: LeasedCall, story: StoryRequest, illustrated: bool, pictures: LeasedCall
    ) -> object:
        return _fantasy_json(
            await self.fantasies.generate(leased, story, illustrated=illustrated, pictures=pictures)
        )


@define
class LoggedCall(LeasedCall):
    """A leased call whose wait shows in a response header and in the access log."""

    call: RequestContext = field(kw_only=True)

    async def next_pod(self) -> ServingPod:
        """See `LeasedCall.next_pod`."""
        pod = await super().next_pod()
        self.call.note_wait(self.lease.waited_s, pod.run_id)
        return pod


@frozen
class FantasyStream:
    """Sends the progress as events."""

    stream: SseResponse

    async def story(self, delta: str) -> None:
        await self.stream.send("story", {"delta": delta})

    async def progress(self, stage: str, value: float, most: float) -> None:
        await self.stream.send("progress", {"stage": stage, "value": value, "max": most})

    async def image(self, value: float, most: float) -> None:
        await self.progress("image", value, most)


def _question(body: JsonRequest) -> CodeQuestion:
    language = body.text("language").strip()
    if not _LANGUAGE.fullmatch(language):
        raise InvalidRequest("language: must be a name such as python, of at most 40 characters")
    if body.fields.get("code") is None:
        raise InvalidRequest("code: is needed")
    return CodeQuestion(
        question=body.text("question", needed=True),
        code=body.text("code"),
        language=language,
        model=body.text("model").strip(),
    )


def _image_request(body: JsonRequest) -> ImageRequest:
    wish = ImageRequest(
        prompt=body.text("prompt", needed=True),
        seed=random_seed(),
        negative_prompt=body.text("negative_prompt") or None,
        width=body.number("width", *SIDE_LIMITS),
        height=body.number("height", *SIDE_LIMITS),
    )
    seed = body.number("seed", 0, MAX_SEED)
    return wish if seed is None else evolve(wish, seed=seed)


def _image_json(image: GeneratedImage) -> dict[str, object]:
    return {"image_base64": image.image.base64, "filename": image.filename, "seed": image.seed}


def _fantasy_json(fantasy: Fantasy) -> dict[str, object]:
    image = fantasy.image
    return {
        "story": fantasy.story,
        "image_base64": None if image is None else image.image.base64,
        "warnings": [{"code": one.code, "message": one.message} for one in fantasy.warnings],
    }
