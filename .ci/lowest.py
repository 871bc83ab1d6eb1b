"""Prints pip constraints that pin every dependency to the lowest version that the setup.cfg files allow.

Read are `setup.cfg` and `plugins/*/setup.cfg`: what they install, and the extras that the tests need. Where
two of them name the same dependency the higher bound counts. Ends with status 1 and one line if a dependency
has no lower bound.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("dev", "telegram", "testing", "uvloop")
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?\s*(?P<bounds>[^;]*)")
LOWER_BOUND = re.compile(r">=\s*([0-9][0-9.]*)")


def requirements(config: ConfigParser) -> Iterator[str]:
    """Yield each requirement of one setup.cfg, without comments."""
    listed = [config.get("options", "install_requires", fallback="")]
    listed += [config.get("options.extras_require", extra, fallback="") for extra in EXTRAS]
    for line in "\n".join(listed).splitlines():
        requirement = line.partition("#")[0].strip()
        if requirement:
            yield requirement


def lowest(files: list[Path]) -> dict[str, str]:
    """Return each dependency's lowest version by its name.

    Raises:
        ValueError: a requirement has no lower bound; says which and where.
    """
    configs = {}
    for file in files:
        configs[file] = ConfigParser(interpolation=None)
        configs[file].read(file, encoding="utf-8")
    own = {config.get("metadata", "name") for config in configs.values()}
    found: dict[str, str] = {}
    for file, config in configs.items():
        for requirement in requirements(config):
            match = REQUIREMENT.match(requirement)
            bound = LOWER_BOUND.search(match["bounds"]) if match is not None else None
            if match is None or bound is None:
                raise ValueError(f"{file}: {requirement!r} has no lower bound (name >=version)")
            name = match["name"].lower()
            if name not in own:
                found[name] = max(found.get(name, "0"), bound[1], key=_as_numbers)
    return found


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def main() -> int:
    """Print the constraints; see the top of this file."""
    try:
        found = lowest([ROOT / "setup.cfg", *sorted(ROOT.glob("plugins/*/setup.cfg"))])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for name, version in sorted(found.items()):
        print(f"{name}=={version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
