"""A clock that nobody sets: seconds since the machine started, its sleep included; knows no calendar."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boottime() -> float:
    """Seconds since the machine started. Sleep counts, where the system can tell: the pod is billed on."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def boot_id() -> str:
    """Names this run of the machine; unknown ones are all different, so that no two are ever mixed up."""
    with suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return f"unknown-{time.time_ns()}"
