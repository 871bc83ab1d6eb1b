"""`gpugate status`, `start`, `stop` and `events`: ask a running gateway and print its response."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from gpugate.cli.describe import coloured, describe_event, describe_status, plain
from gpugate.cli.errors import OK, CliError
from gpugate.cli.http_client import DatedData, GatewayClient, connect
from gpugate.cli.token_commands import describe_end

WEEK_S = 7 * 86_400.0
_GPU = "/api/v1/gpu"
_SESSION_ID = re.compile(r"[0-9]{8}T[0-9]{6}(\.[0-9]+)?-[0-9a-f]+")
"""What the ids of sessions look like; clients choose those of their requests."""


def status(args: Namespace) -> int:
    """Print what the pod is doing, and on stderr that the token ends within a week."""
    gateway = connect(args)
    if os.environ.get("GPUGATE_TOKEN") and (end := describe_end(gateway.token, time.time(), WEEK_S)):
        print(f"GPUGATE_TOKEN: {end}", file=sys.stderr)
    return _print_status(gateway, gateway.ask("GET", f"{_GPU}/status"), args)


def start(args: Namespace) -> int:
    """Start the pod and print its status."""
    gateway = connect(args)
    return _print_status(gateway, gateway.ask("POST", f"{_GPU}/start"), args)


def stop(args: Namespace) -> int:
    """Stop the pod and print its status."""
    gateway = connect(args)
    try:
        return _print_status(gateway, gateway.ask("POST", f"{_GPU}/stop" + "?force=true" * args.force), args)
    except CliError as error:
        if error.message.startswith("POD_BUSY") and not args.force:
            raise CliError(f"{error.message} (gpugate stop --force)", error.status) from None
        raise


def reload(args: Namespace) -> int:
    """Have the gateway read its configuration again; print what was applied and what needs a restart."""
    answer = connect(args).ask("POST", "/api/v1/reload").data
    if args.json:
        print(json.dumps(answer))
    else:
        print(f"applied: {', '.join(answer['applied']) or 'nothing'}")
        if answer["restart"]:
            print(f"after a restart: {', '.join(answer['restart'])}")
    return OK


def events(args: Namespace) -> int:
    """Print each event as it arrives, until the gateway or the user ends the stream."""
    gateway = connect(args)
    currency = None if args.json else currency_of(gateway)
    for event in parse_events(gateway.lines(f"{_GPU}/events")):
        line = json.dumps(event) if args.json else f"{time_of(event)} {describe_event(event, currency)}"
        print(line, flush=True)
    return OK


def time_of(event: Mapping[str, Any]) -> str:
    """Return this machine's time of day of an event, else of now."""
    data: Any = event.get("data")
    try:
        at = datetime.fromisoformat(data["at"])
    except (KeyError, TypeError, ValueError):
        at = datetime.now(UTC)
    return f"{at.astimezone():%H:%M:%S}"


def currency_of(gateway: GatewayClient) -> str | None:
    """Return the currency of the gateway's costs; None where the token may not see them."""
    try:
        return str(gateway.get("/api/v1/cost/summary")["currency"])
    except (CliError, KeyError, TypeError):
        return None


def latest_session(gateway: GatewayClient) -> Mapping[str, Any]:
    """Return the ledger's newest session; an empty one where there is none, or the token may not see it."""
    try:
        rows = gateway.get("/api/v1/cost/sessions?limit=1")["sessions"]
        row = rows[-1] if rows else {}
    except (CliError, KeyError, TypeError):
        return {}
    return row if isinstance(row, dict) else {}


def why(args: Namespace) -> int:
    """Print why a request waited, or why a session began and ended."""
    query = ""
    if args.id:
        kind = "session" if _SESSION_ID.fullmatch(args.id) else "request"
        query = f"?{kind}={quote(args.id, safe='')}"
    data = connect(args).get(f"/api/v1/why{query}")
    lines = data.get("lines") if isinstance(data, dict) else None
    print(json.dumps(data) if args.json else "\n".join(plain(line) for line in lines or []))
    return OK


def parse_events(lines: Iterable[str]) -> Iterator[dict[str, object]]:
    """Yield Server-Sent Events as {"event", "id", "data"}; JSON data is decoded."""
    event, last_id, data = "message", None, list[str]()
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield {"event": event, "id": last_id, "data": _decoded("\n".join(data))}
            event, data = "message", []
        elif name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name == "id":
            last_id = value


def _decoded(text: str) -> object:
    try:
        decoded: object = json.loads(text)
    except ValueError:
        return text
    return decoded


def _print_status(gateway: GatewayClient, response: DatedData, args: Namespace) -> int:
    status = response.data
    if args.json or not isinstance(status, dict):
        print(json.dumps(status))
        return OK
    pods = status.get("pods") or [status]
    billed = any(pod.get("uptime_seconds") is not None for pod in pods)
    session = latest_session(gateway) if billed else {}
    for pod in pods:
        name = f"{plain(pod['pod'])}: " if len(pods) > 1 else ""
        for line in status_lines(pod, session, response.at):
            print(f"{name}{line}")
    return OK


def session_of(pod: Mapping[str, Any], session: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the session, without its GPU if it is not the open one of this pod."""
    own = (session.get("provider"), session.get("pod_id")) == (pod.get("provider"), pod.get("pod_id"))
    return session if own and session.get("ended_at") is None else {**session, "gpu": None}


def status_lines(pod: Mapping[str, Any], session: Mapping[str, Any], at: datetime | None) -> Iterator[str]:
    """Yield a pod's status in words, in colour on a terminal, and its last problem.

    `session` is used if it is this pod's open one.
    """
    sentence, problem = describe_status(pod, session_of(pod, session), at)
    status, blank, rest = sentence.partition(" ")
    yield coloured(status, status, sys.stdout) + blank + rest
    if problem:
        yield coloured(f"last problem: {problem}", "problem", sys.stdout)
