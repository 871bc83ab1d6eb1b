"""`gpugate serve` as a process of its own, and a provider plugin whose cloud is a file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from attrs import define, field

from tests.e2e.support import SECRET, bearer

_PLUGIN = '''
import asyncio
from datetime import datetime, UTC
from decimal import Decimal
from pathlib import Path
from attrs import frozen
from gpugate import Endpoint, Phase, PodReport, Price, Provider

@frozen
class Config:
    url: str
    cloud: str

class Filed(Provider):
    """A cloud in a folder: `running` holds the pod, `stuck` lets stops do nothing, `log` what was asked.

    `hang` lets looks never end; `fault-at-open` and `fault` are Python to be run, the second by a look.
    """

    Config = Config

    def __init__(self, config, session):
        super().__init__(config, session)
        self.folder = Path(config.cloud)
        self.file = self.folder / "running"
        self.run_fault("fault-at-open")

    def run_fault(self, name):
        fault = self.folder / name
        if fault.exists():
            code = fault.read_text()
            fault.unlink()
            exec(code, {})

    def report(self, asked):
        with open(self.folder / "log", "a") as log:
            log.write(asked + "\\n")
        if not self.file.exists():
            return PodReport(Phase.STOPPED)
        since = datetime.fromtimestamp(self.file.stat().st_mtime, UTC)
        endpoints = {"ollama": Endpoint(self.config.url)}
        return PodReport(Phase.RUNNING, "filed-1", endpoints, Price(Decimal("1.5")), "card", since)

    async def start(self):
        if not self.file.exists():
            self.file.write_text("")
        return self.report("start")

    async def stop(self):
        if not (self.folder / "stuck").exists():
            self.file.unlink(missing_ok=True)
        return self.report("stop")

    async def inspect(self):
        while (self.folder / "hang").exists():
            await asyncio.sleep(0.01)
        self.run_fault("fault")
        return self.report("inspect")
'''


def install_plugin(site: Path) -> None:
    """Put the plugin "filed" where a process with this folder in PYTHONPATH finds it installed."""
    info = site / "gpugate_filed-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "gpugate_filed.py").write_text(_PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gpugate-filed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gpugate.providers]\nfiled = gpugate_filed:Filed\n")


@define
class Running:
    """A gateway's process."""

    process: asyncio.subprocess.Process
    http: aiohttp.ClientSession
    log: Path
    auth: dict[str, str] = field(factory=bearer)
    _port: int = 0

    @property
    def port(self) -> int:
        """Where it listens, and listened if it has ended; LookupError as long as it does not."""
        if not self._port:
            told = [json.loads(line) for line in self.lines.splitlines() if '"listening"' in line]
            self._port = told[0]["port"] if told else _listening_port(self.process.pid)
        return self._port

    @property
    def url(self) -> str:
        """Of the gateway."""
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> Any:
        """aiohttp's request context with the token."""
        return self.http.request(method, self.url + path, headers={**self.auth, **(headers or {})}, **more)

    async def status(self) -> Any:
        """`data` of gpu/status."""
        async with self.call("GET", "/api/v1/gpu/status") as response:
            return (await response.json())["data"]

    async def until_status(self, word: str) -> Any:
        """Wait for a status."""
        async with asyncio.timeout(30):
            while (data := await self.status())["status"] != word:
                await asyncio.sleep(0.02)
        return data

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit status."""
        return await asyncio.wait_for(self.process.wait(), 30)

    @property
    def lines(self) -> str:
        """What it has written to standard error, if that is a file."""
        return self.log.read_text() if self.log.is_file() else ""


@define
class Ground:
    """A folder in which gateways run, one after another or at once.

    Attributes:
        settings: TOML tables as text, behind `[auth]` and `[state]`.
    """

    folder: Path
    settings: str = ""
    env: dict[str, str] = field(factory=dict)
    _count: int = 0

    @property
    def cloud(self) -> Path:
        """The plugin's cloud."""
        return self.folder / "cloud"

    @property
    def asked(self) -> list[str]:
        """What the cloud was asked."""
        return (self.cloud / "log").read_text().split()

    @asynccontextmanager
    async def serve(
        self,
        *,
        port: int = 0,
        wait: bool = True,
        stderr: Path | None = None,
        ignored: Collection[signal.Signals] = (),
    ) -> AsyncIterator[Running]:
        """Run `gpugate serve`, with signals `ignored` as by `nohup`; killed at the end if it still runs.

        By default on a port that the kernel gives it.
        """
        self._count += 1
        config = self.folder / f"config-{self._count}.toml"
        config.write_text(
            f"[auth]\nsecret = '{SECRET}'\n[state]\ndir = '{self.folder / 'state'}'\n{self.settings}"
        )
        log = stderr or self.folder / f"log-{self._count}"
        with log.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gpugate", "serve", "--config", str(config), "--port", str(port)),
                env={**_environment(), "PYTHONPATH": _import_path(self.folder / "site"), **self.env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=sink,
                preexec_fn=partial(_ignore, ignored),
            )
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=40)) as http:
                running = Running(process, http, log)
                if wait:
                    await _listening(running)
                yield running
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _ignore(signals: Collection[signal.Signals]) -> None:
    """Between fork and exec."""
    for number in signals:
        signal.signal(number, signal.SIG_IGN)


def _listening_port(pid: int) -> int:
    """The port on which a process listens, for one that cannot log it."""
    with suppress(psutil.NoSuchProcess):
        for connection in psutil.Process(pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return int(connection.laddr.port)
    raise LookupError("it does not listen")


async def _listening(running: Running) -> None:
    async with asyncio.timeout(30):
        while '"listening"' not in running.lines:
            if running.process.returncode is not None:
                raise AssertionError(running.lines)
            await asyncio.sleep(0.02)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("GPUGATE_", "XDG_"))}


def _import_path(site: Path) -> str:
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(site), inherited] if inherited else [str(site)])


def filed_ground(folder: Path, ollama_url: str, more: str = "") -> Ground:
    """A ground whose pod is the simulated Ollama of the test."""
    install_plugin(folder / "site")
    ground = Ground(folder)
    ground.cloud.mkdir()
    ground.settings = (
        f"[pod]\nprovider = 'filed'\nhealth_interval = 0.1\nstop_retry = 0.1\n"
        f"[providers.filed]\nurl = '{ollama_url}'\ncloud = '{ground.cloud}'\n{more}"
    )
    return ground
