"""What a look says: phase, price, GPU, since when, where the services are; and the plugin's settings."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path

import pytest
from gpugate_runpod import RunPod, RunPodConfig
from gpugate_runpod.pods import Reader, Shown
from runpod_support import FIXED, GPU, RUNPODS_PROXY, House, ephemeral, play

from gpugate import Misconfigured, Phase, Price, Transient
from gpugate.config import structure_provider_config
from gpugate.errors import SettingsError
from gpugate.providers.registry import find

POD = {
    "id": "k3x9v2m7q1",
    "status": "RUNNING",
    "cost": 0.69,
    "ports": ["11434/http"],
    "gpu": {"id": GPU, "count": 1},
}
CONFIG = RunPodConfig(api_key="key-of-runpod", pod_id="k3x9v2m7q1")


def report(**changes: object):
    shown = Shown.of({**POD, **changes})
    assert shown is not None
    return Reader(CONFIG).report(shown, 0.0)


def test_a_life_of_a_fixed_pod() -> None:
    """Stopped, provisioning, running, stopped again; the last run's start is never taken for this one's."""

    async def scenario(house: House) -> None:
        look = house.provider.inspect
        stopped_price = Decimal(100) * Decimal("0.20") / 730
        off = await look()
        assert (Phase.STOPPED, {}, None) == (off.phase, dict(off.endpoints), off.started_at)
        assert Price(None, stopped_price) == off.price
        for _ in range(2):
            began = await house.provider.start()
            assert (Phase.PROVISIONING, None) == (began.phase, began.started_at)
            await asyncio.sleep(5)
            assert (Phase.STARTING, None) == ((await look()).phase, (await look()).started_at)
            await asyncio.sleep(10)
            on = await look()
            assert (Phase.RUNNING, GPU, "k3x9v2m7q1") == (on.phase, on.gpu, on.pod_id)
            assert Price(Decimal("0.69"), stopped_price) == on.price
            assert house.pod.running_since is not None
            at = house.cloud.clock.at(house.pod.running_since)
            assert at.replace(microsecond=0) == on.started_at
            assert f"{house.cloud.url}/edge/k3x9v2m7q1/11434" == on.endpoints["ollama"].url
            assert f"{house.cloud.url}/edge/k3x9v2m7q1/8188" == on.endpoints["comfyui"].url
            await house.provider.stop()
            await asyncio.sleep(5)
            assert (Phase.STOPPED, None) == ((await look()).phase, (await look()).started_at)
            assert Price(Decimal("0.69"), stopped_price) == (await look()).price

    play(scenario, FIXED, start=False)


@pytest.mark.parametrize(
    ("changes", "phase", "detail"),
    [
        ({"gpu": {"id": GPU, "count": 0}}, "running", "the pod has no GPU"),
        ({"gpu": None}, "running", "the pod has no GPU"),
        ({"ports": ["22/tcp"]}, "running", "add 11434/http"),
        ({"locked": True}, "running", "locked"),
        ({"status": "ERROR"}, "failed", "ERROR"),
        ({"status": "ERROR", "cost": 0.0}, "stopped", "ERROR"),
        ({"status": "TERMINATED"}, "gone", ""),
    ],
)
def test_what_is_worth_a_word(changes: dict, phase: str, detail: str) -> None:
    """What will not work, or cannot be stopped, is said."""
    told = report(**changes)
    assert phase == told.phase
    assert detail in told.detail
    assert told.cpu_only == ("GPU" in detail)


def look(reader: Reader, now: float = 0.0, **changes: object):
    shown = Shown.of({**POD, **changes})
    assert shown is not None
    return reader.report(shown, now)


def test_the_last_runs_start() -> None:
    """RunPod shows it until the new run's is there; billing by it would charge for a night that was off."""
    reader, last, this = Reader(CONFIG), "2026-11-20T18:30:04Z", "2026-11-21T08:00:00Z"
    assert None is look(reader, status="EXITED", startedAt=last).started_at
    assert None is look(reader, status="STARTING", startedAt=last).started_at
    assert None is look(reader, status="RUNNING", startedAt=last).started_at
    assert this == look(reader, status="RUNNING", startedAt=this).started_at.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_container_that_does_not_begin() -> None:
    """An uptime that stays 0 for three minutes is a failure, one that grows is not."""
    reader, hangs = Reader(CONFIG), {"runtime": {"uptime": 0}}
    assert Phase.RUNNING is look(reader, 0, **hangs).phase
    assert Phase.RUNNING is look(reader, 179, **hangs).phase
    assert Phase.FAILED is look(reader, 180, **hangs).phase
    assert "has not begun" in look(reader, 181, **hangs).detail
    assert Phase.RUNNING is look(reader, 182, runtime={"uptime": 1}).phase
    assert Phase.RUNNING is look(reader, 183, **hangs).phase


def test_a_status_of_the_future() -> None:
    """It is no answer, least of all "stopped"."""
    with pytest.raises(Transient, match="HIBERNATING"):
        report(status="HIBERNATING")


@pytest.mark.parametrize(
    "odd",
    [
        {
            "cost": "free",
            "gpu": 7,
            "mounts": [],
            "runtime": [],
            "ports": {},
            "startedAt": 12,
            "createdAt": "soon",
        },
        {"cost": -1, "mounts": {"persistent": {"size": "big"}}, "runtime": {"uptime": "0"}, "gpu": {"id": 3}},
        {"cost": True, "name": None},
    ],
)
def test_fields_that_are_not_as_documented(odd: dict) -> None:
    """The rest is still read."""
    assert Phase.RUNNING is report(**odd).phase


def test_the_disk_of_a_network_volume() -> None:
    """What it costs while the pod is off is not told, so it is unknown; no disk costs nothing."""
    assert None is report(mounts={"network": [{"volumeId": "v"}]}).price.stopped_per_hour
    assert 0 == report(mounts={}).price.stopped_per_hour
    assert f"2 x {GPU}" == report(gpu={"id": GPU, "count": 2}).gpu


def test_the_entry_point() -> None:
    """`pod.provider = "runpod"` finds it, with what it can do."""
    assert RunPod is find("runpod")
    can = RunPod.capabilities
    assert (100.0, 2.0, True, True) == (can.first_byte_limit_s, can.min_poll_s, can.resume, can.ephemeral)
    narrow = RunPod(RunPodConfig(api_key="k", **ephemeral()), None).capabilities  # type: ignore[arg-type]
    assert (False, False, False) == (narrow.resume, narrow.stable_urls, narrow.stop_keeps_disk)


def test_the_defaults() -> None:
    """Those of the contract."""
    config = structure_provider_config("runpod", RunPodConfig, {"api_key": "rpa_zq9", "pod_id": "p"})
    assert ("https://api.runpod.io/v2", 11434, 8188, 10.0, "fixed") == (
        config.api_base,
        config.ollama_port,
        config.comfyui_port,
        config.timeout,
        config.mode,
    )
    assert "https://p-11434.proxy.runpod.net" == config.url("p", 11434)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, "api_key is missing"),
        ({"api_key": "rpa_zq9"}, "pod_id is missing"),
        ({"api_key": "rpa zq9", "pod_id": "p"}, "providers.runpod.api_key"),
        ({"api_key": "rpa_zq9", "pod_id": "a/b"}, "providers.runpod.pod_id"),
        (
            {"api_key": "rpa_zq9", "pod_id": "p", "api_base": "https://rest.runpod.io/v1"},
            "REST v1 is retired",
        ),
        ({"api_key": "rpa_zq9", "pod_id": "p", "api_base": "api.runpod.io"}, "must be a URL"),
        ({"api_key": "rpa_zq9", "pod_id": "p", "proxy_url": "https://{pod}.x"}, "and no other braces"),
        ({"api_key": "rpa_zq9", "pod_id": "p", "proxy_url": "x"}, "must be a URL"),
        ({"api_key": "rpa_zq9", "pod_id": "p", "ollama_port": 0}, "must be a port"),
        ({"api_key": "rpa_zq9", "pod_id": "p", "timeout": 0}, "must be more than 0"),
        ({"api_key": "rpa_zq9", "pod_id": "p", "mode": "spot"}, "providers.runpod.mode"),
        ({"api_key": "rpa_zq9", "pod_id": "p", "pod": "p"}, "did you mean providers.runpod.pod_id?"),
        ({"api_key": "rpa_zq9", "mode": "ephemeral"}, "image or template_id is missing"),
        ({"api_key": "rpa_zq9", "mode": "ephemeral", "image": "i"}, "gpus is missing"),
        ({"api_key": "rpa_zq9", "pod_id": "p", **ephemeral()}, "pod_id is of no use"),
        ({"api_key": "rpa_zq9", **ephemeral(volume_id="v", cloud="community")}, "secure"),
        ({"api_key": "rpa_zq9", **ephemeral(instance="Home!")}, "providers.runpod.instance"),
        ({"api_key": "rpa_zq9", **ephemeral(max_price=-1)}, "must not be negative"),
        ({"api_key": "rpa_zq9", **ephemeral(volume_path="w")}, "absolute path"),
    ],
)
def test_a_wrong_section(section: dict, words: str) -> None:
    """One line that names the key and says what it must be; the key's value is in none."""
    with pytest.raises(SettingsError) as told:
        structure_provider_config("runpod", RunPodConfig, section)
    assert words in str(told.value)


def test_secrets_of_the_section(tmp_path: Path) -> None:
    """The key may come from a file; neither it nor the pod's environment is in the repr."""
    (tmp_path / "key").write_text("rpa_secret\n")
    section = {"api_key_file": str(tmp_path / "key"), **ephemeral(env={"TOKEN": "of-the-template"})}
    config = structure_provider_config("runpod", RunPodConfig, section)
    assert "rpa_secret" == config.api_key
    assert "rpa_secret" not in repr(config)
    assert "of-the-template" not in repr(config)


def test_a_proxy_of_ones_own() -> None:
    """http, a port and a path are allowed."""
    config = RunPodConfig(api_key="k", pod_id="p", proxy_url="http://127.0.0.1:99/edge/{pod_id}/{port}")
    assert "http://127.0.0.1:99/edge/p/8188" == config.url("p", 8188)


def test_a_pod_that_hides_its_ollama() -> None:
    """A start says so; it would never become ready."""

    async def scenario(house: House) -> None:
        house.pod.spec["ports"] = ["22/tcp"]
        with pytest.raises(Misconfigured, match="add 11434/http to its ports"):
            await house.provider.start()

    play(scenario, {**FIXED, "proxy_url": RUNPODS_PROXY}, start=False)


def test_a_tunnel_of_ones_own() -> None:
    """What RunPod exposes does not matter then."""

    async def scenario(house: House) -> None:
        house.pod.spec["ports"] = ["22/tcp"]
        assert Phase.PROVISIONING is (await house.provider.start()).phase

    play(scenario, FIXED, start=False)


def test_the_key_of_an_engine() -> None:
    """Sent to each service of the pod, never shown, and never a line of its own."""
    key = {"Authorization": "Bearer key-of-the-engine"}
    config = RunPodConfig(api_key="k", pod_id="p", headers=key)
    shown = Shown.of(POD)
    assert shown is not None
    report = Reader(config).report(shown, 0.0)
    assert [key, key] == [dict(endpoint.headers) for endpoint in report.endpoints.values()]
    assert "key-of-the-engine" not in repr(config)
    assert "Bearer key-of-the-engine" in config.secrets
    with pytest.raises(ValueError, match="header names"):
        RunPodConfig(api_key="k", headers={"A": "x\r\nB: y"})
