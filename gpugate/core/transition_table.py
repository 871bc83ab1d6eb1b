"""Reads a machine's transition table out of the signatures of its methods.

A method marked `@transition`, `def f(self, was: Ready, event: PodInspected) -> Ready | Stopping`, is
two rows of the table; a type variable over states means "stays as it was". The annotations are the
only place where a transition is written down: the dispatcher, the completeness test and the diagram in
`docs/states.md` all read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from attrs import frozen

Method = TypeVar("Method", bound=Callable[..., Any])
TransitionKey = tuple[type[Any], type[Any]]


@frozen
class TransitionEntry:
    """What happens to one state on one event: the method's name, and the states it may lead to."""

    method: str
    leads_to: tuple[type[Any], ...]
    description: str


def transition(method: Method) -> Method:
    """Mark a method as rows of the table."""
    method.__transition__ = True  # type: ignore[attr-defined]
    return method


def _alternatives(annotation: Any, was: type[Any] | None = None) -> tuple[type[Any], ...]:
    """The states or events of an annotation; a type variable is all it may be, or the state `was`."""
    kinds: list[type[Any]] = []
    for part in get_args(annotation) or (annotation,):
        stays = part.__constraints__ if isinstance(part, TypeVar) else (part,)
        kinds += (was,) if was is not None and isinstance(part, TypeVar) else stays
    return tuple(dict.fromkeys(kinds))


def read_table(machine: type[Any]) -> Mapping[TransitionKey, TransitionEntry]:
    """Collect the rows of a machine class.

    Raises:
        TypeError: two methods claim the same cell.
    """
    table: dict[TransitionKey, TransitionEntry] = {}
    for name in dir(machine):
        method = getattr(machine, name, None)
        if not getattr(method, "__transition__", False):
            continue
        hints = get_type_hints(method)
        why = (method.__doc__ or "").strip().split("\n")[0]
        for state in _alternatives(hints["was"]):
            row = TransitionEntry(name, _alternatives(hints["return"], state), why)
            for event in _alternatives(hints["event"]):
                if (state, event) in table:
                    raise TypeError(f"{name} and {table[state, event].method} both claim {state}, {event}")
                table[state, event] = row
    return table
