"""The services on top of the pod over HTTP: code, story, fantasy, image. Thin: reads, leases, shows.

Everything is checked before a lease is asked for, so a wrong request wakes nothing. Shapes are those of
docs/api.md#services.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager

import orjson
from aiohttp import web
from attrs import define, evolve, field, frozen

from gpugate.api.gpu import ApiRoute, ApiRoutes
from gpugate.api.json_request import JsonRequest, read_json
from gpugate.api.sse import SseResponse, wants_only_events
from gpugate.errors import GateError, InvalidRequest, UpstreamBroken, UpstreamTimeout
from gpugate.generation.code_assist import CodeAssist, CodeQuestion
from gpugate.generation.code_stream import PATH, CodeStream
from gpugate.generation.fantasy import Fantasy, FantasyService
from gpugate.generation.images import LARGEST_SEED, GeneratedImage, ImageJob, ImageService, random_seed
from gpugate.generation.stories import StoryRequest, StoryService
from gpugate.generation.text_model import GenerationFailed, OnText, PodUnreachable, TextModel
from gpugate.generation.workflows import ImageRequest
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.leased_call import LeasedCall
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.proxy.auth import subject_of
from gpugate.proxy.error_format import success
from gpugate.proxy.heartbeat import Heartbeat
from gpugate.proxy.request_context import RequestContext

SIDES = (64, 2048)
_LANGUAGE = re.compile(r"[\w+#./ -]{0,40}")


@frozen
class GenerationApi:
    """The four endpoints."""

    lifecycle: Lifecycle
    texts: TextModel
    coding: CodeAssist
    code_stream: CodeStream
    stories: StoryService
    images: ImageService
    fantasies: FantasyService
    max_body: int
    heartbeat_s: float = 0.0

    def routes(self) -> ApiRoutes:
        """The endpoints, for the gate's table."""
        return {
            "/api/v1/code/assist": {"POST": ApiRoute(self.code, scope="chat")},
            "/api/v1/story/generate": {"POST": ApiRoute(self.story, scope="chat")},
            "/api/v1/image/generate": {"POST": ApiRoute(self.image, scope="chat")},
            "/api/v1/fantasy/generate": {"POST": ApiRoute(self.fantasy, scope="chat")},
        }

    @contextmanager
    def _visit(self, call: RequestContext, model: str | None) -> Iterator[LeasedCall]:
        """One lease around all that a call does with the pod."""
        user = subject_of(call.user)
        with self.lifecycle.acquire(model=model, user=user, request_id=call.request_id) as lease:
            yield LoggedCall(self.lifecycle, lease, call=call)

    def _events(self, call: RequestContext, visit: LeasedCall) -> SseResponse:
        """An answer made of events; while the pod is waited for, of comments."""
        stream = SseResponse(call, self.heartbeat_s)
        visit.wait_for_pod = stream.wait_for_pod
        return stream

    def _beating(self, call: RequestContext, visit: LeasedCall, *, streams: bool) -> Heartbeat | None:
        """The filler of any other answer, if it is asked for (`queue.heartbeat`)."""
        if self.heartbeat_s <= 0 or call.request.version < (1, 1):
            return None
        heartbeat = Heartbeat(call, self.heartbeat_s, streams=streams)
        visit.wait_for_pod = heartbeat.wait_for_pod
        return heartbeat

    async def _whole(
        self, call: RequestContext, visit: LeasedCall, work: Awaitable[object]
    ) -> web.StreamResponse:
        """What comes of `work`, in the envelope."""
        heartbeat = self._beating(call, visit, streams=False)
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
        """The chat's own bytes, the same as events, or the whole answer."""
        asked = await read_json(call, self.max_body)
        question = _question(asked)
        streams = asked.flag("stream", True)
        model = self.coding.model_for(question)
        with self._visit(call, model) as visit:
            if not streams:
                return await self._whole(call, visit, self._answered(visit, question, model))
            if wants_only_events(call.request.headers.get("Accept")):
                return await self._code_events(call, visit, question)
            heartbeat = self._beating(call, visit, streams=True)
            body = orjson.dumps(self.coding.chat(question))
            try:
                return await self.code_stream.stream(call, visit, body, model, heartbeat)
            except GateError as error:
                if heartbeat is None or not heartbeat.headers_sent:
                    raise
                return heartbeat.finish_with_error(error)

    async def _answered(self, visit: LeasedCall, question: CodeQuestion, model: str) -> object:
        return {"answer": await self._told(visit, question), "model": model}

    async def _told(self, visit: LeasedCall, question: CodeQuestion, hear: OnText | None = None) -> str:
        """Ask the coding model; with `hear` the first piece begins the answer."""
        body = self.coding.chat(question)

        async def work(pod: ServingPod) -> str:
            said: list[str] = []

            async def add(text: str) -> None:
                said.append(text)
                if hear is not None:
                    visit.mark_response_started()
                    await hear(text)

            await self.texts.stream_to(pod.endpoints["ollama"], PATH, body, add)
            return "".join(said)

        try:
            return await visit.run(work)
        except GenerationFailed as error:
            if error.timed_out:
                raise UpstreamTimeout from error
            raise UpstreamBroken(str(error)) from error
        except PodUnreachable as error:
            model = self.coding.model_for(question)
            raise UpstreamBroken(f"the coding model {model!r} did not answer: {error}") from error

    async def _code_events(
        self, call: RequestContext, visit: LeasedCall, question: CodeQuestion
    ) -> web.StreamResponse:
        async with self._events(call, visit) as stream:

            async def hear(delta: str) -> None:
                await stream.send("code", {"delta": delta})

            try:
                await self._told(visit, question, hear)
                await stream.send("done", {"model": self.coding.model_for(question)})
            except GateError as error:
                await stream.finish_with_error(error)
            return stream.response

    # --- story --------------------------------------------------------------------------------

    async def story(self, call: RequestContext) -> web.StreamResponse:
        """A story, token by token."""
        telling = await self._story_of(call)
        with self._visit(call, telling.model) as visit:
            async with self._events(call, visit) as stream:
                try:
                    await self.stories.generate(visit, telling, FantasyStream(stream).story)
                    await stream.send("done", {"model": telling.model})
                except GateError as error:
                    await stream.finish_with_error(error)
                return stream.response

    async def _story_of(self, call: RequestContext) -> StoryRequest:
        """What to tell. The body is not kept: a picture may be held for minutes, and once is enough."""
        asked = await read_json(call, self.max_body)
        return self.stories.request(asked.text("prompt"), await asked.image())

    # --- pictures -----------------------------------------------------------------------------

    async def image(self, call: RequestContext) -> web.StreamResponse:
        """A picture, waited for; with `stream` its progress first."""
        asked = await read_json(call, self.max_body)
        workflow, metadata = asked.text("workflow") or None, asked.flag("metadata", False)
        drawing = self.images.job(_wish(asked), workflow, metadata=metadata)
        if asked.fields.get("seed") is not None:
            drawing.workflow.need_seed()
        streams = asked.flag("stream", False)
        with self._visit(call, None) as visit:
            if not streams:
                return await self._whole(call, visit, self._drawn(visit, drawing))
            async with self._events(call, visit) as stream:
                listener = FantasyStream(stream)
                try:
                    picture = await self.images.generate(visit, drawing, listener.image)
                    await stream.send("result", _shown_picture(picture))
                except GateError as error:
                    await stream.finish_with_error(error)
                return stream.response

    async def _drawn(self, visit: LeasedCall, drawing: ImageJob) -> object:
        return _shown_picture(await self.images.generate(visit, drawing))

    async def fantasy(self, call: RequestContext) -> web.StreamResponse:
        """A story of a picture, and a picture of the story, on one lease."""
        telling, illustrated, streams = await self._fantasy_of(call)
        with self._visit(call, telling.model) as visit:
            if not streams:
                return await self._whole(call, visit, self._dreamt(visit, telling, illustrated))
            async with self._events(call, visit) as stream:
                try:
                    dream = await self.fantasies.generate(
                        visit, telling, illustrated=illustrated, listener=FantasyStream(stream)
                    )
                    await stream.send("result", _shown_fantasy(dream))
                except GateError as error:
                    await stream.finish_with_error(error)
                return stream.response

    async def _fantasy_of(self, call: RequestContext) -> tuple[StoryRequest, bool, bool]:
        """What to tell, whether to draw, and whether to stream; as for a story, the body is not kept."""
        asked = await read_json(call, self.max_body)
        prompt, illustrated = asked.text("prompt"), asked.flag("include_image", True)
        streams = asked.flag("stream", False)
        image = await asked.image(needed=True)
        assert image is not None
        return self.fantasies.story_request(image, prompt), illustrated, streams

    async def _dreamt(self, visit: LeasedCall, telling: StoryRequest, illustrated: bool) -> object:
        return _shown_fantasy(await self.fantasies.generate(visit, telling, illustrated=illustrated))


@define
class LoggedCall(LeasedCall):
    """A visit whose wait shows in the answer's head and in the log line."""

    call: RequestContext = field(kw_only=True)

    async def next_pod(self) -> ServingPod:
        """See `LeasedCall.next_pod`."""
        pod = await super().next_pod()
        self.call.note_wait(self.lease.waited_s, pod.run_id)
        return pod


@frozen
class FantasyStream:
    """What happens, as events."""

    stream: SseResponse

    async def story(self, delta: str) -> None:
        await self.stream.send("story", {"delta": delta})

    async def progress(self, stage: str, value: int, most: int) -> None:
        await self.stream.send("progress", {"stage": stage, "value": value, "max": most})

    async def image(self, value: int, most: int) -> None:
        await self.progress("image", value, most)


def _question(asked: JsonRequest) -> CodeQuestion:
    language = asked.text("language").strip()
    if not _LANGUAGE.fullmatch(language):
        raise InvalidRequest("language: must be a name such as python, of at most 40 characters")
    if asked.fields.get("code") is None:
        raise InvalidRequest("code: is needed")
    return CodeQuestion(
        question=asked.text("question", needed=True),
        code=asked.text("code"),
        language=language,
        model=asked.text("model").strip(),
    )


def _wish(asked: JsonRequest) -> ImageRequest:
    wish = ImageRequest(
        prompt=asked.text("prompt", needed=True),
        seed=random_seed(),
        negative_prompt=asked.text("negative_prompt") or None,
        width=asked.number("width", *SIDES),
        height=asked.number("height", *SIDES),
    )
    seed = asked.number("seed", 0, LARGEST_SEED)
    return wish if seed is None else evolve(wish, seed=seed)


def _shown_picture(picture: GeneratedImage) -> dict[str, object]:
    return {"image_base64": picture.image.base64, "filename": picture.filename, "seed": picture.seed}


def _shown_fantasy(fantasy: Fantasy) -> dict[str, object]:
    picture = fantasy.image
    return {
        "story": fantasy.story,
        "image_base64": None if picture is None else picture.image.base64,
        "warnings": [{"code": one.code, "message": one.message} for one in fantasy.warnings],
    }
