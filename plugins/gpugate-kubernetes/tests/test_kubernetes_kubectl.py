"""The simulated cluster is held to the real `kubectl`; and the dead-man's switch, which is a script of it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from attrs import define
from gpugate_kubernetes import KubernetesConfig
from gpugate_kubernetes.role import LeaseRole
from gpugate_testing.clouds import Delays, KubernetesSim
from kubernetes_support import POD, Files, schema_complaints
from kubernetes_tls import make_certificate

KUBECTL = shutil.which("kubectl")
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="needs kubectl (Debian's kubernetes-client)")
SWITCH = Path(__file__).parents[3] / "examples" / "kubernetes" / "dead-man-switch.yaml"
QUICK = Delays(provision_s=0.01, start_s=0.01, ready_s=0.01, stop_s=0.01)


@define
class Desk:
    """A cluster, and a shell in which `kubectl` speaks to it."""

    cloud: KubernetesSim
    files: Files
    kubeconfig: str

    async def run(self, *words: str, **env: str) -> str:
        """Run a program; return what it printed, both ways. AssertionError where it failed."""
        process = await asyncio.create_subprocess_exec(
            *words,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.files.folder),
                "KUBECONFIG": self.kubeconfig,
                **env,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()
        return said.decode()

    async def kubectl(self, words: str) -> str:
        """Run `kubectl`."""
        return await self.run("kubectl", *words.split())


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    certificate = make_certificate(tmp_path)
    async with KubernetesSim(delays=QUICK, tls=certificate.context) as cloud:
        cloud.check = schema_complaints
        files = Files(tmp_path)
        yield Desk(cloud, files, files.kubeconfig(cloud.url, cloud.api_key, ca=certificate.authority))
        assert [] == cloud.violations


async def test_a_deployment(desk: Desk) -> None:
    """Read, scaled up and down, and its Pods are listed by their label."""
    assert "ollama" in await desk.kubectl("get deployments ollama -o name")
    assert "scaled" in await desk.kubectl("scale deployment/ollama --replicas=2")
    shown = yaml.safe_load(await desk.kubectl("get pods -l app=ollama -o yaml"))
    assert len(shown["items"]) == 2
    await desk.kubectl(f"delete pod {shown['items'][0]['metadata']['name']} --wait=false")
    assert desk.cloud.count("delete_pod") == 1
    await desk.kubectl("scale deployment/ollama --replicas=0")
    assert desk.cloud.workloads["ollama"].replicas == 0


async def test_a_pod_from_the_template(desk: Desk) -> None:
    """What the plugin makes is what `kubectl create` makes."""
    manifest: dict[str, Any] = {**POD, "metadata": {"name": "by-hand", "labels": {"app": "ollama"}}}
    path = desk.files.folder / "pod.yaml"
    path.write_text(yaml.safe_dump(manifest).replace("{name}", "by-hand"))
    assert "created" in await desk.kubectl(f"create --validate=false -f {path}")
    assert "pod/by-hand" in await desk.kubectl("get pods -o name")


@pytest.mark.parametrize("silent", [True, False])
async def test_the_dead_mans_switch(desk: Desk, silent: bool) -> None:
    """Without a gateway for ten minutes the workload is scaled to 0; with one it is left alone."""
    role = LeaseRole(KubernetesConfig(kubeconfig=desk.kubeconfig, lease="gpugate"))
    assert await role.take()
    await role.aclose()
    if silent:
        old = datetime.now(UTC) - timedelta(minutes=11)
        desk.cloud.leases["gpugate"]["spec"]["renewTime"] = f"{old:%Y-%m-%dT%H:%M:%S.%fZ}"
    desk.cloud.scale_to(1)
    (job,) = [thing for thing in yaml.safe_load_all(SWITCH.read_text()) if thing["kind"] == "CronJob"]
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    env = {one["name"]: one["value"] for one in container["env"] if one["name"] != "HOME"}

    await desk.run(*container["command"], *container["args"], **env)

    assert desk.cloud.workloads["ollama"].replicas == (0 if silent else 1)
