"""A provider whose pod is a process on this machine, such as `ollama serve`; knows not how it is kept."""

from __future__ import annotations

import asyncio
import contextlib
from shutil import which
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import SplitResult, urlsplit

from attrs import Attribute, field, frozen

from gpugate.errors import Misconfigured
from gpugate.provider_api import Capabilities, Endpoint, Phase, PodReport, Provider
from gpugate.providers.supervised_process import (
    CommandNotFound,
    ProcessState,
    ProcessStatus,
    SupervisedProcess,
    SupervisorTimeouts,
    state_dir,
)

if TYPE_CHECKING:
    from aiohttp import ClientSession

_PORTS = {"http": 80, "https": 443}
_OURSELVES = {"127.0.0.1", "::1", "localhost"}
_PHASES = {
    ProcessState.RUNNING: Phase.RUNNING,
    ProcessState.STOPPING: Phase.STOPPING,
    ProcessState.ENDED: Phase.FAILED,
}


def _is_url(_: object, attribute: Attribute[str], value: str) -> None:
    if problem := _problem_of(value):
        raise ValueError(f"must be a URL such as http://127.0.0.1:11436: {problem}")


def _is_url_or_empty(owner: object, attribute: Attribute[str], value: str) -> None:
    if value:
        _is_url(owner, attribute, value)


def _problem_of(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:  # a port of 99999, half a bracket
        return str(error)
    if parts.scheme not in _PORTS:
        return "it does not begin with http:// or https://"
    if not parts.hostname:
        return "it names no host"
    return "port 0 is none" if port == 0 else ""


def _is_command(_: object, attribute: Attribute[list[str]], value: list[str]) -> None:
    if not value or not value[0]:
        raise ValueError("must be a command and its arguments, such as ['ollama', 'serve']")
    if any("\0" in word for word in value):
        raise ValueError("must not hold a NUL")


@frozen
class LocalConfig:
    """`[providers.local]`.

    Attributes:
        command: the process and its arguments; no shell is involved.
        ollama_url: where its Ollama answers; host and port are handed to it as OLLAMA_HOST.
        comfyui_url: where a ComfyUI answers; empty: there is none.
    """

    command: list[str] = field(factory=lambda: ["ollama", "serve"], validator=_is_command)
    ollama_url: str = field(default="http://127.0.0.1:11436", validator=_is_url)
    comfyui_url: str = field(default="", validator=_is_url_or_empty)


def command_problem(config: LocalConfig) -> str | None:
    """What keeps the command from being run, as far as a look tells; None if nothing does."""
    program = config.command[0]
    if which(program) is None:
        return f"providers.local.command: there is no program {program!r} that can be run"
    return None


class Local(Provider):
    """Runs `providers.local.command` while this gateway or its next start wants it, and 15 s more at most.

    Its process is a pod like any other: found again after a restart, stopped only when every process that it
    ever spawned is gone (docs/api.md#the-local-provider). It costs nothing, so no price is told.
    """

    Config = LocalConfig
    capabilities = Capabilities(resume=True, stable_urls=True, logs=True, stop_keeps_disk=True)
    timeouts: ClassVar[SupervisorTimeouts] = SupervisorTimeouts()
    config: LocalConfig

    def __init__(self, config: Any, session: ClientSession) -> None:
        super().__init__(config, session)
        self._process = SupervisedProcess("local", state_dir=state_dir(), timeouts=self.timeouts)

    async def start(self) -> PodReport:
        """Run the command, unless it runs.

        Raises: Misconfigured, there is no such command; Transient, it ended at once; Conflict, it is still
        stopping or belongs to another gateway.
        """
        found = await self._process.inspect()
        if found is not None and found.state is ProcessState.RUNNING and found.held_by is None:
            return self._report(found)
        where = urlsplit(self.config.ollama_url)
        meta = {
            "ollama_url": self.config.ollama_url,
            "comfyui_url": self.config.comfyui_url,
            "stranger": await _somebody_answers(where),
        }
        try:
            kept = await self._process.start(
                self.config.command, env={"OLLAMA_HOST": _address(where)}, meta=meta
            )
        except CommandNotFound as error:
            raise Misconfigured(f"providers.local.command: {error}") from error
        return self._report(kept)

    async def stop(self) -> PodReport:
        """Ask the whole process group to end: SIGTERM, and SIGKILL after 20 s."""
        return self._report(await self._process.stop())

    async def inspect(self) -> PodReport:
        """Look for the process, also for one that an earlier gateway left."""
        return self._report(await self._process.inspect())

    async def aclose(self) -> None:
        """Let go of the process, which stays."""
        await self._process.aclose()

    def _report(self, kept: ProcessStatus | None) -> PodReport:
        if kept is None:
            return PodReport(Phase.STOPPED, pod_id="local")
        return PodReport(
            phase=_PHASES[kept.state],
            pod_id="local",
            endpoints=_endpoints(kept) if kept.state is ProcessState.RUNNING else {},
            started_at=kept.started_at,
            detail=self._detail(kept),
            output=kept.last_line,
        )

    def _detail(self, kept: ProcessStatus) -> str:
        if kept.state is ProcessState.ENDED:
            return f"{self.config.command[0]!r} {kept.exit_description}"
        if kept.held_by is not None:
            return f"process {kept.pid} is held by another gpugate with this state directory ({kept.held_by})"
        if kept.meta.get("stranger"):
            url = kept.meta["ollama_url"]
            return f"process {kept.pid}; something else answered at {url} before it was started"
        return f"process {kept.pid}"


def _endpoints(kept: ProcessStatus) -> dict[str, Endpoint]:
    """Where the process that runs was told to listen: the configuration may have changed since."""
    urls = {"ollama": kept.meta.get("ollama_url"), "comfyui": kept.meta.get("comfyui_url")}
    return {name: Endpoint(url) for name, url in urls.items() if url}


def _address(url: SplitResult) -> str:
    """Host and port as OLLAMA_HOST has them: without a port Ollama takes its own default."""
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"{host}:{url.port or _PORTS[url.scheme]}"


async def _somebody_answers(url: SplitResult) -> bool:
    """Does anything listen there already? It would pass for our process; only this machine is asked."""
    if url.hostname not in _OURSELVES:
        return False
    try:
        async with asyncio.timeout(0.2):  # on the loopback the answer is a matter of microseconds
            _, writer = await asyncio.open_connection(url.hostname, url.port or _PORTS[url.scheme])
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
