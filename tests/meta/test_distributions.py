"""What may import what across the distributions of this repository."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOR_PLUGINS = {"gpugate", "gpugate.provider_api", "gpugate.errors", "gpugate.tasks"}
FOR_PLUGINS_WITH_A_PROCESS = FOR_PLUGINS | {"gpugate.providers.supervised_process"}


def _imports(folder: Path) -> Iterator[tuple[str, str]]:
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                yield file.name, node.module
            elif isinstance(node, ast.Import):
                yield from ((file.name, alias.name) for alias in node.names)


def test_gpugate_imports_no_other_distribution():
    """The wheel of gpugate works alone; it finds providers and commands by entry points."""
    others = {path.name for path in ROOT.glob("plugins/*/gpugate_*")}

    assert {"gpugate_demo", "gpugate_testing"} <= others
    assert [] == [found for found in _imports(ROOT / "gpugate") if found[1].split(".")[0] in others]


def test_the_demo_imports_only_what_plugins_may():
    """It is a plugin like any other: the public names, and the supervised process."""
    imported = {name for _, name in _imports(ROOT / "plugins/gpugate-demo/gpugate_demo")}

    assert (
        set() == {name for name in imported if name.split(".")[0] == "gpugate"} - FOR_PLUGINS_WITH_A_PROCESS
    )
