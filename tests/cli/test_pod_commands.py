"""`gpugate status`, `start`, `stop`, `why` and `events` against a gateway on a real socket."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from gpugate.cli.main import main
from gpugate.cli.pod_commands import parse_events
from gpugate.cli.settings import url_of
from gpugate.config import Server, Settings
from tests.cli.support import SECRET

STATUS = {
    "status": "READY",
    "provider": "runpod",
    "waiting": 0,
    "stops_in_seconds": 860.2,
    "last_error": None,
}


@pytest.fixture
def gateway(bare: Path, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A gateway that GPUGATE_URL and GPUGATE_TOKEN name."""
    monkeypatch.setenv("GPUGATE_TOKEN", "t0ken\n")
    return fake_gateway


def envelope(data: object) -> str:
    """Wrap an answer as the gateway does."""
    return json.dumps({"status": "success", "data": data, "error": None, "meta": {}})


@pytest.mark.parametrize(("days", "is_told"), [(3, True), (30, False)])
def test_a_token_that_ends_soon(
    gateway: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    days: int,
    is_told: bool,
) -> None:
    """`status` says so beside its lines."""
    monkeypatch.setenv("GPUGATE_TOKEN", jwt.encode({"exp": time.time() + days * 86_400 + 9}, SECRET))
    gateway.answer("/api/v1/gpu/status", envelope(STATUS))

    assert 0 == main(["status", "--json"])

    captured = capsys.readouterr()
    assert STATUS == json.loads(captured.out)
    assert is_told == (captured.err.startswith("GPUGATE_TOKEN: ends on ") and "in 3d" in captured.err)
    assert is_told == bool(captured.err)


SESSION = {
    "provider": "runpod",
    "pod_id": "p1",
    "gpu": "NVIDIA GeForce RTX 4090",
    "currency": "USD",
    "ended_at": None,
}
BILLED = {
    **STATUS,
    "pod_id": "p1",
    "since": "2026-11-21T12:00:00.000Z",
    "uptime_seconds": 420.0,
    "estimated_cost": 0.0512,
    "last_error": "a\x1bb",
}


@pytest.mark.parametrize(
    ("session", "gpu", "cost"),
    [
        (SESSION, ", RTX 4090", "$0.05"),
        ({**SESSION, "currency": "EUR"}, ", RTX 4090", "0.05 EUR"),
        ({**SESSION, "ended_at": "2026-11-21T11:00:00Z"}, "", "$0.05"),
        ({**SESSION, "pod_id": "p0"}, "", "$0.05"),
        (None, "", "0.05"),
    ],
)
def test_a_pod_that_is_paid_for(
    gateway: Any, capsys: pytest.CaptureFixture[str], session: object, gpu: str, cost: str
) -> None:
    """For how long, which GPU and what it cost; the GPU is left out where the ledger may not be seen."""
    answer = json.loads(envelope(BILLED)) | {"meta": {"timestamp": "2026-11-21T12:07:10.000Z"}}
    gateway.answer("/api/v1/gpu/status", json.dumps(answer))
    if session is not None:
        gateway.answer("/api/v1/cost/sessions?limit=1", envelope({"sessions": [session]}))

    assert 0 == main(["status"])

    assert [
        f"READY at RunPod for 7 min{gpu}, stops in 14 min 20 s, {cost} so far",
        "last problem: a b",
    ] == capsys.readouterr().out.splitlines()


def test_several_pods(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each, with its name."""
    pods = [{**STATUS, "pod": "main"}, {"status": "STOPPED", "provider": "vastai", "pod": "code"}]
    gateway.answer("/api/v1/gpu/status", envelope({**STATUS, "pods": pods}))

    assert 0 == main(["status"])

    assert [
        "main: READY at RunPod, stops in 14 min 20 s",
        "code: STOPPED, the next request starts it",
    ] == capsys.readouterr().out.splitlines()


def test_several_pods_that_are_paid_for(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with the GPU of its own open session, among the newest; one that was not seen yet is said."""
    other = {**SESSION, "pod_id": "p2", "gpu": "A40", "currency": "EUR"}
    older = {**SESSION, "ended_at": "2026-11-21T11:00:00Z"}
    pods = [
        {**BILLED, "pod": "large", "last_error": None},
        {**BILLED, "pod": "code", "pod_id": "p2", "last_error": "oh"},
        {"status": None, "pod": "new", "last_error": None},
    ]
    gateway.answer("/api/v1/gpu/status", envelope({**pods[0], "pods": pods}))
    rows = envelope({"sessions": [SESSION, other, older]})
    gateway.answer("/api/v1/cost/sessions?limit=50", rows)

    assert 0 == main(["status"])

    assert [
        "large: READY at RunPod, RTX 4090, stops in 14 min 20 s, $0.05 so far",
        "code: READY at RunPod, A40, stops in 14 min 20 s, 0.05 EUR so far",
        "code: last problem: oh",
        "new: not known yet what it does",
    ] == capsys.readouterr().out.splitlines()


def test_one_of_several_pods(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`start` and `stop` name it; a name that no pod has is the gateway's to refuse."""
    gateway.answer("/api/v1/gpu/start?pod=code-large", envelope({**STATUS, "status": "STARTING"}), 202)
    gateway.answer("/api/v1/gpu/stop?pod=code-large", refusal("POD_BUSY", "2 requests"), 409)
    gateway.answer("/api/v1/gpu/stop?pod=code-large&force=true", envelope({**STATUS}), 202)
    gateway.answer("/api/v1/gpu/stop?pod=a%2Fb", refusal("NOT_FOUND", "there is no such pod"), 404)

    assert 0 == main(["start", "code-large"])
    assert capsys.readouterr().out.startswith("code-large: STARTING at RunPod")
    assert 1 == main(["stop", "code-large"])
    assert capsys.readouterr().err.endswith("POD_BUSY: 2 requests (gpugate stop --force code-large)\n")
    assert 0 == main(["stop", "--force", "code-large"])
    assert 1 == main(["stop", "a/b"])
    assert "NOT_FOUND: there is no such pod" in capsys.readouterr().err


def refusal(code: str, message: str) -> str:
    """Wrap an error as the gateway does."""
    return json.dumps({"status": "error", "data": None, "error": {"code": code, "message": message}})


@pytest.mark.parametrize(
    ("args", "method", "path"),
    [
        (["status"], "GET", "/api/v1/gpu/status"),
        (["start"], "POST", "/api/v1/gpu/start"),
        (["stop"], "POST", "/api/v1/gpu/stop"),
        (["stop", "--force"], "POST", "/api/v1/gpu/stop?force=true"),
    ],
)
def test_the_pod(
    gateway: Any, capsys: pytest.CaptureFixture[str], args: list[str], method: str, path: str
) -> None:
    """The status comes as a sentence for people and as JSON for machines."""
    gateway.answer(path, envelope(STATUS), 202)

    assert (0, 0) == (main(args), main([*args, "--json"]))

    lines, _, machine = capsys.readouterr().out.rpartition("{")
    assert "READY at RunPod, stops in 14 min 20 s\n" == lines
    assert STATUS == json.loads("{" + machine)
    assert [(method, path, "Bearer t0ken")] * 2 == gateway.asked


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (409, refusal("POD_BUSY", "2 requests"), "gpugate: POD_BUSY: 2 requests (gpugate stop --force)"),
        (401, refusal("TOKEN_EXPIRED", "token has expired"), "gpugate: TOKEN_EXPIRED: token has expired"),
        (502, "<html>", "answers with status 502, and not as gpugate does"),
        (302, "", "answers with status 302, and not as gpugate does"),
        (200, "Ollama is running", "does not answer as gpugate does"),
        (200, "[]", "does not answer as gpugate does"),
        (503, refusal("X", "a\nb\x1b[31m"), "gpugate: X: a b"),
    ],
)
def test_a_refusal(
    gateway: Any, capsys: pytest.CaptureFixture[str], status: int, body: str, line: str
) -> None:
    """Whatever the gateway refuses, or whoever answers in its place, is one line and status 1."""
    gateway.answer("/api/v1/gpu/stop", body, status)

    assert 1 == main(["stop"])
    captured = capsys.readouterr()
    assert ("", 1) == (captured.out, len(captured.err.splitlines()))
    assert line in captured.err


def test_no_gateway(bare: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection is one line that names the address."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("GPUGATE_URL", url)

        assert 1 == main(["status"])

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gpugate: no gateway at {url}: Connection refused (`gpugate serve` starts one;")


def test_a_gateway_that_hangs_up(bare: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """No answer is one line too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("GPUGATE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()

        assert 1 == main(["status"])
        thread.join()

    assert 1 == len(capsys.readouterr().err.splitlines())


@pytest.mark.parametrize(
    ("name", "value"),
    [("GPUGATE_URL", "gate.example"), ("GPUGATE_TOKEN", "to ken"), ("GPUGATE_TOKEN", "tökén")],
)
def test_a_variable_that_is_wrong(
    gateway: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """That is status 2 and names the variable, not its value."""
    monkeypatch.setenv(name, value)

    assert 2 == main(["status"])
    err = capsys.readouterr().err
    assert err.startswith(f"gpugate: {name}: ")
    assert value not in err


def test_a_token_of_its_own(
    bare: Path, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without GPUGATE_TOKEN a short-lived one is signed with the secret, if there is one."""
    fake_gateway.answer("/api/v1/gpu/status", envelope(STATUS))
    assert 0 == main(["status"])
    monkeypatch.setenv("GPUGATE_AUTH__SECRET", SECRET)
    assert 0 == main(["status"])

    (_, _, none), (_, _, own) = fake_gateway.asked
    claims = jwt.decode(own.removeprefix("Bearer "), SECRET, algorithms=["HS256"])
    assert None is none
    assert ("gpugate-cli", 300) == (claims["sub"], claims["exp"] - claims["iat"])


def test_no_token_at_all(bare: Path, fake_gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A 401 without a token says what to do."""
    fake_gateway.answer("/api/v1/gpu/status", refusal("INVALID_TOKEN", "token is missing or malformed"), 401)

    assert 1 == main(["status"])
    assert "set GPUGATE_TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("token", "hint"), [("t0ken", "(GPUGATE_TOKEN)"), ("", "(signed with this configuration's secret)")]
)
def test_a_token_that_is_not_accepted(
    bare: Path, fake_gateway: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, token: str, hint: str
) -> None:
    """A 401 says which token it was about."""
    monkeypatch.setenv("GPUGATE_TOKEN", token)
    monkeypatch.setenv("GPUGATE_AUTH__SECRET", SECRET)
    fake_gateway.answer("/api/v1/gpu/status", refusal("INVALID_TOKEN", "token signature is invalid"), 401)

    assert 1 == main(["status"])
    assert f"gpugate: INVALID_TOKEN: token signature is invalid {hint}\n" == capsys.readouterr().err


def test_an_address_with_a_wrong_path(gateway: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway's own "not found" is about GPUGATE_URL."""
    monkeypatch.setenv("GPUGATE_URL", f"{gateway.url}/foo")
    gateway.answer("/foo/api/v1/gpu/status", refusal("NOT_FOUND", "not found"), 404)

    assert 1 == main(["status"])
    line = f"gpugate: NOT_FOUND: there is nothing at {gateway.url}/foo (GPUGATE_URL)\n"
    assert line == capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("127.0.0.1", 11434, "http://127.0.0.1:11434"),
        ("0.0.0.0", 80, "http://127.0.0.1:80"),
        ("::", 11434, "http://[::1]:11434"),
        ("fe80::1", 11434, "http://[fe80::1]:11434"),
        ("gate.example", 0, "http://gate.example:11434"),
    ],
)
def test_where_the_configured_gateway_is(host: str, port: int, url: str) -> None:
    """One that listens everywhere is reached on loopback."""
    assert url == url_of(Settings(server=Server(host=(host,), port=port)))


def test_events(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """One line an event, until the gateway ends the stream."""
    stream = (
        'id: 1\r\nevent: state\r\ndata: {"status":"READY","last_error":null,"a":[1]}\r\n\r\n'
        ": ping\r\n\r\nid: 2\r\nevent: queue\r\ndata: plain\r\n\r\ndata: unfinished"
    )
    gateway.answer("/api/v1/gpu/events", stream, kind="text/event-stream")

    assert 0 == main(["events"])
    lines = capsys.readouterr().out.splitlines()
    assert ["state status=READY a=[1]", "queue plain"] == [line[len("08:14:05 ") :] for line in lines]
    assert all(re.match("[0-9]{2}:[0-9]{2}:[0-9]{2} ", line) for line in lines)

    assert 0 == main(["events", "--json"])
    assert [
        {"event": "state", "id": "1", "data": {"status": "READY", "last_error": None, "a": [1]}},
        {"event": "queue", "id": "2", "data": "plain"},
    ] == [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_an_event_of_several_lines() -> None:
    """Data lines belong together, and an event without a name is a message."""
    events = list(parse_events(["data: a", "data:b", "retry: 5", ":x", "", "event: e", ""]))

    assert [{"event": "message", "id": None, "data": "a\nb"}] == events


@pytest.mark.parametrize(
    ("words", "query"),
    [
        ([], ""),
        (["r-1 &"], "?request=r-1%20%26"),
        (["20261121T120000.123456-a1b2c3"], "?session=20261121T120000.123456-a1b2c3"),
    ],
)
def test_why(gateway: Any, capsys: pytest.CaptureFixture[str], words: list[str], query: str) -> None:
    """One line each for people, without what a terminal would obey; the data for machines."""
    data = {"lines": ["started at 08:14 for alice's chat", "request \x1b[31m waited 97 s"]}
    gateway.answer(f"/api/v1/why{query}", envelope(data))

    assert 0 == main(["why", *words])
    assert "started at 08:14 for alice's chat\nrequest  [31m waited 97 s\n" == capsys.readouterr().out
    assert 0 == main(["why", *words, "--json"])
    assert data == json.loads(capsys.readouterr().out)
