"""docs/write-a-provider.md says what is: its code is the example's, its commands exist, its settings load."""

from __future__ import annotations

import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpugate_testing.provider_validation import class_complaints

from gpugate.cli.parser import parse
from gpugate.config import structure_provider_config

REPO = Path(__file__).parents[3]
EXAMPLE = REPO / "examples" / "write-a-provider"
GUIDE = REPO / "docs" / "write-a-provider.md"
PAGES = (GUIDE, EXAMPLE / "README.md", REPO / "examples" / "pod" / "README.md")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of this language, without the indent of a list."""
    fenced = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(text) if indent else text for indent, text in fenced]


def commands() -> Iterator[str]:
    """Every line of every sh block."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            yield from (line.partition(" #")[0].strip() for line in block.splitlines() if line.strip())


def test_the_smallest_provider() -> None:
    """The first block is a whole provider, and a sound one."""
    scope: dict[str, type] = {"__name__": __name__}
    exec(compile(blocks(GUIDE, "python")[0], str(GUIDE), "exec"), scope)

    assert [] == class_complaints(scope["Mine"])


@pytest.mark.parametrize("block", [*blocks(GUIDE, "python")[1:], *blocks(GUIDE, "ini")])
def test_a_block_of_code(block: str) -> None:
    """It stands in the example, word for word."""
    files = [path.read_text() for path in (*EXAMPLE.rglob("*.py"), EXAMPLE / "setup.cfg")]

    assert any(block in text for text in files)


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_the_settings(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are accepted, and no key of the class is left out of the example's table."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from gpugate_wol import WolConfig

    (section,) = (tomllib.loads(block) for block in blocks(page, "toml"))
    config = structure_provider_config("wol", WolConfig, section["providers"]["wol"])
    table = (EXAMPLE / "README.md").read_text()

    assert "9c:6b:00:12:34:56" == config.mac
    assert [] == [key for key in WolConfig.__annotations__ if f"`{key}`" not in table]


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_a_command(command: str) -> None:
    """gpugate's parse as they stand; a folder that is named is there."""
    words = shlex.split(command)
    if words[0] == "gpugate":
        assert parse(words[1:]).command == words[1]
    for word in words:
        if "examples/" in word:
            assert (REPO / word.partition("[")[0]).exists()
    assert words[0] in ("gpugate", "pip", "python", "nohup")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_links(page: Path) -> None:
    """They lead somewhere."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())

    assert [] == [link for link in links if not (page.parent / link).exists()]


def test_the_variables_of_the_pods() -> None:
    """The README's table has every variable that a script reads, with its default."""
    table = PAGES[2].read_text()
    for name in ("runpod", "vastai"):
        text = (REPO / "examples" / "pod" / name / "start.sh").read_text()
        read = dict(re.findall(r"\$\{(GPUGATE_\w+):-([^}]*)\}", text))
        assert read
        for variable, default in read.items():
            (row,) = (line for line in table.splitlines() if line.startswith(f"| `{variable}`"))
            assert default == "" or default.startswith("https:") or f"| `{default}` |" in row
