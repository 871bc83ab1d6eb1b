"""`gpugate costs`: asks a running gateway what was spent and prints it; adds nothing up itself."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from gpugate.cli.errors import OK, WRONG, Failure
from gpugate.cli.http_client import gateway
from gpugate.cli.pod_commands import plain

_COST = "/api/v1/cost"


def costs(args: Namespace) -> int:
    """Print a month's summary, its sessions as CSV, one session's receipt, or the providers' bills.

    Raises:
        Failure: (2) two of these at once.
    """
    if args.csv and (args.receipt or args.reconcile):
        raise Failure("--csv lists sessions: not with --receipt or --reconcile", WRONG)
    if args.receipt and args.month:
        raise Failure("--receipt is about one session: not with --month", WRONG)
    asked = gateway(args)
    if args.csv:
        print(asked.text(f"{_COST}/sessions?format=csv{_span(args.month)}"), end="")
        return OK
    path, lines_of = _question(args)
    answer = asked.get(_COST + path)
    if args.json or not isinstance(answer, dict):
        print(json.dumps(answer))
        return OK
    for line in lines_of(answer):
        print(line)
    return OK


def _question(args: Namespace) -> tuple[str, Any]:
    """What to ask, and who makes lines of the answer."""
    if args.receipt:
        return f"/receipt?id={quote(args.receipt, safe='')}", _receipt_lines
    month = f"?month={args.month}" if args.month else ""
    return (f"/reconcile{month}", _bill_lines) if args.reconcile else (f"/summary{month}", _cost_lines)


def _span(month: str | None) -> str:
    """Return from and to of a month: the first day of it, and of the next."""
    if month is None:
        return ""
    year, number = map(int, month.split("-"))
    after = f"{year + number // 12:04d}-{number % 12 + 1:02d}"
    return f"&from={month}-01&to={after}-01"


def _cost_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    currency, count = plain(summary.get("currency", "")), summary.get("sessionCount", 0)
    yield (
        f"{plain(summary.get('month', ''))}: {plain(count)} session{'' if count == 1 else 's'}, "
        f"{_shown(summary.get('totalHours'))} hours, {_shown(summary.get('estimatedTotal'))} {currency}"
    )
    for title, key in (("byProvider", "provider"), ("byDay", "date"), ("byUser", "user")):
        for row in summary.get(title) or []:
            yield f"  {plain(row.get(key, ''))}: {_amount(row, currency)}"
    failed, disk = summary.get("failedStarts") or {}, summary.get("stoppedDisk") or {}
    if failed.get("sessionCount"):
        yield f"of it failed starts: {failed['sessionCount']}, {_amount(failed, currency)}"
    if disk.get("cost"):
        yield f"beside it, estimated, disks of stopped pods: {_amount(disk, currency)}"
    for warning in summary.get("warnings") or []:
        yield f"note: {plain(warning)}"


def _receipt_lines(receipt: Mapping[str, Any]) -> Iterator[str]:
    session = receipt.get("session") or {}
    currency = plain(session.get("currency", ""))
    yield (
        f"{plain(session.get('id', ''))}: {plain(session.get('provider', ''))}, "
        f"{plain(session.get('started_at') or '?')} to {plain(session.get('ended_at') or 'now')}, "
        f"{_rounded(session.get('seconds'))} s, {_shown(session.get('cost'))} {currency}"
    )
    for line in receipt.get("lines") or []:
        requests, name = line.get("requests") or 0, line.get("request_id")
        which = f" {requests} requests" if requests > 1 else f" {plain(name)}" if name else ""
        seconds, cost = _rounded(line.get("seconds")), _shown(line.get("cost"))
        yield f"  {plain(line.get('user', ''))}{which}: {seconds} s, {cost} {currency}"


def _bill_lines(found: Mapping[str, Any]) -> Iterator[str]:
    currency = plain(found.get("currency", ""))
    yield f"{plain(found.get('month', ''))}, estimated beside billed, {currency}"
    for one in found.get("providers") or []:
        line = f"  {plain(one.get('provider', ''))}: {_shown(one.get('estimate'))} estimated"
        if one.get("bill") is not None:
            parts = ", ".join(
                f"{plain(what)} {_shown(amount)}" for what, amount in (one.get("parts") or {}).items()
            )
            line += f", {_shown(one['bill'])} billed" + (f" ({parts})" if parts else "")
        if one.get("otherPods"):
            line += f", {_shown(one['otherPods'])} for other pods"
        yield line + (f": {plain(one['note'])}" if one.get("note") else "")


def _amount(row: Mapping[str, Any], currency: str) -> str:
    return f"{_shown(row.get('hours'))} hours, {_shown(row.get('cost'))} {currency}"


def _shown(number: object) -> str:
    """All the places that were sent, so that small sums are seen and parts add up, and two at least."""
    whole, point, places = _rounded(number, 6).partition(".")
    return f"{whole}{point}{places.rstrip('0').ljust(2, '0')}" if point else whole


def _rounded(number: object, places: int = 2) -> str:
    try:
        return f"{float(str(number)):.{places}f}"
    except ValueError:
        return "?"
