"""Two gateways before one cluster: a Lease says which is active (docs/api.md#two-gateways)."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from gpugate_demo.ollama import SimulatedOllama
from gpugate_testing.clouds import Delays, Http, KubernetesSim

from tests.e2e.process import Ground, Running
from tests.e2e.support import CHAT

pytest.importorskip("gpugate_kubernetes")

DURATION_S = 3
QUICK = Delays(provision_s=0.05, start_s=0.05, ready_s=0.05, stop_s=0.05)
WRITES = {"patch_scale", "create_lease", "replace_lease"}


@pytest.fixture
async def cluster(ollama: SimulatedOllama) -> AsyncIterator[KubernetesSim]:
    async with KubernetesSim(delays=QUICK) as cluster:
        cluster.service.upstream = int(ollama.url.rsplit(":", 1)[1])
        yield cluster
        assert [] == cluster.violations


@pytest.fixture
def ground(tmp_path: Path, cluster: KubernetesSim) -> Ground:
    """Where both gateways run, with one state folder."""
    kubeconfig = tmp_path / "kubeconfig"
    context = {"cluster": "sim", "user": "me"}
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "sim", "cluster": {"server": cluster.url}}],
                "users": [{"name": "me", "user": {"token": cluster.api_key}}],
                "contexts": [{"name": "sim", "context": context}],
                "current-context": "sim",
            }
        )
    )
    return Ground(
        tmp_path,
        "[log]\nformat = 'json'\n[pod]\nprovider = 'kubernetes'\npreload = 'none'\n"
        "[server]\nshutdown_grace = 2\n"
        f"[providers.kubernetes]\nkubeconfig = '{kubeconfig}'\nendpoint = 'nodeport'\nhourly_rate = 0.6\n"
        f"lease = 'gpugate'\nlease_duration = {DURATION_S}\n",
    )


async def until_standing_by(gateway: Running) -> int:
    """Wait until it stands by, and return its port."""
    async with asyncio.timeout(30):
        while True:
            for line in gateway.lines.splitlines():
                if '"standing by"' in line:
                    return int(json.loads(line)["port"])
            await asyncio.sleep(0.05)


async def until_active(port: int, limit_s: float = 30.0) -> float:
    """Wait until health is 200 there; return after how many seconds."""
    began = asyncio.get_running_loop().time()
    async with aiohttp.ClientSession() as http, asyncio.timeout(limit_s):
        while True:
            with suppress(aiohttp.ClientError):
                async with http.get(f"http://127.0.0.1:{port}/api/v1/health") as answer:
                    if answer.status == 200:
                        return asyncio.get_running_loop().time() - began
            await asyncio.sleep(0.05)


async def chat(gateway: Running) -> None:
    async with gateway.call("POST", "/api/chat", json=CHAT) as answer:
        assert b'"done":true' in await answer.read()


def rows(ground: Ground) -> list[tuple[Any, ...]]:
    """The sessions of the shared ledger: reason of the end, or None while it goes on."""
    with sqlite3.connect(ground.folder / "state" / "ledger.sqlite3") as ledger:
        return ledger.execute("SELECT end_reason FROM sessions ORDER BY started_at").fetchall()


async def test_the_active_one_is_killed(ground: Ground, cluster: KubernetesSim) -> None:
    """The other stands by until then, and takes over with the pod and the row of the ledger."""
    async with ground.serve(wait=False) as first:
        await until_active(await until_standing_by(first))
        await chat(first)
        async with ground.serve(wait=False) as second:
            port = await until_standing_by(second)
            await look_at_who_stands_by(port)
            assert {a.operation for a in cluster.asked if a.operation not in WRITES} <= {
                *("get_scale", "list_pods", "get_service", "get_lease")
            }
            first.signal(signal.SIGKILL)
            await first.ended()
            assert await until_active(port) < 15
            second.auth = first.auth
            await second.until_status("READY")
            await chat(second)
            assert cluster.count("patch_scale") == 1
            second.signal()
            assert await second.ended() == 0
    assert cluster.workloads["ollama"].replicas == 0
    assert len(rows(ground)) == 1  # it went on
    assert "holderIdentity" not in cluster.leases["gpugate"]["spec"]  # given back


async def look_at_who_stands_by(port: int) -> None:
    """503 to everything, in each path's shape."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        async with http.get("/api/v1/health") as answer:
            assert (answer.status, (await answer.json())["data"]) == (503, {"status": "standby"})
        async with http.post("/api/chat", json=CHAT) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert (await answer.json())["code"] == "STANDBY"
        async with http.get("/v1/models") as answer:
            assert (await answer.json())["error"]["code"] == "STANDBY"


async def test_the_active_one_ends_while_another_waits(ground: Ground, cluster: KubernetesSim) -> None:
    """It keeps the pod for the other, which is active at once; the last one stops it."""
    async with ground.serve(wait=False) as first:
        await until_active(await until_standing_by(first))
        await chat(first)
        async with ground.serve(wait=False) as second:
            port = await until_standing_by(second)
            await asyncio.sleep(1.5)  # two confirmations of the first, which then knows of the second
            first.signal()
            assert await first.ended() == 0
            assert await until_active(port) < DURATION_S
            assert cluster.workloads["ollama"].replicas == 1
            second.signal()
            assert await second.ended() == 0
    assert cluster.workloads["ollama"].replicas == 0
    assert cluster.count("patch_scale") == 2
    assert len(rows(ground)) == 1


async def test_the_role_cannot_be_confirmed(ground: Ground, cluster: KubernetesSim) -> None:
    """Before another may begin it stops serving, and leaves the pod alone; later it serves again."""
    async with ground.serve(wait=False) as gateway:
        port = await until_standing_by(gateway)
        await until_active(port)
        await chat(gateway)
        cluster.fail("replace_lease", Http(500), None)
        began = asyncio.get_running_loop().time()
        async with aiohttp.ClientSession() as http, asyncio.timeout(10):
            while True:
                try:
                    async with http.get(f"http://127.0.0.1:{port}/api/v1/health") as answer:
                        if answer.status == 503:
                            break
                except aiohttp.ClientError:
                    break
                await asyncio.sleep(0.02)
        assert asyncio.get_running_loop().time() - began < DURATION_S
        assert cluster.workloads["ollama"].replicas == 1
        cluster.faults.heal()
        await until_active(port)
        await gateway.until_status("READY")
        await chat(gateway)
        assert cluster.count("patch_scale") == 1
        gateway.signal()
        assert await gateway.ended() == 0
