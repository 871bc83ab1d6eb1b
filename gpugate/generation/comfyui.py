"""Runs a workflow on the pod's ComfyUI through its v1 routes: submit, follow, fetch, cancel.

How a job is followed (docs/telegram-comfyui.md#comfyui): the websocket reports progress and says when to
poll; the history says whether the job has ended; a job that is in neither history nor queue is lost. Error
messages contain no text of ComfyUI that may hold its paths or a prompt.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

import aiohttp
import orjson
from attrs import define, field, frozen

from gpugate.errors import ImageFailed
from gpugate.generation.comfyui_responses import (
    bare_name,
    image_location,
    progress_of,
    read_object,
    refusal,
    rows_of,
)
from gpugate.lifecycle.leased_call import PodUnreachable
from gpugate.provider_api import Endpoint
from gpugate.relay.transport import CALL_ERRORS, ssl_option, url_of
from gpugate.tasks import spawn

Graph = Mapping[str, Any]
"""A ComfyUI graph in API format: node id to `{"class_type", "inputs", "_meta"?}`."""
Progress = Callable[[float, float], Awaitable[None]]
"""Takes (value, max) of the node that runs."""
CALL_S = 30.0
CONNECT_S = 5.0
CANCEL_S = 3.0
"""How long the cancellation of a job is waited for; it is sent to ComfyUI in any case."""
MAX_BROKEN_POLLS = 5
"""After this many failed polls in a row ComfyUI counts as unreachable."""
MAX_IMAGE_BYTES = 64 * 1024 * 1024
MAX_RESPONSE_BYTES = 16 * 1024 * 1024
NOT_DONE = "ComfyUI was not done"
NOT_UP = frozenset({404, 502, 503, 504, *range(520, 524), *range(525, 528)})
"""Status of a provider's proxy for a service that is not up yet (docs/providers.md#proxy-answers)."""
PROXY_TIMEOUT = 524
"""Status of a proxy that timed out: the request may still run and is not repeated
(docs/providers.md#silent-requests)."""


@frozen
class RawImage:
    """An image as ComfyUI returned it, with its metadata.

    Attributes:
        filename: the bare name, without a folder and without characters that are not printable.
    """

    data: bytes = field(repr=False)
    filename: str


class _ServiceNotUp(Exception):
    """ComfyUI is not up yet; it has not received the job."""


class _OutcomeUnknown(Exception):
    """The connection broke, or the response is invalid."""


class _Place(Enum):
    """Where ComfyUI's queue has a job."""

    RUNNING = "queue_running"
    PENDING = "queue_pending"
    NOWHERE = "nowhere"
    UNKNOWN = "unknown"


@frozen
class ComfyUIBackend:
    """Generates images with a ComfyUI.

    Attributes:
        poll_s: between two polls, unless the websocket causes one sooner.
        timeout_s: from the submission to the fetched image, including the wait for a server that is not up
            yet.
    """

    session: aiohttp.ClientSession
    poll_s: float = 3.0
    timeout_s: float = 300.0

    async def generate(self, endpoint: Endpoint, graph: Graph, progress: Progress) -> RawImage:
        """Submit a graph, follow the job, fetch its image. When cancelled, it cancels the job, too.

        Raises:
            PodUnreachable: ComfyUI responded first, and then not any more.
            ImageFailed: any other failure, the timeout included; the message is one line.
        """
        job = _RemoteJob(self.session, endpoint, self.poll_s)
        scope = asyncio.timeout(self.timeout_s)
        try:
            async with scope:
                try:
                    return await job.run(graph, progress)
                finally:
                    await job.close()
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise ImageFailed(f"{job.delay} within {self.timeout_s:g} s") from error


@define
class _RemoteJob:
    """One graph from its submission to its image.

    Attributes:
        id: chosen here, so that the job can be cancelled before ComfyUI has responded.
        delay: what has not happened yet, for people.
    """

    session: aiohttp.ClientSession
    endpoint: Endpoint
    poll_s: float
    id: str = field(factory=lambda: str(uuid.uuid4()))
    delay: str = "ComfyUI was not there"
    _ended: bool = True
    _submission: asyncio.Task[tuple[int, bytes]] | None = None
    _socket: aiohttp.ClientWebSocketResponse | None = None
    _reader: asyncio.Task[Any] | None = None
    _wake: asyncio.Event = field(factory=asyncio.Event)
    _poll_now: bool = False
    _step: tuple[float, float] | None = None

    async def run(self, graph: Graph, progress: Progress) -> RawImage:
        """Submit, follow, fetch. Raises ImageFailed, PodUnreachable."""
        while True:
            await self._listen()
            try:
                await self._submit(graph)
                break
            except _ServiceNotUp:
                await asyncio.sleep(self.poll_s)
        entry = await self._follow(progress)
        self._ended = True
        return await self._fetch(image_location(entry, graph))

    async def close(self) -> None:
        """Close the websocket and cancel an unfinished job, also while this task is being cancelled."""
        if self._reader is not None:
            self._reader.cancel()
        await asyncio.wait([spawn(self._close(), "comfyui: leave a job")], timeout=CANCEL_S)

    # --- submission ---------------------------------------------------------------------------

    async def _submit(self, graph: Graph) -> None:
        self._ended = False
        body = {"prompt": graph, "client_id": self.id, "prompt_id": self.id}
        # Shielded: a job that ComfyUI may have received has to be cancelled by its id afterwards.
        self._submission = spawn(
            self._call("POST", "/prompt", body), "comfyui: submit", on_crash=_ignore_failure
        )
        try:
            status, data = await asyncio.shield(self._submission)
        except _ServiceNotUp:
            self._ended = True
            raise
        except _OutcomeUnknown:
            self.delay = NOT_DONE
            return  # it may have arrived: history and queue will tell
        answer = read_object(data)
        if status in NOT_UP and answer is None:
            self._ended = True
            self.delay = f"ComfyUI was not there (its address answered {status})"
            raise _ServiceNotUp
        if status == PROXY_TIMEOUT:
            self.delay = NOT_DONE
            return
        accepted = status == 200 and answer is not None and isinstance(answer.get("prompt_id"), str)
        if answer is None or not accepted or answer.get("node_errors"):
            self._ended = status != 200  # some outputs may run in spite of node errors: cancelled
            raise ImageFailed(refusal(status, answer, data))
        self.delay = NOT_DONE
        self._take_id(answer)

    def _take_id(self, answer: Mapping[str, Any] | None) -> None:
        """Take over the id of a server that ignores ours (older versions)."""
        if answer is not None and isinstance(answer.get("prompt_id"), str):
            self.id = answer["prompt_id"]

    # --- following ----------------------------------------------------------------------------

    async def _follow(self, progress: Progress) -> Mapping[str, Any]:
        """Wait until the job has ended; return its entry in the history."""
        loop = asyncio.get_running_loop()
        failed_polls, missing, due = 0, 0, loop.time() + self.poll_s
        while True:
            await self._wait_for_event(due, progress)
            if not self._poll_now and loop.time() < due:
                continue
            self._poll_now, due = False, loop.time() + self.poll_s
            try:
                entry = await self._history()
                if entry is not None:
                    return entry
                place = await self._find_in_queue()
                if place is _Place.PENDING:
                    self.delay = "ComfyUI did not begin the job, others are before it,"
                elif place is _Place.RUNNING:
                    self.delay = NOT_DONE
                missing = missing + 1 if place is _Place.NOWHERE else 0
                failed_polls = 0
            except (_ServiceNotUp, _OutcomeUnknown) as error:
                failed_polls += 1
                if failed_polls >= MAX_BROKEN_POLLS:
                    raise PodUnreachable("ComfyUI does not answer any more") from error
            if missing > 1:  # twice, because a job may end between the two requests
                self._ended = True
                raise ImageFailed("ComfyUI has lost the job; it may have been restarted")

    async def _wait_for_event(self, until: float, progress: Progress) -> None:
        """Wait for the websocket or the next poll; pass the latest step on."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        self._wake.clear()
        step, self._step = self._step, None
        if step is not None:
            await progress(*step)

    async def _history(self) -> Mapping[str, Any] | None:
        status, data = await self._call("GET", f"/history/{self.id}")
        answer = read_object(data)
        if status != 200 or answer is None:
            raise _OutcomeUnknown
        entry = answer.get(self.id)
        return entry if isinstance(entry, dict) else None

    async def _find_in_queue(self) -> _Place:
        """Return where the queue has the job. Raises _ServiceNotUp, _OutcomeUnknown."""
        try:
            status, data = await self._call("GET", "/queue")
        except ImageFailed:  # larger than is read: it holds the graphs of all jobs
            return _Place.UNKNOWN
        answer = read_object(data)
        if status != 200 or answer is None:
            return _Place.UNKNOWN
        for place in (_Place.RUNNING, _Place.PENDING):
            for row in rows_of(answer, place.value):
                if isinstance(row, list) and len(row) > 1 and row[1] == self.id:
                    return place
        return _Place.NOWHERE

    # --- the websocket ------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Try to open the websocket; without it the job is only polled."""
        if self._socket is not None:
            return
        try:
            async with asyncio.timeout(CONNECT_S):
                self._socket = await self.session.ws_connect(
                    url_of(self.endpoint, f"/ws?clientId={self.id}"),
                    headers=dict(self.endpoint.headers),
                    ssl=ssl_option(self.endpoint),
                    max_msg_size=MAX_RESPONSE_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=0.5),
                )
        except CALL_ERRORS:
            return
        self._reader = spawn(self._read_events(self._socket), "comfyui: events")

    async def _read_events(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        with suppress(*CALL_ERRORS):
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    self._on_event(read_object(message.data))
        self._poll_now = True  # the server may be gone
        self._wake.set()

    def _on_event(self, event: Mapping[str, Any] | None) -> None:
        data = event.get("data") if event is not None else None
        if event is None or not isinstance(data, dict) or data.get("prompt_id") != self.id:
            return
        kind = event.get("type")
        self.delay = NOT_DONE
        if kind == "progress" and (step := progress_of(data)) is not None:
            self._step = step
            self._wake.set()
        # `execution_success` comes before the history has the job; `executing` without a node comes after.
        ended = kind == "executing" and data.get("node") is None
        if ended or kind in ("execution_error", "execution_interrupted"):
            self._poll_now = True
            self._wake.set()

    # --- the end ------------------------------------------------------------------------------

    async def _fetch(self, where: Mapping[str, str]) -> RawImage:
        """Fetch the image; try twice if the connection breaks."""
        for last in (False, True):
            try:
                status, data = await self._call("GET", "/view", params=where, limit=MAX_IMAGE_BYTES)
            except (_ServiceNotUp, _OutcomeUnknown) as error:
                if last:
                    raise PodUnreachable("ComfyUI broke off while its image was fetched") from error
                continue
            if status != 200:
                gone = "ComfyUI has drawn the image, but its file is gone"
                raise ImageFailed(gone if status == 404 else f"ComfyUI answered {status} for its image")
            break
        return RawImage(data, bare_name(where["filename"]))

    async def _close(self) -> None:
        if self._submission is not None and not self._ended:
            await self._cancel(self._submission, CANCEL_S)
            if not self._submission.done():  # it may still arrive
                await self._cancel(self._submission, CALL_S)
        if self._socket is not None:
            await self._socket.close()

    async def _cancel(self, submission: asyncio.Task[tuple[int, bytes]], wait_s: float) -> None:
        """Delete or interrupt the job, once its submission has ended or after `wait_s`."""
        await asyncio.wait([submission], timeout=wait_s)
        if submission.done() and not submission.cancelled() and submission.exception() is None:
            self._take_id(read_object(submission.result()[1]))
        if self.session.closed:  # the gateway is going down
            return
        with suppress(_ServiceNotUp, _OutcomeUnknown, ImageFailed):
            await self._call("POST", "/queue", {"delete": [self.id]})
        # 0.3.56 and older interrupt whatever runs, even for another id, so only while this job runs
        # (docs/telegram-comfyui.md#comfyui-queue-and-cancelling).
        with suppress(_ServiceNotUp, _OutcomeUnknown, ImageFailed):
            if await self._find_in_queue() is _Place.RUNNING:
                await self._call("POST", "/interrupt", {"prompt_id": self.id})

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        limit: int = MAX_RESPONSE_BYTES,
    ) -> tuple[int, bytes]:
        """Return status and body.

        Raises:
            _ServiceNotUp: no connection.
            _OutcomeUnknown: the connection broke.
            ImageFailed: the body is larger than `limit`.
        """
        headers = dict(self.endpoint.headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with self.session.request(
                method,
                url_of(self.endpoint, path),
                params=params,
                data=None if body is None else orjson.dumps(body),
                headers=headers,
                ssl=ssl_option(self.endpoint),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=CALL_S),
            ) as answer:
                return answer.status, await _read_all(answer, limit)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _ServiceNotUp from error
        except CALL_ERRORS as error:
            raise _OutcomeUnknown from error


def _ignore_failure(name: str, error: BaseException) -> None:
    """Do nothing: the code that awaits the submission handles its failure."""


async def _read_all(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    pieces, size = [], 0
    too_large = ImageFailed(f"ComfyUI's answer is larger than {limit >> 20} MiB")
    if (answer.content_length or 0) > limit:
        raise too_large
    async for piece in answer.content.iter_any():
        size += len(piece)
        if size > limit:
            raise too_large
        pieces.append(piece)
    return b"".join(pieces)
