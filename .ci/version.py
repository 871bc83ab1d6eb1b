"""Gives every distribution of this repository one version: `python .ci/version.py 0.2.0`.

Where it stands: `version` in each setup.cfg, and the range in which the distributions need each other.
Without a version, prints the present one. Ends with status 1 and one line if it is no version.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.compile(r"^version = (.*)$", re.MULTILINE)
RANGE = re.compile(r"^( +gpugate[a-z-]*) >=[0-9.]+,<[0-9.]+$", re.MULTILINE)


def files() -> list[Path]:
    """Return every setup.cfg, gpugate's own first."""
    return [ROOT / "setup.cfg", *sorted(ROOT.glob("plugins/*/setup.cfg"))]


def moved(text: str, version: str) -> str:
    """Return a setup.cfg with this version; distributions fit together within one minor version."""
    major, minor = version.split(".")[:2]
    bounds = f">={major}.{minor},<{major}.{int(minor) + 1}"
    return RANGE.sub(rf"\1 {bounds}", VERSION.sub(f"version = {version}", text))


def main(words: list[str]) -> int:
    """Print or set the version; see the top of this file."""
    if not words:
        print(VERSION.findall(files()[0].read_text())[0])
        return 0
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", words[0]):
        print(f"{words[0]!r} is no version: 0.2.0, or 0.2.0rc1", file=sys.stderr)
        return 1
    for file in files():
        file.write_text(moved(file.read_text(), words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
