"""The pod process: its stages, its end, and its manners on the command line."""

import asyncio
import json
import signal
import socket
import sys
from contextlib import asynccontextmanager

import aiohttp
import pytest
from gpugate_demo.pod import Pod, PodOptions, process_age_s, read_arguments


@pytest.fixture
def free_ports(unused_tcp_port_factory):
    return [unused_tcp_port_factory() for _ in range(3)]


def plan(cold_start_s, ports=(0, 0, 0)):
    return PodOptions("127.0.0.1", *ports, cold_start_s, 0.0, "demo-1", 0)


async def look(session, url):
    """A status, or "refused"."""
    try:
        async with session.get(url) as response:
            return response.status
    except aiohttp.ClientConnectorError:
        return "refused"


class SteppedPod(Pod):
    """Goes on to the next stage when the test says so; remembers the moments it would have waited for."""

    def __init__(self, plan):
        super().__init__(plan)
        self.steps = asyncio.Semaphore(0)
        self.moments = []

    async def _until(self, moment):
        self.moments.append(moment)
        await self.steps.acquire()


async def test_the_stages(session, free_ports):
    """Provisioning, then running without and with an edge that answers 404, then ready."""
    pod = SteppedPod(plan(10.0, free_ports))
    await pod.start()
    booting = asyncio.ensure_future(pod.boot())
    seen = []
    async with asyncio.timeout(20):
        for waits in range(1, 4):
            while len(pod.moments) < waits:
                await asyncio.sleep(0)
            seen.append(await stage_of(session, pod))
            pod.steps.release()
        await booting
        seen.append(await stage_of(session, pod))
    await pod.halt()

    assert [
        ("provisioning", "refused", "refused"),
        ("running", "refused", "refused"),
        ("running", 404, 404),
        ("ready", 200, 200),
    ] == seen
    assert pytest.approx([3.0, 6.0]) == [moment - pod.moments[0] for moment in pod.moments[1:]]


async def stage_of(session, pod):
    """What the pod tells of itself, and what its services answer."""
    async with session.get(pod.url + "/status") as response:
        stage = (await response.json())["stage"]
    services = [pod.ollama.url + "/api/version", pod.comfyui.url + "/system_stats"]
    return (stage, *[await look(session, url) for url in services])


async def test_time_that_has_passed_counts():
    """The start of the process is the start of the cold start."""
    pod = Pod(plan(60.0), age_s=60.0)
    async with asyncio.timeout(1):
        await pod.boot()
    await pod.halt()

    assert pod.ready.is_set()


async def test_the_status_port(session):
    """Nothing else is answered there."""
    pod = Pod(plan(9.0))
    await pod.start()
    try:
        assert 404 == await look(session, pod.url + "/api/version")
        async with session.get(pod.url + "/status") as response:
            told = await response.json()
    finally:
        await pod.halt()

    assert ("provisioning", "demo-1", True) == (told["stage"], told["pod_id"], told["simulated"])


def test_the_age_of_this_process():
    """Something plausible: this very process has run for a while, and for less than a day."""
    assert 0 <= process_age_s() < 86400


class TestCommandLine:
    PORTS = ["--port=1", "--comfyui-port=2", "--status-port=3"]

    def test_what_it_takes(self):
        got = read_arguments(
            [*self.PORTS, "--cold-start=1.5", "--tokens-per-second=0", "--pod-id=demo-x", "--seed=7"]
        )

        assert PodOptions("127.0.0.1", 1, 2, 3, 1.5, 0.0, "demo-x", 7) == got

    @pytest.mark.parametrize("wrong", [[], ["--port=99999"], ["--port=x"], ["--cold-start=soon"]])
    def test_what_is_wrong(self, wrong, capsys):
        with pytest.raises(SystemExit) as left:
            read_arguments([*self.PORTS, *wrong] if wrong else [])

        assert 2 == left.value.code
        assert capsys.readouterr().err


@asynccontextmanager
async def process(ports, cold_start="0"):
    names = ("--port", "--comfyui-port", "--status-port")
    given = [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gpugate_demo.pod",
        *given,
        f"--cold-start={cold_start}",
        "--pod-id=demo-2",
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


class TestProcess:
    async def test_its_life(self, session, free_ports):
        """It serves a stream; SIGTERM ends it at once, in mid-stream too, with status 0."""
        url = f"http://127.0.0.1:{free_ports[0]}"
        async with process(free_ports) as running:
            async with asyncio.timeout(20):
                while 200 != await look(session, url + "/api/version"):
                    await asyncio.sleep(0.02)
            chat = {"model": "llava", "messages": [{"role": "user", "content": "hi"}]}
            async with session.post(url + "/api/chat", json=chat) as response:
                assert b"This" in await response.content.readline()
                running.send_signal(signal.SIGTERM)
                with pytest.raises(aiohttp.ClientError):
                    await response.read()
            assert 0 == await asyncio.wait_for(running.wait(), 20)

    async def test_an_early_end(self, session, free_ports):
        """SIGTERM during the cold start."""
        async with process(free_ports, cold_start="60") as running:
            assert b"no GPU" in await running.stderr.readline()
            async with asyncio.timeout(20):  # the line comes a moment before the signal handler
                while 200 != await look(session, f"http://127.0.0.1:{free_ports[2]}/status"):
                    await asyncio.sleep(0.02)
            running.send_signal(signal.SIGTERM)
            assert 0 == await asyncio.wait_for(running.wait(), 20)

    @pytest.mark.parametrize("taken", [0, 1, 2])
    async def test_a_taken_port(self, taken, free_ports):
        """One line, status 1, whichever it is."""
        with socket.create_server(("127.0.0.1", 0)) as holder:
            ports = list(free_ports)
            ports[taken] = holder.getsockname()[1]
            async with process(ports) as running:
                _, told = await asyncio.wait_for(running.communicate(), 20)

        lines = told.decode().splitlines()
        assert (1, 2) == (running.returncode, len(lines))
        assert str(ports[taken]) in lines[-1]


async def test_the_record_stays_small(session):
    """A pod that runs for weeks keeps no requests and no bodies."""
    pod = Pod(plan(0.0))
    await pod.boot()
    for _ in range(3):
        async with session.post(
            pod.ollama.url + "/api/show", data=json.dumps({"model": "llava"})
        ) as response:
            assert 200 == response.status
    await pod.halt()

    assert [b""] == [seen.body for seen in pod.ollama.seen]
