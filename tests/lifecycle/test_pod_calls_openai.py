"""The health probes of engines that have no API of Ollama's."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gpugate.lifecycle.pod_calls import OpenAIPodClient
from gpugate.provider_api import Endpoint

LOADING = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (web.Response(), None),  # vLLM, SGLang
        (web.json_response({"status": "ok"}), None),  # llama.cpp
        (web.json_response({"status": "healthy", "issues": []}), None),  # TabbyAPI
        (web.json_response(LOADING, status=503), "/health answered 503"),  # llama.cpp
        (web.json_response({"detail": "Not Found"}, status=404), "/health answered 404"),
        (web.Response(text="<html>", content_type="text/html"), "/health answered a web page"),
    ],
)
async def test_health(answer: web.Response, seen: str | None) -> None:
    """A 200 is enough, but for a page of an edge in front of a pod that is not there."""
    keys = []

    async def health(request: web.Request) -> web.Response:
        keys.append(request.headers.get("Authorization"))
        return answer

    app = web.Application()
    app.router.add_get("/health", health)
    async with aiohttp.ClientSession() as session:
        async with TestServer(app) as server:
            endpoint = Endpoint(str(server.make_url("/")), {"Authorization": "Bearer key"})
            client = OpenAIPodClient(session, "/health")
            assert seen == await client.check(endpoint)
            assert not await client.on_cpu(endpoint)
        assert ["Bearer key"] == keys
        assert "no connection" == await client.check(endpoint)
