"""The gateway's own calls to the pod's Ollama; clients' requests go through the relay."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson
from attrs import frozen

from gpugate.provider_api import Endpoint
from gpugate.relay.pod_http import CALL_ERRORS, ssl_option, url_of

CHECK_LIMIT_S = 5.0
FETCH_LIMIT_S = 15.0
LOAD_LIMIT_S = 600.0
VERSION_PATH = "/api/version"
LARGEST_ANSWER = 4 * 1024 * 1024
LARGEST_VERSION = 64 * 1024
PROXY_GAVE_UP = 524
"""A provider's proxy waited long enough; the model may be loading on (docs/providers.md#silent-requests)."""
LISTED_PAUSE_S = 1.0
ASK_AGAIN_S = 15.0
"""A load that shows nowhere for so long was dropped with its request, and is asked for again."""


@frozen
class OllamaPodClient:
    """Implements `PodClient` for Ollama, and the calls of the catalog and the dead man's switch.

    Attributes:
        health_path: `pod.health_path`; for Ollama's own a JSON object with a version is wanted, because
            a provider's edge may answer for a pod that is not there (docs/providers.md#proxy-answers).
    """

    session: aiohttp.ClientSession
    health_path: str = VERSION_PATH

    async def check(self, endpoint: Endpoint) -> str | None:
        """Probe the health; None if it is healthy, else what was seen instead."""
        try:
            async with self._call("GET", endpoint, self.health_path, CHECK_LIMIT_S) as answer:
                body = await _whole(answer.content, LARGEST_VERSION)
                if answer.status != 200:
                    return f"{self.health_path} answered {answer.status}"
                return None if self.health_path != VERSION_PATH else _no_version(body or b"")
        except CALL_ERRORS as error:
            return _seen(error)

    async def preload(self, endpoint: Endpoint, model: str, embeds: bool) -> str | None:
        """Load a model, as Ollama does on a request without a prompt (docs/ollama.md#unload-and-load).

        Where a proxy gives up on the silence of a long load, Ollama's list says when the model is there.
        """
        now = asyncio.get_running_loop().time
        end = now() + LOAD_LIMIT_S
        while (status := await self._ask_to_load(endpoint, model, embeds)) == PROXY_GAVE_UP:
            if await self._listed(endpoint, model, min(end, now() + ASK_AGAIN_S)):
                return None
            if now() >= end:
                break
        if isinstance(status, str):
            return status
        return None if status == 200 else f"the load of a model answered {status}"

    async def on_cpu(self, endpoint: Endpoint) -> bool:
        """Return whether models are loaded, and none of them uses the GPU's memory."""
        models = await self._loaded(endpoint)
        return bool(models) and all(model.get("size_vram") == 0 for model in models)

    async def _listed(self, endpoint: Endpoint, model: str, end: float) -> bool:
        """Wait until the model is among the loaded ones; False if it is not before loop time `end`."""
        name, now = _full_name(model), asyncio.get_running_loop().time
        while now() < end:
            if any(_full_name(str(loaded.get("name"))) == name for loaded in await self._loaded(endpoint)):
                return True
            await asyncio.sleep(LISTED_PAUSE_S)
        return False

    async def _loaded(self, endpoint: Endpoint) -> list[dict[str, object]]:
        """Return the models of `/api/ps`; none if the call fails."""
        try:
            models = orjson.loads(await self.get(endpoint, "/api/ps") or b"{}").get("models")
        except (orjson.JSONDecodeError, AttributeError):
            return []
        return [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []

    async def _ask_to_load(self, endpoint: Endpoint, model: str, embeds: bool) -> int | str:
        """Return the status of the answer, or what was seen instead."""
        path, body = ("/api/embed", {"model": model, "input": []}) if embeds else ("/api/generate", {})
        asked = orjson.dumps({"model": model, "stream": False, **body})
        try:
            async with self._call("POST", endpoint, path, LOAD_LIMIT_S, asked) as answer:
                await answer.content.read(64 * 1024)
                return int(answer.status)
        except CALL_ERRORS as error:
            return _seen(error)

    async def get(self, endpoint: Endpoint, path: str) -> bytes | None:
        """Return the body of a 200 answer to `GET path`; None for anything else."""
        try:
            async with self._call("GET", endpoint, path, FETCH_LIMIT_S) as answer:
                return await _whole(answer.content, LARGEST_ANSWER) if answer.status == 200 else None
        except CALL_ERRORS:
            return None

    async def put_renewal(self, endpoint: Endpoint, digest: str, content: bytes) -> int | str:
        """Upload a blob; return the status (201 new, 200 it was there), or what was seen instead."""
        try:
            async with self._call(
                "POST", endpoint, f"/api/blobs/sha256:{digest}", FETCH_LIMIT_S, content
            ) as answer:
                return int(answer.status)
        except CALL_ERRORS as error:
            return _seen(error)

    def _call(
        self, method: str, endpoint: Endpoint, path: str, limit_s: float, body: bytes | None = None
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


def _full_name(model: str) -> str:
    """Return the name with its tag and in lower case, as Ollama compares names."""
    folded = model.strip().casefold()
    return folded if ":" in folded.rpartition("/")[2] else f"{folded}:latest"


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
