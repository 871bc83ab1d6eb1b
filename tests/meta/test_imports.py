"""What each package of gpugate may import, and that no class name stands twice in it."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from attrs import field, frozen

PACKAGE = Path(__file__).resolve().parents[2] / "gpugate"

IMPURE = frozenset(
    {"asyncio", "time", "logging", "random", "socket", "threading", "subprocess", "os", "ssl", "selectors"}
)


@frozen
class May:
    """What the modules of one package, or one module of the root, may import.

    Attributes:
        inside: packages of gpugate, or modules such as "relay.transport".
        outside: distributions.
        banned: modules of the standard library that they must not import.
    """

    inside: set[str] = field(factory=set)
    outside: set[str] = field(factory=set)
    banned: frozenset[str] = frozenset()


VALUES = {"errors", "provider_api"}
BASE = VALUES | {"tasks", "clock", "json_file", "install_hints", "wording"}

RULES: Mapping[str, May] = {
    "__init__": May(VALUES),
    "__main__": May({"cli", "signals"}),
    "errors": May(),
    "signals": May(),
    "wording": May(),
    "clock": May(),
    "json_file": May(outside={"orjson"}),
    "install_hints": May(),
    "tasks": May(),
    "provider_api": May({"errors"}, {"attrs", "aiohttp"}),
    "core": May(VALUES, {"attrs"}, IMPURE),
    "lifecycle": May(
        {
            *("core", "relay.transport", "billing.recorder", "billing.cost_math", "billing.model"),
            *("billing.start_times", *BASE),
        },
        {"attrs", "aiohttp", "orjson"},
    ),
    "fleet": May(
        {
            *("lifecycle", "config.schema", "billing.recorder", "proxy.forwarder"),
            *("core", "ollama.catalog_refresher", "ollama.catalog_responses", "ollama.routes"),
            *("ollama.validation", *BASE),
        },
        {"attrs"},
    ),
    "gateway": May(
        {"api", "billing", "config", "core", "fleet", "lifecycle", "observability", "proxy", *BASE},
        {"attrs", "aiohttp", "structlog"},
    ),
    "relay": May(BASE, {"attrs", "aiohttp", "multidict", "yarl"}),
    "providers": May(BASE, {"attrs", "aiohttp", "cattrs", "psutil"}),
    "config": May({"core", "lifecycle", *BASE}, {"attrs", "cattrs", "croniter", "apprise"}),
    "observability": May({"core", "lifecycle", *BASE}, {"structlog", "orjson", "attrs"}),
    "billing": May({"core", "lifecycle", "config", "observability", *BASE}, {"attrs", "structlog"}),
    "ollama": May({"core", "fleet", "lifecycle", "proxy", "relay", *BASE}, {"attrs", "aiohttp", "orjson"}),
    "proxy": May(
        {"core", "lifecycle", "relay", "ollama", "api", "billing.model", "config", *BASE},
        {"attrs", "aiohttp", "orjson", "jwt", "cryptography", "yarl"},
    ),
    "generation": May(
        {"core", "fleet", "lifecycle", "relay", "proxy", "api", "config", *BASE},
        {"attrs", "aiohttp", "orjson"},
    ),
    "api": May(
        {"core", "fleet", "lifecycle", "proxy", "billing", "generation", "observability", *BASE},
        {"attrs", "aiohttp", "aiohttp_sse", "orjson"},
    ),
    "metrics": May(
        {"api", "core", "lifecycle", "ollama", "proxy", *BASE}, {"attrs", "aiohttp", "prometheus_client"}
    ),
    "tracing": May(
        {"core", "lifecycle", "ollama", "proxy", *BASE}, {"attrs", "aiohttp", "opentelemetry", "structlog"}
    ),
    "operation": May(
        {
            *("api", "billing.reports", "bot.notifier", "config", "core", "lifecycle", "observability"),
            *("proxy", *BASE),
        },
        {"attrs", "aiohttp", "structlog", "croniter", "apprise"},
    ),
    "dashboard": May({"api", "proxy"}, {"aiohttp"}),
    "why": May(
        {"api", "billing", "core", "lifecycle", "observability", "proxy", *BASE}, {"attrs", "aiohttp"}
    ),
    "bot": May(
        {"core", "lifecycle", "billing", "generation", "api", "config", "observability", *BASE},
        {"attrs", "aiohttp", "aiogram", "orjson", "structlog"},
    ),
}
"""Everything but the composition root and `cli`, which import whatever they need."""

ROOTS = ("app", "pod_builder", "cli")


def modules() -> dict[str, Path]:
    """Return every module by its dotted name below `gpugate`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if len(parts) > 1 and parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


MODULES = modules()


def imports_of(path: Path) -> Iterator[str]:
    """Return the dotted names that a module imports, wherever in it, under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = ("gpugate", *path.relative_to(PACKAGE).parts)[: -node.level] if node.level else ()
            source = ".".join((*home, *([node.module] if node.module else [])))
            yield from (f"{source}.{alias.name}" for alias in node.names)


def module_of(imported: str) -> str | None:
    """Return the module of gpugate that has this name; None for other distributions and for the root."""
    top, _, name = imported.partition(".")
    while top == "gpugate" and name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name if top == "gpugate" and name else None


def offence(name: str, imported: str) -> str | None:
    """Return what is wrong with an import, or None."""
    home, top = name.split(".")[0], imported.split(".")[0]
    if top in ("gpugate_demo", "gpugate_testing"):
        return f"{name} imports {imported}"
    if home in ROOTS:
        return None
    may = RULES[home]
    if top == "gpugate":
        target = module_of(imported)
        if target is None or target.split(".")[0] == home:
            return None
        fine = any(target == one or target.startswith(f"{one}.") for one in may.inside)
        return None if fine else f"{name} imports {target}"
    if top in sys.stdlib_module_names:
        return f"{name} imports {imported}" if top in may.banned else None
    return None if top in may.outside else f"{name} imports {imported}"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_it_may(name: str) -> None:
    """By the rule of its package."""
    assert name.split(".")[0] in {*RULES, *ROOTS}, f"{name}: give it a rule"
    assert [] == [wrong for imported in imports_of(MODULES[name]) if (wrong := offence(name, imported))]


def test_a_wrong_import_is_noticed() -> None:
    """The test itself works."""
    assert "core.machine imports asyncio.sleep" == offence("core.machine", "asyncio.sleep")
    assert "core.machine imports lifecycle.status" == offence(
        "core.machine", "gpugate.lifecycle.status.LifecycleEvent"
    )
    assert "core.machine imports aiohttp.web" == offence("core.machine", "aiohttp.web")
    assert "proxy.server imports app" == offence("proxy.server", "gpugate.app.build")
    assert "cli.demo imports gpugate_demo.pod" == offence("cli.demo", "gpugate_demo.pod")
    assert None is offence("core.machine", "gpugate.provider_api.Phase")


def test_only_the_entry_imports_app_and_cli() -> None:
    """Nothing that `app` builds knows it."""
    importers = defaultdict(set)
    for name, path in MODULES.items():
        for imported in imports_of(path):
            importers[(module_of(imported) or "").split(".")[0]].add(name.split(".")[0])

    assert {"cli"} == importers["app"]
    assert {"app"} == importers["pod_builder"]
    assert {"__main__"} == importers["cli"] - {"cli"}


def test_no_import_cycle() -> None:
    """Between modules, imports under TYPE_CHECKING included."""
    graph = {
        name: {target for imported in imports_of(path) if (target := module_of(imported)) not in (None, name)}
        for name, path in MODULES.items()
    }
    while free := {
        name
        for name, targets in graph.items()
        if not targets & graph.keys() or not any(name in other for other in graph.values())
    }:
        for name in free:
            del graph[name]

    assert {} == {name: sorted(targets & graph.keys()) for name, targets in graph.items()}


def test_no_class_name_stands_twice() -> None:
    """A reader who searches for a class finds one."""
    places = defaultdict(set)
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].add(name)

    assert {} == {name: sorted(where) for name, where in places.items() if len(where) > 1}
