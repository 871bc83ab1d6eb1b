"""`gpugate status`, `start`, `stop` and `events`: ask a running gateway and print its response."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping

from gpugate.cli.errors import OK, CliError
from gpugate.cli.http_client import connect
from gpugate.cli.token_commands import describe_end

WEEK_S = 7 * 86_400.0
_GPU = "/api/v1/gpu"


def status(args: Namespace) -> int:
    """Print what the pod is doing, and on stderr that the token ends within a week."""
    gateway = connect(args)
    if os.environ.get("GPUGATE_TOKEN") and (end := describe_end(gateway.token, time.time(), WEEK_S)):
        print(f"GPUGATE_TOKEN: {end}", file=sys.stderr)
    return _print_fields(gateway.get(f"{_GPU}/status"), args)


def start(args: Namespace) -> int:
    """Start the pod and print its status."""
    return _print_fields(connect(args).post(f"{_GPU}/start"), args)


def stop(args: Namespace) -> int:
    """Stop the pod and print its status."""
    try:
        return _print_fields(connect(args).post(f"{_GPU}/stop" + "?force=true" * args.force), args)
    except CliError as error:
        if error.message.startswith("POD_BUSY") and not args.force:
            raise CliError(f"{error.message} (gpugate stop --force)", error.status) from None
        raise


def events(args: Namespace) -> int:
    """Print each event as it arrives, until the gateway or the user ends the stream."""
    for event in parse_events(connect(args).lines(f"{_GPU}/events")):
        print(json.dumps(event) if args.json else _event_line(event), flush=True)
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


def _event_line(event: Mapping[str, object]) -> str:
    data = event["data"]
    if not isinstance(data, dict):
        return f"{event['event']} {plain(data)}"
    pairs = (f"{key}={plain(value)}" for key, value in data.items() if value is not None)
    return " ".join([str(event["event"]), *pairs])


def _print_fields(data: object, args: Namespace) -> int:
    if args.json or not isinstance(data, dict):
        print(json.dumps(data))
    else:
        for key, value in data.items():
            if value is not None:
                print(f"{key}: {plain(value)}")
    return OK


def plain(value: object) -> str:
    """Return a value as one line, without control characters that a terminal would obey."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else " " for c in text)
