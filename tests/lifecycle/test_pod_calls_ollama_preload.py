"""The gateway's own calls to the pod's Ollama: health and the catalogue, on good days and on bad ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from attrs import define
from gpugate_demo.faults import Answer, BreakAfter, CloseBeforeHead, Fault, Garbage, Hang, Slow
from gpugate_demo.ollama import SimulatedOllama

from gpugate.lifecycle import pod_calls as adapter
from gpugate.lifecycle.pod_calls import OllamaPodClient
from gpugate.provider_api import Endpoint
from tests.certificates import Certificate, make_certificate

VERSION = "/api/version"
TAGS = "/api/tags"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def ollama() -> AsyncIterator[SimulatedOllama]:
    async with SimulatedOllama() as ollama:
        yield ollama


@define
class Scene:
    """A pod's Ollama, and the gateway's way to it."""

    ollama: SimulatedOllama
    session: aiohttp.ClientSession

    async def check(self, path: str = VERSION) -> str | None:
        """Ask for health."""
        return await OllamaPodClient(self.session, path).check(Endpoint(self.ollama.url))

    async def fetch(self, path: str = TAGS) -> bytes | None:
        """Ask for a body."""
        return await OllamaPodClient(self.session).fetch(Endpoint(self.ollama.url + "/"), path)


@pytest.fixture
def scene(ollama: SimulatedOllama, session: aiohttp.ClientSession) -> Scene:
    return Scene(ollama, session)


async def test_a_pod_that_is_well(scene: Scene) -> None:
    """Health and catalogue."""
    assert None is await scene.check()
    assert b"llama3.2:3b" in (await scene.fetch() or b"")


UNWELL: list[tuple[Fault, str]] = [
    (Answer(502, b"<html>"), "/api/version answered 502"),
    (Answer(302, headers={"Location": "/elsewhere"}), "/api/version answered 302"),
    (Answer(200, b""), "/api/version answered something that is no JSON"),
    (Answer(200, b"<html>an edge"), "/api/version answered something that is no JSON"),
    (Answer(200, b'{"version":1}'), "/api/version answered without a version"),
    (Answer(200, b'["version"]'), "/api/version answered without a version"),
    (Answer(200, b'{"version":"' + b"9" * 70_000 + b'"}'), "/api/version answered something that is no JSON"),
    (Garbage(), "the connection broke"),
    (CloseBeforeHead(), "the connection broke"),
    (CloseBeforeHead(reset=True), "the connection broke"),
    (Hang(), "no answer in time"),
    (Slow(first_s=5), "no answer in time"),
]


@pytest.mark.parametrize(("fault", "seen"), UNWELL)
async def test_a_pod_that_is_not_well(
    scene: Scene, fault: Fault, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said in a few words what was seen instead: of an edge's page, of garbage, of silence."""
    monkeypatch.setattr(adapter, "CHECK_LIMIT_S", 0.1 if seen == "no answer in time" else 5.0)
    scene.ollama.faults.add(VERSION, fault, times=2)  # aiohttp asks again on a kept connection

    assert (await scene.check() or "").startswith(seen)


async def test_a_health_path_of_ones_own(scene: Scene) -> None:
    """There any 200 is health, and nothing else."""
    assert None is await scene.check("/")
    assert "/nowhere answered 404" == await scene.check("/nowhere")
    scene.ollama.faults.add(VERSION, Answer(403, b""))
    assert "set OLLAMA_HOST=0.0.0.0" in (await scene.check() or "")


async def test_a_pod_that_is_not_there(session: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    """Neither is an error that gets out: no listener, no such name."""
    pod = OllamaPodClient(session)

    assert "no connection" == await pod.check(Endpoint(f"http://127.0.0.1:{unused_tcp_port}"))
    assert "the name cannot be resolved" == await pod.check(Endpoint("http://no-such-host.invalid"))
    assert None is await pod.fetch(Endpoint(f"http://127.0.0.1:{unused_tcp_port}"), TAGS)
    assert "no connection" == await pod.preload(Endpoint(f"http://127.0.0.1:{unused_tcp_port}"), "m")


async def test_the_endpoints_headers(scene: Scene) -> None:
    """They go with every call: a pod may want a token of its own."""
    endpoint = Endpoint(scene.ollama.url, {"X-Pod-Token": "t"})
    pod = OllamaPodClient(scene.session)
    await pod.check(endpoint)
    await pod.fetch(endpoint, TAGS)
    await pod.preload(endpoint, "llama3.2:3b")

    assert ["t"] * 3 == [seen.headers["X-Pod-Token"] for seen in scene.ollama.seen]


NO_BODY: list[Fault] = [
    Answer(500, b'{"error":"x"}'),
    Answer(301, b"{}", headers={"Location": "/elsewhere"}),
    Answer(200, b"x" * 1001),
    Answer(200, b"{}", headers={"Content-Encoding": "gzip"}),
    Garbage(),
    CloseBeforeHead(reset=True),
    BreakAfter(1),
    Hang(),
]


@pytest.mark.parametrize("fault", NO_BODY)
async def test_a_body_that_cannot_be_had(scene: Scene, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another status, too much, half of it, garbage, nothing: it is none. What is remembered stays whole."""
    monkeypatch.setattr(adapter, "LARGEST_ANSWER", 1000)
    monkeypatch.setattr(adapter, "FETCH_LIMIT_S", 0.2)
    scene.ollama.faults.add(TAGS, fault, times=2)

    assert None is await scene.fetch()


async def test_a_body_in_many_pieces(session: aiohttp.ClientSession) -> None:
    """A long catalogue arrives whole, however the network cuts it."""
    pieces = [b"%d" % number * 700 for number in range(100)]

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0)
        return response

    async def version(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (b'{"ver', b'sion":"0.', b'30"}'):
            await response.write(piece)
            await asyncio.sleep(0.005)
        return response

    app = web.Application()
    app.router.add_get(TAGS, answer)
    app.router.add_get(VERSION, version)
    async with TestServer(app) as server:
        pod, endpoint = OllamaPodClient(session), Endpoint(str(server.make_url("")))
        assert b"".join(pieces) == await pod.fetch(endpoint, TAGS)
        assert None is await pod.check(endpoint)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("stranger"))


@pytest.fixture
async def secure(certificate: Certificate) -> AsyncIterator[str]:
    """The address of a pod that speaks TLS, with a certificate that it has signed itself."""

    async def version(request: web.Request) -> web.Response:
        return web.json_response({"version": "0.30"})

    app = web.Application()
    app.router.add_get(VERSION, version)
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=certificate.server)
    yield f"https://127.0.0.1:{server.port}"
    await server.close()


@pytest.mark.parametrize(
    ("tls", "seen"),
    [
        ("insecure", None),
        ("sha256:{own}", None),
        ("{own_file}", None),
        ("system", "the certificate is not trusted"),
        ("sha256:{other}", "the certificate is not trusted"),
        ("{other_file}", "the certificate is not trusted"),
        ("/no/such/file", "the connection broke (FileNotFoundError)"),
        ("sha256:ab", "the connection broke (ValueError)"),
    ],
)
async def test_whom_to_trust(
    session: aiohttp.ClientSession,
    secure: str,
    certificate: Certificate,
    stranger: Certificate,
    tls: str,
    seen: str | None,
) -> None:
    """The endpoint's TLS policy holds for the gateway's own calls as it does for the clients'."""
    names = {
        "own": certificate.fingerprint,
        "own_file": certificate.path,
        "other": stranger.fingerprint,
        "other_file": stranger.path,
    }

    assert seen == await OllamaPodClient(session).check(Endpoint(secure, tls=tls.format(**names)))
