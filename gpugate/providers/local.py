"""The provider `local`: its pod is a process on this machine, such as `ollama serve`."""

from __future__ import annotations

import asyncio
import contextlib
import re
from functools import cached_property
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
    process_name,
    state_dir,
)

if TYPE_CHECKING:
    from aiohttp import ClientSession

_PORTS = {"http": 80, "https": 443}
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
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


def _are_headers(_: object, attribute: Attribute[dict[str, str]], value: dict[str, str]) -> None:
    for name, content in value.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(r"[\r\n\0]", content):
            raise ValueError("must be a table of header names and one-line values")


def _is_environment(_: object, attribute: Attribute[dict[str, str]], value: dict[str, str]) -> None:
    for name, content in value.items():
        if not name or "=" in name or "\0" in name + content:
            raise ValueError("must be a table of names of environment variables and their values")


@frozen
class LocalConfig:
    """A process on this machine."""

    command: list[str] = field(
        factory=lambda: ["ollama", "serve"],
        validator=_is_command,
        metadata={"help": "the process and its arguments; no shell is involved"},
    )
    ollama_url: str = field(
        default="http://127.0.0.1:11436",
        validator=_is_url,
        metadata={"help": "where its Ollama answers; host and port are passed to it as OLLAMA_HOST"},
    )
    comfyui_url: str = field(
        default="",
        validator=_is_url_or_empty,
        metadata={"help": "where a ComfyUI answers; empty: there is none"},
    )
    headers: dict[str, str] = field(
        factory=dict,
        validator=_are_headers,
        repr=False,
        metadata={"help": "sent to its services, such as the key that an engine wants"},
    )
    env: dict[str, str] = field(
        factory=dict,
        validator=_is_environment,
        repr=False,
        metadata={"help": "more environment variables of the process"},
    )


def command_problem(config: LocalConfig) -> str | None:
    """Return why the command cannot be run, without running it; None if it can."""
    program = config.command[0]
    if which(program) is None:
        return f"providers.local.command: there is no program {program!r} that can be run"
    return None


class Local(Provider):
    """Runs `providers.local.command`, which ends at most 15 s after a gateway that is not restarted.

    A restarted gateway finds the process again. It is STOPPED when all its descendants are gone, and has no
    price.
    """

    Config = LocalConfig
    capabilities = Capabilities(resume=True, stable_urls=True, logs=True, stop_keeps_disk=True)
    timeouts: ClassVar[SupervisorTimeouts] = SupervisorTimeouts()
    config: LocalConfig

    def __init__(self, config: Any, session: ClientSession) -> None:
        super().__init__(config, session)
        self._state_dir = state_dir()

    @cached_property
    def _process(self) -> SupervisedProcess:
        name = process_name("local", self.pod_name)
        return SupervisedProcess(name, state_dir=self._state_dir, timeouts=self.timeouts)

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
            "port_in_use": await _is_port_in_use(where),
        }
        try:
            process = await self._process.start(
                self.config.command, env={"OLLAMA_HOST": _address(where), **self.config.env}, meta=meta
            )
        except CommandNotFound as error:
            raise Misconfigured(f"providers.local.command: {error}") from error
        return self._report(process)

    async def stop(self) -> PodReport:
        """Ask the whole process group to end: SIGTERM, and SIGKILL after 20 s."""
        return self._report(await self._process.stop())

    async def inspect(self) -> PodReport:
        """Report the process, also one that an earlier gateway started."""
        return self._report(await self._process.inspect())

    async def aclose(self) -> None:
        """Give the process back; it goes on."""
        await self._process.aclose()

    def _report(self, process: ProcessStatus | None) -> PodReport:
        if process is None:
            return PodReport(Phase.STOPPED, pod_id=self._process.name)
        return PodReport(
            phase=_PHASES[process.state],
            pod_id=self._process.name,
            endpoints=self._endpoints(process) if process.state is ProcessState.RUNNING else {},
            started_at=process.started_at,
            detail=self._detail(process),
            output=process.last_line,
        )

    def _detail(self, process: ProcessStatus) -> str:
        if process.state is ProcessState.ENDED:
            return f"{self.config.command[0]!r} {process.exit_description}"
        if process.held_by is not None:
            other = f"another gpugate with this state directory ({process.held_by})"
            return f"process {process.pid} is held by {other}"
        if process.meta.get("port_in_use"):
            url = process.meta["ollama_url"]
            return f"process {process.pid}; something else answered at {url} before it was started"
        return f"process {process.pid}"

    def _endpoints(self, process: ProcessStatus) -> dict[str, Endpoint]:
        """Return the addresses given to the running process: the configuration may have changed since."""
        urls = {"ollama": process.meta.get("ollama_url"), "comfyui": process.meta.get("comfyui_url")}
        return {name: Endpoint(url, self.config.headers) for name, url in urls.items() if url}


def _address(url: SplitResult) -> str:
    """Return host and port for OLLAMA_HOST; without a port Ollama would use its own default."""
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"{host}:{url.port or _PORTS[url.scheme]}"


async def _is_port_in_use(url: SplitResult) -> bool:
    """Return whether a server listens there already: it would pass for our process."""
    if url.hostname not in _LOOPBACK:
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
