"""`gpugate doctor`: everything that may be wrong with an installation, a line each, with what to do."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace

import aiohttp

from gpugate.cli.describe import coloured, describe_status, plain
from gpugate.cli.errors import FAILED, OK, CliError
from gpugate.cli.http_client import connect
from gpugate.cli.live_check import Finding, client_session, live_findings
from gpugate.cli.pod_commands import pods_of
from gpugate.cli.settings import config_path, settings_for_serving
from gpugate.config import warnings
from gpugate.errors import SettingsError
from gpugate.wording import duration

_LEAST_FREE = 100 * 1024**2  # bytes, for the ledger, the catalogue and a local pod's log
_MOST_SKEW_S = 30.0  # a token's times are compared with this clock
_MARKS = {"ok": "ok", "note": "note", "wrong": "WRONG"}
_COLOURS = {"ok": "ok", "note": "", "wrong": "problem"}


def doctor(args: Namespace) -> int:
    """Print a line for each check; return 1 if one of them found something wrong."""
    return asyncio.run(_report(args))


async def _report(args: Namespace) -> int:
    status = OK
    async for one in _findings(args):
        status = FAILED if one.state == "wrong" else status
        mark = coloured(f"{_MARKS[one.state]:<5}", _COLOURS[one.state], sys.stdout)
        print(f"{mark} {plain(one.text)}" + (f"; to do: {one.remedy}" if one.remedy else ""), flush=True)
    return status


async def _findings(args: Namespace) -> AsyncIterator[Finding]:
    try:
        settings = settings_for_serving(args)
    except SettingsError as error:
        remedy = "gpugate setup writes a configuration" if config_path(args) is None else ""
        for complaint in error.complaints:
            yield Finding("wrong", f"configuration: {complaint}", remedy)
        return
    yield Finding("ok", f"configuration: {config_path(args) or 'the environment'}")
    for key, warning in warnings(settings):
        yield Finding("note", f"configuration: {key}: {warning}")
    yield disk(Path(settings.state.dir))
    dates = list[float]()
    async with client_session([_noting_dates(dates)]) as session:
        async for finding in live_findings(settings, session):
            yield finding
    yield clock(dates)
    for finding in _gateway(args):
        yield finding
    if not settings.bot.enabled:
        yield Finding("ok", "bot: off")


def disk(folder: Path) -> Finding:
    """Say how much space the state folder has."""
    free = shutil.disk_usage(folder).free
    text = f"disk: {free / 1e9:.1f} GB free at {folder}"
    if free >= _LEAST_FREE:
        return Finding("ok", text)
    return Finding("wrong", text, "make room, or set state.dir: costs are not recorded on a full disk")


def clock(skews: list[float]) -> Finding:
    """Say whether this machine's clock agrees with a server; `skews` are its seconds ahead of each."""
    if not skews:
        return Finding("note", "clock: not compared, no server told its time")
    skew = min(skews, key=abs)
    if abs(skew) <= _MOST_SKEW_S:
        return Finding("ok", "clock: right")
    text = f"clock: {duration(abs(skew))} {'fast' if skew > 0 else 'slow'}, so tokens and costs are wrong"
    return Finding("wrong", text, "timedatectl set-ntp true")


def _noting_dates(skews: list[float]) -> aiohttp.TraceConfig:
    """Return a trace that notes by how many seconds this clock is ahead of each response's Date."""

    async def note(_: object, __: SimpleNamespace, end: aiohttp.TraceRequestEndParams) -> None:
        try:
            skews.append(time.time() - parsedate_to_datetime(end.response.headers["Date"]).timestamp())
        except (KeyError, ValueError):
            return

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(note)
    return trace


def _gateway(args: Namespace) -> Iterator[Finding]:
    try:
        answer = connect(args).ask("GET", "/api/v1/gpu/status")
    except CliError as error:
        if error.message.startswith("no gateway"):
            yield Finding("note", f"gateway: {error.message}")
        else:
            yield Finding("wrong", f"gateway: {error.message}")
        return
    pods = pods_of(answer.data)
    for pod in pods:
        who = f"gateway: pod {pod['pod']}" if len(pods) > 1 else "gateway"
        sentence, problem = describe_status(pod, {}, answer.at)
        yield Finding("ok", f"{who}: {sentence}")
        if problem:
            yield Finding("note", f"{who}: last problem: {problem}")
