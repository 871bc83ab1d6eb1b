"""The pod's status and events in sentences, as tables; colour only on a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest

from gpugate.cli.describe import coloured, describe_event, describe_status

START = {"status": "STARTING", "provider": "vastai", "waiting": 2, "in_flight": 0}


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ({"status": "STOPPED", "provider": "runpod"}, "STOPPED, the next request starts it"),
        (START, "STARTING at Vast.ai, 2 requests waiting"),
        (
            {**START, "ready_in_seconds": 70, "waiting": 1},
            "STARTING at Vast.ai, 1 request waiting, ready in about 1 min 10 s",
        ),
        (
            {**START, "status": "WARMING", "ready_in_seconds": 0.0, "waiting": 0},
            "WARMING at Vast.ai, longer than last time",
        ),
        (
            {"status": "READY", "provider": "local", "in_flight": 1, "waiting": 0, "stops_in_seconds": None},
            "READY on this machine, answering 1 request",
        ),
        (
            {"status": "STOPPING", "provider": "runpod", "estimated_cost": 0.001},
            "STOPPING at RunPod, until the provider shows it stopped, less than $0.01 so far",
        ),
        ({"status": "WHAT\x1b"}, "WHAT "),
    ],
)
def test_a_status(status: dict[str, Any], sentence: str) -> None:
    """What it does, and what happens next."""
    assert (sentence, None) == describe_status(status, {"currency": "USD"}, None)


@pytest.mark.parametrize(
    ("kind", "data", "sentence"),
    [
        ("state", {**START}, "STARTING at Vast.ai, 2 requests waiting"),
        (
            "state",
            {**START, "waiting": 0, "last_error": "no GPU"},
            "STARTING at Vast.ai (last problem: no GPU)",
        ),
        (
            "pull",
            {"model": "llava:13b", "percent": 37, "goes_on": True},
            "pulling llava:13b (37 %)",
        ),
        ("pull", {"model": "llava", "percent": None, "goes_on": False}, "pulling llava, ended"),
        (
            "state",
            {**START, "pulling": {"model": "llava", "percent": 5}},
            "STARTING at Vast.ai, 2 requests waiting, pulling llava (5 %)",
        ),
        ("queue", {"waiting": 1, "in_flight": 2}, "answering 2 requests, 1 request waiting"),
        ("queue", {"waiting": 0, "in_flight": 0}, "no request waits or is being answered"),
        (
            "session",
            {"event": "began", "provider": "runpod", "cause": "request"},
            "a session began at RunPod, for a request",
        ),
        (
            "session",
            {"event": "ended", "provider": "runpod", "cause": "idle", "cost": 0.13},
            "the session at RunPod ended (idle): $0.13",
        ),
        (
            "budget",
            {"percent": 80, "spent": 8.0, "budget": "10", "month": "2026-11"},
            "80 % of the budget of 2026-11 is spent: $8.00 of $10.00",
        ),
        (
            "provider_error",
            {"provider": "runpod", "message": "a\nb", "alarm": True},
            "ALARM: runpod: a b",
        ),
        (
            "provider_error",
            {"pod": "code", "provider": "runpod", "message": "no GPU", "alarm": False},
            "code: runpod: no GPU",
        ),
        ("queue", {"pod": "main", "waiting": 1, "in_flight": 0}, "1 request waiting"),
        ("session", {"event": "began", "more": None}, "session event=began"),
        ("new", {"a": [1]}, "new a=[1]"),
        ("new", "text", "new text"),
    ],
)
def test_an_event(kind: str, data: object, sentence: str) -> None:
    """What is not known, or not whole, is shown key by key."""
    assert sentence == describe_event({"event": kind, "data": data}, "USD")


class Terminal(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def test_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, unless NO_COLOR or a terminal without colours says otherwise."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\033[32mREADY\033[0m" == coloured("READY", "READY", Terminal())
    assert "READY" == coloured("READY", "READY", io.StringIO())
    assert "STOPPED" == coloured("STOPPED", "STOPPED", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert "READY" == coloured("READY", "READY", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "READY" == coloured("READY", "READY", Terminal())
