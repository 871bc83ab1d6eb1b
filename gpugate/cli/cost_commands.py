"""`gpugate costs`: asks a running gateway for costs and prints them; the sums are the gateway's."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any
from urllib.parse import quote

from gpugate.cli.describe import plain
from gpugate.cli.errors import OK, WRONG, CliError
from gpugate.cli.http_client import connect
from gpugate.wording import count, duration

_COST = "/api/v1/cost"


def costs(args: Namespace) -> int:
    """Print a month's summary, its sessions as CSV, one session's receipt, or the providers' bills.

    Raises:
        CliError: (WRONG) two of these at once.
    """
    if args.csv and (args.receipt or args.reconcile):
        raise CliError("--csv lists sessions: not with --receipt or --reconcile", WRONG)
    if args.receipt and args.month:
        raise CliError("--receipt is about one session: not with --month", WRONG)
    gateway = connect(args)
    if args.csv:
        print(gateway.text(f"{_COST}/sessions?format=csv{_month_query(args.month)}"), end="")
        return OK
    path, lines_of = _request(args)
    data = gateway.get(_COST + path)
    if args.json or not isinstance(data, dict):
        print(json.dumps(data))
        return OK
    for line in lines_of(data):
        print(line)
    return OK


def _request(args: Namespace) -> tuple[str, Any]:
    """Return the path to request, and the function that formats the response."""
    if args.receipt:
        return f"/receipt?id={quote(args.receipt, safe='')}", _receipt_lines
    month = f"?month={args.month}" if args.month else ""
    return (f"/reconcile{month}", _bill_lines) if args.reconcile else (f"/summary{month}", _cost_lines)


def _month_query(month: str | None) -> str:
    """Return the query of a month: from its first day to the first day of the next."""
    if month is None:
        return ""
    year, number = map(int, month.split("-"))
    after = f"{year + number // 12:04d}-{number % 12 + 1:02d}"
    return f"&from={month}-01&to={after}-01"


def _cost_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    currency = plain(summary.get("currency", ""))
    yield (
        f"{_month_name(summary.get('month'))}: {count(summary.get('sessionCount') or 0, 'session')}, "
        f"{_time_and_cost(summary.get('totalHours'), summary.get('estimatedTotal'), currency)}"
        f"{_of_budget(summary, currency)}"
    )
    for title, rows, key in (
        ("provider", "byProvider", "provider"),
        ("pod", "byPod", "pod"),
        ("day", "byDay", "date"),
        ("user", "byUser", "user"),
    ):
        lines = summary.get(rows) or []
        if not lines or (key == "pod" and len(lines) == 1):
            continue
        yield f"by {title}"
        for row in lines:
            yield f"  {plain(row.get(key, ''))}: {_row(row, currency)}"
    failed, disk = summary.get("failedStarts") or {}, summary.get("stoppedDisk") or {}
    if failed.get("sessionCount"):
        yield f"of it failed starts: {failed['sessionCount']}, {_row(failed, currency)}"
    if disk.get("cost"):
        yield f"beside it, estimated, disks of stopped pods: {_row(disk, currency)}"
    for warning in summary.get("warnings") or []:
        yield f"note: {plain(warning)}"


def _month_name(month: object) -> str:
    try:
        return f"{date.fromisoformat(f'{month}-01'):%B %Y}"
    except ValueError:
        return plain(month)


def _of_budget(summary: Mapping[str, Any], currency: str) -> str:
    budget, spent = summary.get("monthlyBudget"), summary.get("estimatedTotal")
    if not budget or spent is None:
        return ""
    return f", {spent / budget * 100:.0f} % of the budget of {_money(budget, currency)}"


def _receipt_lines(receipt: Mapping[str, Any]) -> Iterator[str]:
    session = receipt.get("session") or {}
    currency = plain(session.get("currency", ""))
    pod = f"{plain(session['pod'])} at " if session.get("pod") else ""
    yield (
        f"{plain(session.get('id', ''))}: {pod}{plain(session.get('provider', ''))}, "
        f"{plain(session.get('started_at') or '?')} to {plain(session.get('ended_at') or 'now')}, "
        f"{_time(session.get('seconds'))}, {_money(session.get('cost'), currency)}"
    )
    for line in receipt.get("lines") or []:
        requests, name = line.get("requests") or 0, line.get("request_id")
        which = f" {requests} requests" if requests > 1 else f" {plain(name)}" if name else ""
        used, cost = _time(line.get("seconds")), _money(line.get("cost"), currency)
        yield f"  {plain(line.get('user', ''))}{which}: {used}, {cost}"


def _bill_lines(bills: Mapping[str, Any]) -> Iterator[str]:
    currency = plain(bills.get("currency", ""))
    yield f"{_month_name(bills.get('month'))}, estimated beside billed, {currency}"
    for row in bills.get("providers") or []:
        line = f"  {plain(row.get('provider', ''))}: {amount(row.get('estimate'))} estimated"
        if row.get("bill") is not None:
            parts = ", ".join(
                f"{plain(part)} {amount(paid)}" for part, paid in (row.get("parts") or {}).items()
            )
            line += f", {amount(row['bill'])} billed" + (f" ({parts})" if parts else "")
        if row.get("otherPods"):
            line += f", {amount(row['otherPods'])} for other pods"
        yield line + (f": {plain(row['note'])}" if row.get("note") else "")


def _row(row: Mapping[str, Any], currency: str) -> str:
    return _time_and_cost(row.get("hours"), row.get("cost"), currency)


def _time_and_cost(hours: object, cost: object, currency: str) -> str:
    return f"{_time(hours, 3600)}, {_money(cost, currency)}"


def _time(number: object, unit_s: float = 1) -> str:
    try:
        return duration(float(str(number)) * unit_s)
    except ValueError:
        return "?"


def _money(sum_: object, currency: str) -> str:
    return f"${amount(sum_)}" if currency == "USD" else f"{amount(sum_)} {currency}"


def amount(number: object) -> str:
    """Return an amount with two to six decimal places: small sums stay visible, and parts add up."""
    whole, point, places = _rounded(number, 6).partition(".")
    return f"{whole}{point}{places.rstrip('0').ljust(2, '0')}" if point else whole


def _rounded(number: object, places: int = 2) -> str:
    try:
        return f"{float(str(number)):.{places}f}"
    except ValueError:
        return "?"
