"""Every test asserts something whatever its parameters are: a row that asserts nothing always passes."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NEVER_EMPTY = {"range", "enumerate", "zip"}


def modules() -> dict[Path, ast.Module]:
    """All that is written for tests."""
    paths = (path for folder in ("tests", "plugins", "examples") for path in (ROOT / folder).rglob("*.py"))
    return {path: ast.parse(path.read_text()) for path in sorted(paths)}


def functions(trees: Iterable[ast.AST]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method in the trees."""
    return (node for tree in trees for node in ast.walk(tree) if isinstance(node, FUNCTIONS))


def called(node: ast.AST) -> set[str]:
    """The last names of all that is called in a piece of code."""
    calls = (call.func for call in ast.walk(node) if isinstance(call, ast.Call))
    return {getattr(func, "attr", "") or getattr(func, "id", "") for func in calls}


def asserts(node: ast.AST, helpers: set[str]) -> bool:
    """Whether there is an assertion somewhere in a piece of code."""
    return any(isinstance(each, ast.Assert) for each in ast.walk(node)) or bool(called(node) & helpers)


def asserting_helpers(trees: Iterable[ast.AST]) -> set[str]:
    """The names of functions that assert, themselves or through another one; `until` waits for a truth."""
    known = {"raises", "fail", "until"}
    calls: dict[str, set[str]] = defaultdict(set)
    for function in functions(trees):
        calls[function.name] |= {"fail"} if asserts(function, known) else called(function)
    found = set(known)
    while new := {name for name in calls.keys() - found if calls[name] & found}:
        found |= new
    return found


def is_certain(statement: ast.stmt, helpers: set[str]) -> bool:
    """Whether a statement asserts, whichever way the test goes."""

    def any_certain(body: Iterable[ast.stmt]) -> bool:
        return any(is_certain(each, helpers) for each in body)

    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.Match():
            return False
        case ast.If(body=body, orelse=otherwise):
            return any_certain(body) and any_certain(otherwise)
        case ast.For(iter=items, body=body) | ast.AsyncFor(iter=items, body=body):
            never_empty = isinstance(items, ast.Tuple | ast.List) or called(items) & NEVER_EMPTY
            return bool(never_empty) and any_certain(body)
        case ast.With(items=contexts, body=body) | ast.AsyncWith(items=contexts, body=body):
            return any(asserts(each, helpers) for each in contexts) or any_certain(body)
        case ast.Try(body=body, finalbody=last):
            return any_certain([*body, *last])
        case _:
            return not isinstance(statement, ast.While) and asserts(statement, helpers)


def idle_tests(trees: Iterable[ast.AST], helpers: set[str]) -> list[str]:
    """The tests that may come to their end without having asserted anything."""
    return [
        test.name
        for test in functions(trees)
        if test.name.startswith("test_") and not any(is_certain(each, helpers) for each in test.body)
    ]


def test_every_test_asserts() -> None:
    """Not only under an `if`, or in a loop over what may be empty."""
    trees = modules()
    helpers = asserting_helpers(trees.values())

    idle = [f"{path}: {name}" for path, tree in trees.items() for name in idle_tests([tree], helpers)]
    assert not idle, "these may end without an assertion"


@pytest.mark.parametrize(
    ("body", "is_idle"),
    [
        ("work()", True),
        ("if x:\n  assert y", True),
        ("if x:\n  assert y\nelse:\n  work()", True),
        ("for x in work():\n  assert x", True),
        ("while work():\n  assert x", True),
        ("def inner():\n  assert x", True),
        ("assert x", False),
        ("if x:\n  assert y\nelse:\n  assert z", False),
        ("for x in (1, 2):\n  assert x", False),
        ("with pytest.raises(E):\n  work()", False),
        ("with work():\n  assert x", False),
        ("async with work():\n  await until(x)", False),
        ("try:\n  assert x\nfinally:\n  work()", False),
    ],
)
def test_what_is_noticed(body: str, *, is_idle: bool) -> None:
    """The test of the test."""
    indented = "\n".join(f"  {line}" for line in body.splitlines())
    tree = ast.parse(f"async def test_x():\n{indented}")

    assert is_idle == bool(idle_tests([tree], asserting_helpers([tree])))
