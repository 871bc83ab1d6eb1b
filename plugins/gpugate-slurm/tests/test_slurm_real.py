"""The plugin at a real Slurm: by slurmrestd, by commands, and by those through a real sshd with a tunnel."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from attrs import evolve
from gpugate_slurm import Slurm, SlurmConfig
from real_slurm import RealSlurm, missing, shared

from gpugate.provider_api import Phase, PodReport

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(180),  # each waits until the others have left the one Slurm
]
OLLAMA = [sys.executable, str(Path(__file__).with_name("fake_ollama.py")), "{port}"]
WAYS = ("rest", "commands", "ssh")
RATE = 3.6


class Quick(Slurm):
    """Looked at as often as a test likes."""

    capabilities = evolve(Slurm.capabilities, min_poll_s=0.1)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[RealSlurm]:
    """The run's one Slurm, without jobs."""
    with shared(os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))) as slurm:
        monkeypatch.setenv("SLURM_CONF", slurm.conf)
        yield slurm
        slurm.clear()


@pytest.fixture
async def make(slurm: RealSlurm) -> AsyncIterator[Callable[..., Slurm]]:
    """Makes a provider that goes one of the ways."""
    made: list[Slurm] = []
    async with aiohttp.ClientSession() as session:

        def provider(way: str = "commands", **more: Any) -> Slurm:
            settings: dict[str, Any] = {
                "command": OLLAMA,
                "time_limit": 600.0,
                "hourly_rate": RATE,
                "ollama_url": "http://127.0.0.1:{port}",
                **_way(slurm, way),
                **more,
            }
            made.append(Quick(SlurmConfig(**settings), session))
            return made[-1]

        yield provider
        for one in made:
            await one.aclose()


def _way(slurm: RealSlurm, way: str) -> dict[str, Any]:
    if way == "rest":
        return {"rest_url": slurm.rest_url, "token": slurm.token(), "user": "root"}
    if way == "ssh":
        key, known = str(slurm.folder / "user_key"), str(slurm.folder / "known_hosts")
        return {"ssh": slurm.ssh, "ssh_key_file": key, "known_hosts": known, "tunnel": True}
    return {}


async def until(provider: Slurm, *phases: Phase) -> PodReport:
    """Look until it is there."""
    end = time.monotonic() + 25
    while (report := await provider.inspect()).phase not in phases:
        assert time.monotonic() < end, report
        await asyncio.sleep(0.15)
    return report


async def version_at(provider: Slurm, report: PodReport) -> dict[str, Any]:
    """What the job's Ollama says, as soon as it listens."""
    url = report.endpoints["ollama"].url + "/api/version"
    for _ in range(100):
        try:
            async with provider.session.get(url) as answer:
                return await answer.json()
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)
    raise AssertionError("it does not answer")


@pytest.mark.parametrize("way", WAYS)
async def test_a_life(slurm: RealSlurm, make: Callable[..., Slurm], way: str) -> None:
    """Submitted once, it runs, answers at its port, and is cancelled; the times are Slurm's own."""
    provider = make(way)
    assert Phase.STOPPED is (await provider.inspect()).phase
    started = await provider.start()
    again = await provider.start()
    assert started.pod_id == again.pod_id
    running = await until(provider, Phase.RUNNING)
    told = await version_at(provider, running)
    shown = slurm.show(running.pod_id or "")
    port = (
        provider.config.port or int(shown["Comment"].partition("port=")[2] or 0) or told["host"].split(":")[1]
    )
    assert f"0.0.0.0:{port}" == told["host"]
    assert ("gpugate-main", "0") == (shown["JobName"], shown["Requeue"])
    assert time.strftime("%FT%T", time.localtime(running.started_at.timestamp())) == shown["StartTime"]
    assert RATE == float(running.price.running_per_hour)

    heir = make(way)
    assert running.pod_id == (await heir.inspect()).pod_id
    await heir.stop()
    await heir.stop()
    ended = await until(provider, Phase.STOPPED)
    assert "CANCELLED" in ended.detail
    assert "" == slurm.run("squeue", "--noheader")
