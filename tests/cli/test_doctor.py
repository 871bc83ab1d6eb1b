"""`gpugate doctor`: a line each, what to do, and status 1 if anything is wrong."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpugate.cli import doctor
from tests.cli.support import Shell


@pytest.fixture
def away() -> Iterator[str]:
    """The URL of a gateway that is not running."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}"


def lines_of(text: str) -> dict[str, tuple[str, str]]:
    """Return each line's mark and text by its subject; of two with one subject the last."""
    found = {}
    for line in text.splitlines():
        mark, _, said = line.partition(" ")
        found[said.strip().partition(":")[0]] = mark, said.strip()
    return found


def test_all_is_well(shell: Shell, away: str) -> None:
    """A gateway that does not run is only a note, and so is a clock that no server could judge."""
    shell.configure()

    ended = shell.run("doctor", GPUGATE_URL=away)

    found = lines_of(ended.out)
    assert (0, "") == (ended.status, ended.err)
    assert ("ok", "configuration: gpugate.toml") == found["configuration"]
    assert found["provider parked"][0] == "ok"
    assert found["disk"][0] == "ok"
    assert ("ok", "bot: off") == found["bot"]
    assert ("note", "clock: not compared, no server told its time") == found["clock"]
    assert "note" == found["gateway"][0]
    assert "gpugate serve" in found["gateway"][1]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("raises = 'AuthFailed'", "make a new API key at the provider"),
        ("raises = 'NotFound'", "gpugate setup lists the account's pods"),
        ("phase = 'gone'", "gpugate setup lists the account's pods"),
        ("raises = 'Transient'", "see whether this machine reaches the provider"),
    ],
)
def test_a_provider_that_is_not_well(shell: Shell, away: str, section: str, said: str) -> None:
    """What it says, and what to do about it; the other checks go on."""
    shell.configure(f"[providers.parked]\n{section}\n")

    ended = shell.run("doctor", GPUGATE_URL=away)

    found = lines_of(ended.out)
    assert (1, "") == (ended.status, ended.err)
    assert "WRONG" == found["provider parked"][0]
    assert f"; to do: {said}" in found["provider parked"][1]
    assert "gateway" in found


def test_no_configuration(shell: Shell, away: str) -> None:
    """Each complaint is a line, with the command that helps."""
    ended = shell.run("doctor", GPUGATE_URL=away)

    assert 1 == ended.status
    assert all(line.startswith("WRONG configuration: ") for line in ended.out.splitlines())
    assert "gpugate setup" in ended.out


def test_the_services_of_a_pod(shell: Shell, fake_gateway: Any) -> None:
    """Ollama has to be healthy; a ComfyUI that is not there is a note."""
    url = fake_gateway.url
    fake_gateway.answer("/api/version", "{}")
    fake_gateway.answer(
        "/api/v1/gpu/status",
        '{"data": {"status": "READY", "provider": "parked", "last_error": "it hung"}, "meta": {}}',
    )
    shell.configure(f"[providers.parked]\nphase = 'running'\nollama = '{url}'\ncomfyui = '{url}'\n")

    ended = shell.run("doctor", GPUGATE_URL=url)

    assert 0 == ended.status
    assert "ok    pod: its Ollama is healthy" in ended.out
    assert "note  pod: its ComfyUI does not answer: 404; only pictures need it" in ended.out
    assert "ok    clock: right" in ended.out
    assert "ok    gateway: READY at parked" in ended.out
    assert "note  gateway: last problem: it hung" in ended.out


def test_several_pods(shell: Shell, fake_gateway: Any) -> None:
    """Each pod's provider is asked, and each is told of by the gateway."""
    url = fake_gateway.url
    fake_gateway.answer("/api/version", "{}")
    pods = '[{"pod": "a", "status": "STOPPED"}, {"pod": "b", "status": "READY", "last_error": "it hung"}]'
    answer = f'{{"data": {{"status": "STOPPED", "pods": {pods}}}, "meta": {{}}}}'
    fake_gateway.answer("/api/v1/gpu/status", answer)
    shell.configure(f"[pods.a]\n[pods.b]\n[pods.b.parked]\nphase = 'running'\nollama = '{url}'\n")

    ended = shell.run("doctor", GPUGATE_URL=url)

    assert 0 == ended.status
    assert "ok    pod a: provider parked: pod p1 is stopped" in ended.out
    assert "ok    pod b: provider parked: pod p1 is running" in ended.out
    assert "ok    pod b: its Ollama is healthy" in ended.out
    assert "ok    gateway: pod a: STOPPED, the next request starts it" in ended.out
    assert "note  gateway: pod b: last problem: it hung" in ended.out


@pytest.mark.parametrize(
    ("skews", "state", "text"),
    [
        ([], "note", "clock: not compared, no server told its time"),
        ([400.0, 2.0], "ok", "clock: right"),
        ([400.0], "wrong", "clock: 6 min 40 s fast, so tokens and costs are wrong"),
        ([-90.0], "wrong", "clock: 1 min 30 s slow, so tokens and costs are wrong"),
    ],
)
def test_the_clock(skews: list[float], state: str, text: str) -> None:
    """One server that agrees is enough: another one's clock may be wrong."""
    found = doctor.clock(skews)
    assert (state, text) == (found.state, found.text)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is wrong, and says why that matters."""
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: usage)

    found = doctor.disk(tmp_path)

    assert "wrong" == found.state
    assert found.text.startswith("disk: 0.0 GB free at ")
    assert "costs are not recorded" in found.remedy
