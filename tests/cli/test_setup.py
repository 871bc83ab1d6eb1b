"""`gpugate setup` against a simulated cloud: flags, questions, wrong answers, what is written."""

from __future__ import annotations

import asyncio
import os
import stat
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from gpugate_testing.clouds import RunPodSim

from gpugate.cli.main import main
from gpugate.cli.service_files import write_service
from gpugate.config import load_settings

FLAGS = ("setup", "--provider", "runpod", "--yes")


@pytest.fixture
async def cloud(bare: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunPodSim]:
    """An account with one pod, which lacks Ollama's port."""
    async with RunPodSim() as cloud:
        monkeypatch.setenv("GPUGATE_PROVIDERS__RUNPOD__API_BASE", cloud.api_base)
        cloud.add_pod("k3x9v2m7q1", name="mine", ports=["22/tcp"])
        yield cloud
        assert 0 == cloud.count("start") + cloud.count("create")


async def run(*args: str) -> int:
    """Run a command beside the cloud."""
    return await asyncio.to_thread(main, args)


def answer(monkeypatch: pytest.MonkeyPatch, *answers: object, keys: tuple[str, ...] = ()) -> list[str]:
    """Have a person at a terminal, who answers so; return the list of the questions."""
    said, typed, asked = iter(answers), iter(keys), list[str]()

    def reply(prompt: str, source: Iterator[Any]) -> str:
        asked.append(prompt)
        one = next(source)
        if isinstance(one, type):
            raise one
        return str(one)

    monkeypatch.setattr("builtins.input", lambda prompt="": reply(prompt, said))
    monkeypatch.setattr("getpass.getpass", lambda prompt="": reply(prompt, typed))
    monkeypatch.setattr("gpugate.cli.setup.is_terminal", lambda: True)
    return asked


async def test_flags_alone(bare: Path, cloud: RunPodSim, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is the owner's alone and valid; what the pod lacks is told, and a token is printed."""
    assert 0 == await run(*FLAGS, "--api-key", cloud.api_key, "--pod", "k3x9v2m7q1")

    path = bare / "gpugate.toml"
    written = tomllib.loads(path.read_text())
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert "runpod" == written["pod"]["provider"]
    assert (cloud.api_key, "k3x9v2m7q1") == tuple(
        written["providers"]["runpod"][key] for key in ("api_key", "pod_id")
    )
    assert 64 == len(written["auth"]["secret"])
    captured = capsys.readouterr()
    assert "" == captured.err
    assert "pod: mine (k3x9v2m7q1)" in captured.out
    assert "to do: the pod does not expose its Ollama: add 11434/http" in captured.out
    assert "Open WebUI, Admin Panel" in captured.out
    assert "\n  eyJ" in captured.out
    assert cloud.api_key not in captured.out
    assert ["gpugate.toml"] == os.listdir(bare)
    assert 0 == await run("check")


async def test_a_gpu_for_each_session(bare: Path, cloud: RunPodSim) -> None:
    """A GPU's name instead of a pod's id is ephemeral mode; --output says where."""
    gpu = "NVIDIA GeForce RTX 4090"

    assert 0 == await run(*FLAGS, "--api-key", cloud.api_key, "--pod", gpu, "--output", "mine.toml")

    section = tomllib.loads((bare / "mine.toml").read_text())["providers"]["runpod"]
    assert ("ephemeral", [gpu]) == (section["mode"], section["gpus"])
    assert 0 == await run("check", "--config", "mine.toml")


async def test_questions(
    bare: Path, cloud: RunPodSim, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is asked for; nonsense is asked again, a wrong key too."""
    asked = answer(monkeypatch, "runpod", "99", "x", "1", "systemd", keys=("wrong", cloud.api_key))

    assert 0 == await run("setup")

    out = capsys.readouterr().out
    assert "Which provider? [1] " == asked[0]
    assert "API key of runpod (not shown): " == asked[1]
    assert "Which one? [1] " == asked[3]
    assert 1 == out.count("   1  mine (k3x9v2m7q1)")
    assert 2 == out.count("a number from 1 to ")
    assert "does not accept" in out
    assert "k3x9v2m7q1" in (bare / "gpugate.toml").read_text()
    assert f"--config {bare / 'gpugate.toml'}" in (bare / "gpugate.service").read_text()


async def test_a_file_that_is_there(bare: Path, cloud: RunPodSim, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not touched without --force, and said before anything is asked."""
    path = bare / "gpugate.toml"
    path.write_text("mine")

    assert 1 == await run("setup")
    assert "gpugate: gpugate.toml exists already; --force overwrites it\n" == capsys.readouterr().err
    assert "mine" == path.read_text()

    assert 0 == await run(*FLAGS, "--api-key", cloud.api_key, "--pod", "k3x9v2m7q1", "--force")
    assert "k3x9v2m7q1" in path.read_text()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("flags", "status", "line"),
    [
        (["--api-key", "wrong"], 1, "make a new API key at the provider"),
        (["--api-key", "two words"], 2, "--api-key: must be an API key"),
        (["--api-key", "KEY", "--pod", "other"], 1, "--pod: there is no 'other'; there are: k3x9v2m7q1, "),
        (["--api-key", "KEY"], 2, "--pod: needed where there is no terminal: k3x9v2m7q1, "),
        ([], 2, "--api-key: needed where there is no terminal (or GPUGATE_PROVIDERS__RUNPOD__API_KEY)"),
        (["--provider", "skynet"], 2, "no provider 'skynet' is installed"),
        (["--provider", "local", "--pod", "x"], 2, "local has no API key and no pods to choose from"),
        (["--api-key", "KEY", "--pod", "k3x9v2m7q1", "--output", "no/such.toml"], 1, "cannot be written"),
    ],
)
async def test_what_cannot_be(
    bare: Path,
    cloud: RunPodSim,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    status: int,
    line: str,
) -> None:
    """One line that names the flag; nothing is written."""
    given = [cloud.api_key if flag == "KEY" else flag for flag in flags]

    assert status == await run(*FLAGS[:3], *given)

    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert cloud.api_key not in said
    assert [] == os.listdir(bare)


def test_a_service_file_that_is_there(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written beside it, until --force."""
    (bare / "compose.yaml").write_text("mine")
    flags = ["setup", "--provider", "local", "--service", "compose"]

    assert 1 == main(flags)
    assert "gpugate: compose.yaml exists already; --force overwrites it\n" == capsys.readouterr().err
    assert ["compose.yaml"] == os.listdir(bare)

    assert 0 == main([*flags, "--force"])
    assert "gpugate" in (bare / "compose.yaml").read_text()


async def test_a_cloud_that_is_away(
    bare: Path, cloud: RunPodSim, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Is said, with what to look at."""
    monkeypatch.setenv("GPUGATE_PROVIDERS__RUNPOD__API_BASE", "http://127.0.0.1:1/v2")

    assert 1 == await run(*FLAGS, "--api-key", "k")
    assert "cannot be reached" in capsys.readouterr().err
    assert [] == os.listdir(bare)


async def test_ctrl_c(bare: Path, cloud: RunPodSim, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any question nothing is left, not even a part of a file; the end of the input is the same."""
    for answers in ((KeyboardInterrupt,), ("runpod", KeyboardInterrupt), ("runpod", EOFError)):
        answer(monkeypatch, *answers, keys=(cloud.api_key,))
        assert 1 == await run("setup")
        assert [] == os.listdir(bare)


@pytest.mark.parametrize("provider", ["local", "demo"])
def test_a_provider_without_an_account(bare: Path, provider: str) -> None:
    """No key and no pod are asked for."""
    assert 0 == main(["setup", "--provider", provider])
    assert (provider,) == load_settings(bare / "gpugate.toml", {}).pod.provider


def test_a_compose_file(bare: Path) -> None:
    """The configuration is the user's alone, so the container runs as that user."""
    (line,) = write_service("compose", Path("gpugate.toml"), replace=False)

    text = (bare / "compose.yaml").read_text()
    assert "docker compose up -d" in line
    assert f'user: "{os.getuid()}:{os.getgid()}"' in text
    assert "./gpugate.toml:/etc/gpugate/gpugate.toml:ro" in text
    assert (bare / "gpugate-state").is_dir()
