"""Prints `docs/states.md` from the machine's transition table; knows nothing that the table does not say."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from gpugate.core.machine import EVENTS, STATES, PodMachine
from gpugate.core.states import STATUS

_HEAD = """\
# The pod's life

Written by `make states` from the signatures in `gpugate/core`; a test compares. Tickets (Arrived, Left,
Begun), stop orders (StopAccepted, StopCallFailed) and money (BudgetUpdated) have their own places:
`core/backlog.py`, `core/stops.py`, `core/purse.py`.
"""


def _edges() -> Iterator[tuple[str, str, list[str]]]:
    """From, to, and the events that may lead there; staying is left out."""
    for was in STATES:
        for then in STATES:
            events = [
                event.__name__
                for event in EVENTS
                if (row := PodMachine.TABLE.get((was, event))) is not None and then in row.leads_to
            ]
            if events and then is not was:
                yield was.__name__, then.__name__, events


def _diagram() -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield "    [*] --> Unknown"
    for was, then, events in _edges():
        yield f"    {was} --> {then}: {', '.join(events)}"
    yield "    Closed --> [*]"
    yield "```"


def _first_sentence(kind: type[Any]) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]


def _states() -> Iterator[str]:
    yield "| state | users see | what it is |"
    yield "|---|---|---|"
    for state in STATES:
        status = STATUS[state]
        yield f"| {state.__name__} | {status or 'unknown'} | {_first_sentence(state)} |"


def _rows() -> Iterator[str]:
    yield "| state | event | what happens | leads to |"
    yield "|---|---|---|---|"
    for state in STATES:
        for event in EVENTS:
            row = PodMachine.TABLE.get((state, event))
            if row is not None:
                then = ", ".join(kind.__name__ for kind in STATES if kind in row.leads_to)
                yield f"| {state.__name__} | {event.__name__} | {row.description} | {then} |"
        ignored = [event.__name__ for event in EVENTS if event in PodMachine.IGNORED[state]]
        yield f"| {state.__name__} | | *without effect:* {', '.join(ignored)} | |"


def render() -> str:
    """The whole page."""
    parts = [_HEAD, *_diagram(), "", "## States", "", *_states(), "", "## Transitions", "", *_rows()]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
