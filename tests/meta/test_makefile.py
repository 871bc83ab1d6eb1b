"""`make run` on a machine that does not have what it needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD = """\
#!/bin/sh
case "$1" in -V) echo Python 3.10.12;; -c) exit 1;; *) echo ran "$@" >&2; mkdir -p "$4/bin";; esac
"""
WITHOUT_VENV = """\
#!/bin/sh
[ "$1" = -c ] && exec {python} "$@"
mkdir -p "$4/bin"; echo ensurepip is not available >&2; exit 1
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make_run(folder: Path, python: str) -> tuple[int, list[str]]:
    """Run `make run` with this Python and a folder's own environment; return the status and what it said."""
    words = ["make", "-s", "run", f"PYTHON={python}", f"VENV={folder / 'venv'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert "" == done.stdout
    return done.returncode, [line for line in done.stderr.splitlines() if not line.startswith("make")]


def stand_in(folder: Path, script: str) -> str:
    path = folder / "python-stand-in"
    path.write_text(script)
    path.chmod(0o755)
    return str(path)


def test_an_old_python(tmp_path: Path) -> None:
    """One line says which Python is needed, and no environment is made of the wrong one."""
    python = stand_in(tmp_path, OLD)

    status, lines = make_run(tmp_path, python)

    assert 2 == status
    assert [
        f"gpugate needs Python 3.11 or newer; {python} is Python 3.10.12. "
        "Name another one: make run PYTHON=python3.12"
    ] == lines
    assert not (tmp_path / "venv").exists()


def test_an_environment_of_an_old_python(tmp_path: Path) -> None:
    """One that is there already, of an older version of gpugate say, is not used."""
    (tmp_path / "venv/bin").mkdir(parents=True)
    shutil.move(stand_in(tmp_path, OLD), tmp_path / "venv/bin/python")

    status, lines = make_run(tmp_path, "no-such-python")

    assert 2 == status
    assert lines[0].startswith("gpugate needs Python 3.11 or newer; no-such-python is not there.")
    assert 1 == len(lines)


def test_a_python_that_cannot_make_one(tmp_path: Path) -> None:
    """Debian's without python3-venv: its own words, and no half environment that a second try would use."""
    python = stand_in(tmp_path, WITHOUT_VENV.format(python=sys.executable))

    status, lines = make_run(tmp_path, python)

    assert (2, ["ensurepip is not available"]) == (status, lines)
    assert not (tmp_path / "venv").exists()
