"""`gpugate costs`: what it asks a gateway on a real socket, and what it prints of the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpugate.cli.main import main

SUMMARY = {
    "month": "2026-11",
    "sessionCount": 2,
    "totalHours": 1.5,
    "estimatedTotal": 0.66,
    "currency": "USD",
    "byProvider": [{"provider": "runpod", "sessionCount": 2, "hours": 1.5, "cost": 0.66}],
    "byDay": [],
    "monthlyBudget": 20.0,
    "byUser": [{"user": "me", "hours": 1.5, "cost": 0.66}],
}
RECEIPT = {
    "session": {
        "id": "20261121T120000-a1",
        "provider": "runpod",
        "started_at": "2026-11-21T12:00:00.000Z",
        "ended_at": None,
        "seconds": 3600.0,
        "cost": 0.69,
        "currency": "USD",
    },
    "lines": [
        {"user": "(warm-up)", "request_id": None, "requests": 0, "seconds": 100.0, "cost": 0.0192},
        {"user": "me", "request_id": "r-1", "requests": 1, "seconds": 60.0, "cost": 0.0115},
        {"user": "me", "request_id": "r-2", "requests": 7, "seconds": 1.0, "cost": 0.0002},
        {"user": "(idle)", "request_id": None, "requests": 0, "seconds": 3439.0, "cost": 0.6591},
    ],
}
BILLS = {
    "month": "2026-11",
    "currency": "USD",
    "providers": [
        {
            "provider": "runpod",
            "estimate": 12.4,
            "bill": 12.61,
            "parts": {"disk": 0.51, "gpu": 12.1},
            "otherPods": 3.0,
            "note": "billed for pods that are not in the ledger too",
        },
        {"provider": "vastai", "estimate": 0.5, "bill": 0.0, "parts": {}, "otherPods": 0, "note": None},
        {"provider": "local", "estimate": 0, "bill": None, "parts": {}, "otherPods": 0, "note": "no\nbill"},
    ],
}


@pytest.fixture
def gateway(bare: Path, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A gateway that GPUGATE_URL and GPUGATE_TOKEN name."""
    monkeypatch.setenv("GPUGATE_TOKEN", "t0ken\n")
    return fake_gateway


def envelope(data: object) -> str:
    """Wrap an answer as the gateway does."""
    return json.dumps({"status": "success", "data": data, "error": None, "meta": {}})


def test_costs_of_several_pods(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each pod has a line, and a receipt names its pod; of one alone nothing is said."""
    lines = [{"pod": pod, "sessionCount": 1, "hours": 0.75, "cost": 0.33} for pod in ("chat", "code")]
    gateway.answer("/api/v1/cost/summary", envelope({**SUMMARY, "byPod": lines}))
    assert 0 == main(["costs"])
    assert "by pod\n  chat: 45 min, $0.33\n  code: 45 min, $0.33\n" in capsys.readouterr().out

    gateway.answer("/api/v1/cost/summary", envelope({**SUMMARY, "byPod": lines[:1]}))
    assert 0 == main(["costs"])
    assert "pod" not in capsys.readouterr().out.replace("runpod", "")

    receipt = {**RECEIPT, "session": {**RECEIPT["session"], "pod": "code"}}
    gateway.answer("/api/v1/cost/receipt?id=7", envelope(receipt))
    assert 0 == main(["costs", "--receipt", "7"])
    assert "20261121T120000-a1: code at runpod, " in capsys.readouterr().out


def test_costs(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A month's sums for people, the same data for machines."""
    gateway.answer("/api/v1/cost/summary?month=2026-11", envelope(SUMMARY))
    gateway.answer("/api/v1/cost/summary", envelope(SUMMARY))

    assert 0 == main(["costs", "--month", "2026-11"])
    assert [
        "November 2026: 2 sessions, 1 h 30 min, $0.66, 3 % of the budget of $20.00",
        "by provider",
        "  runpod: 1 h 30 min, $0.66",
        "by user",
        "  me: 1 h 30 min, $0.66",
    ] == capsys.readouterr().out.splitlines()

    assert 0 == main(["costs", "--json"])
    assert SUMMARY == json.loads(capsys.readouterr().out)


def test_what_costs_less_than_a_cent(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Is not shown as nothing, and the parts still sum to the whole as they are printed."""
    small = {
        "sessionCount": 1,
        "monthlyBudget": None,
        "totalHours": 0.002778,
        "estimatedTotal": 0.001917,
        "byProvider": [{"provider": "runpod", "sessionCount": 1, "hours": 0.002778, "cost": 0.001917}],
        "byUser": [
            {"user": "(idle)", "hours": 0.002777, "cost": 0.001916},
            {"user": "me", "hours": 0.000001, "cost": 1e-06},
        ],
    }
    gateway.answer("/api/v1/cost/summary", envelope({**SUMMARY, **small}))

    assert 0 == main(["costs"])
    assert [
        "November 2026: 1 session, 10 s, $0.001917",
        "by provider",
        "  runpod: 10 s, $0.001917",
        "by user",
        "  (idle): 10 s, $0.001916",
        "  me: 0 s, $0.000001",
    ] == capsys.readouterr().out.splitlines()


def test_a_cost_that_nobody_knows(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Is a question mark, and not nothing."""
    session = {**RECEIPT["session"], "cost": None}  # type: ignore[dict-item]
    gateway.answer("/api/v1/cost/receipt?id=x", envelope({"session": session, "lines": []}))

    assert 0 == main(["costs", "--receipt", "x"])
    assert "1 h, $?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "query"),
    [
        ([], ""),
        (["--month", "2026-11"], "&from=2026-11-01&to=2026-12-01"),
        (["--month", "2026-12"], "&from=2026-12-01&to=2027-01-01"),
    ],
)
def test_costs_as_csv(gateway: Any, capsys: pytest.CaptureFixture[str], args: list[str], query: str) -> None:
    """The sessions come as the gateway sends them, a month's or all."""
    gateway.answer(f"/api/v1/cost/sessions?format=csv{query}", "id,cost\r\n1,0.66\r\n", kind="text/csv")

    assert 0 == main(["costs", "--csv", *args])
    assert "id,cost\n1,0.66\n" == capsys.readouterr().out.replace("\r\n", "\n")


def test_what_is_shown_apart(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Failed starts, disks of stopped pods and what the sums leave out, if there is any."""
    more = {
        "failedStarts": {"sessionCount": 2, "hours": 0.1, "cost": 0.05},
        "stoppedDisk": {"hours": 700.0, "cost": 19.2},
        "warnings": ["sessions paid in EUR are left out"],
    }
    gateway.answer("/api/v1/cost/summary", envelope({**SUMMARY, **more}))

    assert 0 == main(["costs"])
    assert [
        "of it failed starts: 2, 6 min, $0.05",
        "beside it, estimated, disks of stopped pods: 29 d 4 h, $19.20",
        "note: sessions paid in EUR are left out",
    ] == capsys.readouterr().out.splitlines()[-3:]


def test_a_receipt(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """One session's seconds, line by line; its name is quoted on the way."""
    gateway.answer("/api/v1/cost/receipt?id=2026%2F%26a", envelope(RECEIPT))

    assert 0 == main(["costs", "--receipt", "2026/&a"])
    assert [
        "20261121T120000-a1: runpod, 2026-11-21T12:00:00.000Z to now, 1 h, $0.69",
        "  (warm-up): 1 min 40 s, $0.0192",
        "  me r-1: 1 min, $0.0115",
        "  me 7 requests: 1 s, $0.0002",
        "  (idle): 57 min 19 s, $0.6591",
    ] == capsys.readouterr().out.splitlines()

    assert 0 == main(["costs", "--receipt", "2026/&a", "--json"])
    assert RECEIPT == json.loads(capsys.readouterr().out)


def test_bills(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each provider, whether it has a bill or not."""
    gateway.answer("/api/v1/cost/reconcile?month=2026-11", envelope(BILLS))

    assert 0 == main(["costs", "--reconcile", "--month", "2026-11"])
    assert [
        "November 2026, estimated beside billed, USD",
        "  runpod: 12.40 estimated, 12.61 billed (disk 0.51, gpu 12.10), 3.00 for other pods: "
        "billed for pods that are not in the ledger too",
        "  vastai: 0.50 estimated, 0.00 billed",
        "  local: 0.00 estimated: no bill",
    ] == capsys.readouterr().out.splitlines()

    assert 0 == main(["costs", "--reconcile", "--month", "2026-11", "--json"])
    assert BILLS == json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "args",
    [
        ["--csv", "--reconcile"],
        ["--csv", "--receipt", "x"],
        ["--receipt", "x", "--month", "2026-11"],
    ],
)
def test_two_things_at_once(gateway: Any, capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    """Is wrong usage, in one line."""
    assert 2 == main(["costs", *args])
    captured = capsys.readouterr()
    assert ("", 1) == (captured.out, len(captured.err.splitlines()))
    assert [] == gateway.asked
