"""What a command inherits from the keeper, and what it does not."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.providers.support import until


async def test_a_command_inherits_nothing_odd(keep, tmp_path):
    """Only the three open files, standard input empty, no signal ignored or blocked, the same directory."""
    out = tmp_path / "said"
    looks = (
        f"ls -l /proc/self/fd > {out}.fds",
        f"grep ^Sig /proc/self/status > {out}.signals",
        f"pwd > {out}.pwd",
    )
    await keep().start(["sh", "-c", "; ".join((*looks, "sleep 9"))])
    await until(lambda: Path(f"{out}.pwd").exists())
    files = [line.split(" -> ")[1] for line in Path(f"{out}.fds").read_text().splitlines() if " -> " in line]
    words = dict(line.split() for line in Path(f"{out}.signals").read_text().splitlines() if "Q" not in line)

    assert "/dev/null" == files[0]
    assert 4 == len(files)  # the fourth is what ls reads
    assert 0 == int(words["SigBlk:"], 16)
    assert 0 == int(words["SigIgn:"], 16) & 0x7FFF_FFFF  # 32 and 33 are the C library's own
    assert os.getcwd() == Path(f"{out}.pwd").read_text().strip()


async def test_a_broken_pipe_ends_a_command_as_usual(keep, tmp_path):
    """Python ignores SIGPIPE; its children must not."""
    out = tmp_path / "status"
    await keep().start(["sh", "-c", f"(yes; echo $? > {out}) | head -n 1; sleep 9"])

    await until(lambda: out.exists() and out.read_text() != "")

    assert str(128 + signal.SIGPIPE) == out.read_text().strip()
