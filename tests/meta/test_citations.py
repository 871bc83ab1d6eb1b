"""What is cited exists: `docs/….md#heading` in code, configuration and Markdown, and every relative link."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
_CITATION = re.compile(r"(?<![\w/.-])(docs/[\w./-]+?\.md)(?:#([\w-]+))?")
_LINK = re.compile(r"\]\(\s*<?([^()\s<>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_REFERENCE = re.compile(r"^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
_FENCE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*$", re.MULTILINE)
_ANCHOR = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)
_FORBIDDEN = re.compile(
    r"\bfacts/|\bcontract sections? \d|\bcontract \d|\bhouse\.md|\bseed 00\d|\bhot-path\.md"
)


def files(*endings: str) -> list[Path]:
    """Those of the repository, without what is built or installed in it."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout
        found = [ROOT / name for name in names.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # an unpacked sdist
        hidden = {".venv", ".git", "build", "dist", "node_modules"}
        found = [path for path in ROOT.rglob("*") if not hidden & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in found if path.suffix in endings and path.is_file())


def without_code(text: str) -> str:
    """Markdown without its code, whose brackets are no links."""
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", _FENCE.sub("", text))


@cache
def anchors_of(path: Path) -> frozenset[str]:
    """The anchors that GitHub gives the headings of this file."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    anchors: set[str] = set(_ANCHOR.findall(text))
    for heading in _HEADING.findall(text):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        number, free = 0, slug
        while free in anchors:
            number += 1
            free = f"{slug}-{number}"
        anchors.add(free)
    return frozenset(anchors)


def problem_of(target: Path, anchor: str) -> str | None:
    """What is wrong with a reference to `anchor` (may be empty) of `target`."""
    if not target.exists():
        return "there is no such file"
    if anchor and target.suffix == ".md" and anchor not in anchors_of(target):
        return "there is no such heading"
    return None


def broken_citations(path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for name, anchor in _CITATION.findall(line):
            if problem := problem_of(ROOT / name, anchor):
                yield f"{path.relative_to(ROOT)}:{number}: {name}#{anchor}: {problem}"


def broken_links(path: Path) -> Iterator[str]:
    text = without_code(path.read_text(encoding="utf-8"))
    for link in [*_LINK.findall(text), *_REFERENCE.findall(text)]:
        if _ELSEWHERE.match(link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.is_relative_to(ROOT):
            yield f"{path.relative_to(ROOT)}: {link}: leads out of the repository"
        elif problem := problem_of(target, anchor):
            yield f"{path.relative_to(ROOT)}: {link}: {problem}"


def test_citations() -> None:
    """Each names a page of `docs/`, and a heading of it."""
    assert [
        broken for path in files(".py", ".cfg", ".toml", ".md") for broken in broken_citations(path)
    ] == []


def test_links() -> None:
    """Each relative link in Markdown leads to a file, and to a heading of it."""
    assert [broken for path in files(".md") for broken in broken_links(path)] == []


def test_nothing_else_is_cited() -> None:
    """Sources that a reader of the repository does not have are not named."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files(".py", ".cfg", ".toml", ".md", ".sh")
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if _FORBIDDEN.search(line)
    ]
    assert found == []


def test_that_something_is_cited() -> None:
    """The patterns still find what they are for."""
    cited = {name for path in files(".py") for name, _ in _CITATION.findall(path.read_text(encoding="utf-8"))}
    assert {"docs/api.md", "docs/ollama.md", "docs/providers.md", "docs/telegram-comfyui.md"} <= cited


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("RunPod: pod object", "runpod-pod-object"),
        ("Vast.ai: API", "vastai-api"),
        ("`[pod]` and _more_", "pod-and-_more_"),
        ("A [link](x.md) in it", "a-link-in-it"),
        ("Same", "same-1"),
    ],
)
def test_anchors(tmp_path: Path, heading: str, anchor: str) -> None:
    """They are GitHub's; a heading that comes twice is numbered, and code has none."""
    page = tmp_path / "page.md"
    page.write_text(f"# Same\n\n```\n# no heading\n```\n\n## {heading}\n")

    assert anchor in anchors_of(page)
    assert "no-heading" not in anchors_of(page)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("[a](other.md)", 0),
        ("[a](other.md#there)", 0),
        ("[a](#here) and [b](https://example.org/x#y)", 0),
        ("`[a](no.md)`", 0),
        ("[a](no.md)", 1),
        ("[a](other.md#not-there)", 1),
        ("[a](#not-here)", 1),
        ("[![image](no.png)](other.md)", 1),
        ("[a]: no.md", 1),
        ("[a](../../outside.md)", 1),
    ],
)
def test_what_is_a_broken_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, broken: int
) -> None:
    """Only what a reader could follow in the repository counts."""
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# There\n")
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n\n{text}\n")

    assert len(list(broken_links(page))) == broken
