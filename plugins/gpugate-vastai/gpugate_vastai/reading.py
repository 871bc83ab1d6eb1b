"""What an instance's row says: phase, addresses, price (docs/providers.md#vastai-fields); no network."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from attrs import define, frozen

from gpugate import Endpoint, Phase, PodReport, Price
from gpugate_vastai.answers import Object
from gpugate_vastai.settings import VastConfig

SCHEDULING_S = 30.0
"""Vast.ai's figure: after that another renter has the GPU (docs/providers.md#vastai-states)."""
LAG_S = 10.0
"""A read may be so much older than the start that was accepted before it."""

_OFF = frozenset({"exited", "stopped", "created", None})
_LOST = frozenset({"unknown", "offline"})
_KNOWN = _OFF | _LOST | {"loading", "running", "frozen", "rebooting"}
_BROKEN = re.compile(r"\bError\b|manifest\b.*\bnot found|OCI runtime create failed")


@define
class Run:
    """What is remembered of one start, in the loop's seconds; empty for an instance that we did not start.

    Attributes:
        asked_at: when it was asked for, whatever came of it.
        accepted: Vast.ai said yes.
        queued: Vast.ai said that it waits for a GPU.
        fresh: a new instance, which never reads `exited` on its way up.
        alive: it was seen loading or running since.
        noticed_at: when it was first seen waiting although nobody here had asked.
    """

    asked_at: float | None = None
    accepted: bool = False
    queued: bool = False
    fresh: bool = False
    alive: bool = False
    noticed_at: float | None = None

    def waits_not_long(self, now: float) -> bool:
        """The scheduler may yet give it its GPU; without a start of ours the first sighting counts."""
        if self.asked_at is not None:
            return self.younger_than(SCHEDULING_S, now) and not self.queued
        if self.noticed_at is None:
            self.noticed_at = now
        return now - self.noticed_at < SCHEDULING_S

    def younger_than(self, age_s: float, now: float) -> bool:
        """It was asked for less than so long ago."""
        return self.asked_at is not None and now - self.asked_at < age_s


@frozen
class Reader:
    """Reads rows as reports; `wall` tells the calendar's time."""

    config: VastConfig
    wall: Callable[[], datetime]

    def report(self, row: Object, run: Run, now: float) -> PodReport:
        """What the row says in gpugate's words; notes in `run` whether it was seen alive."""
        phase, detail = phase_of(row, run, now)
        if phase is Phase.STOPPED:
            run.alive, run.noticed_at = False, None
        elif phase in (Phase.STARTING, Phase.RUNNING) and row.get("actual_status") not in _OFF:
            run.alive = True
        endpoints = self.endpoints(row) if phase is Phase.RUNNING else {}
        if phase is Phase.RUNNING and "ollama" not in endpoints:
            detail = f"running, but its port {self.config.ollama_port} is not mapped (yet)"
        return PodReport(
            phase,
            str(row["id"]) if "id" in row else None,
            endpoints,
            price_of(row, keeps_disk=self.config.mode != "ephemeral"),
            gpu_of(row, self.config),
            self._started_at(row) if phase is Phase.RUNNING else None,
            detail,
            billed=_is_billed(row, phase, run),
            gpu_bytes=gpu_bytes_of(row),
        )

    def endpoints(self, row: Object) -> dict[str, Endpoint]:
        """Where the services answer, as far as their ports are mapped; they change with every start."""
        host = _host(row.get("public_ipaddr"))
        ports = row.get("ports")
        if host is None or not isinstance(ports, Mapping):
            return {}
        inner = {"ollama": self.config.ollama_port, "comfyui": self.config.comfyui_port}
        outer = {name: _outer_port(ports.get(f"{port}/tcp")) for name, port in inner.items()}
        return {
            name: Endpoint(f"{self.config.scheme}://{host}:{port}", self.config.headers, self.config.tls)
            for name, port in outer.items()
            if port is not None
        }

    def _started_at(self, row: Object) -> datetime | None:
        """Since when it runs; `start_date` is the contract's and would bill the stopped weeks as well."""
        up = _number(row.get("uptime_mins"))
        return None if up is None else self.wall() - timedelta(minutes=float(min(up, Decimal(10**7))))


def phase_of(row: Object, run: Run, now: float) -> tuple[Phase, str]:
    """The phase, and one line for people."""
    actual, wanted = row.get("actual_status"), _wanted(row)
    said = row.get("status_msg")
    message = " ".join(said.split())[:160] if isinstance(said, str) else ""
    if row.get("cur_state") == "unloaded":
        return Phase.GONE, "destroyed"
    if actual == "frozen" or wanted == "frozen":
        return Phase.FAILED, "frozen: its GPU is still billed"
    if actual not in _KNOWN or actual in _LOST:
        if run.fresh and not run.alive:
            return Phase.FAILED, f"its host is {actual}"
        return Phase.UNREACHABLE, f"its host is {actual}"
    if wanted == "stopped":
        return _going_down(row, run, now)
    if wanted != "running":
        return Phase.UNREACHABLE, f"Vast.ai reads {actual}, wanted {wanted}"
    if actual == "running":
        return Phase.RUNNING, message
    if actual == "rebooting":
        return Phase.STARTING, "rebooting"
    return _coming_up(row, run, now, message)


def _is_billed(row: Object, phase: Phase, run: Run) -> bool:
    """A container that has ended costs no GPU, nor does a start of somebody's that waits for its GPU."""
    if phase is Phase.FAILED:
        return "frozen" in (row.get("actual_status"), _wanted(row))
    return phase is not Phase.STARTING or row.get("actual_status") not in _OFF or run.accepted


def _wanted(row: Object) -> object:
    """What somebody asked for last; rows without that word are read by what they are."""
    said = next((row[key] for key in ("intended_status", "next_state", "cur_state") if row.get(key)), None)
    if said is None:
        return "stopped" if row.get("actual_status") in ("exited", "stopped") else "running"
    return said


def _going_down(row: Object, run: Run, now: float) -> tuple[Phase, str]:
    actual = row.get("actual_status")
    if actual not in _OFF or (actual is None and row.get("cur_state") == "running"):
        return Phase.STOPPING, "stopping"
    if run.accepted and not run.alive and run.younger_than(LAG_S, now):
        return Phase.STARTING, "accepted, not to be seen yet"
    if run.accepted and not run.alive:
        return Phase.STOPPED, "Vast.ai has dropped the start: the GPU went to somebody else"
    return Phase.STOPPED, "stopped"


def _coming_up(row: Object, run: Run, now: float, message: str) -> tuple[Phase, str]:
    """Wanted and not running: provisioned, loading, waiting for its GPU, or dead."""
    actual = row.get("actual_status")
    waits = actual in ("exited", "stopped") or (actual == "created" and row.get("cur_state") == "stopped")
    if _BROKEN.search(message) and not (waits and run.younger_than(LAG_S, now)):  # else of the run before
        return Phase.FAILED, message
    if actual == "loading":
        return Phase.STARTING, message or "loading"
    if not waits:
        return Phase.PROVISIONING, message or "being provisioned"
    if run.alive or run.fresh:
        if waits and is_spot(row):
            return Phase.FAILED, "interrupted: its GPU went to a higher bid"
        return Phase.FAILED, message or "its container has ended"
    if run.waits_not_long(now):
        return Phase.STARTING, "waiting for its GPU"
    return Phase.QUEUED, "its GPU is rented to somebody else; the start waits at Vast.ai"


def price_of(row: Object, *, keeps_disk: bool) -> Price:
    """Per hour, in USD; a stopped instance pays for its disk for ever, unless its stop destroys it."""
    search = row.get("search")
    total = search.get("totalHour") if isinstance(search, Mapping) else None
    running = _number(row.get("dph_total"))
    stopped = _number(row.get("storage_total_cost")) if keeps_disk else Decimal(0)
    return Price(running if running is not None else _number(total), stopped)


def gpu_of(row: Object, config: VastConfig | None = None) -> str | None:
    """The GPU's model, with a number in front if there are several; with `spot`, also how it is rented."""
    name, count = row.get("gpu_name"), row.get("num_gpus")
    if not isinstance(name, str) or not name:
        return None
    name = f"{count} x {name}" if isinstance(count, int) and count > 1 else name
    return name if config is None or not config.spot else f"{name}, {'spot' if is_spot(row) else 'on-demand'}"


def is_spot(row: Object) -> bool:
    """An instance that was bid for: it may be taken away at any time."""
    return row.get("is_bid") is True


def gpu_bytes_of(row: Object) -> int | None:
    """The memory of its GPUs together; Vast.ai tells that of one in MiB, and calls it MB."""
    each, count = row.get("gpu_ram"), row.get("num_gpus", 1)
    if not isinstance(each, int | Decimal) or not isinstance(count, int):
        return None
    return int(each * count) << 20


def _host(given: object) -> str | None:
    """The address, unpadded; only what can be a host gets into a URL."""
    host = given.strip() if isinstance(given, str) else ""
    if re.fullmatch(r"[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*", host):
        return f"[{host}]"
    return host if re.fullmatch(r"[0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?", host) else None


def _outer_port(given: Any) -> int | None:
    """Docker's map: the entry for all IPv4 addresses, else the first; the port is text."""
    entries = [entry for entry in given if isinstance(entry, Mapping)] if isinstance(given, list) else []
    entries.sort(key=lambda entry: entry.get("HostIp") != "0.0.0.0")
    for entry in entries:
        said = str(entry.get("HostPort", ""))
        if re.fullmatch(r"[0-9]{1,5}", said) and 0 < int(said) < 65536:
            return int(said)
    return None


def _number(given: object) -> Decimal | None:
    if isinstance(given, bool) or not isinstance(given, int | float | Decimal):
        return None
    number = Decimal(str(given))
    return number if number.is_finite() and number >= 0 else None
