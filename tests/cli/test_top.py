"""`gpugate top`: what it shows of a gateway on a real socket, and where it cannot."""

from __future__ import annotations

import builtins
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpugate.cli.http_client import connect
from gpugate.cli.main import main
from gpugate.cli.parser import parse
from gpugate.cli.top import Screen

STATUS = {
    "status": "READY",
    "provider": "runpod",
    "pod_id": "p1",
    "since": "2026-11-21T12:00:00Z",
    "waiting": 0,
    "in_flight": 0,
    "stops_in_seconds": 860.0,
    "estimated_cost": 0.05,
    "last_error": "no\x1bway",
}
ROWS = [
    {"request_id": "r1", "user": "me\x1b[2J", "state": "in_flight", "seconds": 75.0},
    {"request_id": "r2", "user": "you", "state": "waiting", "seconds": 3.0},
]
SESSION = {"provider": "runpod", "pod_id": "p1", "gpu": "NVIDIA GeForce RTX 4090", "ended_at": None}
COSTS = {"currency": "USD", "estimatedTotal": 4.2, "sessionCount": 3, "monthlyBudget": 20.0}


@pytest.fixture
def gateway(bare: Path, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A gateway with a pod that serves."""
    monkeypatch.setenv("GPUGATE_TOKEN", "t0ken")
    answers = {
        "gpu/status": STATUS,
        "gpu/requests": {"requests": ROWS, "count": 2},
        "cost/sessions?limit=1": {"sessions": [SESSION]},
        "cost/summary": COSTS,
    }
    for path, data in answers.items():
        body = {"status": "success", "data": data, "meta": {"timestamp": "2026-11-21T12:07:00Z"}}
        fake_gateway.answer(f"/api/v1/{path}", json.dumps(body))
    return fake_gateway


def drawn(screen: Screen, height: int = 30) -> str:
    """Return what a terminal shows."""
    console = Console(file=io.StringIO(), width=100, height=height, color_system=None)
    console.print(screen)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_all_that_is_known(gateway: Any) -> None:
    """State, what happens next, costs, requests and events; nothing that a terminal would obey."""
    screen = Screen(connect(parse(["top"])))
    screen.look()
    screen.events.append("12:00:00 READY")

    shown = drawn(screen)

    assert "READY at RunPod for 7 min, RTX 4090, stops in 14 min 20 s, $0.05 so far" in shown
    assert "this month $4.20 of $20.00, 3 sessions" in shown
    assert "last problem: no way" in shown
    assert "2 requests" in shown
    assert [["being", "answered", "1", "min", "15", "s", "r1"]] == [
        line.split()[-8:-1] for line in shown.splitlines() if "r1" in line
    ]
    assert "waiting" in shown
    assert "12:00:00 READY" in shown
    assert "\x1b" not in shown


def test_several_pods(gateway: Any) -> None:
    """A line for each, with its name; requests have theirs."""
    pods = [{**STATUS, "pod": "large"}, {"status": "STOPPED", "pod": "code", "last_error": None}]
    body = {"data": {**STATUS, "pods": pods}, "meta": {"timestamp": "2026-11-21T12:07:00Z"}}
    gateway.answer("/api/v1/gpu/status", json.dumps(body))
    rows = [{**ROWS[0], "pod": "large"}, {**ROWS[1], "pod": "code"}]
    gateway.answer("/api/v1/gpu/requests", json.dumps({"data": {"requests": rows, "count": 2}}))
    gateway.answer("/api/v1/cost/sessions?limit=50", json.dumps({"data": {"sessions": [SESSION]}}))
    screen = Screen(connect(parse(["top"])))
    screen.look()

    shown = drawn(screen)

    assert "large: READY at RunPod for 7 min, RTX 4090, stops in 14 min 20 s, $0.05 so far" in shown
    assert "code: STOPPED, the next request starts it" in shown
    assert "large: last problem: no way" in shown
    assert ["code", "you", "waiting"] == next(
        line.split()[1:4] for line in shown.splitlines() if "r2" in line
    )


def test_a_token_that_may_see_no_costs(gateway: Any) -> None:
    """The rest is shown; an outage of the gateway is a line."""
    gateway.answers.pop("/api/v1/cost/summary")
    screen = Screen(connect(parse(["top"])))
    screen.look()
    screen.trouble = "no gateway at x; trying again"

    assert "this month" not in drawn(screen)
    assert "no gateway at x; trying again" in drawn(screen)


def test_more_events_than_room(gateway: Any) -> None:
    """The newest are shown."""
    screen = Screen(connect(parse(["top"])))
    screen.events.extend(f"event-{number}" for number in range(50))

    shown = drawn(screen, height=20)

    assert "event-49" in shown
    assert "event-30" not in shown


def test_no_terminal(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says what to use instead; nothing is asked."""
    assert 1 == main(["top"])

    (line,) = capsys.readouterr().err.splitlines()
    assert "top needs a terminal: gpugate status" in line
    assert [] == gateway.asked


def test_no_rich(gateway: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that installs it is named."""
    real = builtins.__import__

    def refuse(name: str, *more: Any) -> Any:
        if name.startswith("rich"):
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)

    assert 1 == main(["top"])
    assert "top needs rich: pip install " in capsys.readouterr().err
