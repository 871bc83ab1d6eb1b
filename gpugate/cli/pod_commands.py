"""`gpugate status`, `start`, `stop` and `events`: ask a running gateway and print its response."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from gpugate.cli.describe import coloured, describe_event, describe_status, plain
from gpugate.cli.errors import OK, CliError
from gpugate.cli.http_client import DatedData, GatewayClient, connect
from gpugate.cli.token_commands import describe_end

WEEK_S = 7 * 86_400.0
_GPU = "/api/v1/gpu"
_SESSIONS_OF_PODS = 50
_SESSION_ID = re.compile(r"[0-9]{8}T[0-9]{6}(\.[0-9]+)?-[0-9a-f]+")
"""What the ids of sessions look like; clients choose those of their requests."""


def status(args: Namespace) -> int:
    """Print what the pod is doing, and on stderr that the token ends within a week."""
    gateway = connect(args)
    if os.environ.get("GPUGATE_TOKEN") and (end := describe_end(gateway.token, time.time(), WEEK_S)):
        print(f"GPUGATE_TOKEN: {end}", file=sys.stderr)
    return _print_status(gateway, gateway.ask("GET", f"{_GPU}/status"), args)


def start(args: Namespace) -> int:
    """Start a pod and print its status."""
    gateway = connect(args)
    return _print_status(gateway, gateway.ask("POST", f"{_GPU}/start{_query_of(args)}"), args)


def stop(args: Namespace) -> int:
    """Stop a pod and print its status."""
    gateway = connect(args)
    query = _query_of(args, *(["force=true"] if args.force else []))
    try:
        return _print_status(gateway, gateway.ask("POST", f"{_GPU}/stop{query}"), args)
    except CliError as error:
        if error.message.startswith("POD_BUSY") and not args.force:
            pod = f" {args.pod}" if args.pod else ""
            raise CliError(f"{error.message} (gpugate stop --force{pod})", error.status) from None
        raise


def _query_of(args: Namespace, *more: str) -> str:
    """Return the query that names a command's pod; without one the gateway takes the first."""
    parts = [*([f"pod={quote(args.pod, safe='')}"] if args.pod else []), *more]
    return f"?{'&'.join(parts)}" if parts else ""


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


def latest_sessions(gateway: GatewayClient, pods: int) -> list[Mapping[str, Any]]:
    """Return the ledger's newest sessions, the last first; none where the token may not see them.

    Args:
        pods: how many there are: only of one the newest session must be the open one.
    """
    try:
        rows = gateway.get(f"/api/v1/cost/sessions?limit={1 if pods == 1 else _SESSIONS_OF_PODS}")["sessions"]
        return [row for row in reversed(rows) if isinstance(row, dict)]
    except (CliError, KeyError, TypeError):
        return []


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
    pods, asked = pods_of(status), getattr(args, "pod", None)
    billed = any(pod.get("uptime_seconds") is not None for pod in pods)
    sessions = latest_sessions(gateway, len(pods)) if billed else []
    for pod in pods:
        name = f"{plain(pod['pod'])}: " if len(pods) > 1 else f"{asked}: " if asked else ""
        for line in status_lines(pod, sessions, response.at):
            print(f"{name}{line}")
    return OK


def pods_of(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the status of each pod, in the data of `GET /api/v1/gpu/status`; that of one has no name."""
    return status.get("pods") or [status]


def session_of(pod: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the open session of a pod among the newest; else only the currency of the last."""
    this = (pod.get("provider"), pod.get("pod_id"))
    for session in sessions:
        if (session.get("provider"), session.get("pod_id")) == this and session.get("ended_at") is None:
            return session
    return {"currency": sessions[0].get("currency")} if sessions else {}


def status_lines(
    pod: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]], at: datetime | None
) -> Iterator[str]:
    """Yield a pod's status in words, in colour on a terminal, and its last problem.

    `sessions` are the newest; the pod's open one is looked for among them.
    """
    sentence, problem = describe_status(pod, session_of(pod, sessions), at)
    status, blank, rest = sentence.partition(" ")
    yield coloured(status, status, sys.stdout) + blank + rest
    if problem:
        yield coloured(f"last problem: {problem}", "problem", sys.stdout)
