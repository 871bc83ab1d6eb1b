"""The metrics: what each observation changes, the scrape, and its own address."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpugate.core.commands import StartCause, StopCause
from gpugate.core.events import Cause
from gpugate.core.states import StateName, Status
from gpugate.lifecycle.status import QueueChanged, SessionEnded, SessionStarted, StateChanged
from gpugate.metrics.feature import UseClock
from gpugate.provider_api import Phase, PodReport
from tests.billing.ledger_house import BEGINNING as AT


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """At 0."""
    return Clock()


def started() -> SessionStarted:
    """A session that begins."""
    report = PodReport(Phase.RUNNING)
    return SessionStarted(run_id=1, provider="fake", cause=StartCause.REQUEST, report=report, at=AT)


def ended() -> SessionEnded:
    """It ends."""
    return SessionEnded(run_id=1, provider="fake", cause=StopCause.IDLE, began_at=AT, cost=None, at=AT)


def status(word: Status) -> StateChanged:
    """The pod has another status."""
    return StateChanged(
        was=StateName.UNKNOWN,
        now=StateName.UNKNOWN,
        was_status=None,
        status=word,
        cause=Cause.DEADLINE_REACHED,
        run_id=1,
        provider="fake",
        at=AT,
    )


def test_billed_time_by_use(clock: Clock) -> None:
    """Starting, serving and idle sum to the session; what is not billed counts for nothing."""
    use = UseClock(clock)
    for at, event in (
        (10, status(Status.STARTING)),  # asked, and not accepted yet: not billed
        (12, started()),
        (20, status(Status.WARMING)),
        (42, status(Status.READY)),
        (42, QueueChanged(waiting=0, in_flight=1)),
        (49, QueueChanged(waiting=0, in_flight=0)),
        (59, status(Status.STOPPING)),
        (62, ended()),
        (99, status(Status.STOPPED)),
    ):
        clock.now = at
        use.on_event(event)

    assert {"starting": 30.0, "serving": 7.0, "idle": 13.0} == use.seconds


@pytest.mark.parametrize("file", ["dashboard.json", "alerts.yml"])
def test_examples_use_metrics_that_exist(file: str) -> None:
    """Every name in the dashboard and the alert rules is one of docs/metrics.md."""
    root = Path(__file__).resolve().parents[2]
    known = set(re.findall("`(gpugate_[a-z_]+)`", (root / "docs" / "metrics.md").read_text()))
    used = set(re.findall("gpugate_[a-z_]+", (root / "examples" / "grafana" / file).read_text()))

    assert used
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in used} <= known
