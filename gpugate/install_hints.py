"""The commands, in error messages, that install what is missing."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit


def install_command(name: str, requirement: str = "") -> str:
    """Return the pip command that installs a distribution of this project.

    In a checkout that is its folder, with the extras that `requirement` has ("gpugate[telegram]"); elsewhere
    `requirement`, by default the distribution.
    """
    folder = checkout_folder(name)
    extras = requirement.removeprefix(name) if requirement.startswith(f"{name}[") else ""
    return f"pip install {shlex.quote(folder + extras if folder else requirement or name)}"


def checkout_folder(name: str) -> str | None:
    """Return the folder of a distribution in a checkout of this project; None if there is no checkout.

    Looked at are the current folder, and the one that gpugate runs in or was installed from.
    """
    if Path(name).name != name:
        return None
    for root in _roots():
        folder = root if name == "gpugate" else root / "plugins" / name
        if (folder / "setup.cfg").is_file() and (root / "plugins").is_dir():
            inside = os.path.join(".", folder.relative_to(root)) if folder != root else "."
            return inside if root == Path.cwd() else str(folder)
    return None


def _roots() -> Iterator[Path]:
    yield Path.cwd()
    yield Path(__file__).resolve().parents[1]
    try:
        source = json.loads(distribution("gpugate").read_text("direct_url.json") or "{}").get("url", "")
    except (PackageNotFoundError, ValueError):
        return
    if source.startswith("file://"):  # written by pip for what came from a folder
        yield Path(unquote(urlsplit(source).path))
