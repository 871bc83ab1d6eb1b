"""The stream of a model, cut anywhere, and every end that is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from aiohttp import web

from gpugate.generation.text_model import GenerationFailed, OllamaTextModel
from gpugate.lifecycle.leased_call import PodUnreachable
from gpugate.provider_api import Endpoint

Serve = Callable[..., object]


def line(text: str = "", **more: object) -> bytes:
    return json.dumps({"response": text, "done": False, **more}, ensure_ascii=False).encode() + b"\n"


DONE = line(done=True)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def told(aiohttp_server, session: aiohttp.ClientSession) -> Serve:
    """What is heard of an answer in these pieces."""

    async def ask(
        *pieces: bytes, status: int = 200, end: str = "clean", silence_s: float = 5.0, kind: str = ""
    ) -> list[str]:
        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(status=status, headers={"X-Sent": request.headers["X-Token"]})
            if kind:
                response.content_type = kind
            await response.prepare(request)
            for piece in pieces:
                await response.write(piece)
                await asyncio.sleep(0.005)
            if end == "hang":
                await asyncio.sleep(1)
            if end != "clean":
                assert request.transport is not None
                request.transport.abort()
            return response

        app = web.Application()
        app.router.add_post("/api/generate", answer)
        server = await aiohttp_server(app)
        heard: list[str] = []

        async def hear(text: str) -> None:
            heard.append(text)

        endpoint = Endpoint(str(server.make_url("")), {"X-Token": "t"})
        await OllamaTextModel(session, silence_s).stream_to(endpoint, "/api/generate", {"model": "m"}, hear)
        return heard

    return ask


async def test_pieces_cut_anywhere(told):
    """Lines and letters are put together again."""
    whole = line("über ") + line("alles") + DONE
    assert ["über ", "alles"] == await told(*(whole[at : at + 7] for at in range(0, len(whole), 7)))


async def test_last_line_without_an_end(told):
    """Counts."""
    assert ["a"] == await told(line("a") + DONE.rstrip())


async def test_nothing_after_the_end(told):
    """What comes behind `done` is not waited for."""
    assert ["a"] == await told(line("a") + DONE, end="hang")


async def test_chat(told):
    """The text of a message; what a model thinks is left out."""
    said = line(message={"content": "a", "thinking": "hm"}) + line(message={"content": ""}) + DONE
    assert ["a"] == await told(said)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([line("a")], "'m' stopped before its end"),
        ([], "'m' stopped before its end"),
        (
            [line("a"), b'{"error": "/root/.ollama/x is\\ngone"}\n'],
            "'m' failed in the middle of .*: x is gone",
        ),
        ([b"<html>\n"], "is no JSON"),
        ([b"[1]\n"], "is no JSON"),
    ],
)
async def test_no_whole_answer(told, pieces, words):
    """The model is named, and its own reason told, without the folders of the pod."""
    with pytest.raises(GenerationFailed, match=words) as caught:
        await told(*pieces)
    assert "/root" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, b'{"error":"model not found"}', "the pod has no model 'm'"),
        (
            500,
            b'{"error":"CUDA error:\\n out of memory"}',
            "the model 'm' failed with 500: CUDA error: out of memory",
        ),
        (500, b'{"error":{"message":"no room"}}', "the model 'm' failed with 500: no room"),
        (500, b'{"error":"load /root/models/a-1, see https://x.org/a/b"}', "load a-1, see https://x.org/a/b"),
        (500, b'{"error":"' + b"x" * 400 + b'"}', "x" * 300 + "…"),
        (500, b"{}", "the model 'm' failed with 500"),
        (500, b"<html>", "the model 'm' failed with 500"),
        (500, b'["x"]', "the model 'm' failed with 500"),
        (307, b"", "the model 'm' failed with 307"),
    ],
)
async def test_refusal(told, status, body, words):
    """By its status and the reason that the server gives, in one line."""
    with pytest.raises(GenerationFailed) as caught:
        await told(body, status=status)
    assert str(caught.value).endswith(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [520, 522, 527])
async def test_edge_speaks_for_a_pod_that_is_gone(told, status):
    """That is no word of a model."""
    with pytest.raises(PodUnreachable):
        await told(b"error code", status=status)


@pytest.mark.parametrize(
    ("kind", "page", "words"),
    [
        ("text/plain", b"error code: 1010", "the edge in front of the pod answered 403 (error code: 1010)"),
        ("text/html", b"<html>", "the edge in front of the pod answered 403 (a page of its own)"),
        ("text/plain", b"forbidden", "the model 'm' failed with 403"),
    ],
)
async def test_edge_refuses(told, kind, page, words):
    """What the edge says is not put into the model's mouth."""
    with pytest.raises(GenerationFailed) as caught:
        await told(page, status=403, kind=kind)
    assert str(caught.value) == words


async def test_edge_page_for_a_pod_that_is_gone(told):
    """A page with a status that Ollama has as well."""
    with pytest.raises(PodUnreachable, match="a page of its own"):
        await told(b"<html>", status=502, kind="text/html")


async def test_edge_gives_up_waiting(told):
    """The job may still run."""
    with pytest.raises(GenerationFailed) as caught:
        await told(b"error code: 524", status=524)
    assert caught.value.timed_out


@pytest.mark.parametrize("pieces", [[], [line("a")]])
async def test_connection_that_breaks(told, pieces):
    """Perhaps the pod is no more."""
    with pytest.raises(PodUnreachable):
        await told(*pieces, end="abort")


async def test_silence(told):
    """Has a limit."""
    with pytest.raises(GenerationFailed) as caught:
        await told(line("a"), end="hang", silence_s=0.1)
    assert caught.value.timed_out


async def test_nothing_listens(session, unused_tcp_port):
    """The pod cannot be reached."""

    async def hear(text: str) -> None:
        return None

    endpoint = Endpoint(f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(PodUnreachable):
        await OllamaTextModel(session).stream_to(endpoint, "/api/generate", {"model": "m"}, hear)
