"""Three pods behind one gateway: which one wakes, what is listed, and that faults stay inside their pod."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from attrs import define, field
from gpugate_demo.ollama import SimulatedOllama
from gpugate_demo.store import Model
from gpugate_testing.fakes import FakeCloud, Hang
from gpugate_testing.telegram import TOKEN, SimulatedTelegram
from prometheus_client.parser import text_string_to_metric_families

from gpugate.app import build
from gpugate.cli.main import main
from gpugate.config import Settings, load_settings
from gpugate.gateway import Gateway
from gpugate.json_file import JsonFile
from gpugate.operation.reload import Reloader
from gpugate.provider_api import Phase
from tests.billing.test_sqlite_ledger import THIRD
from tests.e2e.support import QUICK, SOON, bearer, part_of, provider_of, token, words

PODS = {"home": ["small:1b"], "large": ["big:70b"], "pictures": ["llava:13b", "small:1b"]}
"""The models on each pod's disk."""


LAST_SIGN = "2026-11-21T12:30:00.000000+00:00"


@define
class Street:
    """A gateway, and the clouds and Ollamas of its pods by name."""

    gateway: Gateway
    clouds: Mapping[str, FakeCloud]
    ollamas: Mapping[str, SimulatedOllama]
    http: aiohttp.ClientSession
    auth: dict[str, str] = field(factory=lambda: bearer(scope="chat pod cost admin"))

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """Status and JSON of an answer; of NDJSON the last line."""
        headers = {**self.auth, **more.pop("headers", {})}
        url = f"http://127.0.0.1:{self.gateway.port}{path}"
        async with self.http.request(method, url, headers=headers, **more) as response:
            lines = (await response.read()).splitlines()
            return response.status, json.loads(lines[-1]) if lines else None

    async def chat(self, model: str, pod: str | None = None) -> int:
        """The status of a chat's answer."""
        headers = {} if pod is None else {"X-Gpugate-Pod": pod}
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        return (await self.ask("POST", "/api/chat", json=body, headers=headers))[0]

    @property
    def started(self) -> list[str]:
        """The pods that were ever asked to start."""
        return [name for name, cloud in self.clouds.items() if cloud.starts]

    async def until_serving(self, name: str) -> None:
        """Wait until this pod serves."""
        async with asyncio.timeout(SOON):
            while self.gateway.base.fleet.pods[name].lifecycle.serving is None:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def open_street(folder: Path, **more: object) -> AsyncIterator[Street]:
    """A gateway in front of the three pods, all off; `more` as for `settings_of`."""
    async with AsyncExitStack() as stack:
        clouds, ollamas, kinds = {}, {}, {}
        for name, models in PODS.items():
            ollamas[name] = await stack.enter_async_context(models_on_disk(models))
            clouds[name] = FakeCloud(boot_s=0.05, url=ollamas[name].url)
            kinds[f"cloud-{name}"] = provider_of(clouds[name])
        gateway = await build(settings_of(folder, **more), find=kinds.__getitem__)
        await gateway.open()
        stack.push_async_callback(gateway.close)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)))
        yield Street(gateway, clouds, ollamas, http)


@pytest.fixture
async def street(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    """The three pods, all off; `large` and `pictures` have patterns."""
    monkeypatch.setenv("GPUGATE_STATE_DIR", os.environ.get("GPUGATE_STATE_DIR", ""))
    async with open_street(tmp_path) as street:
        yield street


def settings_of(folder: Path, **more: object) -> Settings:
    """The gateway's settings; `more` as in `pods__large__idle_timeout`."""
    overrides = {
        **{key: value for key, value in QUICK.items() if key != "pod.provider"},
        "state.dir": str(folder),
        "metrics.enabled": True,
        **{f"pods.{name}.provider": f"cloud-{name}" for name in PODS},
        "pods.large.models": ["big*"],
        "pods.pictures.models": ["llava"],
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return load_settings(None, {}, overrides=overrides, complete=False)


def models_on_disk(names: list[str]) -> SimulatedOllama:
    """An Ollama with these models."""
    on_disk = [Model(name, 2_000_000_000, "llama", "3B") for name in names]
    return SimulatedOllama(models=on_disk, reply=words())


@pytest.mark.parametrize(
    ("model", "header", "pod"),
    [
        ("small:1b", None, "home"),
        ("big:70b", None, "large"),
        ("big:7b", "large", "large"),
        ("small:1b", "pictures", "pictures"),
    ],
)
async def test_a_request_wakes_one_pod(street, model, header, pod):
    """By its header, else by its model; no other pod is touched."""
    status = await street.chat(model, header)
    assert [pod] == street.started
    assert (200 if model in PODS[pod] else 404) == status


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/api/v1/story/generate"])
async def test_unknown_pod_in_the_header(street, path):
    """404 in the path's shape; wakes nothing."""
    body = {"model": "small:1b", "prompt": "x", "messages": [{"role": "user", "content": "hi"}]}
    status, answer = await street.ask("POST", path, json=body, headers={"X-Gpugate-Pod": "nowhere"})
    assert 404 == status
    assert "no such pod" in json.dumps(answer)
    assert [] == street.started


@pytest.mark.parametrize("path", ["/api/v1/gpu/start", "/api/v1/gpu/stop"])
async def test_unknown_pod_in_the_query(street, path):
    """404 NOT_FOUND; nothing is started or stopped."""
    status, answer = await street.ask("POST", f"{path}?pod=nowhere")
    assert (404, "NOT_FOUND") == (status, answer["error"]["code"])
    assert [] == street.started


@pytest.mark.parametrize(("method", "path"), [("POST", "start"), ("POST", "stop"), ("GET", "status")])
async def test_the_header_on_own_paths(street, method, path):
    """It counts there, too, behind `?pod=`: a name that no pod has starts and stops nothing."""
    nowhere = {"X-Gpugate-Pod": "nowhere"}
    status, answer = await street.ask(method, f"/api/v1/gpu/{path}", headers=nowhere)
    assert (404, "NOT_FOUND") == (status, answer["error"]["code"])
    assert [] == street.started
    status, _ = await street.ask(method, f"/api/v1/gpu/{path}?pod=large", headers=nowhere)
    assert status < 300
    status, _ = await street.ask(method, f"/api/v1/gpu/{path}", headers={"X-Gpugate-Pod": "pictures"})
    assert status < 300
    for name in ("large", "pictures") if path == "start" else ():
        await street.until_serving(name)
    assert "home" not in street.started


@pytest.mark.parametrize("path", ["/api/chat", "/api/v1/code/assist"])
async def test_a_full_queue_is_that_of_one_pod(street, path):
    """Bodies that come slowly reach the other pods, one that serves and one that is off."""
    street.clouds["large"].boot_s = 3600.0
    machine = street.gateway.base.fleet.pods["large"].lifecycle._machine
    machine.queue.max_waiting = 1
    held = asyncio.ensure_future(street.chat("big:70b"))
    async with asyncio.timeout(SOON):
        while not machine.queue.waiting:
            await asyncio.sleep(0.01)
    body = {
        "model": "small:1b",
        "messages": [{"role": "user", "content": "hi"}],
        "question": "x",
        "code": "y",
    }

    async def pieces() -> AsyncIterator[bytes]:
        yield b" "
        await asyncio.sleep(0.05)  # the body is not whole when the request arrives
        yield json.dumps(body).encode()

    assert 200 == (await street.ask("POST", path, data=pieces()))[0]
    assert 200 == (await street.ask("POST", path, data=pieces()))[0]
    assert 503 == (await street.ask("POST", path, data=pieces(), headers={"X-Gpugate-Pod": "large"}))[0]
    held.cancel()


async def test_the_header_is_not_forwarded(street):
    """The pod sees nothing of it."""
    await street.chat("small:1b", "home")
    names = {name.lower() for seen in street.ollamas["home"].seen for name in seen.headers}
    assert "x-gpugate-pod" not in names
    assert "accept" in names


async def test_start_and_stop_by_name(street):
    """`?pod=` says which; without it the first one is meant."""
    status, answer = await street.ask("POST", "/api/v1/gpu/start?pod=large")
    assert 202 == status
    await street.until_serving("large")
    assert ["large"] == street.started
    _, answer = await street.ask("GET", "/api/v1/gpu/status")
    assert "STOPPED" == answer["data"]["status"]  # of the first one
    assert [("home", "STOPPED"), ("large", "READY"), ("pictures", "STOPPED")] == [
        (one["pod"], one["status"]) for one in answer["data"]["pods"]
    ]
    assert answer["data"].keys() | {"pod"} == answer["data"]["pods"][0].keys() | {"pods"}

    assert 202 == (await street.ask("POST", "/api/v1/gpu/stop?pod=large"))[0]
    assert 202 == (await street.ask("POST", "/api/v1/gpu/start"))[0]
    await street.until_serving("home")
    assert ["home", "large"] == street.started


async def test_lists_are_the_union(street):
    """In the file's order, each model once; those of a pod that has run once are remembered."""
    for name in PODS:
        await street.ask("POST", f"/api/v1/gpu/start?pod={name}")
        await street.until_serving(name)
    _, tags = await street.ask("GET", "/api/tags")
    assert ["small:1b", "big:70b", "llava:13b"] == [entry["name"] for entry in tags["models"]]
    _, models = await street.ask("GET", "/v1/models")
    assert ["small:1b", "big:70b", "llava:13b"] == [entry["id"] for entry in models["data"]]
    assert 200 == await street.chat("big:70b")
    assert 200 == await street.chat("small:1b")
    _, running = await street.ask("GET", "/api/ps")
    assert {"small:1b", "big:70b"} == {entry["name"] for entry in running["models"]}


async def test_a_provider_that_hangs(street):
    """Delays its own pod only, also at boot and in the status."""
    street.clouds["large"].fail("start", Hang(3600))
    hanging = asyncio.ensure_future(street.chat("big:70b"))
    assert 200 == await asyncio.wait_for(street.chat("small:1b"), SOON)
    _, answer = await asyncio.wait_for(street.ask("GET", "/api/v1/gpu/status"), SOON)
    assert ["READY", "STARTING", "STOPPED"] == [one["status"] for one in answer["data"]["pods"]]
    assert not hanging.done()
    hanging.cancel()


async def test_events_while_the_first_provider_hangs_at_boot(tmp_path, monkeypatch):
    """The present state of the other pods comes soon all the same."""
    monkeypatch.setenv("GPUGATE_STATE_DIR", "")
    clouds = {f"cloud-{name}": FakeCloud() for name in PODS}
    clouds["cloud-home"].fail("inspect", Hang(3600))
    kinds = {name: provider_of(cloud) for name, cloud in clouds.items()}
    gateway = await build(settings_of(tmp_path), find=kinds.__getitem__)
    await gateway.open()
    try:
        url = f"http://127.0.0.1:{gateway.port}/api/v1/gpu/events"
        async with aiohttp.ClientSession() as http, http.get(url, headers=bearer(scope="pod")) as answer:
            assert 200 == answer.status
            async with asyncio.timeout(SOON):
                lines = [line async for line in _data_lines(answer, 2)]
        assert ["large", "pictures"] == [line["pod"] for line in lines]
    finally:
        await gateway.close()


async def _data_lines(answer: aiohttp.ClientResponse, count: int) -> AsyncIterator[Any]:
    """The data of so many events."""
    while count:
        line = await answer.content.readline()
        if line.startswith(b"data: "):
            count -= 1
            yield json.loads(line[6:])


async def test_a_lifecycle_that_fails(street, monkeypatch):
    """Ends its own pod's requests, and that pod is stopped; the others go on."""
    for name in ("home", "large"):
        await street.ask("POST", f"/api/v1/gpu/start?pod={name}")
        await street.until_serving(name)
    fleet = street.gateway.base.fleet
    monkeypatch.setattr(fleet.pods["large"].lifecycle._machine, "handle", fail)
    await street.ask("POST", "/api/v1/gpu/stop?pod=large")
    assert 503 == await street.chat("big:70b")
    assert 200 == await street.chat("small:1b")
    async with asyncio.timeout(SOON):
        while street.clouds["large"].phase is not Phase.STOPPED:
            await asyncio.sleep(0.01)
    assert Phase.RUNNING is street.clouds["home"].phase
    assert await street.gateway.close()


def fail(*_: object) -> None:
    """A mistake in the machine."""
    raise RuntimeError("a mistake")


async def test_costs_name_the_pod(street):
    """The open sessions and their sum, one of them by `?pod=`; then rows and sums by pod."""
    for name in ("home", "large"):
        await street.ask("POST", f"/api/v1/gpu/start?pod={name}")
        await street.until_serving(name)
    _, answer = await street.ask("GET", "/api/v1/cost/session")
    assert ["home", "large"] == [one["pod"] for one in answer["data"]["sessions"]]
    assert 0.88 == answer["data"]["hourlyRate"]
    _, answer = await street.ask("GET", "/api/v1/cost/session?pod=large")
    assert ("large", "cloud-large") == (answer["data"]["pod"], answer["data"]["provider"])
    status, answer = await street.ask("GET", "/api/v1/cost/session?pod=pictures")
    assert (200, None) == (status, answer["data"])
    status, answer = await street.ask("GET", "/api/v1/cost/session?pod=nowhere")
    assert (404, "NOT_FOUND") == (status, answer["error"]["code"])
    _, answer = await street.ask("GET", "/api/v1/cost/sessions")
    assert ["home", "large"] == sorted(row["pod"] for row in answer["data"]["sessions"])
    _, answer = await street.ask("GET", "/api/v1/cost/summary")
    assert [("home", 1), ("large", 1)] == [
        (one["pod"], one["sessionCount"]) for one in answer["data"]["byPod"]
    ]
    _, answer = await street.ask("GET", "/api/v1/why")
    assert answer["data"]["lines"][0].startswith("pod large: started at ")


@pytest.fixture
def old_ledger(tmp_path: Path) -> None:
    """The ledger of a gpugate that knew of one pod: a session that ended, and one that was left open."""
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as file:
        file.executescript(THIRD)
        file.execute("CREATE TEMP TABLE other AS SELECT * FROM sessions")
        file.execute("UPDATE other SET id = 'open', ended_at = NULL, cost = NULL, seen_at = ?", [LAST_SIGN])
        file.execute("INSERT INTO sessions SELECT * FROM other")
        file.commit()


async def test_an_older_ledger(old_ledger, street):
    """Its rows have the pod `main`; the open one ends at its last sign, as that pod is not there any more."""
    _, answer = await street.ask("GET", "/api/v1/cost/sessions?from=2026-11-01&to=2026-12-01")
    ended, left = sorted(answer["data"]["sessions"], key=lambda row: row["id"], reverse=True)
    assert ("main", "main") == (ended["pod"], left["pod"])
    assert (LAST_SIGN[:19], "not configured any more") == (left["ended_at"][:19], left["end_reason"])
    _, answer = await street.ask("GET", "/api/v1/cost/summary?month=2026-11")
    assert [("main", 2)] == [(line["pod"], line["sessionCount"]) for line in answer["data"]["byPod"]]


async def test_one_sum_of_bodies(street, monkeypatch):
    """`queue.max_bytes` counts for all pods together."""
    for cloud in street.clouds.values():
        cloud.boot_s = 3600.0
    bodies = {id(pod.lifecycle._machine.queue.bodies) for pod in street.gateway.base.fleet}
    assert 1 == len(bodies)
    held = asyncio.ensure_future(street.chat("big:70b"))
    async with asyncio.timeout(SOON):
        while not street.gateway.base.fleet.pods["large"].lifecycle._machine.queue.waiting:
            await asyncio.sleep(0.01)
    monkeypatch.setattr(street.gateway.lifecycle._machine.queue.bodies, "max_bytes", 100)
    assert 503 == await street.chat("small:1b")
    held.cancel()


async def test_lines_about_a_pod_name_it(tmp_path, monkeypatch, capsys):
    """Of each pod it is said at the start that its models are not known yet; an old stop is one alarm."""
    monkeypatch.setenv("GPUGATE_STATE_DIR", "")
    JsonFile(tmp_path / "unproved-stops.json").write(["cloud-home"])
    kind = provider_of(FakeCloud())
    gateway = await build(settings_of(tmp_path, log__level="info"), find=lambda _: kind)
    await gateway.open()
    await gateway.close()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [*PODS] == [line["pod"] for line in lines if line["event"].startswith("catalogue: ")]
    alarms = [line["event"] for line in lines if line.get("alarm")]
    assert ["the pod 'main' is not configured any more"] == [alarm.partition(",")[0] for alarm in alarms]


async def test_all_pods_are_stopped_at_the_end(street):
    """Each stop is confirmed before the gateway ends."""
    for name in PODS:
        await street.ask("POST", f"/api/v1/gpu/start?pod={name}")
        await street.until_serving(name)
    assert await street.gateway.close()
    assert {Phase.STOPPED} == {cloud.phase for cloud in street.clouds.values()}


async def test_reload_of_one_pod(street, tmp_path):
    """Its new idle time is taken by it alone; what waits for a restart is named with the pod."""
    assert 200 == await street.chat("small:1b")
    assert 200 == await street.chat("big:70b")
    new = settings_of(
        tmp_path, pods__large__idle_timeout=0.05, pods__large__models=["b*"], pods__new__models=[]
    )
    part_of(street.gateway, Reloader).read = lambda: new

    status, answer = await street.ask("POST", "/api/v1/reload")

    told = {"applied": ["pods.large.idle_timeout"], "restart": ["pods.large.models", "pods.new"]}
    assert (200, told) == (status, answer["data"])
    async with asyncio.timeout(SOON):
        while street.clouds["large"].phase is not Phase.STOPPED:
            await asyncio.sleep(0.005)
    assert Phase.RUNNING is street.clouds["home"].phase


async def test_the_command_line(street, monkeypatch, capsys):
    """`start` and `stop` of one pod leave the others alone; `status` tells of each."""
    monkeypatch.setenv("GPUGATE_URL", f"http://127.0.0.1:{street.gateway.port}")
    monkeypatch.setenv("GPUGATE_TOKEN", token())

    assert 0 == await asyncio.to_thread(main, ["start", "large"])
    assert capsys.readouterr().out.startswith("large: ")
    await street.until_serving("large")
    assert ["large"] == street.started

    assert 0 == await asyncio.to_thread(main, ["status"])
    lines = capsys.readouterr().out.splitlines()
    assert ["home: STOPPED", "large: READY", "pictures: STOPPED"] == [
        " ".join(line.split()[:2]) for line in lines
    ]
    assert 0 == await asyncio.to_thread(main, ["stop", "large"])
    assert 1 == await asyncio.to_thread(main, ["stop", "nowhere"])
    assert "there is no such pod" in capsys.readouterr().err


async def test_metrics_name_the_pod(street):
    """Each of them its own: states, wakes, requests, waits, bytes and cost."""
    assert 200 == await street.chat("big:70b")
    assert 200 == await street.chat("small:1b", "pictures")
    assert 200 == await street.chat("small:1b", "pictures")
    url = f"http://127.0.0.1:{street.gateway.port}/metrics"
    async with street.http.get(url, headers=bearer(scope="metrics")) as answer:
        families = text_string_to_metric_families(await answer.text())
        samples = [sample for family in families for sample in family.samples]

    def of(name: str, **labels: str) -> dict[str, float]:
        found = [one for one in samples if one.name == name and labels.items() <= one.labels.items()]
        return {one.labels["pod"]: one.value for one in found}

    none_at_home = {"home": 0.0, "large": 1.0, "pictures": 1.0}
    assert none_at_home == of("gpugate_pod_state", state="READY")
    assert none_at_home == of("gpugate_wakes_total", outcome="allowed")
    assert {"large": 1.0, "pictures": 2.0} == of("gpugate_requests_total", route="chat", status="200")
    assert {"large": 1.0, "pictures": 2.0} == of("gpugate_request_wait_seconds_count")
    assert {"large", "pictures"} == {
        pod for pod, count in of("gpugate_time_to_first_byte_seconds_count").items() if count
    }
    for name in ("gpugate_response_bytes_total", "gpugate_cost_total"):
        assert {"large", "pictures"} == {pod for pod, value in of(name).items() if value > 0}, name


async def test_a_bot_that_knows_its_pods(tmp_path, monkeypatch):
    """A pod is started and stopped by its name, and each answer and notification names it."""
    monkeypatch.setenv("GPUGATE_STATE_DIR", os.environ.get("GPUGATE_STATE_DIR", ""))
    ada = 42
    async with SimulatedTelegram() as telegram, AsyncExitStack() as stack:
        telegram.meet(ada)
        bot = {
            "bot__enabled": True,
            "bot__token": TOKEN,
            "bot__mode": "polling",
            "bot__allowed_chats": (ada,),
            "bot__news": (ada,),
            "bot__api_base": telegram.url,
            "bot__ollama_url": "http://127.0.0.1:1",
        }
        street = await stack.enter_async_context(open_street(tmp_path, **bot))
        telegram.write(ada, "please start the picture pod")
        await street.until_serving("pictures")
        assert ["pictures"] == street.started
        await telegram.until(lambda: any("pictures: Pod is ready" in text for text in telegram.texts(ada)))
        telegram.write(ada, "what is the status of the large pod?")
        await telegram.until(lambda: any("large: " in text for text in telegram.texts(ada)))
        assert not any("home: " in text for text in telegram.texts(ada))
        telegram.write(ada, "/status")
        await telegram.until(lambda: any("\nlarge: " in text for text in telegram.texts(ada)))
        telegram.write(ada, "stop the pod")  # the one that is on
        await telegram.until(lambda: any("pictures: Pod stopped at" in t for t in telegram.texts(ada)))
        assert any(text.startswith("pictures: Pod started at") for text in telegram.texts(ada))
        assert ["pictures"] == street.started
