"""`gpugate provider-check`: what it says of plugins that are right and wrong, and that it always stops."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import pytest
from aiohttp import web
from attrs import field, frozen
from gpugate_testing.fakes import FakeCloud, FakeProvider, LostAnswer
from gpugate_testing.provider_check import Check

from gpugate.config import Settings, load_settings
from gpugate.errors import Ambiguous, NoCapacity, Transient
from gpugate.provider_api import Capabilities, Endpoint, Phase, PodReport, Price
from tests.cli.support import Shell
from tests.cli.support import shell as make_shell

KEY = "a-key-that-must-stay-inside"


@frozen
class Keyed:
    """A configuration with a secret."""

    api_key: str = field(default=KEY, repr=False)


class Rented(FakeProvider):
    """A provider over a cloud that all its objects share."""

    Config = Keyed
    capabilities = Capabilities(min_poll_s=0.01)
    cloud_of_all: ClassVar[FakeCloud]

    def __init__(self, config: Any, session: Any) -> None:
        super().__init__(self.cloud_of_all, session)
        self.config = config


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell of its own, with the plugin "parked"."""
    return make_shell(tmp_path)


@pytest.fixture
async def ollama() -> AsyncIterator[str]:
    """The URL of something that is as healthy as an Ollama."""

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"version": "0.12.6"})

    app = web.Application()
    app.router.add_get("/api/version", version)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
def settings() -> Settings:
    """Settings of somebody in a hurry."""
    hurried = {
        "pod.health_interval": 0.01,
        "pod.start_timeout": 2,
        "pod.warmup_timeout": 0.2,
        "pod.stop_retry": 0.1,
    }
    return load_settings(None, {}, overrides=hurried, complete=False)


@pytest.fixture
def cloud(ollama: str) -> FakeCloud:
    """The cloud with the pod."""
    Rented.cloud_of_all = FakeCloud(boot_s=0.05, stop_s=0.03, url=ollama)
    return Rented.cloud_of_all


@pytest.fixture
def check(settings: Settings, cloud: FakeCloud) -> Check:
    """A run that has not begun."""
    return Check("rented", Rented, Keyed(), settings)


def claims(text: str, kind: str) -> list[str]:
    """The lines of one kind."""
    return [line[6:] for line in text.splitlines() if line.startswith(kind)]


async def test_looking_only(check: Check, cloud: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --spend nothing but looks is asked."""
    await check.run(spend=False)
    out, err = capsys.readouterr()

    assert {"inspect"} == set(cloud.calls)
    assert ["its class is sound, and its secrets stay inside", "it looks: pod fake-1 is stopped"] == claims(
        out, "ok"
    )[:2]
    assert "" == err
    assert not check.failed


async def test_spending(check: Check, cloud: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    """The price is told before the start, and the pod is off at the end."""
    await check.run(spend=True)
    out, err = capsys.readouterr()

    assert "" == err
    assert Phase.STOPPED is cloud.report().phase
    assert not check.failed
    assert not check.owes_stop
    assert out.index("0.44 USD per hour") < out.index("a start is accepted") < out.index("it is off")
    assert 1 == cloud.starts


async def test_a_pod_that_runs_already(
    check: Check, cloud: FakeCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody may be using it: it is left alone."""
    cloud.turn_on()
    await check.run(spend=True)

    assert "is left alone" in capsys.readouterr().err
    assert {"inspect"} == set(cloud.calls)
    assert check.failed


@pytest.mark.parametrize(
    "error", [NoCapacity("no GPU", queued=True), LostAnswer(Ambiguous("no answer")), KeyError(KEY)]
)
async def test_a_start_that_fails(
    check: Check, cloud: FakeCloud, error: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told, without a stranger's words, and the stop is proved all the same."""
    cloud.fail("start", error)
    await check.run(spend=True)
    out, err = capsys.readouterr()

    assert ["FAIL"] == [line[:4] for line in err.splitlines()]
    assert "it is off" in out
    assert KEY not in out + err
    assert check.failed
    assert not check.owes_stop


async def test_a_stop_that_fails_at_first(check: Check, cloud: FakeCloud) -> None:
    """It is sent again until a look proves it."""
    cloud.ignore_stops = 2
    cloud.fail("stop", Transient("busy"))
    await check.run(spend=True)

    assert Phase.STOPPED is cloud.report().phase
    assert not check.owes_stop
    assert cloud.calls.count("stop") >= 4


async def test_a_stop_that_is_never_obeyed(
    check: Check, cloud: FakeCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is given up in the end, and remembered as owed."""
    check.stop_limit_s = 0.3
    cloud.ignore_stops = 1_000_000
    await check.run(spend=True)

    assert check.owes_stop
    assert "it is not off" in capsys.readouterr().err


async def test_it_is_interrupted(check: Check, cloud: FakeCloud) -> None:
    """Whatever it was doing, it stops the pod first."""
    cloud.boot_s = 60.0
    running = asyncio.get_running_loop().create_task(check.run(spend=True))
    while "start" not in cloud.calls:
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert Phase.STOPPED is cloud.report().phase
    assert not check.owes_stop


async def test_no_ollama_behind_it(
    check: Check, cloud: FakeCloud, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pod whose Ollama does not answer fails one claim; the rest goes on."""
    cloud.url = "http://127.0.0.1:1"
    await check.run(spend=True)
    out, err = capsys.readouterr()

    assert ["its Ollama is healthy: no connection"] == claims(err, "FAIL")
    assert "a second gateway would find it" in out


class Leaky(Rented):
    """Quotes its key, and raises what it likes."""

    async def inspect(self) -> PodReport:
        await super().inspect()
        return PodReport(Phase.STOPPED, "p", detail=f"asked with {self.config.api_key}")


class Optimist(Rented):
    """Takes a broken network for a pod that is off."""

    async def inspect(self) -> PodReport:
        try:
            await self.session.get("https://cloud.invalid/")
        except aiohttp.ClientError:
            return PodReport(Phase.STOPPED, "fake-1")
        raise AssertionError("not reached")


class Hasty(Rented):
    """Returns no report."""

    async def inspect(self) -> PodReport:
        return {"phase": "stopped"}  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Leaky, "it looks: secret number 1"),
        (Hasty, "it looks: a dict is no PodReport"),
        (Optimist, "without a network it says stopped instead of raising an error"),
    ],
)
async def test_a_plugin_that_is_wrong(
    check: Check, kind: type[Rented], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The claim that does not hold is named, the secret is not, and nothing is started."""
    check.kind = kind
    await check.run(spend=True)
    out, err = capsys.readouterr()

    assert words in claims(err, "FAIL")
    assert KEY not in out + err
    assert not check.owes_stop


@pytest.mark.parametrize(
    ("price", "words"),
    [
        (Price(Decimal("0.6")), "at 0.6 USD per hour"),
        (Price(Decimal(2), currency="EUR"), "at 2 EUR per hour"),
        (None, "what it costs is not known"),
    ],
)
async def test_what_it_will_cost(check: Check, price: Price | None, words: str) -> None:
    """The provider's price, in its currency, or that there is none."""
    check.learn(PodReport(Phase.STOPPED, "p", {"ollama": Endpoint("http://x")}, price))

    assert words in check.estimate()


def test_as_a_command(shell: Shell, tmp_path: Path) -> None:
    """It needs no more configuration than the provider's section, and exits 0 when all is well."""
    ended = shell.run("provider-check", "parked", GPUGATE_POD__HEALTH_INTERVAL="0.1")

    assert (0, "") == (ended.status, ended.err)
    assert "ok    it looks: pod p1 is stopped" in ended.out
    assert 2 == shell.run("provider-check", "porked").status
    assert 1 == shell.run("provider-check", "parked", GPUGATE_PROVIDERS__PARKED__RAISES="Transient").status


def test_a_pod_of_several(shell: Shell) -> None:
    """The first that has this provider is the one."""
    more = "[pods.a]\nprovider = 'demo'\n[pods.b.parked]\nphase = 'running'\nollama = 'http://127.0.0.1:1'\n"
    shell.configure(more)

    assert "ok    it looks: pod p1 is running" in shell.run("provider-check", "parked").out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_pod_starts(shell: Shell, number: signal.Signals) -> None:
    """The stop is proved before the command ends, with status 1."""
    shell.configure(text="[pod]\nhealth_interval = 0.1\n[providers.demo]\ncold_start = 60\n")
    with shell.start("provider-check", "demo", "--spend", PYTHONUNBUFFERED="1") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "a start is accepted" in line:
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=30)

    assert 1 == process.returncode
    assert "it is off" in out
    assert ["FAIL  interrupted"] == err.splitlines()
