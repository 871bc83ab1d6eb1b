"""Numbers as people say them, as tables."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from gpugate.bot import messages
from gpugate.core.states import Status
from gpugate.errors import BudgetExceeded, ImageFailed, QueueFull, StoryFailed
from gpugate.lifecycle.status import PodStatus
from tests.bot.chats import SessionCost, Summary

RUNNING = PodStatus(
    status=Status.READY,
    provider="runpod",
    pod_id="p",
    since=datetime(2026, 11, 21, tzinfo=UTC),
    uptime_seconds=1380.0,
    waiting=0,
    in_flight=0,
    idle_seconds=None,
    stops_in_seconds=None,
    hourly_rate=Decimal("0.34"),
    estimated_cost=Decimal("0.1303"),
    ready_in_seconds=None,
    last_error=None,
)
STOPPED = evolve(
    RUNNING, status=Status.STOPPED, uptime_seconds=None, hourly_rate=None, estimated_cost=None, pod_id=None
)


def test_sentences():
    """Each ends with a stop, one that ends in a bracket as well; what is a question or cut off stays so."""
    assert "One. Not before 2026-12-01 (UTC). Two? Three…" == messages.sentences(
        "One", "", "Not before 2026-12-01 (UTC)", "Two?", "Three…"
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3, "0 seconds"),
        (0, "0 seconds"),
        (1, "1 second"),
        (59.4, "59 seconds"),
        (60, "1 minute"),
        (89, "1 minute"),
        (90, "2 minutes"),
        (1380, "23 minutes"),
        (3569, "59 minutes"),
        (3590, "1 hour"),
        (3600, "1 hour"),
        (7500, "2 hours and 5 minutes"),
        (3660, "1 hour and 1 minute"),
        (86399, "1 day"),
        (86400, "1 day"),
        (90000, "1 day and 1 hour"),
        (259200, "3 days"),
    ],
)
def test_duration(seconds, said):
    """In the two units that matter, in the right number."""
    assert said == messages.duration(seconds)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("0", "0 seconds"),
        ("0.5", "30 minutes"),
        ("1", "1 hour"),
        ("18", "18 hours"),
        ("18.04", "18 hours"),
        ("18.25", "18.3 hours"),
    ],
)
def test_hours(number, said):
    """Without a false precision."""
    assert said == messages.hours(Decimal(number))


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (RUNNING, "Pod has been running for 23 minutes, estimated cost so far is $0.13."),
        (evolve(RUNNING, estimated_cost=None), "Pod has been running for 23 minutes."),
        (evolve(RUNNING, uptime_seconds=None), "Pod is running, estimated cost so far is $0.13."),
        (evolve(RUNNING, uptime_seconds=None, estimated_cost=None), "Pod is running."),
        (
            evolve(RUNNING, in_flight=1, waiting=2),
            "Pod has been running for 23 minutes, estimated cost so far is $0.13. "
            "1 request is being answered. 2 requests wait.",
        ),
        (
            evolve(RUNNING, stops_in_seconds=720.0),
            "Pod has been running for 23 minutes, estimated cost so far is $0.13. "
            "If nobody uses it, it stops in 12 minutes.",
        ),
        (
            evolve(STOPPED, status=Status.STARTING, ready_in_seconds=40.0, waiting=1),
            "Pod is starting, ready in about 40 seconds. 1 request waits.",
        ),
        (
            evolve(STOPPED, status=Status.STARTING, ready_in_seconds=40.0, ready_in_p90_seconds=120.0),
            "Pod is starting, ready in about 40 seconds, at most 2 minutes.",
        ),
        (
            evolve(RUNNING, status=Status.WARMING, last_error="x: down"),
            "Pod is warming up, estimated cost so far is $0.13. The last trouble was: x: down.",
        ),
        (evolve(RUNNING, status=Status.STOPPING), "Pod is being stopped, estimated cost so far is $0.13."),
        (STOPPED, "Pod is stopped."),
        (evolve(STOPPED, last_error="x: no funds."), "Pod is stopped. The last trouble was: x: no funds."),
    ],
)
def test_status(now, said):
    """The sentence of a running pod; what is not known is left out."""
    assert said == messages.status(now, "USD")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (messages.starting(STOPPED), "Starting the pod, will take about a minute"),
        (messages.starting(None), messages.STARTS_WHEN_KNOWN),
        (
            messages.starting(evolve(STOPPED, status=Status.STARTING, ready_in_seconds=95.0)),
            "Starting the pod, will take about 2 minutes",
        ),
        (
            messages.starting(
                evolve(STOPPED, status=Status.STARTING, ready_in_seconds=95.0, ready_in_p90_seconds=100.0)
            ),
            "Starting the pod, will take about 2 minutes",
        ),
        (messages.ready(52, RUNNING, "EUR"), "Pod is ready, it took 52 seconds. It costs 0.34 EUR per hour."),
        (messages.ready(52, None, "USD"), "Pod is ready, it took 52 seconds."),
        (messages.start_failed("StartCallFailed", None), "The pod could not be started."),
        (
            messages.busy(None),
            "The pod is in use (right now). Shall I stop it anyway? Answers under way will be cut.",
        ),
        (
            messages.busy(evolve(RUNNING, in_flight=2, waiting=1)),
            "The pod is in use (2 requests being answered and 1 waiting). Shall I stop it anyway? "
            "Answers under way will be cut.",
        ),
        (
            messages.stopped(1380, Decimal("0.13"), "USD"),
            "Pod is stopped, it ran for 23 minutes and cost $0.13.",
        ),
        (messages.stopped(1380, None, "USD"), "Pod is stopped, it ran for 23 minutes."),
        (messages.stopped(None, Decimal("0.13"), "USD"), "Pod is stopped, it cost $0.13."),
        (messages.stopped(None, None, "USD"), "Pod is stopped."),
    ],
)
def test_start_and_stop(text, said):
    """First and second messages."""
    assert said == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            messages.month_cost(Summary()),
            "This month you have run 7 sessions totalling 18 hours, estimated cost is $4.90.",
        ),
        (
            messages.month_cost(
                Summary(
                    session_count=1,
                    total_hours=Decimal("0.2"),
                    estimated_total=Decimal("0.07"),
                    currency="EUR",
                )
            ),
            "This month you have run 1 session totalling 12 minutes, estimated cost is 0.07 EUR.",
        ),
        (
            messages.month_cost(Summary(session_count=0, total_hours=Decimal(0))),
            "This month you have not run the pod yet.",
        ),
        (
            messages.month_cost(
                Summary(session_count=1, warnings=("1 session without a price: counted as 0",))
            ),
            "This month you have run 1 session totalling 18 hours, estimated cost is $4.90. "
            "1 session without a price: counted as 0.",
        ),
        (
            messages.month_cost(Summary(session_count=0, warnings=("sessions paid in EUR are left out",))),
            "This month you have not run the pod yet. Sessions paid in EUR are left out.",
        ),
        (
            messages.session_cost(SessionCost(estimated_cost=None, hourly_rate=None)),
            "The current session has lasted 23 minutes. "
            "What it costs is not known: nobody tells the pod's price.",
        ),
        (
            messages.session_cost(SessionCost(estimated_cost=Decimal("0.13"), hourly_rate=None)),
            "The current session has lasted 23 minutes at runpod, estimated cost so far is $0.13.",
        ),
        (messages.today_cost(Decimal(0), "USD"), "Today nothing has been spent yet."),
        (
            messages.today_cost(Decimal(0), "USD", SessionCost(estimated_cost=None)),
            "What the running session costs is not known: nobody tells the pod's price.",
        ),
        (
            messages.today_cost(Decimal("0.4"), "USD", SessionCost(estimated_cost=None)),
            "Today you have spent about $0.40. "
            "What the running session costs is not known: nobody tells the pod's price.",
        ),
        (messages.today_cost(Decimal("0.4"), "USD"), "Today you have spent about $0.40."),
        (messages.today_cost(Decimal("0.001"), "USD"), "Today you have spent less than $0.01."),
    ],
)
def test_costs(text, said):
    """Of a month, a session, a day."""
    assert said == text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (QueueFull(retry_after_s=60), "Too many requests are waiting for the pod. Try again in 1 minute."),
        (BudgetExceeded("the budget for 2026-11 is spent"), "The budget for 2026-11 is spent."),
        (StoryFailed(), "The story could not be told."),
    ],
)
def test_refusals(error, said):
    """Why, and when to try again."""
    assert said == messages.refused(error)


def test_long_troubles():
    """Whatever a provider wrote, a message stays one."""
    said = messages.status(evolve(STOPPED, last_error="x" * 5000), "USD")
    assert f"Pod is stopped. The last trouble was: {'x' * 299}…" == said


def test_warnings():
    """In words."""
    assert "There is no illustration this time: it broke." == messages.warned(ImageFailed("it broke"))


@given(st.floats(0, 1e9))
def test_any_duration(seconds):
    """Has a number and the right plural."""
    parts = [part.split() for part in messages.duration(seconds).split(" and ")]
    assert parts
    assert [] == [unit for number, unit in parts if (number == "1") is unit.endswith("s")]
