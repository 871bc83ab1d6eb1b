"""Reads the transition table out of the signatures of the functions in `core/transitions/`.

A function marked `@transition`,

    def idle_deadline(pod: PodMachine, was: Ready, event: DeadlineReached, now: float) -> Draining | Stopping:

makes an entry of the table for each pair of a `was` and an `event`. A type variable over states, as `was` and
as the result, means "stays as it was". The annotations are the only place where a transition is declared: the
machine, the completeness test and the diagram in `docs/states.md` all read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar, get_args, get_type_hints

from attrs import frozen

Function = TypeVar("Function", bound=Callable[..., Any])
TransitionKey = tuple[type[Any], type[Any]]


@frozen
class TransitionEntry:
    """What happens to one state on one event: the function, the states it may return, and its description."""

    function: Callable[..., Any]
    leads_to: tuple[type[Any], ...]
    description: str


TransitionTable = Mapping[TransitionKey, TransitionEntry]


def transition(function: Function) -> Function:
    """Mark a function as entries of the table."""
    function.__transition__ = True  # type: ignore[attr-defined]
    return function


def _alternatives(annotation: Any, was: type[Any] | None = None) -> tuple[type[Any], ...]:
    """Return the classes of an annotation; for a type variable its constraints, or the state `was`."""
    kinds: list[type[Any]] = []
    for part in get_args(annotation) or (annotation,):
        stays = part.__constraints__ if isinstance(part, TypeVar) else (part,)
        kinds += (was,) if was is not None and isinstance(part, TypeVar) else stays
    return tuple(dict.fromkeys(kinds))


def read_table(*modules: ModuleType | SimpleNamespace) -> TransitionTable:
    """Collect the entries of these modules.

    Raises:
        TypeError: two functions are declared for the same state and event.
    """
    table: dict[TransitionKey, TransitionEntry] = {}
    for module in modules:
        for function in vars(module).values():
            if getattr(function, "__transition__", False):
                _add(table, function)
    return table


def _add(table: dict[TransitionKey, TransitionEntry], function: Callable[..., Any]) -> None:
    hints = get_type_hints(function)
    description = (function.__doc__ or "").strip().split("\n")[0]
    for state in _alternatives(hints["was"]):
        entry = TransitionEntry(function, _alternatives(hints["return"], state), description)
        for event in _alternatives(hints["event"]):
            if (state, event) in table:
                other = table[state, event].function.__name__
                raise TypeError(f"{function.__name__} and {other} are both declared for {state}, {event}")
            table[state, event] = entry
