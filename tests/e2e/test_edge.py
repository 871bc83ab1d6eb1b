"""A provider's proxy that answers where the pod does not (docs/providers.md#runpod-proxy)."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
from gpugate_demo.faults import Answer as Planned
from gpugate_testing.fakes import FakeProvider

from gpugate.provider_api import Capabilities
from tests.e2e.support import MODEL, House
from tests.e2e.test_queue import PATHS, code_of

PAGE = b"<html><head><title>Bad gateway</title></head></html>"


@pytest.fixture
async def proxied(opened, monkeypatch: pytest.MonkeyPatch) -> House:
    """A warm pod behind such a proxy."""
    monkeypatch.setattr(FakeProvider, "capabilities", Capabilities(first_byte_limit_s=100))
    house = await opened()
    await house.off()
    await house.warm()
    return house


@pytest.mark.parametrize("path", PATHS)
async def test_gives_up_waiting(house: House, path):
    """524 becomes 504 UPSTREAM_TIMEOUT, and is never tried again: the job may still run."""
    await house.warm()
    page = Planned(524, b"<html>A timeout occurred</html>", "text/html")
    upstream = "/api/chat" if path == "/api/v1/chat" else path
    house.ollama.faults.add(upstream, page, times=None)
    answer = await house.chat(path, max_tokens=9)
    expected = "api_error" if path == "/v1/messages" else "UPSTREAM_TIMEOUT"
    assert (504, expected) == (answer.status, code_of(path, answer.json))
    assert "false" == answer.headers["x-should-retry"]
    assert 1 == len(house.ollama.calls(upstream))
    assert 0 == house.in_flight


async def test_cannot_reach_the_pod(house: House):
    """52x is a connection that broke before the first byte: tried once more."""
    await house.warm()
    house.ollama.faults.add("/api/chat", Planned(521, b"<html>down</html>", "text/html"))
    assert 200 == (await house.chat()).status
    assert 2 == len(house.ollama.calls("/api/chat"))


async def test_cannot_reach_a_lost_pod(house: House):
    """And where the pod is gone, the request waits for the next one."""
    await house.warm()
    house.ollama.faults.add("/api/chat", Planned(523, b"", "text/html"), times=2)
    house.cloud.turn_off(at_once=True)
    assert 200 == (await house.chat()).status
    assert 2 == house.cloud.starts


async def test_gives_up_waiting_behind_filler(opened):
    """The same where status 200 has left already."""
    house = await opened(queue__heartbeat=0.02)
    house.cloud.boot_s = 0.1
    house.ollama.faults.add("/api/chat", Planned(524, b"<html>", "text/html"), times=None)
    answer = await house.chat()
    assert (200, False) == (answer.status, answer.whole)
    assert "did not answer in time" in json.loads(answer.body)["error"]
    assert 1 == len(house.ollama.calls("/api/chat"))


async def test_lists_are_remembered(house: House):
    """An edge's page is no list."""
    await house.warm()
    live = (await house.ask("GET", "/api/tags")).body
    house.ollama.faults.add("/api/tags", Planned(524, b"<html>", "text/html"))
    answer = await house.ask("GET", "/api/tags")
    assert (200, live) == (answer.status, answer.body)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("status", [404, 502, 503])
async def test_page_in_place_of_an_answer(proxied: House, status, path):
    """It does not reach the client: the request is sent once more."""
    upstream = "/api/chat" if path == "/api/v1/chat" else path
    proxied.ollama.faults.add(upstream, Planned(status, PAGE, "text/html; charset=UTF-8"))
    answer = await proxied.chat(path, max_tokens=9)
    assert 200 == answer.status
    assert 2 == len(proxied.ollama.calls(upstream))


@pytest.mark.parametrize("status", [404, 502, 503])
async def test_pages_of_a_lost_pod(proxied: House, status):
    """The request waits for the next pod."""
    proxied.ollama.faults.add("/api/chat", Planned(status, PAGE, "text/html"), times=2)
    proxied.cloud.turn_off(at_once=True)
    assert 200 == (await proxied.chat()).status
    assert 2 == proxied.cloud.starts


async def test_pages_without_end(proxied: House):
    """A pod that lives, but cannot be reached with this request: an error in Ollama's shape."""
    proxied.ollama.faults.add("/api/chat", Planned(502, PAGE, "text/html"), times=None)
    answer = await proxied.chat()
    assert (502, "UPSTREAM_ERROR") == (answer.status, answer.json["code"])
    assert 1 == proxied.cloud.starts


async def test_page_that_says_too_late(proxied: House):
    """504 is the proxy's patience at its end, as 524 is: the job may still run."""
    proxied.ollama.faults.add("/api/chat", Planned(504, PAGE, "text/html"), times=None)
    answer = await proxied.chat()
    assert (504, "UPSTREAM_TIMEOUT") == (answer.status, answer.json["code"])
    assert 1 == len(proxied.ollama.calls("/api/chat"))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, b'{"error":"model \'x\' not found"}', "application/json; charset=utf-8"),
        (404, b"404 page not found", "text/plain"),
        (502, b'{"error":"<html>"}', "application/json"),
        (
            503,
            b'{"error":"server busy, please try again"}',
            "application/json",
        ),
        (504, b"{}", "application/json"),
        (500, PAGE, "text/html"),
        (500, b"Internal Server Error", "text/plain; charset=utf-8"),
        (403, b"", "text/plain"),
        (405, b"error code: 1010", "text/plain"),
        (403, b"error code: 1010, " * 9, "text/plain"),
        (403, b'{"error":"error code: 1010"}', "application/json"),
    ],
)
async def test_ollamas_own_errors(proxied: House, status, body, kind, stream):
    """Pass as they are, once."""
    proxied.ollama.faults.add("/api/chat", Planned(status, body, kind), times=None)
    answer = await proxied.chat(stream=stream)
    assert (status, body, kind) == (answer.status, answer.body, answer.headers["Content-Type"])
    assert 1 == len(proxied.ollama.calls("/api/chat"))


async def test_page_of_a_pod_without_a_proxy(house: House):
    """There nobody speaks for the pod, so it is the pod's own."""
    await house.warm()
    house.ollama.faults.add("/api/chat", Planned(502, PAGE, "text/html"))
    answer = await house.chat()
    assert (502, PAGE) == (answer.status, answer.body)


async def test_page_in_place_of_a_list(proxied: House):
    """What is remembered is said."""
    live = (await proxied.ask("GET", "/api/tags")).body
    proxied.ollama.faults.add("/api/tags", Planned(404, PAGE, "text/html"))
    answer = await proxied.ask("GET", "/api/tags")
    assert (200, live) == (answer.status, answer.body)


async def test_page_in_place_of_a_story(proxied: House):
    """gpugate's own services try again too."""
    proxied.ollama.faults.add("/api/generate", Planned(502, PAGE, "text/html"))
    answer = await proxied.ask("POST", "/api/v1/story/generate", json={"prompt": "hi"})
    assert 200 == answer.status
    assert 2 == len(proxied.ollama.calls("/api/generate"))


async def test_page_in_place_of_code(proxied: House):
    """The same where the answer's bytes are passed on."""
    proxied.ollama.faults.add("/api/chat", Planned(503, PAGE, "text/html"))
    answer = await proxied.ask("POST", "/api/v1/code/assist", json={"code": "x", "question": "why?"})
    assert 200 == answer.status
    assert 2 == len(proxied.ollama.calls("/api/chat"))


CODE = Planned(403, b"error code: 1010", "text/plain; charset=UTF-8")
REFUSALS = [
    (CODE, "answered 403 (error code: 1010)"),
    (Planned(403, b"<html>Error code 1020</html>", "text/html"), "answered 403 (error code: 1020)"),
    (Planned(413, PAGE, "text/html"), "answered 413 (a page of its own)"),
]
OUTAGES = [
    (Planned(502, b"error code: 502\n", "text/plain"), "answered 502 (error code: 502)"),
    (Planned(530, b"error code: 1033", "text/plain"), "answered 530 (error code: 1033)"),
    (Planned(521, PAGE, "text/html"), "answered 521 (a page of its own)"),
]


@pytest.mark.parametrize(
    ("planned", "words", "times"), [(*said, 1) for said in REFUSALS] + [(*said, 2) for said in OUTAGES]
)
async def test_what_the_edge_says_is_named(proxied: House, planned, words, times):
    """What it refuses is not tried again; where it cannot reach the pod, once more."""
    proxied.ollama.faults.add("/api/chat", planned, times=None)
    answer = await proxied.chat()
    assert (502, "UPSTREAM_ERROR") == (answer.status, answer.json["code"])
    assert words in answer.json["error"]
    assert times == len(proxied.ollama.calls("/api/chat"))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", PATHS)
async def test_what_the_edge_says_in_every_dialect(proxied: House, path, stream):
    """In the shape that the path's clients read."""
    upstream = "/api/chat" if path == "/api/v1/chat" else path
    proxied.ollama.faults.add(upstream, CODE, times=None)
    answer = await proxied.chat(path, max_tokens=9, stream=stream)
    expected = "api_error" if path == "/v1/messages" else "UPSTREAM_ERROR"
    assert (502, expected) == (answer.status, code_of(path, answer.json))
    assert b"error code: 1010" in answer.body


@pytest.mark.parametrize("planned", [CODE, Planned(530, PAGE, "text/html"), Planned(429, PAGE, "text/html")])
async def test_the_edge_refuses_a_question(proxied: House, planned):
    """Lists come from memory; what has none gets the edge's words."""
    live = (await proxied.ask("GET", "/api/tags")).body
    for path in ("/api/tags", "/api/experimental/x"):
        proxied.ollama.faults.add(path, planned, times=None)
    answer = await proxied.ask("GET", "/api/tags")
    assert (200, live) == (answer.status, answer.body)
    answer = await proxied.ask("GET", "/api/experimental/x")
    assert (502, "UPSTREAM_ERROR") == (answer.status, answer.json["code"])
    assert f"answered {planned.status}" in answer.json["error"]


async def test_the_edge_refuses_code(proxied: House):
    """The same where the answer's bytes are passed on."""
    proxied.ollama.faults.add("/api/chat", CODE, times=None)
    answer = await proxied.ask("POST", "/api/v1/code/assist", json={"code": "x", "question": "why?"})
    assert (502, "UPSTREAM_ERROR") == (answer.status, answer.json["error"]["code"])
    assert "error code: 1010" in answer.json["error"]["message"]


async def test_the_edge_refuses_behind_filler(opened, monkeypatch: pytest.MonkeyPatch):
    """The same where status 200 has left already."""
    monkeypatch.setattr(FakeProvider, "capabilities", Capabilities(first_byte_limit_s=100))
    house = await opened(queue__heartbeat=0.02)
    house.cloud.boot_s = 0.1
    house.ollama.faults.add("/api/chat", CODE, times=None)
    answer = await house.chat()
    assert 200 == answer.status
    assert "error code: 1010" in json.loads(answer.body)["error"]


@pytest.mark.parametrize("agent", ["Python-urllib/3.11", "Java/17.0.1", None])
@pytest.mark.parametrize("path", ["/api/chat", "/api/tags", "/api/v1/code/assist"])
async def test_who_asks_the_edge(proxied: House, path, agent):
    """It bans some User-Agents and those without one, so the gateway tells its own."""
    headers = {**proxied.auth, **({"User-Agent": agent} if agent else {})}
    more = (
        {}
        if path == "/api/tags"
        else {"json": {"model": MODEL, "messages": [], "code": "x", "question": "why?"}}
    )
    skip = ["User-Agent"] if agent is None else []
    method = "POST" if more else "GET"
    await proxied.ask(method, path, headers=headers, skip_auto_headers=skip, **more)
    seen = proxied.ollama.calls("/api/tags" if path == "/api/tags" else "/api/chat")
    assert {(f"gpugate/{version('gpugate')}",)} == {tuple(call.headers.getall("User-Agent")) for call in seen}


async def test_who_asks_a_pod_without_an_edge(house: House):
    """There the client's passes."""
    await house.warm()
    await house.ask("GET", "/api/tags", headers={**house.auth, "User-Agent": "Java/17"})
    assert "Java/17" in {call.headers["User-Agent"] for call in house.ollama.calls("/api/tags")}
