"""`gpugate status`, `start`, `stop`, `costs` and `events`: asks a running gateway and prints its answer."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gpugate.cli.client import gateway
from gpugate.cli.failures import OK, Failure

_GPU = "/api/v1/gpu"
_COST = "/api/v1/cost"


def status(args: Namespace) -> int:
    """Print what the pod is doing."""
    return _print_fields(gateway(args).get(f"{_GPU}/status"), args)


def start(args: Namespace) -> int:
    """Start the pod and print its status."""
    return _print_fields(gateway(args).post(f"{_GPU}/start"), args)


def stop(args: Namespace) -> int:
    """Stop the pod and print its status."""
    try:
        return _print_fields(gateway(args).post(f"{_GPU}/stop" + "?force=true" * args.force), args)
    except Failure as failure:
        if failure.message.startswith("POD_BUSY") and not args.force:
            raise Failure(f"{failure.message} (gpugate stop --force)", failure.status) from None
        raise


def costs(args: Namespace) -> int:
    """Print a month's summary, or its sessions as CSV."""
    if args.csv:
        print(gateway(args).text(f"{_COST}/sessions?format=csv{_span(args.month)}"), end="")
        return OK
    summary = gateway(args).get(f"{_COST}/summary" + (f"?month={args.month}" if args.month else ""))
    if args.json or not isinstance(summary, dict):
        print(json.dumps(summary))
        return OK
    for line in _cost_lines(summary):
        print(line)
    return OK


def events(args: Namespace) -> int:
    """Print each event as it comes, until the gateway or the user ends it."""
    for event in parse_events(gateway(args).lines(f"{_GPU}/events")):
        print(json.dumps(event) if args.json else _event_line(event), flush=True)
    return OK


def parse_events(lines: Iterable[str]) -> Iterator[dict[str, object]]:
    """Yield Server-Sent Events as {"event", "id", "data"}; data that is JSON comes decoded."""
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
        return f"{event['event']} {_plain(data)}"
    pairs = (f"{key}={_plain(value)}" for key, value in data.items() if value is not None)
    return " ".join([str(event["event"]), *pairs])


def _print_fields(data: object, args: Namespace) -> int:
    if args.json or not isinstance(data, dict):
        print(json.dumps(data))
    else:
        for key, value in data.items():
            if value is not None:
                print(f"{key}: {_plain(value)}")
    return OK


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else " " for c in text)  # a terminal must not obey what a pod says


def _span(month: str | None) -> str:
    """Return from and to of a month: the first day of it, and of the next."""
    if month is None:
        return ""
    year, number = map(int, month.split("-"))
    after = f"{year + number // 12:04d}-{number % 12 + 1:02d}"
    return f"&from={month}-01&to={after}-01"


def _cost_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    currency = _plain(summary.get("currency", ""))
    yield (
        f"{_plain(summary.get('month', ''))}: {summary.get('sessionCount', 0)} sessions, "
        f"{_rounded(summary.get('totalHours'))} hours, {_rounded(summary.get('estimatedTotal'))} {currency}"
    )
    for title, key in (("byProvider", "provider"), ("byDay", "date"), ("byUser", "user")):
        for row in summary.get(title) or []:
            hours, cost = _rounded(row.get("hours")), _rounded(row.get("cost"))
            yield f"  {_plain(row.get(key, ''))}: {hours} hours, {cost} {currency}"


def _rounded(number: object) -> str:
    try:
        return f"{float(str(number)):.2f}"
    except ValueError:
        return "?"
