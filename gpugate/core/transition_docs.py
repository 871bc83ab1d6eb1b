"""Writes `docs/states.md` from the transition table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from gpugate.core.states import STATUS, StateName
from gpugate.core.transitions import EVENTS, IGNORED, STATES, TABLE

_HEAD = """\
# The states of the pod

Written by `make states` from the signatures in `gpugate/core/transitions`; a test compares. The events of
tickets (RequestArrived, RequestFinished, ResponseStarted), of stops (StopAccepted, StopCallFailed) and of the
budget (BudgetUpdated) are handled by `core/request_queue.py`, `core/pending_stops.py` and
`core/request_queue.py`.
"""


def _edges() -> Iterator[tuple[str, str, list[str]]]:
    """Yield from, to, and the events that may lead there; without those that lead back to the same state."""
    for was in STATES:
        for then in STATES:
            events = [
                event.__name__
                for event in EVENTS
                if (entry := TABLE.get((was, event))) is not None and then in entry.leads_to
            ]
            if events and then is not was:
                yield was.__name__, then.__name__, events


def _diagram() -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield "    [*] --> Unknown"
    for was, then, events in _edges():
        yield f"    {was} --> {then}: {', '.join(events)}"
    yield "    ShutDown --> [*]"
    yield "```"


def _first_sentence(kind: type[Any]) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]


def _states() -> Iterator[str]:
    yield "| state | users see | what it is |"
    yield "|---|---|---|"
    for state in STATES:
        status = STATUS[StateName(state.__name__)]
        yield f"| {state.__name__} | {status or 'unknown'} | {_first_sentence(state)} |"


def _entries() -> Iterator[str]:
    yield "| state | event | what happens | leads to |"
    yield "|---|---|---|---|"
    for state in STATES:
        for event in EVENTS:
            entry = TABLE.get((state, event))
            if entry is not None:
                then = ", ".join(kind.__name__ for kind in STATES if kind in entry.leads_to)
                yield f"| {state.__name__} | {event.__name__} | {entry.description} | {then} |"
        ignored = [event.__name__ for event in EVENTS if event in IGNORED[state]]
        yield f"| {state.__name__} | | *without effect:* {', '.join(ignored)} | |"


def render() -> str:
    """Return the whole page."""
    parts = [_HEAD, *_diagram(), "", "## States", "", *_states(), "", "## Transitions", "", *_entries()]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
