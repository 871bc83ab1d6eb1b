"""The way to the cluster: kubeconfigs, contexts, exec plugins, TLS, service accounts; and what is none."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from gpugate_kubernetes import Kubernetes, KubernetesConfig
from gpugate_testing.clouds import KubernetesSim
from gpugate_testing.fault_sessions import good_session
from kubernetes_support import Files
from kubernetes_tls import Certificate, make_certificate

from gpugate import AuthFailed, Misconfigured, Phase, ProviderError, Transient


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def cloud() -> AsyncIterator[KubernetesSim]:
    async with KubernetesSim() as cloud:
        yield cloud


@pytest.fixture
async def secure(certificate: Certificate) -> AsyncIterator[KubernetesSim]:
    async with KubernetesSim(tls=certificate.context) as cloud:
        yield cloud


async def look(**settings: Any) -> Phase:
    """One look with these settings, through a provider of its own."""
    async with good_session() as session:
        provider = Kubernetes(KubernetesConfig(**settings), session)
        try:
            return (await provider.inspect()).phase
        finally:
            await provider.aclose()


async def failure(**settings: Any) -> ProviderError:
    """What such a look raises."""
    with pytest.raises(ProviderError) as raised:
        await look(**settings)
    return raised.value


def exec_plugin(folder: Path, token: str, *, status: int = 0) -> dict[str, Any]:
    """A credential plugin that counts its runs in a file, and gives what stands in another."""
    program = folder / "plugin"
    (folder / "token").write_text(token)
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {}}
    program.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys\nhere = pathlib.Path({str(folder)!r})\n"
        f"(here / 'runs').open('a').write('x')\n"
        f"print('please log in', file=sys.stderr)\n"
        f"answer = {credential!r}\nanswer['status']['token'] = (here / 'token').read_text()\n"
        f"print(json.dumps(answer))\nsys.exit({status})\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {
        "exec": {"apiVersion": credential["apiVersion"], "command": str(program), "interactiveMode": "Never"}
    }


async def test_a_token(cloud: KubernetesSim, files: Files) -> None:
    assert await look(kubeconfig=files.kubeconfig(cloud.url, cloud.api_key)) is Phase.STOPPED


async def test_a_certificate(secure: KubernetesSim, certificate: Certificate, files: Files) -> None:
    """The cluster's own is verified against the kubeconfig's authority, and nothing else is believed."""
    trusted = files.kubeconfig(secure.url, secure.api_key, ca=certificate.authority)
    assert await look(kubeconfig=trusted) is Phase.STOPPED

    error = await failure(kubeconfig=files.kubeconfig(secure.url, secure.api_key))
    assert isinstance(error, Misconfigured)
    assert "certificate is not trusted" in error.message


async def test_a_context(cloud: KubernetesSim, files: Files) -> None:
    """The one that is named, not the current one."""
    path = Path(files.kubeconfig(cloud.url, cloud.api_key))
    config = yaml.safe_load(path.read_text())
    config["clusters"].append({"name": "dead", "cluster": {"server": "http://127.0.0.1:1"}})
    config["contexts"].append({"name": "dead", "context": {"cluster": "dead", "user": "me"}})
    config["current-context"] = "dead"
    path.write_text(yaml.safe_dump(config))

    assert isinstance(await failure(kubeconfig=str(path)), Transient)
    assert await look(kubeconfig=str(path), context="sim") is Phase.STOPPED
    error = await failure(kubeconfig=str(path), context="nowhere")
    assert isinstance(error, Misconfigured)
    assert "nowhere" in error.message


async def test_an_exec_plugin(cloud: KubernetesSim, files: Files) -> None:
    """Run once, and again when its token is refused."""
    user = exec_plugin(files.folder, cloud.api_key)
    config = KubernetesConfig(kubeconfig=files.kubeconfig(cloud.url, "", user=user))
    async with good_session() as session:
        provider = Kubernetes(config, session)
        await provider.inspect()
        await provider.inspect()
        assert (files.folder / "runs").read_text() == "x"
        cloud.api_key = "another"
        (files.folder / "token").write_text("another")
        assert (await provider.inspect()).phase is Phase.STOPPED
        assert (files.folder / "runs").read_text() == "xx"
        cloud.api_key = "a third"
        with pytest.raises(AuthFailed):
            await provider.inspect()
        await provider.aclose()


async def test_an_exec_plugin_whose_token_ends(cloud: KubernetesSim, files: Files) -> None:
    """It is run again before that."""
    user = exec_plugin(files.folder, cloud.api_key)
    program = Path(user["exec"]["command"])
    program.write_text(
        program.read_text().replace(
            "print(json", "answer['status']['expirationTimestamp'] = '2026-01-01T00:00:00Z'\nprint(json"
        )
    )
    config = KubernetesConfig(kubeconfig=files.kubeconfig(cloud.url, "", user=user))
    async with good_session() as session:
        provider = Kubernetes(config, session)
        await provider.inspect()
        await provider.aclose()
    assert len((files.folder / "runs").read_text()) == 2  # a look is two calls


async def test_an_exec_plugin_that_fails(cloud: KubernetesSim, files: Files) -> None:
    user = exec_plugin(files.folder, cloud.api_key, status=1)
    error = await failure(kubeconfig=files.kubeconfig(cloud.url, "", user=user))
    assert isinstance(error, AuthFailed)
    assert "please log in" in error.message

    user["exec"]["command"] = "/nonexistent/plugin"
    error = await failure(kubeconfig=files.kubeconfig(cloud.url, "", user=user))
    assert isinstance(error, Misconfigured)


async def test_no_file(files: Files) -> None:
    error = await failure(kubeconfig=str(files.folder / "none"))
    assert isinstance(error, Misconfigured)
    assert "there is no" in error.message


@pytest.mark.parametrize("text", ["", "7", "{", "[]", "current-context: sim", "\x00"])
async def test_no_kubeconfig(files: Files, text: str) -> None:
    path = files.folder / "kubeconfig"
    path.write_text(text)
    error = await failure(kubeconfig=str(path))
    assert isinstance(error, Misconfigured)
    assert "\n" not in error.message


async def test_not_in_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    error = await failure()
    assert isinstance(error, Misconfigured)
    assert "does not run in a cluster" in error.message


async def test_in_a_cluster(
    secure: KubernetesSim, certificate: Certificate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The service account's token is read again when it is refused."""
    from kubernetes_asyncio.config import incluster_config

    (tmp_path / "token").write_text("old")
    (tmp_path / "ca.crt").write_bytes(certificate.authority)
    for name, file in (("SERVICE_TOKEN_FILENAME", "token"), ("SERVICE_CERT_FILENAME", "ca.crt")):
        monkeypatch.setattr(incluster_config, name, str(tmp_path / file))
    monkeypatch.setitem(os.environ, "KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setitem(os.environ, "KUBERNETES_SERVICE_PORT", str(secure.port))
    async with good_session() as session:
        provider = Kubernetes(KubernetesConfig(), session)
        with pytest.raises(AuthFailed):
            await provider.inspect()
        (tmp_path / "token").write_text(secure.api_key)
        assert (await provider.inspect()).phase is Phase.STOPPED
        await provider.aclose()


async def test_no_api(unused_tcp_port_factory: Any, files: Files) -> None:
    error = await failure(kubeconfig=files.kubeconfig(f"http://127.0.0.1:{unused_tcp_port_factory()}", "t"))
    assert isinstance(error, Transient)
