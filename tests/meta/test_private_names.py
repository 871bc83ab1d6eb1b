"""No private name of a dependency is used: a release of it may take such a name away without a word."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("gpugate", "plugins", "tests", "simulation", "benchmarks", "examples")
PLUGINS = {"gpugate_runpod", "gpugate_vastai", "gpugate_kubernetes", "gpugate_wol"}
OURS = {"gpugate", *PLUGINS, "simulation", "benchmarks", "tests"}
BY_NAME = {"getattr", "setattr", "hasattr", "delattr"}
STANDARD = {"_exit"}
"""Names of the standard library that are documented in spite of their underscore."""


def sources() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def is_own_object(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def defined(tree: ast.AST) -> Iterator[str]:
    """The names that a module of ours gives to functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own_object(node.value)
        ):
            yield node.attr


def foreign_imports(tree: ast.AST) -> dict[str, str]:
    """The names that a module imports from other distributions, with their origin."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            pairs = [(alias.asname or alias.name.split(".")[0], alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            pairs = [(alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names]
        else:
            continue
        for name, origin in pairs:
            top = origin.split(".")[0]
            if top not in OURS and top not in sys.stdlib_module_names:
                found[name] = origin
    return found


def root_of(node: ast.expr) -> str:
    """The first name of `a.b.c`, empty if it begins with something else."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def private_names(tree: ast.AST, ours: set[str]) -> Iterator[str]:
    """What a module uses of others that is private there: imports, attributes, attributes by name.

    An attribute counts when its object is imported from a dependency, or when its name is defined nowhere
    among `ours`, so that it can only be a dependency's. Not seen: a dependency's private attribute of an
    object that is not imported, where the name happens to be one of ours as well.
    """
    foreign = foreign_imports(tree)
    for origin in foreign.values():
        if any(map(is_private, origin.split("."))):
            yield origin
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name, owner = node.attr, node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_NAME:
            if len(node.args) < 2 or not isinstance(node.args[1], ast.Constant):
                continue
            name, owner = str(node.args[1].value), node.args[0]
        else:
            continue
        if is_private(name) and (name not in ours or root_of(owner) in foreign):
            yield ast.unparse(node)


def names_of_ours() -> set[str]:
    return STANDARD | {name for path in sources() for name in defined(ast.parse(path.read_text()))}


OWN_NAMES = names_of_ours()


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_private_name(path: Path) -> None:
    """Neither in the package nor in the plugins, the tests, the examples."""
    assert [] == list(private_names(ast.parse(path.read_text()), OWN_NAMES))


@pytest.mark.parametrize(
    "text",
    [
        "from aiohttp.web_protocol import _ErrInfo",
        "from jwt._private import thing",
        "import orjson._impl",
        "def f(request): request._task_handler.cancel()",
        "class Mine(RequestHandler):\n def f(self): self._keepalive_handle = None",
        "import structlog\nstructlog._config.reset()",
        "import aiogram\naiogram.bot._session",
        "def f(request): return getattr(request, '_payload')",
    ],
)
def test_a_private_name_is_noticed(text: str) -> None:
    """However it is reached."""
    assert list(private_names(ast.parse(text), {"_session"}))


def test_names_of_ours_are_not() -> None:
    """Our own classes may know each other in a test; names with two underscores are the language's."""
    text = "import aiohttp\ndef f(pool): return pool._session, aiohttp.__version__, getattr(pool, '__doc__')"
    assert [] == list(private_names(ast.parse(text), {"_session"}))


def subclasses_of_foreign() -> Iterator[type]:
    """The classes of the package that are derived from a dependency's."""
    for path in sorted((ROOT / "gpugate").rglob("*.py")):
        tree = ast.parse(path.read_text())
        foreign = foreign_imports(tree)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(root_of(base) in foreign for base in node.bases):
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                yield getattr(importlib.import_module(module), node.name)


def private_of_self(kind: type) -> set[str]:
    """The private names that a class itself has, or uses of `self`."""
    tree = ast.parse(inspect.getsource(kind))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for name in used | set(vars(kind)) if is_private(name)} - {"_abc_impl"}  # ABCMeta's


@pytest.mark.parametrize("kind", list(subclasses_of_foreign()), ids=lambda kind: kind.__name__)
def test_no_private_name_is_inherited(kind: type) -> None:
    """A class that is derived from a dependency's neither uses nor overrides what is private there."""
    known = OURS | sys.stdlib_module_names
    foreign = [base for base in kind.__mro__[1:] if base.__module__.split(".")[0] not in known]
    assert foreign
    own = private_of_self(kind)
    assert {} == {base: shared for base in foreign if (shared := own & private_of_self(base))}
