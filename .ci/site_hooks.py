"""Hooks of `mkdocs.yml`: what docs/ links to elsewhere in the repository is a page of the site, too.

So the same relative links lead somewhere in a checkout, on a forge and in the site.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = "repository"
"""The folder of the site that has the pages from outside docs/."""

_LINK = re.compile(r"(\]\(\s*<?)([^()\s<>#]+)")
_URL = re.compile(r"[a-z][a-z0-9+.-]*:|/", re.IGNORECASE)
_CODE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1[ \t]*$|(`+)(?!`).+?(?<!`)\2(?!`)", re.MULTILINE | re.DOTALL)
_DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "python", ".sh": "sh", ".toml": "toml", ".yml": "yaml", ".yaml": "yaml", ".json": "json"}


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add a page for each file outside docs/ that a page links to, and for what those link to in turn."""
    to_read = [_path_of(file.src_uri) for file in files.documentation_pages()]
    while to_read:
        path = to_read.pop()
        for target in _outside_links(path):
            uri = _uri_of(target)
            if uri not in files.src_uris:
                files.append(File.generated(config, uri, content=_content_of(target)))
                if target.endswith(".md"):
                    to_read.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links that leave docs/ to the pages of `on_files`, and fold the source of diagrams."""
    here = page.file.src_uri
    path = _path_of(here)

    def lead(match: re.Match[str]) -> str:
        target = _target_of(path, match[2])
        if target is None:
            return match[0]
        return match[1] + posixpath.relpath(_uri_of(target), posixpath.dirname(here) or ".")

    return _DIAGRAM.sub(_folded, _outside_code(markdown, lambda text: _LINK.sub(lead, text)))


def _folded(diagram: re.Match[str]) -> str:
    """Fold a diagram: drawing it needs a script from elsewhere, which the site does not load."""
    source = "".join(f"    {line}\n" for line in ["```text", *diagram[1].splitlines(), "```"])
    return f'??? note "The diagram, as Mermaid source"\n\n{source}'


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    parts, end = [], 0
    for code in _CODE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])


def _outside_links(path: str) -> Iterator[str]:
    text = _CODE.sub("", (ROOT / path).read_text(encoding="utf-8"))
    for match in _LINK.finditer(text):
        target = _target_of(path, match[2])
        if target is not None and not target.startswith("docs/"):
            yield target


def _target_of(path: str, link: str) -> str | None:
    """Return the file of the repository that a relative link of `path` leads to; a folder's is its README."""
    if _URL.match(link):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    if (ROOT / target / "README.md").is_file():
        return f"{target}/README.md"
    return target if (ROOT / target).exists() and not target.startswith("..") else None


def _path_of(uri: str) -> str:
    inner = uri.removeprefix(f"{ELSEWHERE}/")
    return inner if inner != uri else f"docs/{uri}"


def _uri_of(target: str) -> str:
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return f"{ELSEWHERE}/{target}" if target.endswith(".md") else f"{ELSEWHERE}/{target}.md"


def _content_of(target: str) -> str:
    path = ROOT / target
    if path.is_dir():
        names = sorted(inner.name for inner in path.iterdir() if not inner.name.startswith((".", "__")))
        return f"# {target}\n\n" + "".join(f"- `{name}`\n" for name in names)
    text = path.read_text(encoding="utf-8")
    if target.endswith(".md"):
        return text
    return f"# {target}\n\n````{_LANGUAGES.get(path.suffix, 'text')}\n{text}````\n"
