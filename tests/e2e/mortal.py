"""RunPod's plugin in a gateway that kills itself at one point of its life; knows nothing of the test.

The file that the variable `MORTAL_AT` names holds the point; it is taken away before the kill, so that the
next gateway lives. Points are "put <row> before|after" for the ledger's writes, "<call> before|after" for the
provider's, and "saw <phase>" for what a look found.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from attrs import evolve
from gpugate_runpod import RunPod

from gpugate import PodReport
from gpugate.billing.model import Session
from gpugate.billing.sqlite_ledger import SqliteLedger

_ORDER = Path(os.environ["MORTAL_AT"])
_put = SqliteLedger.put


def reached(point: str) -> None:
    """Die here, if here is where."""
    if _ORDER.exists() and _ORDER.read_text() == point:
        _ORDER.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def _step(row: Session) -> str:
    if row.ended_at is not None:
        return "end"
    if row.stop_asked_at is not None:
        return "stop"
    return "accepted" if row.started_at is not None else "intent"


async def _mortal_put(self: SqliteLedger, row: Session) -> None:
    reached(f"put {_step(row)} before")
    await _put(self, row)
    reached(f"put {_step(row)} after")


SqliteLedger.put = _mortal_put  # type: ignore[method-assign]


class Mortal(RunPod):
    """RunPod's plugin, which looks more often, and dies."""

    capabilities = evolve(RunPod.capabilities, min_poll_s=0.05, min_probe_s=0.02)
    prefix = ""

    def __init__(self, config: Any, session: Any) -> None:
        super().__init__(config, session)
        self._stopped = False

    async def start(self) -> PodReport:
        reached(f"{self.prefix}start before")
        report = await super().start()
        reached(f"{self.prefix}start after")
        return report

    async def stop(self) -> PodReport:
        reached(f"{self.prefix}stop before")
        report = await super().stop()
        self._stopped = True
        reached(f"{self.prefix}stop after")
        return report

    async def inspect(self) -> PodReport:
        report = await super().inspect()
        reached(f"{self.prefix}saw {report.phase.name}")
        if self._stopped and report.phase.name in ("STOPPED", "GONE"):
            reached(f"{self.prefix}proved")
        return report


class Second(Mortal):
    """The same, next in line."""

    prefix = "second "
