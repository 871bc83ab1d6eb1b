"""Every way out of a gateway's process at the simulated RunPod and Vast.ai: each billed second is in a row.

`test_ways_out.py` has the ways out themselves; here the clouds' accounts are compared with the ledger.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime
from math import inf
from pathlib import Path

import aiohttp
import pytest
from attrs import define
from gpugate_demo.faults import HangAfter
from gpugate_demo.ollama import SimulatedOllama
from gpugate_testing.clouds import Cloud, Delays, Http, LostResponse, RunPodSim, SimPod, VastSim

from gpugate.billing.model import Session
from gpugate.billing.sqlite_ledger import SqliteLedger
from tests.e2e.crashes import OurClock
from tests.e2e.process import Ground, Running
from tests.e2e.support import CHAT, SECRET, words
from tests.e2e.terminal import in_terminal

DELAYS = Delays(provision_s=0.05, start_s=0.1, ready_s=0.05, stop_s=0.2)
PATIENCE_S = 30.0
SLACK_S = 1.3
"""RunPod tells a start in whole seconds; the rest is for a busy machine."""
UNBILLED_S = 0.3
"""Longest stretch of a bill that may be in no row: Vast.ai bills from RUNNING on, which only a look tells."""
WEEK_S = 7 * 86_400.0
EVER = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
KINDS = [(name, mode) for name in ("hasty-runpod", "hasty-vastai") for mode in ("fixed", "ephemeral")]
_PLUGIN = Path(__file__).parent / "hasty.py"
_ENTRY_POINTS = """[gpugate.providers]
hasty-runpod = gpugate_hasty:HastyRunPod
hasty-vastai = gpugate_hasty:HastyVastAi
"""
_SETTINGS = """
[server]
shutdown_grace = 0.5
stop_wait = {stop_wait}
[pod]
provider = "{name}"
idle_timeout = "{idle}"
health_interval = 0.05
reconcile_interval = 0.1
stop_retry = 0.1
[providers.{name}]
"""


@define
class Account:
    """One simulated cloud, the Ollama of its pods, and the gateways that use it."""

    ground: Ground
    name: str
    mode: str
    cloud: Cloud
    ollama: SimulatedOllama

    def settings(self, *, idle: str = "30s", stop_wait: int = 20) -> None:
        """Write what the gateways are told from now on."""
        section: dict[str, object] = {"api_key": self.cloud.api_key}
        if isinstance(self.cloud, RunPodSim):
            section |= {"api_base": self.cloud.api_base, "proxy_url": self.cloud.proxy_url}
            made: dict[str, object] = {"image": "ollama/ollama:latest", "gpus": [next(iter(self.cloud.gpus))]}
            given: dict[str, object] = {"pod_id": "k3x9v2m7q1"}
        else:
            assert isinstance(self.cloud, VastSim)
            section["api_base"] = self.cloud.api_base
            made, given = {"max_price": 0.6}, {"instance_id": 20_481_234}
        section |= {"mode": self.mode, **(given if self.mode == "fixed" else made)}
        head = _SETTINGS.format(name=self.name, idle=idle, stop_wait=stop_wait)
        self.ground.settings = head + "".join(f"{key} = {json.dumps(section[key])}\n" for key in section)

    @property
    def pod(self) -> SimPod:
        """The newest."""
        return list(self.cloud.pods.values())[-1]

    async def warm(self, gateway: Running) -> None:
        """Have the pod started and a chat answered."""
        async with gateway.call("POST", "/api/chat", json=CHAT) as response:
            assert b'"done":true' in await response.read()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until this holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.01)

    async def rows(self) -> list[Session]:
        """The ledger's, by no gateway."""
        ledger = await SqliteLedger.open(self.ground.folder / "state" / "ledger.sqlite3")
        try:
            return [row for row in await ledger.sessions(*EVER) if row.started_at is not None]
        finally:
            await ledger.aclose()

    async def is_settled(self, unseen_s: float = 0.0) -> None:
        """Nothing is billed now, each row is over, and the rows have each billed second once.

        `unseen_s`: how long a pod was billed after the gateway that had asked for its stop was killed.
        """
        await self.until(lambda: not self.cloud.billing)
        rows = await self.rows()
        assert [] == [row for row in rows if row.ended_at is None]
        stretches = [stretch for pod in self.cloud.pods.values() for stretch in pod.stretches]
        assert len(stretches) == len(rows), (stretches, rows)
        at = self.cloud.clock.at
        for stretch, row in zip(stretches, rows, strict=True):
            late_s = (row.began_at - at(stretch.since)).total_seconds()
            early_s = (at(stretch.until or inf) - (row.ended_at or EVER[0])).total_seconds()
            assert -SLACK_S < late_s < UNBILLED_S, (late_s, early_s, row)
            assert -SLACK_S < early_s < unseen_s + UNBILLED_S, (late_s, early_s, row)


@pytest.fixture(params=KINDS, ids="-".join)
async def account(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Account]:
    """An account at one cloud; at its end nothing may be billed."""
    name, mode = request.param
    info = tmp_path / "site" / "gpugate_hasty-1.0.dist-info"
    info.mkdir(parents=True)
    (info.parent / "gpugate_hasty.py").write_text(_PLUGIN.read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gpugate-hasty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS)
    kind = RunPodSim if "runpod" in name else VastSim
    async with (
        SimulatedOllama(reply=words()) as ollama,
        kind(clock=OurClock(), delays=DELAYS, strict=False) as cloud,
    ):
        if isinstance(cloud, RunPodSim):
            cloud.edge.upstreams[11434] = ollama.url
            if mode == "fixed":
                cloud.add_pod()
        else:
            cloud.ports.upstreams[11434] = ollama.url
            if mode == "fixed":
                cloud.add_instance()
        account = Account(Ground(tmp_path), name, mode, cloud, ollama)
        account.settings()
        yield account
        assert [] == cloud.billing


async def test_a_closed_terminal(account: Account) -> None:
    """The window of a gateway is closed while its pod serves."""
    config = account.ground.folder / "config.toml"
    state = account.ground.folder / "state"
    config.write_text(f"[auth]\nsecret = '{SECRET}'\n[state]\ndir = '{state}'\n{account.ground.settings}")
    account.cloud.clock.now()
    command = (sys.executable, "-m", "gpugate", "serve", "--config", str(config), "--port", "0")
    async with in_terminal(*command, PYTHONPATH=str(account.ground.folder / "site")) as terminal:
        await account.until(lambda: b"listening" in terminal.shown)
        async with aiohttp.ClientSession() as http:
            log = account.ground.folder / "log"
            log.write_bytes(b"")
            gateway = Running(terminal.process, http, log)
            await account.warm(gateway)
        terminal.close()
        assert 0 == await asyncio.wait_for(terminal.process.wait(), 15)
    await account.is_settled()


async def test_a_signal(account: Account) -> None:
    """SIGHUP or SIGQUIT comes while the pod serves."""
    number = signal.SIGHUP if account.mode == "fixed" else signal.SIGQUIT
    async with account.ground.serve() as gateway:
        await account.warm(gateway)
        gateway.signal(number)
        assert 0 == await gateway.ended(), gateway.lines
    assert '"alarm"' not in gateway.lines
    await account.is_settled()


async def test_docker_stop_with_a_stream_in_flight(account: Account) -> None:
    """SIGTERM, and SIGKILL as soon as the stop was asked for: the cloud obeys, the next gateway notes it."""
    account.ollama.faults.add("/api/chat", HangAfter(2))
    async with account.ground.serve() as gateway:
        async with gateway.call("POST", "/api/chat", json=CHAT) as response:
            await response.content.readany()
            gateway.signal(signal.SIGTERM)
            await account.until(lambda: account.cloud.count("stop") + account.cloud.count("delete"))
            gateway.signal(signal.SIGKILL)
            with suppress(aiohttp.ClientError):
                await response.read()
        assert -9 == await gateway.ended()
    async with account.ground.serve() as gateway:
        await account.until(lambda: not account.cloud.billing)
        await gateway.until_status("STOPPED")
        gateway.signal()
        assert 0 == await gateway.ended(), gateway.lines
    await account.is_settled(DELAYS.stop_s)


async def test_a_kill_and_a_start_time_of_last_week(account: Account) -> None:
    """The cloud then reports a start before the last session's proved stop: it is not believed."""
    account.settings(idle="0.2s")
    async with account.ground.serve() as gateway:
        await account.warm(gateway)
        await account.until(lambda: account.pod.stretches and not account.cloud.billing)
        await gateway.until_status("STOPPED")
        gateway.signal()
        assert 0 == await gateway.ended()
    account.settings()
    async with account.ground.serve() as gateway:
        await account.warm(gateway)
        gateway.signal(signal.SIGKILL)
        assert -9 == await gateway.ended()
    assert account.pod.running_since is not None
    account.pod.running_since -= WEEK_S
    account.pod.created_at -= WEEK_S  # a pod that is made for a session is billed from there
    async with account.ground.serve() as gateway:
        await gateway.until_status("READY")
        gateway.signal()
        assert 0 == await gateway.ended()
    assert "not believed" in gateway.lines
    await account.is_settled()


async def test_a_kill_and_an_end_while_the_cloud_cannot_be_reached(account: Account) -> None:
    """The ledger has an open session, so a stop that fails is an alarm, and is owed by the next gateway."""
    async with account.ground.serve() as gateway:
        await account.warm(gateway)
        gateway.signal(signal.SIGKILL)
        assert -9 == await gateway.ended()
    for operation in ("get", "list", "stop", "delete"):
        account.cloud.fail(operation, Http(503), times=None)
    account.settings(stop_wait=1)
    async with account.ground.serve() as gateway:
        gateway.signal()
        assert 1 == await gateway.ended(), gateway.lines
    assert '"alarm":true' in gateway.lines
    assert account.cloud.billing
    account.cloud.faults.heal()
    account.settings()
    async with account.ground.serve() as gateway:
        await account.until(lambda: not account.cloud.billing)
        await gateway.until_status("STOPPED")
        gateway.signal()
        assert 0 == await gateway.ended(), gateway.lines
    await account.is_settled()


async def test_docker_stop_while_a_start_is_not_answered(account: Account) -> None:
    """The cloud has accepted it and does not say so: the stop is sent all the same, and in time."""
    for operation in ("start", "create"):
        account.cloud.fail(operation, LostResponse(60.0))
    async with account.ground.serve() as gateway:
        async with gateway.call("POST", "/api/v1/gpu/start") as response:
            assert response.status < 300
        await account.until(lambda: account.cloud.count("start") + account.cloud.count("create"))
        gateway.signal()
        assert 0 == await asyncio.wait_for(gateway.process.wait(), 10), gateway.lines
    assert 1 == account.cloud.starts
    await account.is_settled()
