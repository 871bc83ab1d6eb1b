"""What is found where its name says: tests beside their modules, public names, errors in their tree."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import gpugate
from gpugate import errors, provider_api

ROOT = Path(__file__).resolve().parents[2]
NO_MIRROR = {"e2e", "meta", "mutants", "months"}
"""Folders about the whole."""

STORIES = {
    "config": {"secret_files"},
    "core": {"boot", "lives", "processor", "queue", "ready", "starting", "stopping", "warming"},
    "pod": {"lease", "start_scripts"},
    "providers": {"inherited", "output_log", "process_tree"},
    "relay": {"declined", "hangups", "upload"},
    "billing": {"killed_at_any_time", "money", "stale_starts"},
    "lifecycle": {"bad_neighbours", "idle_policies", "odd_reports", "output", "processor", "stubborn_stops"},
}
"""Tests about several modules of a room at once, told by what happens."""


def modules_of_tests() -> Iterator[tuple[str, str]]:
    """The room and the subject of every test module below `tests`."""
    for path in sorted((ROOT / "tests").glob("*/**/test_*.py")):
        room = path.parent.relative_to(ROOT / "tests")
        if room.parts[0] not in NO_MIRROR:
            yield room.as_posix(), path.stem.removeprefix("test_")


@pytest.mark.parametrize(("room", "subject"), list(modules_of_tests()))
def test_a_test_module_has_a_subject(room: str, subject: str) -> None:
    """It is named after a module (or a part of one: `ollama_pod`), or listed as a story."""
    modules = [path.stem for path in (ROOT / "gpugate" / room).glob("*.py")]
    named = any(subject == module or subject.startswith(f"{module}_") for module in modules)

    assert named or subject in STORIES.get(room, ()), f"tests/{room}/test_{subject}.py: mirror or list it"


def test_the_list_of_stories_is_not_stale() -> None:
    """What it lists is there."""
    listed = {(room, subject) for room, subjects in STORIES.items() for subject in subjects}

    assert set() == listed - set(modules_of_tests())


def own_classes(module: ModuleType) -> dict[str, type]:
    """The public classes that a module defines."""
    return {
        name: kind
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == module.__name__ and not name.startswith("_")
    }


def test_the_public_names() -> None:
    """`gpugate` has all that a plugin's author needs: the port's classes and the errors to raise."""
    port = set(own_classes(provider_api)) - {"NoConfig"}  # stands where a provider has none; nobody writes it
    raised = {name for name, kind in own_classes(errors).items() if issubclass(kind, errors.ProviderError)}

    assert sorted(port | raised | {"Duration", "Size"}) == sorted(gpugate.__all__)
    assert all(hasattr(gpugate, name) for name in gpugate.__all__)


def drawn_tree() -> dict[str, str | None]:
    """Each error of the drawing in `errors.py`, with the one that it hangs on."""
    parents: dict[str, str | None] = {}
    branch: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"([│├└─ ]*)([A-Z]\w+)(?:  |$)", line):
            depth, name = len(found[1]), found[2]
            while branch and branch[-1][0] >= depth:
                branch.pop()
            parents[name] = branch[-1][1] if branch else None
            branch.append((depth, name))
    return parents


def test_the_tree_of_errors() -> None:
    """The drawing shows every error, and each where it is."""
    classes = own_classes(errors)
    real = {
        name: kind.__base__.__name__ if kind.__base__ in classes.values() else None
        for name, kind in classes.items()
        if kind.__base__ is not None
    }

    assert real == drawn_tree()


def test_every_error_says_what_it_is() -> None:
    """In a docstring of its own, and a client's error with a code and words of its own."""
    kinds = own_classes(errors)
    told = {name: kind for name, kind in kinds.items() if issubclass(kind, errors.GateError)}
    last = {name: kind for name, kind in told.items() if not kind.__subclasses__()}
    assert last
    assert [] == [name for name, kind in kinds.items() if "__doc__" not in vars(kind)]
    assert [] == [name for name, kind in last.items() if not kind().message]
    assert [] == [name for name, kind in last.items() if not re.fullmatch(r"[A-Z_]+", kind.code)]
