"""A whole gateway for a test: in front, real sockets; behind, a fake cloud and a simulated Ollama."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import jwt
from attrs import define, evolve, field
from gpugate_demo.ollama import SimulatedOllama
from gpugate_demo.text_generator import fixed
from gpugate_testing.fakes import FakeCloud, FakeProvider

from gpugate.app import build
from gpugate.config import load_settings
from gpugate.gateway import Gateway
from gpugate.ollama.catalog_refresher import CatalogRefresher

T = TypeVar("T")

SECRET = "a-secret-for-tests-of-40-characters-long"
MODEL = "llama3.2:3b"
CHAT: Mapping[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
GENERATE: Mapping[str, object] = {"model": MODEL, "prompt": "hi"}
SOON = 20.0
"""Seconds within which anything happens, also on a busy machine."""

QUICK: Mapping[str, object] = {
    "server.port": 0,
    "server.shutdown_grace": 0.3,
    "server.stop_wait": 2,
    "auth.secret": SECRET,
    "pod.provider": ("fake",),
    "pod.start_backoff": 0.02,
    "pod.stop_retry": 0.2,
    "pod.health_interval": 0.1,
    "pod.reconcile_interval": 30,
    "log.format": "json",
    "log.level": "error",
}
"""Settings of every test; times are fractions of a second."""


def token(**claims: object) -> str:
    """A good token, with more claims or others."""
    return jwt.encode({"sub": "tester", "exp": time.time() + 600, **claims}, SECRET, "HS256")


def bearer(**claims: object) -> dict[str, str]:
    """The header with a good token."""
    return {"Authorization": f"Bearer {token(**claims)}"}


def provider_of(cloud: FakeCloud) -> type[FakeProvider]:
    """A provider's class, as a plugin would have it, over this cloud."""

    class CloudProvider(FakeProvider):
        capabilities = evolve(FakeProvider.capabilities, can_overlap=cloud.second is not None)

        def __init__(self, config: Any, session: Any) -> None:
            super().__init__(cloud, session)

    return CloudProvider


@define
class Answer:
    """What a client got: `whole` is False where the answer was left unfinished."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    chunks: list[bytes] = field(factory=list)
    whole: bool = True

    @property
    def json(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """The body's NDJSON."""
        return [json.loads(line) for line in self.body.splitlines()]


@define
class House:
    """A gateway, its cloud and its pod.

    Attributes:
        http: a client that unpacks nothing.
    """

    state: Path
    cloud: FakeCloud
    ollama: SimulatedOllama
    gateway: Gateway
    http: aiohttp.ClientSession
    auth: dict[str, str] = field(factory=bearer)

    @property
    def port(self) -> int:
        """Where the gateway listens."""
        return self.gateway.port

    @property
    def url(self) -> str:
        """Of the gateway, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, **more: Any) -> Any:
        """aiohttp's request context, with the token unless `headers` are given."""
        more.setdefault("headers", self.auth)
        return self.http.request(method, self.url + path, allow_redirects=False, **more)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        url: str | None = None,
        begun: asyncio.Event | None = None,
        **more: Any,
    ) -> Answer:
        """The whole answer, or what came of it; `begun` is set by its first bytes."""
        more.setdefault("headers", self.auth)
        base = self.url if url is None else url
        async with self.http.request(method, base + path, allow_redirects=False, **more) as response:
            answer = Answer(response.status, response.headers, b"")
            if response.content.at_eof():  # aiohttp would iterate over nothing for ever
                return answer
            try:
                async for chunk, _ in response.content.iter_chunks():
                    answer.chunks.append(chunk)
                    if begun is not None:
                        begun.set()
            except aiohttp.ClientPayloadError:
                answer.whole = False
            answer.body = b"".join(answer.chunks)
            return answer

    async def begin(self, method: str, path: str, **more: Any) -> asyncio.Task[Answer]:
        """Ask, and wait until the answer has begun."""
        begun = asyncio.Event()
        asking = asyncio.ensure_future(self.ask(method, path, begun=begun, **more))
        await asyncio.wait_for(begun.wait(), SOON)
        return asking

    async def chat(self, path: str = "/api/chat", **more: Any) -> Answer:
        """A chat's answer."""
        return await self.ask("POST", path, json={**CHAT, **more})

    async def status(self) -> Any:
        """`data` of gpu/status."""
        return (await self.ask("GET", "/api/v1/gpu/status")).json["data"]

    async def until(self, condition: Callable[[], bool], timeout_s: float = SOON) -> None:
        """Wait until `condition` holds."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.005)

    async def warm(self) -> None:
        """Start the pod by hand and wait until it serves."""
        assert 202 == (await self.ask("POST", "/api/v1/gpu/start")).status
        await self.until(lambda: self.gateway.lifecycle.serving is not None)

    async def learned(self) -> None:
        """Wait until the lists of the pod that serves, and each model's `show`, are learned."""
        catalog = part_of(self.gateway, CatalogRefresher).catalog
        await self.until(lambda: catalog._shows.keys() >= catalog._names.get("v1/models", {"none yet"}))

    async def off(self) -> None:
        """Wait until the pod is off."""
        await self.until(lambda: self.gateway.lifecycle.current_status == "STOPPED")

    async def stop(self, force: bool = False) -> None:
        """Stop the pod by hand and wait for the proof."""
        answer = await self.ask("POST", "/api/v1/gpu/stop" + ("?force=true" if force else ""))
        assert 202 == answer.status, answer.body
        await self.off()

    async def waiting(self, count: int) -> None:
        """Wait until so many requests are held."""
        await self.until(lambda: len(self.gateway.lifecycle._machine.queue.waiting) == count)

    @property
    def in_flight(self) -> int:
        """Leases that are out."""
        return len(self.gateway.lifecycle._machine.queue.leases)

    @property
    def idle_since(self) -> float | None:
        """When the last lease ended, by the loop's clock; None while one is out."""
        return self.gateway.lifecycle._machine.queue.idle_since

    def idle_for(self) -> float | None:
        """Seconds since the last lease ended, as the idle clock has it."""
        since = self.idle_since
        return None if since is None else asyncio.get_running_loop().time() - since


def part_of(gateway: Gateway, kind: type[T]) -> T:
    """The object of this class that one of the gateway's features consists of."""
    hooks = [hook for f in gateway._features for hook in (f.routes, f.on_event, f.start, f.aclose)]
    return next(owner for hook in hooks if isinstance(owner := getattr(hook, "__self__", None), kind))


def settings_for(state: Path, **overrides: object) -> Any:
    """Quick settings; `server__max_body=…` is `server.max_body`."""
    named = {name.replace("__", ".", 1): value for name, value in overrides.items()}
    return load_settings(None, {}, overrides={**QUICK, "state.dir": str(state), **named}, complete=False)


@asynccontextmanager
async def open_house(
    state: Path,
    ollama: SimulatedOllama,
    cloud: FakeCloud | None = None,
    money: Any = None,
    **overrides: object,
) -> AsyncIterator[House]:
    """A running gateway in front of `ollama`; at the end nothing may have leaked."""
    if cloud is None:
        cloud = FakeCloud()
    cloud.url = cloud.url if cloud.url != "http://127.0.0.1:1" else ollama.url
    kind = provider_of(cloud)
    inherited = os.environ.get("GPUGATE_STATE_DIR")
    gateway = await build(settings_for(state, **overrides), find=lambda name: kind, budget_source=money)
    await gateway.open()
    timeout = aiohttp.ClientTimeout(total=30)
    try:
        async with aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as http:
            yield House(state, cloud, ollama, gateway, http)
    finally:
        await gateway.close()
        if inherited is None:  # the gateway hands its own on to providers by it
            os.environ.pop("GPUGATE_STATE_DIR", None)
        else:
            os.environ["GPUGATE_STATE_DIR"] = inherited
    assert {} == gateway.lifecycle._machine.queue.leases
    assert [] == gateway.lifecycle._machine.queue.waiting
    left = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith(("relay:", "cat"))]
    assert [] == left


def words(count: int = 5) -> Callable[..., Any]:
    """A reply of so many words."""
    return fixed(*(f" word{number}" for number in range(count)))


@define
class Wire:
    """A client made of bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        """Write."""
        self.writer.write(data)

    async def head(self) -> bytes:
        """The next head."""
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), SOON)

    async def rest(self) -> bytes:
        """All until the other side closes; a reset ends it too."""
        data = b""
        try:
            async with asyncio.timeout(SOON):
                while piece := await self.reader.read(65536):
                    data += piece
        except ConnectionError:
            pass
        return data

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of one answer with a Content-Length."""
        head = await self.head()
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return int(head.split()[1]), await asyncio.wait_for(self.reader.readexactly(length), SOON)

    def abort(self) -> None:
        """Hang up at once."""
        self.writer.transport.abort()


@asynccontextmanager
async def wire_to(port: int) -> AsyncIterator[Wire]:
    """A raw connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def request(
    method: str,
    path: str,
    body: bytes = b"",
    *,
    headers: Mapping[str, str] | None = None,
    version: str = "1.1",
) -> bytes:
    """A request's bytes, with a good token unless `headers` are given."""
    sent = {"Host": "gate", **(bearer() if headers is None else headers)}
    if body:
        sent["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"{method} {path} HTTP/{version}\r\n{head}\r\n".encode() + body


def chat_body(**more: object) -> bytes:
    """A chat's body."""
    return json.dumps({**CHAT, **more}).encode()
