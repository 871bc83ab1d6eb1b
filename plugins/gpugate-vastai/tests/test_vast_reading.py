"""Rows of the API as reports, and answers as errors: every line of docs/providers.md#vastai."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from gpugate_vastai import VastConfig
from gpugate_vastai.answers import Answer, error_of
from gpugate_vastai.reading import Reader, Run, phase_of

from gpugate import (
    AuthFailed,
    Blocked,
    Conflict,
    Endpoint,
    Misconfigured,
    NoCapacity,
    NoFunds,
    NotFound,
    Phase,
    Price,
    RateLimited,
    Transient,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ROW: dict[str, Any] = {
    "id": 20481234,
    "actual_status": "running",
    "intended_status": "running",
    "cur_state": "running",
    "next_state": "running",
    "status_msg": "success, running ollama/ollama_latest/ssh",
    "public_ipaddr": "203.0.113.77\n",
    "ports": {
        "11434/tcp": [{"HostIp": "::", "HostPort": "54399"}, {"HostIp": "0.0.0.0", "HostPort": "54321"}],
        "8188/tcp": [{"HostIp": "0.0.0.0", "HostPort": "54322"}],
    },
    "machine_id": 45678,
    "gpu_name": "RTX 4090",
    "num_gpus": 1,
    "dph_total": Decimal("0.4125"),
    "storage_total_cost": Decimal("0.0125"),
    "uptime_mins": 58,
    "start_date": 1763663404.2,
}


def config(**more: Any) -> VastConfig:
    return VastConfig(api_key="key", instance_id=20481234, **more)


def phase(run: Run | None = None, now: float = 100.0, **fields: Any) -> Phase:
    return phase_of({**ROW, **fields}, run or Run(), now)[0]


def states(actual: str | None, wanted: str, cur: str = "running") -> dict[str, Any]:
    return {"actual_status": actual, "intended_status": wanted, "cur_state": cur, "status_msg": None}


@pytest.mark.parametrize(
    ("actual", "wanted", "cur", "expected"),
    [
        (None, "running", "running", Phase.PROVISIONING),
        ("created", "running", "running", Phase.PROVISIONING),
        ("loading", "running", "running", Phase.STARTING),
        ("running", "running", "running", Phase.RUNNING),
        ("rebooting", "running", "running", Phase.STARTING),
        ("exited", "running", "stopped", Phase.QUEUED),
        ("stopped", "running", "stopped", Phase.QUEUED),
        ("created", "running", "stopped", Phase.QUEUED),
        ("exited", "stopped", "stopped", Phase.STOPPED),
        ("stopped", "stopped", "stopped", Phase.STOPPED),
        (None, "stopped", "stopped", Phase.STOPPED),
        (None, "stopped", "running", Phase.STOPPING),
        ("running", "stopped", "running", Phase.STOPPING),
        ("loading", "stopped", "running", Phase.STOPPING),
        ("rebooting", "stopped", "running", Phase.STOPPING),
        ("unknown", "running", "running", Phase.UNREACHABLE),
        ("offline", "stopped", "stopped", Phase.UNREACHABLE),
        ("a word of next year", "stopped", "stopped", Phase.UNREACHABLE),
        ("running", "a word of next year", "running", Phase.UNREACHABLE),
        ("frozen", "running", "running", Phase.FAILED),
        ("running", "frozen", "running", Phase.FAILED),
        ("exited", "stopped", "unloaded", Phase.GONE),
    ],
)
def test_states(actual: str | None, wanted: str, cur: str, expected: Phase) -> None:
    """The table of B3; a word that nobody knows proves nothing."""
    assert expected is phase(Run(noticed_at=69.0), **states(actual, wanted, cur))


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (Run(asked_at=90.0, accepted=True), Phase.STARTING),
        (Run(asked_at=90.0), Phase.STARTING),
        (Run(asked_at=69.0, accepted=True), Phase.QUEUED),
        (Run(asked_at=90.0, queued=True), Phase.QUEUED),
        (Run(asked_at=90.0, accepted=True, alive=True), Phase.FAILED),
        (Run(asked_at=90.0, accepted=True, fresh=True), Phase.FAILED),
    ],
)
def test_exited_after_a_start(run: Run, expected: Phase) -> None:
    """A resumed instance reads exited first; one that was alive, or is new, is dead."""
    assert expected is phase(run, **states("exited", "running", "stopped"))


def test_exited_after_a_start_in_the_console() -> None:
    """It gets the scheduler's time from its first sighting: to be adopted, not stopped; then it is queued."""
    run = Run()
    waits = states("exited", "running", "stopped")

    assert Phase.STARTING is phase(run, now=100.0, **waits)
    assert Phase.STARTING is phase(run, now=129.0, **waits)
    assert Phase.QUEUED is phase(run, now=130.0, **waits)


@pytest.mark.parametrize(
    ("fields", "run", "expected"),
    [
        (states("running", "running"), Run(), True),
        (states("frozen", "running"), Run(), True),
        (states("exited", "running"), Run(alive=True), False),
        (states("offline", "running"), Run(fresh=True), False),
        (states("exited", "running", "stopped"), Run(asked_at=90.0, accepted=True), True),
        (states("exited", "running", "stopped"), Run(), False),
        (states("exited", "running", "stopped"), Run(asked_at=90.0, queued=True), False),
        (states("exited", "stopped", "stopped"), Run(), False),
    ],
)
def test_what_is_billed(fields: dict[str, Any], run: Run, expected: bool) -> None:
    """A container that has ended is not, nor a start that waits; one that was just accepted may be."""
    assert expected is Reader(config(), lambda: NOW).report({**ROW, **fields}, run, 100.0).is_billed


@pytest.mark.parametrize(("asked_at", "expected"), [(95.0, Phase.STARTING), (80.0, Phase.STOPPED)])
def test_stopped_after_a_start(asked_at: float, expected: Phase) -> None:
    """A read may be older than the start; later it means that Vast.ai dropped it."""
    run = Run(asked_at=asked_at, accepted=True)
    assert expected is phase(run, **states("exited", "stopped", "stopped"))


@pytest.mark.parametrize(
    "message",
    [
        "Error response from daemon: no such device",
        "manifest for ollama/olama:latest not found: manifest unknown",
        "OCI runtime create failed: nvidia-container-cli",
    ],
)
def test_a_broken_container(message: str) -> None:
    """What the status message says fails fast, in every state before running."""
    for actual in (None, "created", "loading", "exited"):
        assert Phase.FAILED is phase(**{**states(actual, "running"), "status_msg": message})


def test_a_message_of_the_run_before() -> None:
    """Right after a start an instance that waits may still show the last run's error."""
    fields = {**states("exited", "running", "stopped"), "status_msg": "Error of yesterday"}
    assert Phase.STARTING is phase(Run(asked_at=95.0, accepted=True), **fields)


def test_a_running_instance() -> None:
    """Address unpadded, IPv4's port, exact price, and started when the container was, not the contract."""
    reader = Reader(
        config(headers={"Authorization": "Bearer t"}, scheme="https", tls="insecure"), lambda: NOW
    )
    report = reader.report(ROW, Run(), 0.0)

    assert Phase.RUNNING is report.phase
    assert "20481234" == report.pod_id
    assert {
        "ollama": Endpoint("https://203.0.113.77:54321", {"Authorization": "Bearer t"}, "insecure"),
        "comfyui": Endpoint("https://203.0.113.77:54322", {"Authorization": "Bearer t"}, "insecure"),
    } == report.endpoints
    assert Price(Decimal("0.4125"), Decimal("0.0125"), "USD") == report.price
    assert "RTX 4090" == report.gpu
    assert NOW - timedelta(minutes=58) == report.started_at


@pytest.mark.parametrize(
    "fields",
    [
        {"ports": None},
        {"ports": {}},
        {"ports": [22, 11434]},
        {"ports": {"11434/tcp": None}},
        {"ports": {"11434/tcp": [{"HostPort": "0"}, {"HostPort": "99999"}, "x", {}]}},
        {"public_ipaddr": None},
        {"public_ipaddr": " \n"},
        {"public_ipaddr": "203.0.113.77/evil?"},
    ],
)
def test_no_address_yet(fields: dict[str, Any]) -> None:
    """Running without a usable address has no endpoint, and says so."""
    report = Reader(config(), lambda: NOW).report({**ROW, **fields}, Run(), 0.0)
    assert Phase.RUNNING is report.phase
    assert "ollama" not in report.endpoints
    assert "11434" in report.detail


def test_ipv6_and_several_gpus() -> None:
    """An IPv6 address has brackets in a URL."""
    row = {**ROW, "public_ipaddr": "2001:db8::7", "num_gpus": 2}
    report = Reader(config(), lambda: NOW).report(row, Run(), 0.0)
    assert "http://[2001:db8::7]:54321" == report.endpoints["ollama"].url
    assert "2 x RTX 4090" == report.gpu


@pytest.mark.parametrize(
    ("status", "body", "expected", "words"),
    [
        (
            200,
            b'{"success": false, "error": "resources_unavailable", "msg": "unavailable"}',
            NoCapacity,
            "GPU",
        ),
        (200, b'{"success": false, "msg": "no"}', Conflict, "no"),
        (200, b'{"error": "insufficient_credit"}', NoFunds, "credit"),
        (400, b'{"error": "missing_billing", "msg": ""}', NoFunds, "payment"),
        (400, b'{"error": "spend_rate_limit"}', NoFunds, "limit"),
        (402, b"{}", NoFunds, "pay"),
        (400, b'{"success": false, "error": "invalid_args", "msg": "bad disk"}', Misconfigured, "bad disk"),
        (401, b'{"success": false, "error": "auth_error", "msg": "Invalid user key"}', AuthFailed, "api_key"),
        (404, b'{"msg": "Invalid user key"}', AuthFailed, "api_key"),
        (403, b'{"msg": "no rights"}', AuthFailed, "instance_write"),
        (403, b"error code: 1010", Blocked, "403"),
        (404, b'{"error": "no_such_instance", "msg": "gone"}', NotFound, "instance_id"),
        (404, b"<html>404</html>", Misconfigured, "api_base"),
        (301, b"", Misconfigured, "api_base"),
        (429, b'{"error": "search_quota_exceeded"}', Blocked, "midnight"),
        (500, b"<html>", Transient, "500"),
        (200, b"<html>", Transient, "JSON"),
        (200, b"[1]", Transient, "JSON"),
        (418, b"{}", Misconfigured, "418"),
    ],
)
def test_errors(status: int, body: bytes, expected: type[Exception], words: str) -> None:
    """Each documented failure is the error that says what follows, and what to do."""
    error = error_of(Answer.read(status, body, ""), 2.0)
    assert expected is type(error)
    assert words in str(error)


@pytest.mark.parametrize(
    ("body", "header", "expected"),
    [
        (b"API requests too frequent", "", 2.0),
        (b"API requests too frequent: endpoint threshold=4.5", "", 4.5),
        (b'{"detail": "API requests too frequent"}', "30", 30.0),
        (b"", "Wed, 21 Oct 2026 07:28:00 GMT", 2.0),
    ],
)
def test_too_often(body: bytes, header: str, expected: float) -> None:
    """The header beats the text, the text beats the documented interval."""
    error = error_of(Answer.read(429, body, header), 2.0)
    assert isinstance(error, RateLimited)
    assert expected == error.retry_after


def test_a_queued_start() -> None:
    """Only the words tell whether Vast.ai keeps the start."""
    told = {"success": False, "error": "resources_unavailable"}
    for message, queued in (("unavailable, state change queued.", True), ("unavailable.", False)):
        error = error_of(Answer(200, "", "", {**told, "msg": message}), 1.0)
        assert isinstance(error, NoCapacity)
        assert queued is error.queued
