"""docs/reference is as the code is: pages written from it are current, and no error is without advice."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from docs import generate
from gpugate import errors
from gpugate.providers import registry

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.parametrize("page", generate.PAGES)
def test_a_page_is_current(page: str) -> None:
    """`make reference` was run after the last change of a setting or command."""
    if missing := set(generate.PROVIDERS) - {plugin.name for plugin in registry.installed()}:
        pytest.skip(f"not installed: {', '.join(sorted(missing))}")
    current = generate.PAGES[page]() == (REFERENCE / page).read_text(encoding="utf-8")

    assert current, f"docs/reference/{page} is old: .venv/bin/python -m docs.generate"


def test_the_pages_have_their_parts() -> None:
    """Settings have defaults, secrets a mark; commands their arguments, also those below others."""
    settings, commands = (REFERENCE / page for page in ("settings.md", "commands.md"))

    assert '| `idle_timeout` | `"15m"` | stop the pod after' in settings.read_text(encoding="utf-8")
    assert "| `api_key` *secret* | " in settings.read_text(encoding="utf-8")
    assert "## gpugate token issue" in commands.read_text(encoding="utf-8")
    assert "| `--month YYYY-MM` | " in commands.read_text(encoding="utf-8")
    assert "--config FILE` |" not in commands.read_text(encoding="utf-8")


def test_every_error_has_advice() -> None:
    """docs/reference/errors.md has a row for each code that a client may get, and no other."""
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    codes = {kind.code for kind in classes if issubclass(kind, errors.GateError)}
    rows = re.findall(r"^\| `([A-Z_]+)` \|", (REFERENCE / "errors.md").read_text(encoding="utf-8"), re.M)

    assert sorted(codes) == sorted(rows), "docs/reference/errors.md"


def test_every_page_is_in_the_navigation() -> None:
    """A page of docs/ that mkdocs.yml does not name is found by nobody."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]

    assert [] == [page for page in pages if f" {page}\n" not in navigation]
