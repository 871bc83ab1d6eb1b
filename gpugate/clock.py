"""The calendar, and the clock that is never set: seconds since the machine booted, its sleep included."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boottime() -> float:
    """Return the seconds since the boot. A pod is billed on while this machine sleeps, so sleep counts."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def utc_now() -> datetime:
    """Return the present instant by the calendar, which may be set at any time."""
    return datetime.now(UTC)


def boot_id() -> str:
    """Return an identifier of this boot; if the system tells none, one that is never returned again."""
    with suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return f"unknown-{time.time_ns()}"
