"""Traces of a whole gateway, as a collector receives them over OTLP."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest
from aiohttp import web
from attrs import define, field
from gpugate_testing.fakes import FakeCloud
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from gpugate.errors import NoCapacity
from gpugate.tasks import spawn
from tests.e2e.conftest import Opener
from tests.e2e.support import CHAT, House, bearer, request, wire_to

SECRET_HEADER = "a-key-of-the-collector"


@define
class Collector:
    """An OTLP receiver; `is_broken` lets it refuse everything."""

    spans: list[Span] = field(factory=list)
    services: set[str] = field(factory=set)
    keys: set[str | None] = field(factory=set)
    is_broken: bool = False
    refused: int = 0
    url: str = ""

    async def take(self, request: web.BaseRequest) -> web.Response:
        """Take what is exported."""
        if self.is_broken or request.path != "/v1/traces":
            self.refused += 1
            return web.Response(status=400)
        self.keys.add(request.headers.get("x-key"))
        for resource in ExportTraceServiceRequest.FromString(await request.read()).resource_spans:
            self.services |= {
                one.value.string_value for one in resource.resource.attributes if one.key == "service.name"
            }
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response(body=b"", content_type="application/x-protobuf")

    def has_refused(self, times: int) -> bool:
        """Whether so many exports were refused."""
        return self.refused >= times

    def named(self, name: str) -> Span:
        """The one span of this name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def parent(self, span: Span) -> str:
        """The name of a span's parent; empty without one."""
        return next((one.name for one in self.spans if one.span_id == span.parent_span_id), "")


def attributes(span: Span) -> dict[str, object]:
    """A span's attributes."""
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """A receiver that the variables of OpenTelemetry lead to."""
    collector = Collector()
    runner = web.ServerRunner(web.Server(collector.take))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{runner.addresses[0][1]}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-key={SECRET_HEADER}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    yield collector
    await runner.cleanup()


async def until_named(house: House, collector: Collector, name: str) -> Span:
    """The span of this name, once it has come."""
    await house.until(lambda: any(span.name == name for span in collector.spans))
    return collector.named(name)


async def test_one_trace_from_the_request_to_the_answer(collector: Collector, opened: Opener) -> None:
    """It goes on in the client's trace: the wait, within it the start with its calls, and the answer."""
    house = await opened(tracing__enabled=True)
    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    headers = {**bearer(), "traceparent": f"00-{trace}-{parent}-01", "X-Request-Id": "seven"}
    body = {"model": "llama3.2:3b", "messages": [{"role": "user", "content": "a private matter"}]}
    answer = await house.ask("POST", "/api/chat", json=body, headers=headers)
    assert 200 == answer.status

    whole = await until_named(house, collector, "POST chat")
    assert (trace, parent) == (whole.trace_id.hex(), whole.parent_span_id.hex())
    assert Span.SPAN_KIND_SERVER == whole.kind
    seen = attributes(whole)
    assert 200 == seen["http.response.status_code"]
    assert "seven" == seen["gpugate.request_id"]
    wait = collector.named("wait for the pod")
    start = collector.named("start")
    below = {
        "wait for the pod": "POST chat",
        "answer": "POST chat",
        "start": "wait for the pod",
        "fake start": "start",
        "boot": "start",
        "warm up": "start",
        "preload": "start",
    }
    assert below == {name: collector.parent(collector.named(name)) for name in below}
    assert {trace} == {collector.named(name).trace_id.hex() for name in below}
    assert whole.start_time_unix_nano <= wait.start_time_unix_nano <= start.start_time_unix_nano
    assert wait.end_time_unix_nano <= collector.named("answer").start_time_unix_nano
    assert {"gpugate.pod": "main", "gpugate.provider": "fake"}.items() <= attributes(start).items()
    assert {"gpugate"} == collector.services
    assert {SECRET_HEADER} == collector.keys
    sent = b"".join(span.SerializeToString() for span in collector.spans)
    for secret in (b"private", b"/api", b"127.0.0.1", house.auth["Authorization"].encode(), b"tester"):
        assert secret not in sent


async def test_who_joins_a_start(collector: Collector, opened: Opener) -> None:
    """Keeps a trace of its own, and its wait links to the start."""
    house = await opened(tracing__enabled=True, queue__drain_concurrency=1)
    first = spawn(house.chat(), "first")
    await house.waiting(1)
    second = spawn(
        house.ask("POST", "/api/generate", json={"model": "llama3.2:3b", "prompt": "hi"}), "second"
    )
    await first
    await second
    other = await until_named(house, collector, "POST generate")
    start = collector.named("start")

    assert other.trace_id != start.trace_id == collector.named("POST chat").trace_id
    (wait,) = [span for span in collector.spans if span.parent_span_id == other.span_id and span.links]
    assert [(start.trace_id, start.span_id)] == [(link.trace_id, link.span_id) for link in wait.links]


async def test_a_start_that_fails(collector: Collector, opened: Opener) -> None:
    """The call, the start, the wait and the request are errors, and say which by a word."""
    house = await opened(tracing__enabled=True, pod__start_attempts=1)
    house.cloud.fail("start", NoCapacity("nothing at http://secret.example"))
    assert 503 == (await house.chat()).status
    whole = await until_named(house, collector, "POST chat")
    await until_named(house, collector, "start")

    assert 503 == attributes(whole)["http.response.status_code"]
    assert "POD_START_FAILED" == attributes(collector.named("wait for the pod"))["gpugate.error"]
    assert "capacity" == attributes(collector.named("fake start"))["gpugate.outcome"]
    for name in ("POST chat", "wait for the pod", "start", "fake start"):
        assert 2 == collector.named(name).status.code, name
    assert not any(b"secret" in span.SerializeToString() for span in collector.spans)


async def test_what_is_not_traced(collector: Collector, opened: Opener) -> None:
    """Health, status and what is no HTTP; a path of nobody's is traced without the path."""
    house = await opened(tracing__enabled=True)
    await house.ask("GET", "/")
    await house.ask("GET", "/api/v1/gpu/status")
    async with wire_to(house.port) as wire:
        wire.send(b"nonsense\r\n\r\n")
        assert b"400" in await wire.head()
    async with wire_to(house.port) as wire:
        wire.send(request("PURGE", "/a/private/path"))
        assert b"404" in await wire.head()
    await house.warm()
    start = await until_named(house, collector, "start")

    assert "POST gpugate" == collector.parent(start)
    names = {span.name for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER}
    assert {"_OTHER not_ours", "POST gpugate"} == names


async def test_the_pod_gets_the_client_s_header(
    collector: Collector, opened: Opener, cloud: FakeCloud
) -> None:
    """Unchanged, and none where the client sent none."""
    heads = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        body = b'{"version":"0.9"}'
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as pod:
        cloud.url = f"http://127.0.0.1:{pod.sockets[0].getsockname()[1]}"
        house = await opened(tracing__enabled=True, pod__preload="none")
        sent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
        for headers in ({"traceparent": sent}, {}):
            answered = await house.ask("POST", "/api/chat", json=CHAT, headers={**bearer(), **headers})
            assert 200 == answered.status
    first, second = [head for head in heads if head.startswith(b"POST /api/chat ")]

    assert f"\r\ntraceparent: {sent}\r\n".encode() in first
    assert b"traceparent" not in second.lower()


async def test_a_collector_that_refuses(
    collector: Collector, opened: Opener, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told once, without an address; requests and the end of the gateway do not wait."""
    collector.is_broken = True
    house = await opened(tracing__enabled=True, log__level="warning")
    for refusals in (1, 2):
        assert 200 == (await house.chat()).status
        await house.until(partial(collector.has_refused, refusals))
    told = capsys.readouterr().err

    assert 1 == told.count("does not take the spans")
    assert "/v1/traces" not in told


async def test_a_collector_that_is_not_there(monkeypatch: pytest.MonkeyPatch, opened: Opener) -> None:
    """The end of the gateway waits for it for a moment only."""
    monkeypatch.setattr("gpugate.tracing.feature.CLOSE_LIMIT_S", 0.1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    house = await opened(tracing__enabled=True)
    assert 200 == (await house.chat()).status
    began = time.monotonic()
    await house.gateway.close()

    assert time.monotonic() - began < 5


def test_nothing_is_imported_while_it_is_off() -> None:
    """Neither by the gateway nor by the check of the configuration."""
    code = "import sys, gpugate.app; sys.exit(any('opentelemetry' in name for name in sys.modules))"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode
