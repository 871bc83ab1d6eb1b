"""Every way out of `gpugate serve` but SIGKILL stops the pod: signals, a closed terminal, crashes inside."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from gpugate_demo.faults import HangAfter

from tests.e2e.process import Ground, Running, filed_ground
from tests.e2e.support import CHAT, SECRET
from tests.e2e.terminal import in_terminal

DOCKER_STOP_S = 10.0
"""What `docker stop` gives between SIGTERM and SIGKILL."""


@pytest.fixture
def ground(tmp_path: Path, ollama) -> Ground:
    """A ground with the default grace; pod and cloud are the test's own."""
    ground = filed_ground(tmp_path, ollama.url, "[server]\nstop_wait = 5\n")
    ground.settings = ground.settings.replace("[pod]\n", "[pod]\nreconcile_interval = 0.2\n")
    return ground


def gone(ground: Ground) -> bool:
    return not (ground.cloud / "running").exists()


async def warm(gateway: Running) -> None:
    """Have the pod started and a chat answered."""
    async with gateway.call("POST", "/api/chat", json=CHAT) as response:
        assert b'"done":true' in await response.read()


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def lines_of(gateway: Running, event: str) -> list[dict[str, object]]:
    """The log's lines of this event."""
    lines = [json.loads(line) for line in gateway.lines.splitlines()]
    return [line for line in lines if line["event"] == event]


# --- signals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_the_pod(ground: Ground, number: signal.Signals) -> None:
    """Each of them as SIGTERM: the pod is seen stopped, exit 0, no word of alarm."""
    async with ground.serve() as gateway:
        await warm(gateway)
        gateway.signal(number)
        assert 0 == await gateway.ended(), gateway.lines
    assert gone(ground)
    assert "alarm" not in gateway.lines
    assert "Traceback" not in gateway.lines


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
async def test_a_signal_that_was_ignored_stays_so(ground: Ground, number: signal.Signals) -> None:
    """`nohup gpugate serve` outlives its terminal; so with the others."""
    async with ground.serve(ignored=[number]) as gateway:
        await warm(gateway)
        gateway.signal(number)
        await asyncio.sleep(0.3)
        assert "READY" == (await gateway.status())["status"]
        gateway.signal()
        assert 0 == await gateway.ended()
    assert gone(ground)


async def test_user_signals_mean_nothing(ground: Ground) -> None:
    """SIGUSR1 and SIGUSR2 kill by default: here they do not."""
    async with ground.serve() as gateway:
        await warm(gateway)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            gateway.signal(number)
        await asyncio.sleep(0.2)
        assert "READY" == (await gateway.status())["status"]
        gateway.signal()
        assert 0 == await gateway.ended()


async def test_a_hang_up_that_comes_twice_cuts_nothing(ground: Ground, ollama) -> None:
    """A closed terminal sends SIGHUP from the shell and from the kernel: answers have their grace."""
    go_on = asyncio.Event()
    ollama.faults.add("/api/chat", HangAfter(2, until=go_on))
    async with ground.serve() as gateway, gateway.call("POST", "/api/chat", json=CHAT) as response:
        await response.content.readany()
        gateway.signal(signal.SIGHUP)
        await asyncio.sleep(0.1)
        gateway.signal(signal.SIGHUP)
        await asyncio.sleep(0.1)
        go_on.set()
        assert json.loads((await response.read()).splitlines()[-1])["done"]
        assert 0 == await gateway.ended()
    assert gone(ground)


# --- a terminal -------------------------------------------------------------------------------------


async def test_a_closed_terminal_stops_the_pod(ground: Ground) -> None:
    """SIGHUP, and from then on no line can be written: the end is orderly all the same."""
    config = ground.folder / "config.toml"
    config.write_text(
        f"[auth]\nsecret = '{SECRET}'\n[state]\ndir = '{ground.folder / 'state'}'\n{ground.settings}"
    )
    (ground.cloud / "running").touch()  # it is adopted
    command = (sys.executable, "-m", "gpugate", "serve", "--config", str(config), "--port", "0")
    async with in_terminal(*command, PYTHONPATH=str(ground.folder / "site")) as terminal:
        await until(lambda: b"now=Ready" in terminal.shown or b"Ready" in terminal.shown, 20)
        terminal.close()
        assert 0 == await asyncio.wait_for(terminal.process.wait(), 15)
    assert gone(ground)
    assert 1 == ground.asked.count("stop")


async def test_a_closed_terminal_ends_the_demo(tmp_path: Path) -> None:
    """The same with `gpugate demo`."""
    command = (sys.executable, "-m", "gpugate", "demo", "--port", "0")
    async with in_terminal(
        *command, HOME=str(tmp_path), GPUGATE_STATE__DIR=str(tmp_path / "state")
    ) as terminal:
        await until(lambda: b"listening" in terminal.shown, 20)
        terminal.close()
        assert 0 == await asyncio.wait_for(terminal.process.wait(), 15)


# --- docker stop ------------------------------------------------------------------------------------


async def stop_was_asked_in_time(ground: Ground, gateway: Running) -> float:
    """SIGTERM, and SIGKILL when Docker would: return when the stop was asked for, in seconds."""
    began = time.monotonic()
    gateway.signal()
    with suppress(TimeoutError):
        await until(lambda: "stop" in ground.asked, DOCKER_STOP_S)
    took_s = time.monotonic() - began
    with suppress(TimeoutError):
        await asyncio.wait_for(gateway.process.wait(), DOCKER_STOP_S - took_s)
    if gateway.process.returncode is None:
        gateway.signal(signal.SIGKILL)
    assert "stop" in ground.asked
    return took_s


async def test_docker_stop_with_a_stream_in_flight(ground: Ground, ollama) -> None:
    """The default grace leaves time to send the stop before SIGKILL comes."""
    ollama.faults.add("/api/chat", HangAfter(2))
    async with ground.serve() as gateway, gateway.call("POST", "/api/chat", json=CHAT) as response:
        await response.content.readany()
        assert await stop_was_asked_in_time(ground, gateway) > 4.5
    assert gone(ground)


@pytest.mark.parametrize("hangs", [False, True])
async def test_docker_stop_with_nothing_in_flight(ground: Ground, hangs: bool) -> None:
    """The stop is sent at once, also while the provider does not answer a look."""
    async with ground.serve() as gateway:
        await warm(gateway)
        if hangs:
            (ground.cloud / "hang").touch()
            await asyncio.sleep(1.0)
        assert await stop_was_asked_in_time(ground, gateway) < 4.5  # without the grace of 5 s
        (ground.cloud / "hang").unlink(missing_ok=True)
    assert gone(ground)


async def test_it_says_how_long_an_orderly_end_may_take(ground: Ground) -> None:
    """Grace, note, proof, and letting go: what `docker stop -t` must allow."""
    async with ground.serve() as gateway:
        (line,) = [
            line for line in map(json.loads, gateway.lines.splitlines()) if "orderly end" in line["event"]
        ]
    assert 5 + 1 + 5 + 5 == line["seconds"]


# --- crashes ----------------------------------------------------------------------------------------


def plant(ground: Ground, code: str) -> None:
    """Have this run by the next look, in the gateway's process."""
    draft = ground.cloud / "draft"
    draft.write_text(code)
    draft.rename(ground.cloud / "fault")


_NO_MACHINE = """
import gpugate.core.machine as machine
def handle(*_): raise RuntimeError("planted")
machine.PodMachine.handle = handle
"""


async def test_a_crash_of_the_lifecycle_stops_the_pod(ground: Ground, ollama) -> None:
    """Nothing can be decided any more: the pod is stopped without the machine; exit 1, one line."""
    ollama.faults.add("/api/chat", HangAfter(2))
    async with ground.serve() as gateway, gateway.call("POST", "/api/chat", json=CHAT) as response:
        await response.content.readany()
        plant(ground, _NO_MACHINE)
        assert 1 == await gateway.ended()
    assert gone(ground)
    (line,) = [line for line in map(json.loads, gateway.lines.splitlines()) if line["level"] == "error"]
    assert ("task crashed", "lifecycle") == (line["event"], line["task"])
    assert [] == json.loads((ground.folder / "state" / "unproved-stops.json").read_text())


async def test_a_crash_of_the_lifecycle_and_a_stop_that_fails(ground: Ground) -> None:
    """It is owed, with an alarm: the next start goes on."""
    async with ground.serve() as gateway:
        await warm(gateway)
        (ground.cloud / "stuck").touch()
        plant(ground, _NO_MACHINE)
        assert 1 == await gateway.ended()
    assert '"alarm":true' in gateway.lines
    (ground.cloud / "stuck").unlink()
    async with ground.serve() as gateway:
        await until(lambda: gone(ground))


@pytest.mark.parametrize(
    "code",
    [
        "import asyncio; asyncio.current_task().cancel()",
        "import sys; sys.exit(3)",
    ],
)
async def test_a_crash_of_a_provider_worker(ground: Ground, code: str) -> None:
    """It is started afresh, so the pod can be stopped."""
    async with ground.serve() as gateway:
        await warm(gateway)
        plant(ground, code)
        await until(lambda: not (ground.cloud / "fault").exists())
        await asyncio.sleep(0.3)
        looks = len(ground.asked)
        await until(lambda: len(ground.asked) > looks)
        gateway.signal()
        assert 0 == await gateway.ended(), gateway.lines
    assert gone(ground)
    if "cancel" in code:
        assert ["provider:filed"] == [line["task"] for line in lines_of(gateway, "task crashed")]


async def test_a_loop_that_is_left_stops_the_pod(ground: Ground) -> None:
    """`sys.exit` in a callback ends the loop from within; every task is cancelled: the pod is stopped."""
    async with ground.serve() as gateway:
        await warm(gateway)
        plant(ground, "import asyncio, sys; asyncio.get_running_loop().call_soon(sys.exit, 1)")
        assert 1 == await gateway.ended()
    assert gone(ground)


# --- the request to itself --------------------------------------------------------------------------


async def test_a_server_that_does_not_answer_does_not_start(ground: Ground) -> None:
    """Exit 1 and one line, and `listening` is never said."""
    (ground.cloud / "fault-at-open").write_text(
        "from gpugate.api.gpu import GpuApi\n"
        "async def health(self, call): raise RuntimeError('planted')\n"
        "GpuApi.health = health\n"
    )
    async with ground.serve(wait=False) as gateway:
        assert 1 == await gateway.ended()
    assert '"listening"' not in gateway.lines
    (line,) = [line for line in gateway.lines.splitlines() if not line.startswith("{")]
    assert "does not answer its own GET /api/v1/health" in line


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost", "::1"])
async def test_it_answers_itself_on_every_kind_of_host(ground: Ground, host: str) -> None:
    """What is listened on is not always what can be connected to."""
    ground.settings = ground.settings.replace("[server]\n", f"[server]\nhost = '{host}'\n")
    async with ground.serve() as gateway:
        gateway.signal()
        assert 0 == await gateway.ended()
