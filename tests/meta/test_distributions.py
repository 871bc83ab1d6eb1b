"""The distributions of this repository: what may import what, one version, the same build files."""

from __future__ import annotations

import ast
import configparser
import runpy
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = [ROOT, *sorted(ROOT.glob("plugins/*"))]
COPIES = ("LICENSE", "MANIFEST.in", "setup.py")
version_script = runpy.run_path(str(ROOT / ".ci" / "version.py"))
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


def test_each_distribution_has_its_copies() -> None:
    """A plugin is built from its own folder: licence and build files are there, and all the same."""
    different = {
        name: [folder.name for folder in DISTRIBUTIONS if (folder / name).read_bytes() != own]
        for name, own in ((name, (ROOT / name).read_bytes()) for name in COPIES)
    }

    assert {name: [] for name in COPIES} == different


def version_of(folder: Path) -> str:
    config = configparser.ConfigParser(interpolation=None)
    config.read(folder / "setup.cfg")
    return config["metadata"]["version"]


def test_one_version() -> None:
    """`make version` sets all of them: nothing is left to change when it sets the one that is there."""
    versions = {version_of(folder) for folder in DISTRIBUTIONS}

    assert 1 == len(versions)
    assert sorted(version_script["files"]()) == sorted(folder / "setup.cfg" for folder in DISTRIBUTIONS)
    for file in version_script["files"]():
        assert file.read_text() == version_script["moved"](file.read_text(), *versions)


def test_the_next_version() -> None:
    """The version and the range within which the distributions need each other move together."""
    moved = version_script["moved"](
        "version = 0.1.0\n    gpugate >=0.1,<0.2\n    gpugate-demo >=0.1,<0.2\n", "1.9.2"
    )

    assert "version = 1.9.2\n    gpugate >=1.9,<1.10\n    gpugate-demo >=1.9,<1.10\n" == moved
