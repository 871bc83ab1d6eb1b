"""The sdist and the wheel of every distribution: what is in them, and that they are the same bytes twice."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = [ROOT, *sorted(ROOT.glob("plugins/*"))]
VERSION = version("gpugate")
NEVER = re.compile(r"(^|/)(tests?|conftest\.py|\.venv|benchmarks|simulation|__pycache__)(/|$)")


def name_of(folder: Path) -> str:
    return "gpugate" if folder == ROOT else folder.name


def files_of(folder: Path) -> list[str]:
    """What is under version control there, without the plugins in the root."""
    listed = subprocess.run(["git", "ls-files", "-z", "."], cwd=folder, capture_output=True, check=False)
    names = listed.stdout.decode().split("\0") if 0 == listed.returncode else []
    return [name for name in names if name and not name.startswith("plugins/") and (folder / name).is_file()]


BUILD = """
import os, sys, tarfile
from pathlib import Path
from setuptools import build_meta
for place in map(Path, sys.argv[1:]):
    os.chdir(place / "source")
    sdist = place / build_meta.build_sdist(str(place))
    tarfile.open(sdist).extractall(place, filter="data")
    os.chdir(str(sdist).removesuffix(".tar.gz"))
    build_meta.build_wheel(str(place))
"""
"""Builds the sdist of `source` in each folder, and the wheel from that sdist, as a front end does."""


def build(folder: Path, *places: Path) -> list[tuple[Path, Path]]:
    """Build the distribution in `folder` from a copy in each of these places; return sdists and wheels."""
    for place in places:
        for name in files_of(folder):
            copy = place / "source" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, copy)  # and not its time
            os.utime(copy, (time := 10**9 + len(place.name), time))
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    command = [sys.executable, "-c", BUILD, *map(str, places)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert 0 == done.returncode, done.stderr
    assert "Deprecat" not in done.stderr
    return [(*place.glob("*.tar.gz"), *place.glob("*.whl")) for place in places]


def metadata_of(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


@pytest.mark.timeout(240)
@pytest.mark.skipif(not files_of(ROOT), reason="needs a git checkout")
@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=name_of)
def test_what_is_built(folder: Path, tmp_path: Path) -> None:
    """Two builds at two places are the same bytes; they hold the licence, all of the package and no tests."""
    (sdist, wheel), again = build(folder, tmp_path / "one", tmp_path / "elsewhere")

    assert sdist.read_bytes() == again[0].read_bytes()
    assert wheel.read_bytes() == again[1].read_bytes()

    package = name_of(folder).replace("-", "_")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "README.md", "setup.cfg", "setup.py", "pyproject.toml"} <= in_sdist
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = metadata_of(archive)
        licences = {archive.read(name) for name in archive.namelist() if ".dist-info/licenses/" in name}

    sources = {name for name in files_of(folder) if name.startswith(f"{package}/")}
    of_others = {name for name in sources if name.endswith(".LICENSE.txt")}
    assert licences == {(folder / name).read_bytes() for name in {"LICENSE", *of_others}}
    assert sources - {"gpugate/core/design.md"} == in_wheel
    assert in_wheel <= in_sdist
    assert [] == [name for name in in_sdist | in_wheel if NEVER.search(name)]
    assert (name_of(folder), VERSION) == (metadata["Name"], metadata["Version"])
    assert "MIT" in (metadata["License"], metadata["License-Expression"])
