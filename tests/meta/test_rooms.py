"""Who may know whom: a wrong import is a red test, not a review comment."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import field, frozen

PACKAGE = Path(__file__).resolve().parents[2] / "gpugate"

IMPURE = {
    "asyncio",
    "time",
    "logging",
    "random",
    "socket",
    "threading",
    "subprocess",
    "os",
    "ssl",
    "selectors",
}


@frozen
class Room:
    """What the modules of one room may import.

    Attributes:
        rooms: of gpugate: a room, or a module such as "services.news".
        outside: distributions.
        banned: parts of the standard library that are out of bounds.
    """

    rooms: set[str] = field(factory=set)
    outside: set[str] = field(factory=set)
    banned: set[str] = field(factory=set)


CLI = {"cli", "wiring", "__main__", "signals"}
EVERYTHING = {
    "core",
    "ports",
    "services",
    "relay",
    "web",
    "observe",
    "providers",
    "simulated",
    "settings",
    "adapters",
    "errors",
    "testing",
}

ROOMS: dict[str, Room] = {
    "errors": Room(),
    "ports": Room({"errors"}, {"attrs", "aiohttp"}),
    "core": Room(
        {"errors", "ports.provider", "ports.ledger", "ports.habits", "ports.intents"}, {"attrs"}, IMPURE
    ),
    "services": Room({"core", "ports", "errors"}, {"attrs", "orjson"}, {"logging", "socket"}),
    "relay": Room({"errors", "ports", "services.tasks"}, {"attrs", "aiohttp", "multidict", "yarl"}),
    "settings": Room({"core.policy", "errors", "ports"}, {"attrs", "cattrs"}),
    "web": Room(
        {"services", "relay", "ports", "errors", "core.vocabulary", "core.costs"},
        {"attrs", "aiohttp", "aiohttp_sse", "orjson", "jwt", "cryptography", "multidict", "yarl"},
    ),
    "adapters": Room({"ports", "errors", "relay", "services.tasks"}, {"attrs", "aiohttp", "orjson"}),
    "bot": Room({"services", "ports", "errors"}, {"attrs", "aiohttp", "aiogram", "structlog"}),
    "providers": Room(
        {"ports", "errors", "simulated", "services.tasks"}, {"attrs", "aiohttp", "cattrs", "orjson"}
    ),
    "simulated": Room({"ports", "errors", "services.tasks"}, {"attrs", "aiohttp", "multidict", "orjson"}),
    "observe": Room({"services.news", "core.vocabulary", "errors"}, {"structlog", "orjson", "attrs"}),
    "testing": Room(
        {"core", "ports", "errors", "services.tasks"},
        {"attrs", "pytest", "aiohttp", "aiogram", "multidict", "orjson"},
    ),
    "wiring_bot": Room(EVERYTHING | {"bot"}, {"attrs", "aiohttp", "structlog"}),
    "wiring_settings": Room({"core", "ports", "settings", "services"}, {"attrs"}),
    "wiring": Room(
        EVERYTHING | {"wiring_bot", "wiring_settings"}, {"attrs", "aiohttp", "structlog", "orjson"}
    ),
    "cli": Room(EVERYTHING | CLI, {"attrs", "aiohttp", "structlog", "uvloop", "orjson", "jwt", "cattrs"}),
    "__main__": Room({"cli", "signals"}),
    "signals": Room(),
    "__init__": Room({"errors", "ports"}),
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module: its dotted name below `gpugate`, and its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if len(parts) > 1 and parts[-1] == "__init__":
            parts.pop()
        yield ".".join(parts), path


def imports_of(path: Path) -> Iterator[str]:
    """The dotted names that a module imports, wherever in it; type-checking blocks left out."""
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = ("gpugate", *path.relative_to(PACKAGE).parts)[: -node.level] if node.level else ()
            source = ".".join((*home, *([node.module] if node.module else [])))
            yield from (f"{source}.{alias.name}" for alias in node.names)
        todo.extend(ast.iter_child_nodes(node))


def trespass(name: str, imported: str) -> str | None:
    """Say what is wrong with this import, if anything is."""
    home = name.split(".")[0]
    room = ROOMS[home]
    top, _, rest = imported.partition(".")
    if top == "gpugate":
        target = rest or "__init__"
        inside = target.split(".")[0] == home
        allowed = inside or any(target == may or target.startswith(f"{may}.") for may in room.rooms)
        if not allowed and target.split(".")[0] in {name.split(".")[0] for name, _ in modules()}:
            return f"{name} knows {imported}"
        return None
    if top in sys.stdlib_module_names:
        return f"{name} uses {imported}" if top in room.banned else None
    return None if top in room.outside else f"{name} needs {imported}"


@pytest.mark.parametrize(
    ("name", "path"), list(modules()), ids=lambda value: str(value) if "." in str(value) else None
)
def test_a_module_stays_in_its_room(name: str, path: Path) -> None:
    """It imports what its room may know, and nothing else."""
    assert name.split(".")[0] in ROOMS, f"{name}: no such room"
    assert [wrong for imported in imports_of(path) if (wrong := trespass(name, imported))] == []


def test_a_wrong_import_is_noticed() -> None:
    """The watchman is awake."""
    assert trespass("core.machine", "asyncio.sleep") == "core.machine uses asyncio.sleep"
    assert (
        trespass("core.machine", "gpugate.lifecycle.event_bus.LifecycleEvent")
        == "core.machine knows gpugate.lifecycle.event_bus.News"
    )
    assert trespass("services.lease", "aiohttp.web") == "services.lease needs aiohttp.web"
    assert trespass("web.app", "gpugate.app.build") == "web.app knows gpugate.app.build"
    assert trespass("observe.log", "gpugate.lifecycle.lifecycle.Lifecycle") is not None
    assert trespass("core.engine", "gpugate.provider_api.Phase") is None
