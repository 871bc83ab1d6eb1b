"""What an idle gateway costs: the size of the wheel, the imports of `gpugate serve`, its memory. No goals.

It needs nothing of the measured gpugate but the command line and the configuration file, so that other
versions can be measured with `--gpugate` and `--source`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from attrs import frozen

from benchmarks.bench import GATEWAYS, Bench
from benchmarks.board import Table, median, number
from benchmarks.processes import Unavailable

IDLE_S = 2.0
BUILD_S = 120
KIB, MIB = 1 << 10, 1 << 20
PACKAGED = ("gpugate", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
IMPORT_TIMES = {"PYTHONPROFILEIMPORTTIME": "1"}
IMPORT_LINE = "import time:"


@frozen
class Start:
    """One start of `gpugate serve` that waits for its first request.

    Attributes:
        cpu_ms: CPU time until it answered on its port; imports, configuration and state included.
        idle_mib: resident memory IDLE_S later.
    """

    cpu_ms: float
    idle_mib: float


@frozen
class Imports:
    """The interpreter's own account of the imports; `took_ms` includes the cost of keeping it."""

    modules: int
    own_modules: int
    took_ms: float


def run_part(bench: Bench) -> None:
    """Measure; nothing is judged."""
    wheel = bench.attempt("wheel", partial(_wheel_table, bench))
    if wheel:
        bench.board.tables.append(wheel)
    if bench.peers_only:
        return
    rows = [row for name in GATEWAYS if (row := bench.attempt(name, partial(_row, bench, name)))]
    columns = ["", "CPU until it answers, ms", "imports, ms", "modules", "of gpugate", "idle MiB"]
    bench.board.tables.append(Table("`gpugate serve` with provider `local`, no request", columns, rows))


def _row(bench: Bench, name: str) -> Sequence[str]:
    tries = bench.rounds(5, 3)
    bench.say(f"  {tries} starts, {name}")
    _start(bench, name)  # compiles what is not compiled yet
    starts = [_start(bench, name) for _ in range(tries)]
    imports = [_imports(bench, name) for _ in range(tries)]
    return [
        name,
        number(median(one.cpu_ms for one in starts)),
        number(median(one.took_ms for one in imports)),
        str(imports[0].modules),
        str(imports[0].own_modules),
        number(median(one.idle_mib for one in starts), 1),
    ]


def _start(bench: Bench, name: str) -> Start:
    process = bench.targets.idle_gateway(name)
    try:
        cpu_s = process.cpu_s()
        time.sleep(IDLE_S)
        return Start(1000 * cpu_s, process.rss_bytes() / MIB)
    finally:
        bench.processes.stop(process)


def _imports(bench: Bench, name: str) -> Imports:
    process = bench.targets.idle_gateway(name, IMPORT_TIMES)
    bench.processes.stop(process)
    lines = process.log.read_text(errors="replace").splitlines()
    found = [line.removeprefix(IMPORT_LINE).split("|") for line in lines if line.startswith(IMPORT_LINE)]
    timed = {module.strip(): float(own_us) for own_us, _, module in found if own_us.strip().isdigit()}
    if not timed:
        raise Unavailable("the interpreter told no import times")
    own = [module for module in timed if module.split(".")[0] == "gpugate"]
    return Imports(len(timed), len(own), sum(timed.values()) / 1000)


def _wheel_table(bench: Bench) -> Table:
    bench.say(f"  wheel of {bench.source}")
    wheel = _build_wheel(bench.source, bench.targets.make_folder("wheel"))
    with zipfile.ZipFile(wheel) as archive:
        members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    row = [number(wheel.stat().st_size / KIB), number(unpacked / KIB), str(len(members))]
    return Table("Wheel of gpugate", ["KiB", "unpacked KiB", "files"], [row])


def _build_wheel(source: Path, place: Path) -> Path:
    """Build from a copy, since a build in the checkout would pick up what an earlier one left there."""
    copy = place / "source"
    copy.mkdir()
    for name in PACKAGED:
        if (source / name).is_dir():
            shutil.copytree(source / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (source / name).exists():
            shutil.copy(source / name, copy / name)
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        done = subprocess.run(
            [*argv, "--wheel-dir", str(place), str(copy)],
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable("not built in time") from None
    built = list(place.glob("*.whl"))
    if done.returncode or not built:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"not built: {reason[-1] if reason else 'pip failed'}")
    return built[0]
