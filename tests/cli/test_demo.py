"""`gpugate demo`: its settings, its secret and its words, on a gateway that is not real."""

from __future__ import annotations

import os
import re
import shlex
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import jwt
import pytest

from gpugate import Duration
from gpugate.cli.demo import demo_secret
from gpugate.cli.errors import CliError
from gpugate.cli.main import main
from gpugate.config import Settings, provider_config
from gpugate.lifecycle.state_dir import lock
from tests.cli.test_main import fake_wiring


@attrs.frozen
class DemoConfig:
    """As `[providers.demo]` is in the contract."""

    cold_start: Duration = 6.0
    tokens_per_second: float = 25.0
    hourly_rate: float = 0.44


@pytest.fixture
def run(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Run the demo; return its status, the settings that the gateway got, and what was printed."""
    seen: list[Settings] = []
    monkeypatch.setattr("gpugate.cli.demo.config_of", lambda name: DemoConfig)
    fake_wiring(monkeypatch, lambda settings: seen.append(settings) or 0)

    def run(*args: str) -> tuple[int, Settings | None, str, str]:
        seen.clear()
        status = main(["demo", *args])
        out, err = capsys.readouterr()
        return status, seen[0] if seen else None, out, err

    return run


def test_a_demo(run: Callable[..., Any]) -> None:
    """Without anything: loopback, the simulated pod, and words to try it with."""
    status, settings, out, err = run("--port", "0", "--cold-start", "250ms")

    assert (0, 1) == (status, len(err.splitlines()))
    assert (("127.0.0.1",), ("demo",)) == (settings.server.host, settings.pod.provider)
    assert 0.25 == provider_config(settings, "demo", DemoConfig).cold_start
    assert "SIMULATED" in out
    assert "250ms" in out
    assert out.count(f"http://127.0.0.1:{settings.server.port}") >= 3
    (token,) = set(re.findall(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", out))
    assert "demo" == jwt.decode(token, settings.auth.secret, algorithms=["HS256"])["sub"]
    assert settings.auth.secret not in out


def test_an_idle_stop_that_is_seen(run: Callable[..., Any]) -> None:
    """--idle brings it forward; it is said when it comes, at which price, and at the end that all is off."""
    status, settings, out, err = run("--port", "0", "--idle", "30s")

    assert (0, 30.0) == (status, settings.pod.idle_timeout)
    assert "30s after the last answer it is stopped" in out
    assert "the cost, as if 0.44 USD an hour were real" in out
    assert [
        "gpugate demo has ended, and its simulated pod is off. For a real pod: gpugate init, gpugate serve."
    ] == err.splitlines()


def test_the_line_to_paste(run: Callable[..., Any]) -> None:
    """A shell reads the curl line as it is meant."""
    _, settings, out, _ = run("--port", "0")

    (line,) = [line for line in out.splitlines() if line.strip().startswith("curl ")]
    words = shlex.split(line)
    assert ["curl", "-N", f"http://127.0.0.1:{settings.server.port}/api/chat", "-H"] == words[:4]
    assert words[4].startswith("Authorization: Bearer eyJ")
    assert '"model": "llama3.2:3b"' in words[6]


def test_the_secret_stays(run: Callable[..., Any], bare: Path) -> None:
    """A second demo accepts the first one's token; the secret is for its owner's eyes only."""
    first, second = run("--port", "0")[1], run("--port", "0")[1]

    path = bare.parent / "home/.local/state/gpugate/demo/demo-secret"
    assert first.auth.secret == second.auth.secret == path.read_text().strip()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert 0o700 == stat.S_IMODE(path.parent.stat().st_mode)
    assert ["demo-secret", "gateway.lock"] == sorted(entry.name for entry in path.parent.iterdir())


def test_a_configuration_beside_it(
    run: Callable[..., Any], bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ./gpugate.toml, a real one maybe, does not count; variables and a named file do."""
    (bare / "gpugate.toml").write_text("[pod]\nprovider = 'runpod'\nnonsense = 1\n")
    (bare / "named.toml").write_text("[pod]\nprovider = 'runpod'\nidle_timeout = '20s'\n")
    monkeypatch.setenv("GPUGATE_SERVER__PORT", "0")
    monkeypatch.setenv("GPUGATE_QUEUE__MAX_WAITING", "7")

    _, settings, _, _ = run("--config", "named.toml")

    assert (("demo",), 20.0, 7) == (
        settings.pod.provider,
        settings.pod.idle_timeout,
        settings.queue.max_waiting,
    )


def test_a_configuration_of_several_pods(run: Callable[..., Any], bare: Path) -> None:
    """None of them is started: the demo has its simulated pod alone, and spends nothing."""
    (bare / "named.toml").write_text(
        "[pods.large]\nprovider = 'runpod'\nidle_timeout = '9m'\n[comfyui]\npod = 'large'\n"
        "[[schedule]]\ncron = '0 8 * * *'\npod = 'large'\n[pods.small]\nprovider = 'vastai'\n"
    )

    status, settings, _, _ = run("--config", "named.toml", "--port", "0")

    assert 0 == status
    assert [("main", ("demo",), 900.0)] == [
        (pod.name, pod.pod.provider, pod.pod.idle_timeout) for pod in settings.pods
    ]
    assert "" == settings.comfyui.pod


def test_a_taken_port(run: Callable[..., Any]) -> None:
    """That is one line and status 1, before any word to paste."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, settings, out, err = run("--port", str(port))

    assert (1, None, "") == (status, settings, out)
    (line,) = err.splitlines()
    assert line.startswith(f"gpugate: port {port} on 127.0.0.1 is already in use")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--port", "99999"), "--port: server.port: must be from 0 to 65535, is 99999"),
        (("--cold-start", "soon"), "--cold-start: providers.demo.cold_start: must be a duration"),
        (("--idle", "0"), "--idle: pod.idle_timeout: must be more than 0"),
    ],
)
def test_a_flag_that_is_wrong(run: Callable[..., Any], args: tuple[str, ...], line: str) -> None:
    """That is status 2 and names the flag."""
    status, _, out, err = run(*args)

    assert (2, "") == (status, out)
    assert err.startswith(line)


def test_a_state_folder_that_cannot_be(run: Callable[..., Any], bare: Path) -> None:
    """A file where the state folder should be is one line that names the key."""
    (bare.parent / "home").write_text("in the way")

    status, _, out, err = run("--port", "0")

    assert (2, "", 1) == (status, out, len(err.splitlines()))
    assert "state.dir: " in err
    assert "cannot be used: Not a directory" in err


def test_a_state_folder_that_is_taken(run: Callable[..., Any], bare: Path) -> None:
    """A second demo beside the first, on a port of its own, is refused before any word to paste."""
    folder = bare.parent / "home/.local/state/gpugate/demo"
    folder.mkdir(parents=True)
    with lock(folder, print):
        status, settings, out, err = run("--port", "0")

    assert (1, None, "") == (status, settings, out)
    (line,) = err.splitlines()
    assert f"state.dir: {folder} is in use by another gateway (process {os.getpid()})" in line
    assert 0 == run("--port", "0")[0]


def test_beside_a_real_gateway(run: Callable[..., Any], bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo has a folder of its own in `state.dir`, by default and where that is given."""
    folder = bare.parent / "home/.local/state/gpugate"
    folder.mkdir(parents=True)
    with lock(folder, print):
        status, settings, _, _ = run("--port", "0")
    assert (0, str(folder / "demo")) == (status, settings.state.dir)

    monkeypatch.setenv("GPUGATE_STATE__DIR", str(bare / "mine"))
    _, settings, _, _ = run("--port", "0")
    assert str(bare / "mine" / "demo") == settings.state.dir


def test_a_secret_that_cannot_be_kept(run: Callable[..., Any], bare: Path) -> None:
    """A folder in its place is one line."""
    (bare.parent / "home/.local/state/gpugate/demo/demo-secret").mkdir(parents=True)

    status, _, out, err = run("--port", "0")

    assert (1, "", 1) == (status, out, len(err.splitlines()))
    assert "cannot be kept" in err


def test_a_damaged_secret(tmp_path: Path) -> None:
    """A secret that is cut short is not used."""
    (tmp_path / "demo-secret").write_text("short")

    with pytest.raises(CliError, match="is damaged"):
        demo_secret(tmp_path)


def test_a_secret_that_others_could_read(tmp_path: Path) -> None:
    """Its mode is put right."""
    path = tmp_path / "demo-secret"
    path.write_text("x" * 64)
    path.chmod(0o644)

    assert "x" * 64 == demo_secret(tmp_path)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_a_demo_without_its_distribution(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says how to install the simulated pod."""
    monkeypatch.setattr("gpugate.providers.registry.entry_points", lambda group: ())

    assert 1 == main(["demo"])

    line = capsys.readouterr().err
    assert re.fullmatch(r"gpugate: the demo's simulated pod is not installed: pip install \S+demo\S*\n", line)
