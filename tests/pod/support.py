"""A pod without its cloud: a folder of blobs behind Ollama's API, and a real shell with its script."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from aiohttp import web
from attrs import define, field

from gpugate.lifecycle.dead_man_switch import lease_digest
from gpugate.tasks import spawn

REPO = Path(__file__).parents[2]
SECRET = "a lease that nobody guesses"
DIGEST = lease_digest(SECRET)
PAUSE_S = 0.05
"""Between two looks of the script; six of them are one of its minutes."""


def script(provider: str) -> Path:
    """The start script of a provider's pod."""
    return REPO / "examples" / "pod" / provider / "start.sh"


@define
class BlobStore:
    """What Ollama keeps on disk of `POST /api/blobs/{digest}`; as its handler has it, a blob that is there
    is left alone.
    """

    models: Path
    url: str = ""
    received: int = 0

    @property
    def letter(self) -> Path:
        """Where a renewal lies."""
        return self.models / "blobs" / f"sha256-{DIGEST}"

    def renew(self) -> None:
        """Leave one by hand."""
        self.letter.parent.mkdir(parents=True, exist_ok=True)
        self.letter.write_text(SECRET)

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.12.6"})

    async def empty(self, _: web.Request) -> web.Response:
        return web.json_response({"models": []})

    async def take_in(self, request: web.Request) -> web.Response:
        digest = request.match_info["digest"]
        body = await request.read()
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            return web.json_response({"error": "invalid digest format"}, status=400)
        path = self.models / "blobs" / digest.replace(":", "-")
        if path.exists():
            return web.Response(status=200)
        if digest != f"sha256:{hashlib.sha256(body).hexdigest()}":
            return web.json_response({"error": "digest mismatch"}, status=400)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        self.received += 1
        return web.Response(status=201)


@asynccontextmanager
async def blob_store(folder: Path) -> AsyncIterator[BlobStore]:
    """An Ollama with this folder."""
    store = BlobStore(folder)
    app = web.Application()
    app.router.add_get("/api/version", store.version)
    app.router.add_get("/api/tags", store.empty)
    app.router.add_get("/api/ps", store.empty)
    app.router.add_post("/api/blobs/{digest}", store.take_in)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    store.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield store
    finally:
        await runner.cleanup()


@define
class Container:
    """A container whose process 1 is the start script."""

    process: asyncio.subprocess.Process
    told: list[str] = field(factory=list)

    @property
    def alive(self) -> bool:
        """Process 1 has not ended."""
        return self.process.returncode is None

    def says(self, words: str) -> bool:
        """Whether its log has a line with these words."""
        return any(words in line for line in self.told)

    async def _listen(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.told.append(line.decode())


@asynccontextmanager
async def container(path: Path, env: Mapping[str, str], *command: str) -> AsyncIterator[Container]:
    """Run the script as a container does, with nothing of this process's environment but PATH."""
    process = await asyncio.create_subprocess_exec(
        *("sh", str(path), *command),
        env={"PATH": os.environ["PATH"], "GPUGATE_LEASE_PAUSE": str(PAUSE_S), **env},
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    box = Container(process)
    listening = spawn(box._listen(), "pod:stderr")
    try:
        yield box
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # what the kernel does to a container whose process 1 has ended
        await process.wait()
        await listening


async def until(condition: Callable[[], bool], within_s: float = 15.0) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)
