"""The plugin at a real Slurm: by slurmrestd, by commands, and by those through a real sshd with a tunnel."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gpugate_slurm import Slurm, SlurmConfig
from real_slurm import OLLAMA, Quick, RealSlurm, missing, shared

from gpugate.errors import Ambiguous, AuthFailed, Misconfigured, RateLimited, Transient
from gpugate.provider_api import Phase, PodReport

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(180),  # each waits until the others have left the one Slurm
]
WAYS = ("rest", "commands", "ssh")
RATE = 3.6


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[RealSlurm]:
    """The run's one Slurm, without jobs."""
    with shared() as slurm:
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
async def test_a_life(
    slurm: RealSlurm, make: Callable[..., Slurm], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitted once, it runs, answers at its port, and is cancelled; the times are Slurm's own."""
    monkeypatch.setenv("SOME_API_KEY", "of the gateway's environment")
    provider = make(way)
    assert Phase.STOPPED is (await provider.inspect()).phase
    started = await provider.start()
    again = await provider.start()
    assert started.pod_id == again.pod_id
    running = await until(provider, Phase.RUNNING)
    told = await version_at(provider, running)
    assert "SOME_API_KEY" not in told["env"]
    shown = slurm.show(running.pod_id or "")
    comment = slurm.run("squeue", "--noheader", "--format=%k").strip()
    assert comment == f"gpugate main port={told['host'].removeprefix('0.0.0.0:')}"
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


@pytest.mark.parametrize("way", ["rest", "commands"])
async def test_a_full_cluster(slurm: RealSlurm, make: Callable[..., Slurm], way: str) -> None:
    """It waits, says why, costs nothing, and is cancelled before it has run."""
    slurm.run("sbatch", "--gres=gpu:1", "--output=/dev/null", "--wrap=sleep 60")
    slurm.until(lambda: "R" in slurm.run("squeue", "--noheader", "--format=%t"))
    provider = make(way)
    assert not (await provider.start()).billed
    queued = await until(provider, Phase.QUEUED)
    assert ("no GPU is free (Resources)", False) == (queued.detail, queued.is_billed)
    again = await provider.start()
    assert (Phase.QUEUED, queued.pod_id) == (again.phase, again.pod_id)
    assert Phase.STOPPING is (await provider.stop()).phase
    await until(provider, Phase.STOPPED)
    assert "CANCELLED" == slurm.show(queued.pod_id or "")["JobState"]


async def test_what_waiting_does_not_help(slurm: RealSlurm, make: Callable[..., Slurm]) -> None:
    """A partition that is down is waited for; a time limit that it never allows is a mistake."""
    provider = make(partition="down")
    await provider.start()
    assert "the partition is down (PartitionDown)" == (await until(provider, Phase.QUEUED)).detail
    await provider.stop()
    await until(provider, Phase.STOPPED)
    for way in ("commands", "rest"):
        provider = make(way, time_limit=7200.0)
        await provider.start()
        failed = await until(provider, Phase.FAILED)
        assert (False, True) == (failed.billed, "(PartitionTimeLimit)" in failed.detail)
        assert isinstance(failed.failure, Misconfigured)
        with pytest.raises(Misconfigured, match=r"providers\.slurm\.time_limit is more than the partition"):
            await provider.start()
        await provider.stop()
        await until(provider, Phase.STOPPED)


@pytest.mark.parametrize("way", ["rest", "commands"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"partition": "nope"}, "(?i)invalid partition"),
        ({"gres": "gpu:9"}, "Requested node configuration is not available"),
        ({"gres": "tpu:1"}, "(?i)gres|Failure during parsing"),
    ],
)
async def test_a_refusal(make: Callable[..., Slurm], way: str, settings: dict[str, Any], said: str) -> None:
    """A mistake in the settings is one, in Slurm's words, and leaves no job."""
    provider = make(way, **settings)
    with pytest.raises(Misconfigured, match=said):
        await provider.start()
    report = await provider.inspect()
    assert (Phase.STOPPED, True) == (report.phase, report.detail.startswith(("no job", "job")))


async def test_a_bad_token(slurm: RealSlurm, make: Callable[..., Slurm], tmp_path: Path) -> None:
    """It is told apart from a controller that is down; an expired one says so; a new file is read again."""
    bad = make("rest", token="abc")
    for call in (bad.inspect, bad.start, bad.stop):
        with pytest.raises(AuthFailed, match="does not accept"):
            await call()
    file = tmp_path / "token"
    file.write_text(slurm.run("scontrol", "token", "lifespan=1"))
    provider = make("rest", token="", token_file=str(file))
    await asyncio.sleep(2)
    with pytest.raises(AuthFailed, match="expired"):
        await provider.inspect()
    file.write_text(slurm.run("scontrol", "token", "lifespan=600"))
    assert Phase.STOPPED is (await provider.inspect()).phase


async def test_a_lost_gateway(slurm: RealSlurm, make: Callable[..., Slurm]) -> None:
    """The job lives as long as it hears of the gateway, and ends itself afterwards."""
    provider = make(orphan_after=4.0)
    await provider.start()
    running = await until(provider, Phase.RUNNING)
    await asyncio.sleep(6)
    assert Phase.RUNNING is (await provider.inspect()).phase
    await provider.aclose()
    slurm.until(lambda: "COMPLETED" == slurm.show(running.pod_id or "")["JobState"])


async def test_a_controller_that_does_not_answer(slurm: RealSlurm, make: Callable[..., Slurm]) -> None:
    """A look fails; a submission may have been made, and is looked for before there is another."""
    provider = make(timeout=1.0)
    provider.settle_s = 4.0
    await provider.inspect()
    controller = int((slurm.folder / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGSTOP)
    try:
        with pytest.raises(Transient):
            await provider.inspect()
        with pytest.raises(Ambiguous):
            await provider._submit()
    finally:
        os.kill(controller, signal.SIGCONT)
    end = time.monotonic() + 20
    while True:
        try:
            report = await provider.start()
            break
        except (RateLimited, Transient):
            assert time.monotonic() < end
            await asyncio.sleep(0.3)
    assert report.pod_id is not None
    assert 1 == len(slurm.run("squeue", "--noheader", "--name=gpugate-main").splitlines())


async def test_two_slots(slurm: RealSlurm, make: Callable[..., Slurm]) -> None:
    """Before the time limit a second job runs beside the first; each object sees its own alone."""
    first, second = make(gres=""), make("rest", gres="")
    second.slot = 1
    await first.start()
    await second.start()
    one, two = await until(first, Phase.RUNNING), await until(second, Phase.RUNNING)
    assert (600.0, 600.0) == (first.time_limit_s, second.time_limit_s)
    assert one.pod_id != two.pod_id
    assert ("", "") == (one.alarm, two.alarm)
    await first.stop()
    await until(first, Phase.STOPPED)
    assert two.pod_id == (await until(second, Phase.RUNNING)).pod_id


async def test_a_template(slurm: RealSlurm, make: Callable[..., Slurm], tmp_path: Path) -> None:
    """Its options reach Slurm on both ways, and its command runs."""
    file = tmp_path / "job.sh"
    file.write_text("#!/bin/sh\n#SBATCH --time=17 --cpus-per-task=2\nexport MARK=1\nexec {command}\n")
    for way in ("commands", "rest"):
        provider = make(way, template=str(file))
        await provider.start()
        running = await until(provider, Phase.RUNNING)
        assert (await version_at(provider, running))["version"]
        shown = slurm.show(running.pod_id or "")
        assert ("00:17:00", "2", 1020.0) == (shown["TimeLimit"], shown["NumCPUs"], provider.time_limit_s)
        await provider.stop()
        await until(provider, Phase.STOPPED)


async def test_a_session_that_closes_its_connections(slurm: RealSlurm) -> None:
    """It must not say so: slurmrestd 22.05 answers that with no HTTP."""
    config = SlurmConfig(**_way(slurm, "rest"))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        headers = {"X-SLURM-USER-NAME": "root", "X-SLURM-USER-TOKEN": config.token}
        with pytest.raises(aiohttp.ClientResponseError):
            await session.get(f"{slurm.rest_url}/slurm/v0.0.38/jobs", headers=headers)
        assert Phase.STOPPED is (await Slurm(config, session).inspect()).phase
