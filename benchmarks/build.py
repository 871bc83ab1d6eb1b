"""Compiles the two C programs of the benchmark, and makes the folder of a run."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from benchmarks.processes import Unavailable

HERE = Path(__file__).resolve().parent
NATIVE = HERE / "native"
BUILD = HERE / ".build"
COMPILE_S = 120


def own_place() -> Path:
    """A folder for this run's logs and configurations; those of runs that are over are removed."""
    for old in BUILD.glob("run-*"):
        with suppress(ValueError):
            if not Path(f"/proc/{int(old.name.removeprefix('run-'))}").exists():
                shutil.rmtree(old, ignore_errors=True)
    place = BUILD / f"run-{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def native(name: str) -> str:
    """The path of a C program, compiled if it is missing or old."""
    target, sources = BUILD / name, [NATIVE / f"{name}.c", NATIVE / "wire.h"]
    if target.exists() and all(target.stat().st_mtime > source.stat().st_mtime for source in sources):
        return str(target)
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise Unavailable("benchmarks need a C compiler (cc, gcc or clang): none is on PATH")
    BUILD.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")  # replaced at once, so that two runs never see half a program
    done = subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-o", str(fresh), str(sources[0])],
        capture_output=True,
        text=True,
        timeout=COMPILE_S,
        check=False,
    )
    if done.returncode:
        raise Unavailable(f"{name}.c does not compile: {done.stderr.strip().splitlines()[0]}")
    fresh.replace(target)
    return str(target)
