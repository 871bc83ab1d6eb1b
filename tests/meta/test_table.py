"""The transition table is complete, says no more than is true, and is the one in the docs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from gpugate.core import events, states
from gpugate.core.events import Cause, UpstreamFailed
from gpugate.core.machine import PodMachine
from gpugate.core.states import Ready, State, StateName, Stopped
from gpugate.core.transition_docs import render
from gpugate.core.transition_table import read_table, transition
from gpugate.core.transitions import EVENTS, HANDLED_BY_PARTS, IGNORED, STATES, TABLE

ROOT = Path(__file__).resolve().parents[2]


def test_every_cell_is_decided_once() -> None:
    """Rows and IGNORED together are all states times all events, and no cell is both."""
    ignored = {(state, event) for state, events in IGNORED.items() for event in events}
    assert set(TABLE) & ignored == set()
    assert set(TABLE) | ignored == {(state, event) for state in STATES for event in EVENTS}


def test_every_state_and_event_takes_part() -> None:
    """The lists hold every word of the two unions."""
    assert set(STATES) == set(get_args(State))
    assert set(EVENTS) | set(HANDLED_BY_PARTS) == set(get_args(events.Event))


def test_every_name_is_that_of_its_class() -> None:
    """The enums that leave the core name each state and each event, and nothing else."""
    assert [state.__name__ for state in STATES] == list(StateName)
    assert [event.__name__ for event in get_args(events.Event)] == list(Cause)


def test_every_row_is_told() -> None:
    """Each has a sentence and leads to states only; the random lives hold it to them."""
    assert TABLE
    assert [] == [row for row in TABLE.values() if not row.description.endswith(".")]
    assert [] == [row for row in TABLE.values() if not set(row.leads_to) <= set(STATES)]


def test_every_state_can_be_reached_and_left() -> None:
    """Only the first has no way in, only the last has no way out."""
    ways = {(was, then) for (was, _), row in TABLE.items() for then in row.leads_to if then is not was}
    assert set(STATES) - {then for _, then in ways} == {states.Unknown}
    assert states.Stopping in {then for was, then in ways if was is states.ShutDown}
    assert set(STATES) - {was for was, _ in ways} == set()


def test_two_functions_for_one_state_and_event() -> None:
    """That is refused when the table is read."""

    @transition
    def one(pod: PodMachine, was: Ready, event: UpstreamFailed, now: float) -> Ready:
        return was

    @transition
    def two(pod: PodMachine, was: Ready | Stopped, event: UpstreamFailed, now: float) -> Stopped:
        return Stopped()

    with pytest.raises(TypeError, match="two and one are both declared"):
        read_table(SimpleNamespace(one=one, two=two))


def test_the_page_in_the_docs() -> None:
    """`make states` was run after the last change."""
    assert (ROOT / "docs/states.md").read_text() == render()
