"""The cost endpoints: the results of `billing.reports` as JSON and CSV (docs/api.md#costs)."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import TypeVar

from aiohttp import web

from gpugate.api.routing import ApiRoute, ApiRoutes
from gpugate.billing.cost_math import QUANTUM, ReceiptLine, round_to_total
from gpugate.billing.reconciliation import BillReconciler, ReconciliationReport
from gpugate.billing.reports import BilledSession, CostLine, CostQueries, CostSummary, SessionCost, total_of
from gpugate.errors import InvalidRequest, LedgerError, PathNotFound, ProviderUnavailable
from gpugate.provider_api import MAIN_POD
from gpugate.proxy.error_format import dump, success
from gpugate.proxy.request_context import RequestContext

T = TypeVar("T")
Render = Callable[[Sequence[Mapping[str, object]]], bytes]
COLUMNS = (
    *("id", "provider", "pod_id", "gpu", "started_at", "ready_at", "ended_at", "seconds", "hourly_rate"),
    *("rate_source", "cost", "currency", "started_by", "start_reason", "end_reason"),
)
"""`cost/sessions` of docs/api.md#costs; with `[pods.<name>]` also `pod`."""
LEDGER_RETRY_S = 30.0
PIECE = 65_536
"""Bytes of an answer that are written at once."""
_COUNT = re.compile("[0-9]{1,6}")
_MONTH = re.compile(r"(?!0000|9999)[0-9]{4}-(0[1-9]|1[0-2])")
_BLANK_FOR_PLUS = re.compile(r"([T ][0-9:.,]+) (?=[0-9]{2}:?[0-9]{2}$)")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class CostApi:
    """`/api/v1/cost/*`. Reads the ledger; never touches a pod.

    Args:
        monthly_budget: told in the summary; 0 for none.
        pods: the names of `[pods.<name>]`; sessions are told with their pod if there are any.
    """

    def __init__(
        self,
        costs: CostQueries,
        reconcile: BillReconciler,
        monthly_budget: Decimal,
        pods: Collection[str] = (),
    ) -> None:
        self._costs = costs
        self._reconcile = reconcile
        self.monthly_budget = monthly_budget
        self._pods = pods
        self._columns = (*COLUMNS, "pod") if pods else COLUMNS

    def routes(self) -> ApiRoutes:
        """Return the endpoints."""
        handlers = (self.session, self.summary, self.sessions, self.receipt, self.reconcile)
        return {
            f"/api/v1/cost/{handler.__name__}": dict.fromkeys(
                ("GET", "HEAD"), ApiRoute(handler, scope="cost")
            )
            for handler in handlers
        }

    async def session(self, call: RequestContext) -> web.StreamResponse:
        """Return the open session of a pod, or the sum of those of all pods; null without one."""
        _only(call, "pod")
        pod = _asked(call, "pod")
        if pod and pod not in (self._pods or (MAIN_POD,)):
            raise PathNotFound(f"pod: there is no pod {pod!r}")
        costs = [cost for cost in self._costs.open_sessions() if pod in ("", cost.pod)]
        if not costs:
            return _answer(call, None)
        if not self._pods:
            return _answer(call, _session_cost(costs[0]))
        sessions = [{"pod": cost.pod, **_session_cost(cost)} for cost in costs]
        whole = _session_cost(total_of(costs))
        return _answer(call, sessions[0] if pod else {**whole, "sessions": sessions})

    async def summary(self, call: RequestContext) -> web.StreamResponse:
        """Return a month's costs by provider, pod, day and user."""
        summary = _summary(await _read(self._costs.summary, _month(call)))
        return _answer(
            call,
            {
                **summary,
                "monthlyBudget": _number(self.monthly_budget or None),
                "today": self._costs.today_date(),
            },
        )

    async def sessions(self, call: RequestContext) -> web.StreamResponse:
        """Return the sessions that began in a span, as JSON or CSV."""
        _only(call, "from", "to", "format", "limit")
        zone = self._costs.zone
        since, until = _instant(call, "from", zone), _instant(call, "to", zone)
        form = _asked(call, "format") or "json"
        if form not in ("json", "csv"):
            raise InvalidRequest("format: must be json or csv")
        render = _json_rows if form == "json" else self._csv_rows
        pages = await _read(self._rendered_pages, since, until, _limit(call), render)
        if form == "json":
            head, tail = success({"sessions": []}, call.request_id, time.time()).split(b"[]", 1)
            body = head + b"[" + b",".join(pages) + b"]" + tail
            return web.Response(body=_in_pieces(body), content_type="application/json")
        body = _csv([self._columns]) + b"".join(pages)
        return web.Response(body=_in_pieces(body), content_type="text/csv", charset="utf-8")

    async def _rendered_pages(
        self, since: datetime | None, until: datetime | None, limit: int | None, render: Render
    ) -> list[bytes]:
        """Return the sessions, oldest first; other requests are served between the pages."""
        rendered = []
        async for page in self._costs.pages(since, until, limit):
            rendered.append(render([self._row(row) for row in page]))
        return rendered[::-1]

    def _row(self, row: BilledSession) -> Mapping[str, object]:
        return {**_row(row), "pod": row.session.pod} if self._pods else _row(row)

    def _csv_rows(self, rows: Sequence[Mapping[str, object]]) -> bytes:
        return _csv([[_cell(row[name]) for name in self._columns] for row in rows])

    async def receipt(self, call: RequestContext) -> web.StreamResponse:
        """Return who used the seconds of one session."""
        _only(call, "id")
        session_id = _asked(call, "id")
        if not session_id:
            raise InvalidRequest("id: a session's id is missing")
        found = await _read(self._costs.receipt, session_id)
        if found is None:
            raise PathNotFound("id: there is no such session")
        row, lines = found
        return _answer(call, {"session": self._row(row), "lines": _receipt_lines(row, lines)})

    async def reconcile(self, call: RequestContext) -> web.StreamResponse:
        """Return a month's estimate and the providers' bills."""
        return _answer(call, _reconciled(await _read(self._reconcile.month, _month(call))))


async def _read(ask: Callable[..., Awaitable[T]], *given: object) -> T:
    try:
        return await ask(*given)
    except LedgerError as error:
        raise ProviderUnavailable(str(error), retry_after_s=LEDGER_RETRY_S) from error


def _asked(call: RequestContext, name: str) -> str:
    return str(call.request.query.get(name, "")).strip()


def _only(call: RequestContext, *known: str) -> None:
    """Reject unknown parameters: a mistyped filter must not return everything."""
    for name in call.request.query:
        if name not in known:
            takes = f"this takes {', '.join(known)}" if known else "this takes no parameters"
            raise InvalidRequest(f"{name}: unknown; {takes}")


def _month(call: RequestContext) -> str | None:
    _only(call, "month")
    month = _asked(call, "month") or None
    if month is not None and not _MONTH.fullmatch(month):
        raise InvalidRequest('month: must look like "2026-11"')
    return month


def _instant(call: RequestContext, name: str, zone: tzinfo) -> datetime | None:
    """Return a date (its midnight) or a time, in this zone if it has no offset. A `+` may come as a blank."""
    said = _asked(call, name)
    if not said:
        return None
    try:
        at = datetime.fromisoformat(_BLANK_FOR_PLUS.sub(r"\1+", said))
        return (at.replace(tzinfo=zone) if at.tzinfo is None else at).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f'{name}: must be a date or an instant, such as "2026-11-01" or "2026-11-01T12:00:00Z"'
        ) from None


def _limit(call: RequestContext) -> int | None:
    """Return how many of the newest sessions are wanted; None for all."""
    said = _asked(call, "limit") or "0"
    if not _COUNT.fullmatch(said):
        raise InvalidRequest("limit: must be a number of sessions, such as 100")
    return int(said) or None


def _answer(call: RequestContext, data: object) -> web.Response:
    body = success(data, call.request_id, time.time())
    return web.Response(body=body, content_type="application/json")


def _session_cost(cost: SessionCost) -> Mapping[str, object]:
    return {
        "estimatedCost": _number(cost.estimated_cost),
        "currency": cost.currency,
        "sessionDuration": round(cost.duration_s, 3),
        "provider": cost.provider,
        "hourlyRate": _number(cost.hourly_rate),
    }


def _summary(summary: CostSummary) -> Mapping[str, object]:
    return {
        "month": summary.month,
        "sessionCount": summary.session_count,
        "totalHours": _number(summary.total_hours),
        "estimatedTotal": _number(summary.estimated_total),
        "currency": summary.currency,
        "byProvider": [{"provider": line.name, **_line(line)} for line in summary.by_provider],
        "byPod": [{"pod": line.name, **_line(line)} for line in summary.by_pod],
        "byDay": [{"date": line.name, **_line(line)} for line in summary.by_day],
        "byUser": [
            {"user": line.name, "hours": _number(line.hours), "cost": _number(line.cost)}
            for line in summary.by_user
        ],
        "failedStarts": _line(summary.failed_starts),
        "stoppedDisk": {
            "hours": _number(summary.stopped_disk.hours),
            "cost": _number(summary.stopped_disk.cost),
        },
        "warnings": list(summary.warnings),
    }


def _line(line: CostLine) -> Mapping[str, object]:
    return {"sessionCount": line.session_count, "hours": _number(line.hours), "cost": _number(line.cost)}


def _row(row: BilledSession) -> Mapping[str, object]:
    session = row.session
    return {
        "id": session.id,
        "provider": session.provider,
        "pod_id": session.pod_id,
        "gpu": session.gpu,
        "started_at": _time(session.started_at),
        "ready_at": _time(session.ready_at),
        "ended_at": _time(session.ended_at),
        "seconds": float(round(row.seconds, 3)),
        "hourly_rate": _number(session.hourly_rate),
        "rate_source": session.rate_source,
        "cost": _number(row.cost),
        "currency": session.currency,
        "started_by": session.started_by,
        "start_reason": session.start_reason,
        "end_reason": session.end_reason or None,
    }


def _receipt_lines(row: BilledSession, lines: Sequence[ReceiptLine]) -> list[Mapping[str, object]]:
    """Return the lines, rounded so that they sum to the session's rounded cost."""
    costs = round_to_total(row.cost or Decimal(0), [line.amount.cost for line in lines])
    return [
        {
            "user": line.user,
            "request_id": line.request_id or None,
            "requests": line.requests,
            "seconds": float(round(line.amount.seconds, 6)),
            "cost": None if row.cost is None else _number(cost),
        }
        for line, cost in zip(lines, costs, strict=True)
    ]


def _reconciled(found: ReconciliationReport) -> Mapping[str, object]:
    return {
        "month": found.month,
        "currency": found.currency,
        "providers": [
            {
                "provider": one.provider,
                "estimate": _number(one.estimate),
                "bill": _number(one.bill),
                "parts": {what: _number(amount) for what, amount in one.parts.items()},
                "otherPods": _number(one.other_pods),
                "note": one.note or None,
            }
            for one in found.providers
        ],
    }


def _number(amount: Decimal | None) -> float | None:
    return None if amount is None else float(amount.quantize(QUANTUM))


def _time(at: datetime | None) -> str | None:
    return (
        None if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _in_pieces(body: bytes) -> bytes | AsyncIterator[bytes]:
    """Return a large body in pieces: the next is copied when the client has taken the one before."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), PIECE):
            yield body[start : start + PIECE]

    return body if len(body) <= PIECE else pieces()


def _json_rows(rows: Sequence[Mapping[str, object]]) -> bytes:
    """Return the items of a JSON array, without its brackets."""
    return dump(rows)[1:-1]


def _csv(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)  # RFC 4180: commas, doubled quotes, CR LF
    return text.getvalue().encode()


def _cell(value: object) -> object:
    """Return the value so that a spreadsheet takes no text for a formula and gets no 5e-05."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    if isinstance(value, float):
        return f"{Decimal(str(value)):f}"
    return "" if value is None else value
