"""Wakes a PC with a magic packet, sees whether its Ollama answers, and has it shut down."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import AbstractAsyncContextManager
from enum import Enum
from math import inf
from typing import TYPE_CHECKING

import aiohttp

from gpugate import (
    AuthFailed,
    Capabilities,
    Endpoint,
    Misconfigured,
    Phase,
    PodReport,
    Price,
    Provider,
    Transient,
)
from gpugate_wol.settings import WolConfig

if TYPE_CHECKING:
    from aiohttp import ClientSession

NOBODY_HOME = {errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ETIMEDOUT}


class Seen(Enum):
    """What a knock at the PC's door came to."""

    OLLAMA = "its Ollama answers"
    AWAKE = "it is awake, its Ollama is not up"
    SILENT = "no answer"


class WakeOnLan(Provider):
    """A PC in the same network as gpugate."""

    Config = WolConfig
    capabilities = Capabilities(resume=True, stable_urls=True, stop_keeps_disk=True, min_poll_s=1.0)
    config: WolConfig

    def __init__(self, config: WolConfig, session: ClientSession) -> None:
        super().__init__(config, session)
        self._awake_by = -inf  # a PC that boots is as silent as one that is off
        self._quiet_by = -inf

    async def inspect(self) -> PodReport:
        """Knock. Raises: Transient, it cannot be told whether the PC is on."""
        seen = await self._knock(self.config.url.rstrip("/") + "/api/version")
        now = asyncio.get_running_loop().time()
        if seen is Seen.SILENT:
            await self._ask_the_witness()
            return self._report(Phase.STARTING if now < self._awake_by else Phase.STOPPED)
        if now < self._quiet_by:
            return self._report(Phase.STOPPING)
        if seen is Seen.AWAKE:
            return self._report(Phase.STARTING, seen.value)
        self._awake_by = -inf  # it has booted: from now on silence means off
        return self._report(Phase.RUNNING)

    async def start(self) -> PodReport:
        """Send the magic packet, unless the PC is on."""
        report = await self.inspect()
        if report.phase is not Phase.STOPPED:
            return report
        now = asyncio.get_running_loop().time()
        self._awake_by, self._quiet_by = now + self.config.boot, -inf
        await self._send_magic_packet()
        return self._report(Phase.STARTING)

    async def stop(self) -> PodReport:
        """Have it shut down. Raises: Transient, it boots and hears nothing yet; gpugate asks again."""
        seen = await self.inspect()
        if seen.phase in (Phase.STOPPED, Phase.STOPPING):
            return seen
        if seen.phase is Phase.STARTING and not seen.detail:
            raise Transient("the PC boots: it can be shut down when it is up")
        await (self._post_stop() if self.config.stop_url else self._run_stop())
        now = asyncio.get_running_loop().time()
        self._awake_by, self._quiet_by = -inf, now + self.config.shutdown
        return self._report(Phase.STOPPING)

    def _report(self, phase: Phase, detail: str = "") -> PodReport:
        config = self.config
        on = phase is Phase.RUNNING
        return PodReport(
            phase,
            pod_id=config.mac.lower(),
            endpoints={"ollama": Endpoint(config.url)} if on else {},
            price=Price(config.per_hour, None, config.currency),
            detail=detail,
        )

    async def _knock(self, url: str) -> Seen:
        """Is anybody there? Only an answer, a refusal and silence mean something; all else is an error."""
        try:
            async with self._ask("GET", url) as answer:
                told = await answer.json(content_type=None)
        except aiohttp.ClientConnectorError as error:
            if error.os_error.errno == errno.ECONNREFUSED:
                return Seen.AWAKE
            if error.os_error.errno in NOBODY_HOME:
                return Seen.SILENT
            raise Transient(f"the network is down ({type(error).__name__})") from error
        except aiohttp.ConnectionTimeoutError:
            return Seen.SILENT
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Transient(f"the PC answers nothing sensible ({type(error).__name__})") from error
        if not isinstance(told, dict) or "version" not in told:
            raise Transient("something answers that is no Ollama")
        return Seen.OLLAMA

    async def _ask_the_witness(self) -> None:
        """Silence means "off" only if we can still hear others."""
        if not self.config.witness:
            return
        try:
            async with self._ask("GET", self.config.witness):
                return
        except (aiohttp.ClientError, OSError) as error:
            raise Transient("neither the PC nor the witness answers: is the network down?") from error

    async def _send_magic_packet(self) -> None:
        mac = bytes.fromhex(self.config.mac.replace(":", "").replace("-", ""))
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol,
                remote_addr=(self.config.broadcast, self.config.wake_port),
                family=socket.AF_INET,
                allow_broadcast=True,
            )
        except OSError as error:
            raise Transient("the magic packet cannot be sent") from error
        try:
            transport.sendto(b"\xff" * 6 + mac * 16)
        finally:
            transport.close()

    async def _post_stop(self) -> None:
        token = self.config.stop_token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            async with self._ask("POST", self.config.stop_url, headers) as answer:
                status = answer.status
        except (aiohttp.ClientError, OSError) as error:
            raise Transient(f"stop_url does not answer ({type(error).__name__})") from error
        if status in (401, 403):
            raise AuthFailed("the PC does not accept providers.wol.stop_token")
        if status == 404:
            raise Misconfigured("there is nothing at providers.wol.stop_url")
        if not 200 <= status < 300:
            raise Transient(f"stop_url answers {status}")

    async def _run_stop(self) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                *self.config.stop_command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            raise Misconfigured(f"providers.wol.stop_command cannot be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(self.config.timeout):
                status = await process.wait()
        except TimeoutError as error:
            raise Transient("stop_command does not end") from error
        finally:  # also when we are cancelled: no orphan keeps trying
            if process.returncode is None:
                process.kill()
                await process.wait()
        if status != 0:
            raise Transient(f"stop_command ended with {status}")

    def _ask(
        self, method: str, url: str, headers: dict[str, str] | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        seconds = self.config.timeout
        limit = aiohttp.ClientTimeout(total=2 * seconds, sock_connect=seconds)
        return self.session.request(method, url, headers=headers, allow_redirects=False, timeout=limit)
