"""The transition table is complete, says no more than is true, and is the one in the docs."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from gpugate.core import events, states
from gpugate.core.events import UpstreamFailed
from gpugate.core.machine import EVENTS, STATES, PodMachine
from gpugate.core.states import Ready, State, Stopped
from gpugate.core.transition_docs import render
from gpugate.core.transition_table import read_table, transition

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {
    "RequestArrived",
    "RequestFinished",
    "ResponseStarted",
    "BudgetUpdated",
    "StopAccepted",
    "StopCallFailed",
}
"""Events of tickets, of money and of stop orders: the table does not decide on them."""


def test_every_cell_is_decided_once() -> None:
    """Rows and IGNORED together are all states times all events, and no cell is both."""
    ignored = {(state, event) for state, events in PodMachine.IGNORED.items() for event in events}
    assert set(PodMachine.TABLE) & ignored == set()
    assert set(PodMachine.TABLE) | ignored == {(state, event) for state in STATES for event in EVENTS}


def test_every_state_and_event_takes_part() -> None:
    """The lists hold every word of the two unions."""
    assert set(STATES) == set(get_args(State))
    assert {event.__name__ for event in EVENTS} | OUTSIDE == {
        event.__name__ for event in get_args(events.Event)
    }


def test_every_row_is_told() -> None:
    """Each has a sentence and leads to states only; the random lives hold it to them."""
    for row in PodMachine.TABLE.values():
        assert row.description.endswith("."), row.method
        assert set(row.leads_to) <= set(STATES), row.method


def test_every_state_can_be_reached_and_left() -> None:
    """Only the first has no way in, only the last has no way out."""
    ways = {
        (was, then) for (was, _), row in PodMachine.TABLE.items() for then in row.leads_to if then is not was
    }
    assert set(STATES) - {then for _, then in ways} == {states.Unknown}
    assert states.Stopping in {then for was, then in ways if was is states.ShutDown}
    assert set(STATES) - {was for was, _ in ways} == set()


def test_two_methods_claim_one_cell() -> None:
    """That is refused when the class is read."""

    class Torn:
        @transition
        def _one(self, was: Ready, event: UpstreamFailed, now: float) -> Ready:
            return was

        @transition
        def _two(self, was: Ready | Stopped, event: UpstreamFailed, now: float) -> Stopped:
            return Stopped()

    with pytest.raises(TypeError, match="both claim"):
        read_table(Torn)


def test_the_page_in_the_docs() -> None:
    """`make states` was run after the last change."""
    assert (ROOT / "docs/states.md").read_text() == render()
