"""examples/pod/*/start.sh: a pod without its gateway ends itself, and one with a gateway never does.

A real shell runs the script against the simulated cloud, whose meter says what it came to.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from gpugate_testing.clouds import Delays, Hang, Http, LoopClock, LostResponse, RunPodSim, SimPod, VastSim

from gpugate.provider_api import Phase
from gpugate.tasks import spawn
from tests.pod.support import DIGEST, PAUSE_S, BlobStore, container, script, until

DELAYS = Delays(provision_s=0.01, start_s=0.01, ready_s=0.0, stop_s=0.01)
MINUTE_S = 6 * PAUSE_S


@define
class Rented:
    """A running pod at one of the clouds, and what its container is given."""

    name: str
    cloud: Any
    pod: SimPod
    store: BlobStore
    env: dict[str, str] = field(factory=dict)

    def container(self, *command: str, **env: str) -> Any:
        """Its container; by default with a lease of one minute."""
        lease = {
            "OLLAMA_MODELS": str(self.store.models),
            "GPUGATE_LEASE": DIGEST,
            "GPUGATE_LEASE_MINUTES": "1",
        }
        return container(script(self.name), {**lease, **self.env, **env}, *(command or ("sleep", "600")))

    async def ended(self) -> None:
        """Wait until it is billed no more."""
        await until(lambda: not self.cloud.billing)


def _rented(name: str, cloud: Any, store: BlobStore) -> Rented:
    if name == "runpod":
        pod = cloud.add_pod()
        env = {"RUNPOD_POD_ID": pod.id, "RUNPOD_API_KEY": cloud.api_key}
    else:
        pod = cloud.add_instance()
        env = {"CONTAINER_ID": pod.id, "CONTAINER_API_KEY": cloud.api_key}
    return Rented(name, cloud, pod, store, {**env, "GPUGATE_POD_API": cloud.api_base})


@pytest.fixture(params=["runpod", "vastai"])
async def rented(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rented]:
    """A pod that runs."""
    sim = RunPodSim if request.param == "runpod" else VastSim
    async with sim(clock=LoopClock(), delays=DELAYS, strict=False) as cloud:
        rented = _rented(request.param, cloud, BlobStore(tmp_path / "models"))
        rented.pod.start()
        await until(lambda: rented.pod.look() is Phase.RUNNING)
        yield rented


async def renewing(store: BlobStore) -> None:
    """A gateway, as the pod sees it."""
    while True:
        store.renew()
        await asyncio.sleep(2 * PAUSE_S)


async def test_a_gateway_that_lives(rented: Rented) -> None:
    """The pod is left alone for many times its minutes; nobody calls the provider."""
    gateway = spawn(renewing(rented.store), "test:gateway")
    async with rented.container() as box:
        await asyncio.sleep(5 * MINUTE_S)
        gateway.cancel()

        assert box.alive
        assert [] == rented.cloud.asked


async def test_a_gateway_that_dies(rented: Rented) -> None:
    """A minute later the pod is stopped and billed no more."""
    gateway = spawn(renewing(rented.store), "test:gateway")
    async with rented.container() as box:
        await asyncio.sleep(2 * MINUTE_S)
        gateway.cancel()
        await rented.ended()

        assert Phase.STOPPED is rented.pod.look()
        assert box.says("no sign of the gateway for 1 min: this pod ends itself (stop)")
        assert rented.cloud.count("stop") >= 1


async def test_a_gateway_that_never_came(rented: Rented) -> None:
    """It counts from the container's start: a start whose gateway died meanwhile ends too."""
    async with rented.container():
        await rented.ended()

    assert Phase.STOPPED is rented.pod.look()


async def test_what_the_last_run_left(rented: Rented) -> None:
    """An old letter is thrown away and not taken for a sign of life."""
    rented.store.renew()
    async with rented.container():
        await until(lambda: not rented.store.letter.exists())
        await rented.ended()


@pytest.mark.parametrize(
    "fault", [Http(500), Http(429), Http(401), LostResponse(), Http(200, {"success": False})], ids=str
)
async def test_a_provider_that_does_not_listen(rented: Rented, fault: Any) -> None:
    """It is asked again for as long as it takes; process 1 stays."""
    rented.cloud.fail("stop", fault, 3)
    async with rented.container() as box:
        await rented.ended()
        await until(lambda: rented.cloud.count("stop") >= (1 if isinstance(fault, LostResponse) else 4))

        assert box.alive


async def test_a_gateway_that_comes_back(rented: Rented) -> None:
    """While the provider does not obey: the pod lives on, under its gateway again."""
    rented.cloud.fail("stop", Http(500), None)
    async with rented.container() as box:
        await until(lambda: rented.cloud.count("stop") >= 2)
        gateway = spawn(renewing(rented.store), "test:gateway")
        await until(lambda: box.says("the gateway is back"))
        rented.cloud.faults.heal()
        await asyncio.sleep(3 * MINUTE_S)
        gateway.cancel()

        assert Phase.RUNNING is rented.pod.look()


async def test_a_pod_made_for_one_session(rented: Rented) -> None:
    """It destroys itself: a stopped one would go on paying for its disk."""
    async with rented.container(GPUGATE_AT_END="destroy"):
        await rented.ended()

    assert Phase.GONE is rented.pod.look()


async def test_a_key_that_may_not_destroy(rented: Rented) -> None:
    """Stopped is better than nothing."""
    for operation in ("delete", "terminate"):
        rented.cloud.fail(operation, Http(403), None)
    async with rented.container(GPUGATE_AT_END="destroy") as box:
        await rented.ended()

        assert box.says("destroy: 403")
    assert Phase.STOPPED is rented.pod.look()


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"GPUGATE_LEASE": ""}, "GPUGATE_LEASE is not set"),
        ({"GPUGATE_LEASE": "the secret itself"}, "not what `gpugate check` prints"),
        ({"GPUGATE_LEASE": "abc123"}, "not what `gpugate check` prints"),
        ({"RUNPOD_API_KEY": "", "CONTAINER_API_KEY": ""}, "gave no credentials"),
        ({"RUNPOD_POD_ID": "", "CONTAINER_ID": ""}, "gave no credentials"),
    ],
)
async def test_a_switch_that_cannot_work(rented: Rented, env: dict[str, str], words: str) -> None:
    """It says so and takes no letter, so that the gateway notices; Ollama runs all the same."""
    rented.store.renew()
    async with rented.container(**env) as box:
        await until(lambda: box.says("SWITCH IS OFF"))
        await asyncio.sleep(2 * MINUTE_S)

        assert box.says(words)
        assert box.alive
        assert rented.store.letter.exists()
    assert Phase.RUNNING is rented.pod.look()


async def test_a_letter_that_cannot_be_taken(rented: Rented) -> None:
    """It would count for ever; so it counts as none."""
    rented.store.letter.mkdir(parents=True)  # rm -f does not remove a folder, not even for root
    async with rented.container():
        await rented.ended()


@pytest.mark.parametrize(
    ("minutes", "pause"), [("", "0.05"), ("fifteen", "0.05"), ("0", "0.05"), ("1", "soon")]
)
async def test_a_setting_that_is_no_number(rented: Rented, minutes: str, pause: str) -> None:
    """Never less time than meant: the default is taken."""
    async with rented.container(GPUGATE_LEASE_MINUTES=minutes, GPUGATE_LEASE_PAUSE=pause) as box:
        await asyncio.sleep(3 * MINUTE_S)

        assert box.alive
        assert [] == rented.cloud.asked


async def test_a_command_that_ends(rented: Rented, tmp_path: Path) -> None:
    """It is started again, and process 1 stays."""
    log = tmp_path / "starts"
    gateway = spawn(renewing(rented.store), "test:gateway")
    async with rented.container("sh", "-c", f"echo up >>{log}; exit 3") as box:
        await until(lambda: log.exists() and len(log.read_text().splitlines()) >= 3)
        gateway.cancel()

        assert box.alive
        assert box.says("ended with status 3")


async def test_no_command(rented: Rented, tmp_path: Path) -> None:
    """Then it is `ollama serve`."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ollama").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\nexec sleep 600\n')
    (tools / "ollama").chmod(0o755)
    env = {**rented.env, "PATH": f"{tools}:/usr/bin:/bin", "GPUGATE_LEASE": DIGEST}
    async with container(script(rented.name), env):
        await until((tmp_path / "asked").exists)
        await until(lambda: (tmp_path / "asked").read_text() == "serve\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_provider_stops_the_container(
    rented: Rented, number: signal.Signals, tmp_path: Path
) -> None:
    """Process 1 ends at once and takes its command with it."""
    mark = tmp_path / "ended"
    command = ("sh", "-c", f"trap 'echo >{mark}; exit' TERM; while :; do sleep 0.05; done")
    async with rented.container(*command) as box:
        await until(lambda: box.says("without its gateway"))
        await asyncio.sleep(0.1)
        box.process.send_signal(number)
        async with asyncio.timeout(10):
            assert 0 == await box.process.wait()
        await until(mark.exists)


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
async def test_with_hardly_any_tools(rented: Rented, shell: str, tmp_path: Path) -> None:
    """Any sh, curl, sleep and rm are all it needs."""
    if (path := shutil.which(shell)) is None:
        pytest.skip(f"no {shell} here")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sh").symlink_to(path)
    for tool in ("curl", "sleep", "rm"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    async with rented.container(PATH=str(tools)) as box:
        await rented.ended()

        assert not [line for line in box.told if "not found" in line]


async def test_without_curl(rented: Rented, tmp_path: Path) -> None:
    """It is said at once, not when it is needed."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "sleep", "rm"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    async with rented.container(PATH=str(tools)) as box:
        await until(lambda: box.says("SWITCH IS OFF: there is no curl in this image"))


async def test_its_key(rented: Rented) -> None:
    """It is on no command line, where every process could read it, and in no log."""
    rented.cloud.fail("stop", Hang(2.0))
    async with rented.container() as box:
        await until(lambda: rented.cloud.count("stop") >= 1)
        lines = [_command_line(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
        calls = [line for line in lines if rented.cloud.api_base in line]

        assert calls
        assert [] == [line for line in lines if rented.cloud.api_key in line]
        assert not box.says(rented.cloud.api_key)


def _command_line(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_the_two_scripts() -> None:
    """They differ in how the provider is called, and in nothing else."""
    border = "# --- the same for every provider"
    runpod, vastai = (script(name).read_text().partition(border)[2] for name in ("runpod", "vastai"))

    assert runpod == vastai
    assert runpod
