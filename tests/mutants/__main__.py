"""`python -m tests.mutants`: seeds each fault into a copy of the package and asks whether a test notices.

Exit status 1 if a fault is missed. Arguments, if any, choose faults by a part of their `why`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 150
AT_ONCE = 2
SUITES = ("tests/core", "tests/lifecycle", "tests/billing")


def copy(into: Path) -> None:
    """Copy the package and the tests."""
    ignore = shutil.ignore_patterns("__pycache__", "test_pod_calls_ollama*")
    shutil.copytree(ROOT / "gpugate", into / "gpugate", ignore=ignore)
    shutil.copytree(ROOT / "tests", into / "tests", ignore=ignore)
    for name in ("setup.cfg", "conftest.py"):
        shutil.copy(ROOT / name, into)


def seed(fault: Fault, into: Path) -> None:
    """Put the fault into a copy.

    Raises:
        SystemExit: its text does not stand there exactly once.
    """
    path = into / "gpugate" / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        raise SystemExit(
            f"{fault.file}: the text of {fault.why!r} stands there {text.count(fault.old)} times"
        )
    path.write_text(text.replace(fault.old, fault.new))


def catch(fault: Fault | None) -> str | None:
    """Run the tests over this fault, or over the code as it is; return what failed first, or None."""
    with tempfile.TemporaryDirectory(prefix="gpugate-mutant-") as name:
        place = Path(name)
        copy(place)
        if fault is not None:
            seed(fault, place)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-rfE"]
        command += ["-p", "no:cacheprovider", "--timeout=20", *SUITES]
        environment = {**os.environ, "PYTHONPATH": name, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command,
                cwd=place,
                env=environment,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "the tests do not end"
        if done.returncode == 0:
            return None
        lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return lines[0].split(" ")[1] if lines else f"exit status {done.returncode}"


def say(line: str) -> None:
    """Tell at once, however long the rest takes."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(words: list[str]) -> int:
    """Try the faults, two at a time, and say what came of each."""
    faults = [fault for fault in FAULTS if not words or any(word in fault.why for word in words)]
    began, missed = time.monotonic(), 0
    if (broken := catch(None)) is not None:
        say(f"without any fault {broken} fails: nothing could be told from the faults")
        return 1
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for fault, by in zip(faults, pool.map(catch, faults), strict=True):
            missed += by is None
            say(f"{'MISSED' if by is None else 'caught'}  {fault.file}: {fault.why}")
            if by is not None:
                say(f"        {by}")
    say(f"{len(faults) - missed} of {len(faults)} caught in {time.monotonic() - began:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
