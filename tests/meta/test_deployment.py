"""The files that run gpugate elsewhere: they agree with gpugate, with the Dockerfile and with each other.

Whether each is well formed by the rules of its own program is `make examples`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpugate.config import load_settings
from gpugate.config.schema import Settings
from gpugate.config.units import duration
from gpugate.providers import registry

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
KUBERNETES = {
    thing["kind"]: thing for thing in yaml.safe_load_all((EXAMPLES / "kubernetes/gpugate.yaml").read_text())
}
COMPOSE = yaml.safe_load((EXAMPLES / "compose/compose.yaml").read_text())
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")
}
CONFIG_OF = {plugin.name: plugin.load().Config for plugin in registry.installed()}
HEALTH = "/api/v1/health"


def settings_of(path: Path | None, env: dict[str, str]) -> Settings:
    """Load settings as `serve` does, with the configuration of the providers."""
    return load_settings(path, env, config_of=CONFIG_OF.__getitem__)


def dockerfile() -> list[str]:
    """The instructions of the last stage, each in one line."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    last = max(number for number, line in enumerate(lines) if line.startswith("FROM "))
    return lines[last:]


def user_of_the_image() -> int:
    (line,) = [line for line in dockerfile() if line.startswith("USER ")]
    return int(line.split()[1].split(":")[0])


def time_to_stop(settings: Settings) -> float:
    return settings.server.shutdown_grace + settings.server.stop_wait


def test_the_image() -> None:
    """Its user is a number, not root; its base is named once, with a version; it has a health check."""
    whole = (ROOT / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG BASE=(\S+)$", whole, re.MULTILINE)

    assert re.search(r":[0-9.]+-slim$", base)
    assert {"${BASE}"} == set(re.findall(r"^FROM (\S+)", whole, re.MULTILINE))
    assert user_of_the_image() > 0
    assert not re.search(r"apt|curl|wget|ADD |sudo", "\n".join(dockerfile()))
    assert 'ENTRYPOINT ["gpugate"]' in dockerfile()
    assert any(line.startswith("HEALTHCHECK") and HEALTH in line for line in dockerfile())


def container() -> dict[str, Any]:
    (found,) = KUBERNETES["Deployment"]["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_kubernetes_runs_one_gateway_without_rights() -> None:
    """Two would fight about the pod. It is the image's user and writes to its volumes only."""
    spec = KUBERNETES["Deployment"]["spec"]
    pod = spec["template"]["spec"]
    safe = container()["securityContext"]

    assert (1, "Recreate") == (spec["replicas"], spec["strategy"]["type"])
    assert {user_of_the_image()} == {
        pod["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")
    }
    assert safe["readOnlyRootFilesystem"]
    assert not safe["allowPrivilegeEscalation"]
    assert ["ALL"] == safe["capabilities"]["drop"]
    assert [] == KUBERNETES["Role"]["rules"]
    assert not pod["automountServiceAccountToken"]
    assert pod["serviceAccountName"] == KUBERNETES["ServiceAccount"]["metadata"]["name"]


def test_kubernetes_names_agree() -> None:
    """Service, claim, configuration, port and volumes are found by the names that are used for them."""
    spec = KUBERNETES["Deployment"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["template"]["spec"]["volumes"]}
    port = container()["ports"][0]

    assert {mount["name"] for mount in container()["volumeMounts"]} == set(volumes)
    assert volumes["config"]["configMap"]["name"] == KUBERNETES["ConfigMap"]["metadata"]["name"]
    claim = volumes["state"]["persistentVolumeClaim"]["claimName"]
    assert claim == KUBERNETES["PersistentVolumeClaim"]["metadata"]["name"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == KUBERNETES["Service"]["spec"]["selector"]
    assert port["name"] == KUBERNETES["Service"]["spec"]["ports"][0]["targetPort"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert {"path": HEALTH, "port": port["name"]} == container()[probe]["httpGet"]


def test_the_configuration_in_kubernetes(tmp_path: Path) -> None:
    """It is valid, finds the secrets where they are mounted, and is given the time that it takes to stop."""
    (folder,) = [m["mountPath"] for m in container()["volumeMounts"] if "secrets" == m["name"]]
    for name in ("auth_secret", "runpod_api_key"):
        (tmp_path / name).write_text("x" * 64)
    config = tmp_path / "gpugate.toml"
    config.write_text(KUBERNETES["ConfigMap"]["data"]["gpugate.toml"].replace(folder, str(tmp_path)))

    settings = settings_of(config, {})

    assert "x" * 64 == settings.auth.secret
    grace = KUBERNETES["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert time_to_stop(settings) < grace
    assert settings.server.port == container()["ports"][0]["containerPort"]


def test_compose(tmp_path: Path) -> None:
    """The variables are settings, each secret is a file that is declared, and a stop is waited for."""
    gateway = COMPOSE["services"]["gpugate"]
    for name in gateway["secrets"]:
        assert COMPOSE["secrets"][name]["file"] == f"./{name}"
        (tmp_path / name).write_text("x" * 64)
    environment = {
        key: re.sub(r"^\$\{.*\}$", "abc", value).replace("/run/secrets", str(tmp_path))
        for key, value in gateway["environment"].items()
    }

    settings = settings_of(None, environment)

    assert "x" * 64 == settings.auth.secret
    assert time_to_stop(settings) < duration(gateway["stop_grace_period"])
    assert gateway["ports"][0].endswith(f":{settings.server.port}")
    assert COMPOSE["services"]["open-webui"]["environment"]["OLLAMA_BASE_URL"].endswith(
        f":{settings.server.port}"
    )
    assert gateway["read_only"]


def test_traefik() -> None:
    """Router, service, transport and entry point are found by their names."""
    static = yaml.safe_load((EXAMPLES / "traefik/traefik.yaml").read_text())
    dynamic = yaml.safe_load((EXAMPLES / "traefik/dynamic.yaml").read_text())["http"]
    (router,), (service,) = dynamic["routers"].values(), dynamic["services"].values()

    assert [router["service"]] == list(dynamic["services"])
    assert set(router["entryPoints"]) <= set(static["entryPoints"])
    assert service["loadBalancer"]["serversTransport"] in dynamic["serversTransports"]
    assert (EXAMPLES / "traefik" / static["providers"]["file"]["filename"]).is_file()


def steps() -> list[dict[str, Any]]:
    jobs = [job for workflow in WORKFLOWS.values() for job in workflow["jobs"].values()]
    return [step for job in jobs for step in job.get("steps", ())]


def test_the_workflows() -> None:
    """Actions by a major version, every supported Python, and only `publish` may ask for an identity."""
    used = [step["uses"] for step in steps() if "uses" in step]
    matrix = WORKFLOWS["ci"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    jobs = WORKFLOWS["release"]["jobs"]

    assert len(used) > 5
    assert [] == [name for name in used if not re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", name)]
    assert ["3.11", "3.12", "3.13", "3.14"] == matrix
    assert ["publish"] == [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})]
    assert {"contents": "read"} == WORKFLOWS["ci"]["permissions"] == WORKFLOWS["release"]["permissions"]


@pytest.mark.parametrize("step", [step["run"] for step in steps() if "make " in step.get("run", "")])
def test_what_a_workflow_makes(step: str) -> None:
    """Every target is one of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = re.search(r"make (?:-s )?([a-z ]+)", step)

    assert made
    assert set(made[1].split()) <= targets
