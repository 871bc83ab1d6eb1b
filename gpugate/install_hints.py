"""The commands, in error messages, that install what is missing."""

from __future__ import annotations

import os
import shlex
from pathlib import Path


def install_command(distribution: str, requirement: str = "") -> str:
    """Return the pip command that installs a distribution of this project.

    In a checkout that is its folder, with the extras that `requirement` has ("gpugate[telegram]"); elsewhere
    `requirement`, by default the distribution.
    """
    folder = checkout_folder(distribution)
    extras = requirement.removeprefix(distribution) if requirement.startswith(f"{distribution}[") else ""
    return f"pip install {shlex.quote(folder + extras if folder else requirement or distribution)}"


def checkout_folder(distribution: str) -> str | None:
    """Return the folder of a distribution, if gpugate or the current directory is a checkout that has it."""
    if Path(distribution).name != distribution:
        return None
    for root in (Path.cwd(), Path(__file__).resolve().parents[1]):
        folder = root if distribution == "gpugate" else root / "plugins" / distribution
        if (folder / "setup.cfg").is_file() and (root / "plugins").is_dir():
            inside = os.path.join(".", folder.relative_to(root)) if folder != root else "."
            return inside if root == Path.cwd() else str(folder)
    return None
