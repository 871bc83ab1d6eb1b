"""Calls to the pod itself: each runs in a task of its own, and Ollama's implementation of them.

Clients' requests do not go this way; they go through the relay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import aiohttp
import orjson
from attrs import frozen

from gpugate.core.commands import (
    AS_IT_COMES,
    CheckDevice,
    ListModels,
    LoadOptions,
    PreloadModel,
    Probe,
    PullModel,
)
from gpugate.core.events import (
    DeviceChecked,
    Event,
    ModelPulled,
    ModelsListed,
    PreloadFinished,
    ProbeFinished,
)
from gpugate.core.request_queue import full_name
from gpugate.lifecycle.model_pull import ModelPull, PullFailure, Report
from gpugate.provider_api import Endpoint
from gpugate.relay.transport import CALL_ERRORS, ssl_option, url_of
from gpugate.tasks import CrashHandler, spawn

CHECK_LIMIT_S = 5.0
FETCH_LIMIT_S = 15.0
LOAD_LIMIT_S = 600.0
VERSION_PATH = "/api/version"
LARGEST_ANSWER = 4 * 1024 * 1024
LARGEST_VERSION = 64 * 1024
PROXY_GAVE_UP = 524
"""A provider's proxy waited long enough; the model may be loading on (docs/providers.md#silent-requests)."""
LISTED_PAUSE_S = 1.0
LIST_TRIES = 3
ASK_AGAIN_S = 15.0
"""A load that shows nowhere for so long was dropped with its request, and is asked for again."""

_HOST_REFUSED = (
    "answered 403 without a word: Ollama refuses the host name it is called by; set OLLAMA_HOST=0.0.0.0 in"
    " the pod"
)


class PodClient(Protocol):
    """What the lifecycle asks of a pod; one implementation for each `pod.engine`."""

    async def check(self, endpoint: Endpoint) -> str | None:
        """Probe the pod's health; None if it is healthy, else one line that says what was seen instead."""

    async def preload(self, endpoint: Endpoint, model: str, options: LoadOptions) -> str | None:
        """Load a model and wait for it; None if it is loaded, else one line that says why not."""

    async def on_cpu(self, endpoint: Endpoint) -> bool:
        """Return whether all loaded models run on the CPU; False if none is loaded or it cannot be told."""

    async def partly_on_cpu(self, endpoint: Endpoint) -> bool:
        """Return whether a loaded model has found too little GPU memory; False if it cannot be told."""

    async def installed(self, endpoint: Endpoint) -> frozenset[str]:
        """Return the full names of the models that the pod has; none if it does not tell."""

    async def pull(self, endpoint: Endpoint, model: str, report: Report) -> PullFailure | None:
        """Have the pod pull a model, and wait for it; None once it is there."""


@frozen(kw_only=True)
class PullProgress:
    """How far the pull of a model is; the bytes are those of the parts that are known so far.

    Attributes:
        percent: None as long as nothing is known of its size.
    """

    model: str
    percent: int | None = None
    completed_bytes: int = 0
    total_bytes: int = 0


class PodCalls:
    """Executes the commands to the pod; the results come back as events.

    Attributes:
        pulling: how far the pull is that is out; None without one.
        on_small_gpu: called with the endpoint if a model that was loaded runs partly on the CPU; None: nobody
            wants to know.

    Args:
        on_event: called with each result, in the task of the call.
        limit_s: of a probe and a device check; the machine limits preloads and pulls.
        on_pull: called when a pull begins, has a per cent more, or ends (False).
    """

    def __init__(
        self,
        pod: PodClient,
        on_event: Callable[[Event], None],
        limit_s: float,
        on_crash: CrashHandler,
        on_pull: Callable[[PullModel, PullProgress, bool], None] = lambda *_: None,
    ) -> None:
        self.pulling: PullProgress | None = None
        self.on_small_gpu: Callable[[Endpoint], None] | None = None
        self._pod = pod
        self._on_pull = on_pull
        self._on_event = on_event
        self._limit_s = limit_s
        self._on_crash = on_crash
        self._tasks: set[asyncio.Task[None]] = set()

    def probe(self, command: Probe) -> None:
        """Probe the pod's health."""
        self._spawn(self._probe(command), "pod:probe")

    def preload(self, command: PreloadModel) -> None:
        """Load a model, then check on what device it runs. A preload that fails never fails the start."""
        self._spawn(self._preload(command), "pod:preload")

    def list_models(self, command: ListModels) -> None:
        """Find out which models the pod has."""
        self._spawn(self._list_models(command), "pod:list-models")

    def pull(self, command: PullModel) -> None:
        """Have the pod pull a model."""
        self._spawn(self._pull(command), "pod:pull")

    def check_device(self, command: CheckDevice) -> None:
        """Find out whether the loaded models run on the CPU."""
        self._spawn(self._check_device(command), "pod:check-device")

    def watch_gpu(self, endpoint: Endpoint) -> None:
        """See whether a model that was loaded by now runs partly on the CPU, if that matters."""
        if self.on_small_gpu is not None:
            self._spawn(self._watch_gpu(endpoint, self.on_small_gpu), "pod:watch-gpu")

    def cancel(self) -> None:
        """Cancel the calls that are out: the pod is ready, or gone.

        A call whose own result led to this is not cancelled; it ends by itself.
        """
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    async def aclose(self) -> None:
        """Cancel all calls and wait for their end."""
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = spawn(work, name, on_crash=self._on_crash)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _probe(self, command: Probe) -> None:
        try:
            async with asyncio.timeout(self._limit_s):
                detail = await self._pod.check(command.endpoint)
        except TimeoutError:
            detail = f"no answer within {self._limit_s:g} s"
        except Exception as error:  # whatever the client does wrong, the pod is not known to be healthy
            detail = f"the check failed with {type(error).__name__}"
        self._on_event(ProbeFinished(command.op, detail is None, detail or ""))

    async def _preload(self, command: PreloadModel) -> None:
        loaded = on_cpu = False
        with suppress(Exception):
            loaded = await self._pod.preload(command.endpoint, command.model, command.options) is None
        if loaded:
            on_cpu = await self._on_cpu(command.endpoint)
        self._on_event(PreloadFinished(command.op, on_cpu))

    async def _list_models(self, command: ListModels) -> None:
        models: frozenset[str] = frozenset()
        with suppress(Exception):
            models = await self._pod.installed(command.endpoint)
        self._on_event(ModelsListed(command.op, models))

    async def _pull(self, command: PullModel) -> None:
        progress = self.pulling = PullProgress(model=command.model)
        self._on_pull(command, progress, True)
        try:
            failure = await self._pod.pull(command.endpoint, command.model, partial(self._note_pull, command))
        except Exception as error:
            failure = PullFailure(f"the pull failed with {type(error).__name__}")
        finally:
            progress, self.pulling = self.pulling, None
            self._on_pull(command, progress, False)
        self._on_event(ModelPulled(command.op, *((failure.message, failure.anywhere) if failure else ())))

    def _note_pull(self, command: PullModel, completed: int, total: int) -> None:
        percent = min(100, 100 * completed // total) if total else None
        known = self.pulling
        self.pulling = PullProgress(
            model=command.model, percent=percent, completed_bytes=completed, total_bytes=total
        )
        if known is None or percent != known.percent:
            self._on_pull(command, self.pulling, True)

    async def _check_device(self, command: CheckDevice) -> None:
        self._on_event(DeviceChecked(command.run_id, await self._on_cpu(command.endpoint)))

    async def _on_cpu(self, endpoint: Endpoint) -> bool:
        try:
            async with asyncio.timeout(self._limit_s):
                on_cpu = await self._pod.on_cpu(endpoint)
        except Exception:  # not known is not worth a warning
            return False
        if self.on_small_gpu is not None:
            await self._watch_gpu(endpoint, self.on_small_gpu)
        return on_cpu

    async def _watch_gpu(self, endpoint: Endpoint, note: Callable[[Endpoint], None]) -> None:
        with suppress(Exception):
            async with asyncio.timeout(self._limit_s):
                if await self._pod.partly_on_cpu(endpoint):
                    note(endpoint)


@frozen
class HttpPodClient:
    """Calls to the pod's engine, whatever it speaks.

    Attributes:
        health_path: requested by a probe.
    """

    session: aiohttp.ClientSession
    health_path: str = VERSION_PATH

    async def fetch(self, endpoint: Endpoint, path: str, body: bytes | None = None) -> bytes | None:
        """Return the body of a 200 answer to `GET path`, or POST with a body; None for anything else."""
        try:
            method = "GET" if body is None else "POST"
            async with self._call(method, endpoint, path, FETCH_LIMIT_S, body) as answer:
                return await _whole(answer.content, LARGEST_ANSWER) if answer.status == 200 else None
        except CALL_ERRORS:
            return None

    def _call(
        self, method: str, endpoint: Endpoint, path: str, limit_s: float | None, body: bytes | None = None
    ) -> Any:
        headers: Mapping[str, str] = endpoint.headers
        if body is not None:
            headers = {**headers, "Content-Type": "application/json"}
        return self.session.request(
            method,
            url_of(endpoint, path),
            data=body,
            headers=headers,
            ssl=ssl_option(endpoint),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=limit_s),
        )


@frozen
class OpenAIPodClient(HttpPodClient):
    """Implements `PodClient` for an engine of which nothing but /v1 is known: vLLM, llama.cpp and others."""

    async def check(self, endpoint: Endpoint) -> str | None:
        """Probe the health; None if it is healthy, else what was seen instead.

        A web page is no engine's answer, but that of an edge in front of a pod that is not there.
        """
        try:
            async with self._call("GET", endpoint, self.health_path, CHECK_LIMIT_S) as answer:
                if answer.status != 200:
                    return f"{self.health_path} answered {answer.status}"
                is_page = answer.content_type == "text/html"
                return f"{self.health_path} answered a web page" if is_page else None
        except CALL_ERRORS as error:
            return _seen(error)

    async def preload(self, endpoint: Endpoint, model: str, options: LoadOptions = AS_IT_COMES) -> str | None:
        """Do nothing: the engine has loaded its model when it is healthy."""
        return None

    async def on_cpu(self, endpoint: Endpoint) -> bool:
        """Return False: it cannot be told."""
        return False

    partly_on_cpu = on_cpu

    async def installed(self, endpoint: Endpoint) -> frozenset[str]:
        """Return no model: nothing is pulled, so nobody needs to know."""
        return frozenset()

    async def pull(self, endpoint: Endpoint, model: str, report: Report) -> PullFailure | None:
        """Fail; the configuration does not allow `pod.pull` with such an engine."""
        return PullFailure("this engine pulls no models")


@frozen
class OllamaPodClient(HttpPodClient):
    """Implements `PodClient` for Ollama, and the calls of the catalog and the dead man's switch.

    For Ollama's own health path a JSON object with a version is wanted, because a provider's edge may answer
    for a pod that is not there (docs/providers.md#proxy-answers).
    """

    async def check(self, endpoint: Endpoint) -> str | None:
        """Probe the health; None if it is healthy, else what was seen instead."""
        try:
            async with self._call("GET", endpoint, self.health_path, CHECK_LIMIT_S) as answer:
                body = await _whole(answer.content, LARGEST_VERSION)
                if answer.status == 403 and not body:
                    return f"{self.health_path} {_HOST_REFUSED}"
                if answer.status != 200:
                    return f"{self.health_path} answered {answer.status}"
                return None if self.health_path != VERSION_PATH else _no_version(body or b"")
        except CALL_ERRORS as error:
            return _seen(error)

    async def preload(self, endpoint: Endpoint, model: str, options: LoadOptions = AS_IT_COMES) -> str | None:
        """Load a model, as Ollama does on a request without a prompt (docs/ollama.md#unload-and-load).

        Where a proxy gives up on the silence of a long load, Ollama's list says when the model is there. A
        model that can only embed refuses to be loaded for text, and is then loaded as what it is.
        """
        now = asyncio.get_running_loop().time
        end = now() + LOAD_LIMIT_S
        while (status := await self._ask_to_load(endpoint, model, options)) == PROXY_GAVE_UP:
            if await self._listed(endpoint, model, min(end, now() + ASK_AGAIN_S)):
                return None
            if now() >= end:
                break
        if isinstance(status, str):
            return status
        if status == 400 and not options.embeds:
            return await self.preload(endpoint, model, LoadOptions(True, options.fields))
        return None if status == 200 else f"the load of a model answered {status}"

    async def on_cpu(self, endpoint: Endpoint) -> bool:
        """Return whether models are loaded, and none of them uses the GPU's memory."""
        models = await self._loaded(endpoint)
        return bool(models) and all(model.get("size_vram") == 0 for model in models)

    async def partly_on_cpu(self, endpoint: Endpoint) -> bool:
        """Return whether a part of a loaded model is not in the GPU's memory."""
        sizes = ((model.get("size_vram"), model.get("size")) for model in await self._loaded(endpoint))
        return any(isinstance(v, int) and isinstance(s, int) and 0 < v < s for v, s in sizes)

    async def installed(self, endpoint: Endpoint) -> frozenset[str]:
        """Return the full names of the models of `/api/tags`; none if it cannot be read, several times."""
        for _ in range(LIST_TRIES):
            if (answer := await self.fetch(endpoint, "/api/tags")) is not None:
                return frozenset(full_name(str(model.get("name"))) for model in _models_of(answer))
            await asyncio.sleep(LISTED_PAUSE_S)
        return frozenset()

    async def pull(self, endpoint: Endpoint, model: str, report: Report) -> PullFailure | None:
        """Have Ollama pull a model, and wait for it; None once it is there."""
        asked = orjson.dumps({"model": model, "stream": True})
        return await ModelPull(partial(self._call, "POST", endpoint, "/api/pull", None, asked), report).run()

    async def _listed(self, endpoint: Endpoint, model: str, end: float) -> bool:
        """Wait until the model is among the loaded ones; False if it is not before loop time `end`."""
        name, now = full_name(model), asyncio.get_running_loop().time
        while now() < end:
            if any(full_name(str(loaded.get("name"))) == name for loaded in await self._loaded(endpoint)):
                return True
            await asyncio.sleep(LISTED_PAUSE_S)
        return False

    async def _loaded(self, endpoint: Endpoint) -> list[dict[str, object]]:
        """Return the models of `/api/ps`; none if the call fails."""
        return _models_of(await self.fetch(endpoint, "/api/ps") or b"")

    async def _ask_to_load(self, endpoint: Endpoint, model: str, options: LoadOptions) -> int | str:
        """Return the status of the answer, or what was seen instead."""
        path = "/api/embed" if options.embeds else "/api/generate"
        body = {**options.fields, "model": model, "stream": False}
        if options.embeds:
            body["input"] = []
        asked = orjson.dumps(body)
        try:
            async with self._call("POST", endpoint, path, LOAD_LIMIT_S, asked) as answer:
                await answer.content.read(64 * 1024)
                return int(answer.status)
        except CALL_ERRORS as error:
            return _seen(error)

    async def put_renewal(self, endpoint: Endpoint, digest: str, content: bytes) -> int | str:
        """Upload a blob; return the status (201 new, 200 it was there), or what was seen instead."""
        try:
            async with self._call(
                "POST", endpoint, f"/api/blobs/sha256:{digest}", FETCH_LIMIT_S, content
            ) as answer:
                return int(answer.status)
        except CALL_ERRORS as error:
            return _seen(error)


async def _whole(content: aiohttp.StreamReader, limit: int) -> bytes | None:
    """Read a body; None if it is longer than `limit` bytes."""
    body = bytearray()
    while piece := await content.readany():
        body += piece
        if len(body) > limit:
            return None
    return bytes(body)


def _no_version(body: bytes) -> str | None:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return f"{VERSION_PATH} answered something that is no JSON"
    if isinstance(answer, dict) and isinstance(answer.get("version"), str):
        return None
    return f"{VERSION_PATH} answered without a version"


def _models_of(answer: bytes) -> list[dict[str, object]]:
    """Return the models of a list of Ollama's; none if it is none."""
    try:
        models = orjson.loads(answer).get("models")
    except (orjson.JSONDecodeError, AttributeError):
        return []
    return [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []


def _seen(error: BaseException) -> str:
    """Return one short line; a library's own text may contain an address with a token in it."""
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ServerFingerprintMismatch):
        return "the certificate is not trusted"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the name cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "no connection"
    return f"the connection broke ({type(error).__name__})"
