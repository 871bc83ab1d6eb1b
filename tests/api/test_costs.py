"""`/api/v1/cost/*` with several pods: whose session and rows, and one pod's answers as ever."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from gpugate_testing.fakes import MemoryLedger

from gpugate.api.costs import COLUMNS, CostApi
from gpugate.billing.model import Session
from gpugate.billing.reconciliation import BillReconciler
from gpugate.billing.reports import CostQueries
from gpugate.core.states import Status
from gpugate.errors import PathNotFound
from gpugate.lifecycle.status import PodStatus
from gpugate.proxy.request_context import RequestContext

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def status(pod: str, uptime_s: float | None, cost: str = "0.5", rate: str | None = "0.5") -> PodStatus:
    return PodStatus(
        pod=pod,
        status=Status.READY,
        provider=f"at-{pod}",
        pod_id=None,
        since=NOW,
        uptime_seconds=uptime_s,
        waiting=0,
        in_flight=0,
        idle_seconds=None,
        stops_in_seconds=None,
        hourly_rate=None if rate is None else Decimal(rate),
        estimated_cost=Decimal(cost),
        ready_in_seconds=None,
        last_error=None,
    )


def session(pod: str, hours: int) -> Session:
    return Session(
        id=pod,
        pod=pod,
        provider="runpod",
        asked_at=NOW - 9 * HOUR,
        started_at=NOW - 9 * HOUR,
        ended_at=NOW - (9 - hours) * HOUR,
        hourly_rate=Decimal("0.5"),
    )


def api(
    *statuses: PodStatus, pods: tuple[str, ...] = ("chat", "code"), rows: tuple[Session, ...] = ()
) -> CostApi:
    costs = CostQueries(MemoryLedger({row.id: row for row in rows}), lambda: statuses, "USD", lambda: NOW)
    return CostApi(costs, BillReconciler(costs, [], "USD", lambda: NOW), Decimal(0), pods)


def call(query: str = "") -> RequestContext:
    return RequestContext(make_mocked_request("GET", f"/?{query}"), "id", "/", query, "")


def data(answer: web.StreamResponse) -> Any:
    assert isinstance(answer, web.Response)
    assert isinstance(answer.body, bytes)
    return json.loads(answer.body)["data"]


async def test_the_open_sessions() -> None:
    """Without a name the sum, and each by itself; with one that pod's alone."""
    costs = api(status("chat", 60.0), status("code", 90.0, "0.25", "1.25"), status("draw", None))
    whole = data(await costs.session(call()))
    chat, code = whole.pop("sessions")
    assert {
        "estimatedCost": 0.75,
        "currency": "USD",
        "sessionDuration": 90.0,
        "provider": "at-chat",
        "hourlyRate": 1.75,
    } == whole
    assert ("chat", 0.5, 60.0, "at-chat", 0.5) == tuple(
        chat[key] for key in ("pod", "estimatedCost", "sessionDuration", "provider", "hourlyRate")
    )
    assert code == data(await costs.session(call("pod=code")))


async def test_no_session_of_this_pod() -> None:
    """Null, though another pod has one; and null without any."""
    assert data(await api(status("chat", 60.0)).session(call("pod=code"))) is None
    assert data(await api().session(call())) is None


@pytest.mark.parametrize("pods", [(), ("chat", "code")])
async def test_a_pod_that_is_not_there(pods: tuple[str, ...]) -> None:
    """404, which names it."""
    with pytest.raises(PathNotFound, match="nobody"):
        await api(status("main", 60.0), pods=pods).session(call("pod=nobody"))


async def test_a_price_that_is_not_known() -> None:
    """It is left out of the sum; null if none is known."""
    one, two = status("chat", 1.0), status("code", 1.0, rate=None)
    assert 0.5 == data(await api(one, two).session(call()))["hourlyRate"]
    assert data(await api(two).session(call()))["hourlyRate"] is None


async def test_one_pod() -> None:
    """Nothing names it but the summary and `?pod=main`."""
    costs = api(status("main", 60.0), pods=(), rows=(session("main", 2),))
    whole = data(await costs.session(call()))
    assert {"estimatedCost", "currency", "sessionDuration", "provider", "hourlyRate"} == set(whole)
    assert whole == data(await costs.session(call("pod=main")))
    (row,) = data(await costs.sessions(call()))["sessions"]
    assert list(COLUMNS) == list(row)
    assert ["main"] == [line["pod"] for line in data(await costs.summary(call()))["byPod"]]


async def test_rows_and_sums_name_the_pod() -> None:
    """List, CSV, receipt and summary, also of a pod that is not configured any more."""
    costs = api(rows=(session("chat", 2), session("gone", 4)))
    rows = data(await costs.sessions(call()))["sessions"]
    assert ["chat", "gone"] == [row["pod"] for row in rows]
    answer = await costs.sessions(call("format=csv"))
    assert isinstance(answer, web.Response)
    assert isinstance(answer.body, bytes)
    head, *lines = answer.body.decode().splitlines()
    assert ",".join((*COLUMNS, "pod")) == head
    assert ["chat", "gone"] == [line.rpartition(",")[2] for line in lines]
    assert "gone" == data(await costs.receipt(call("id=gone")))["session"]["pod"]
    assert [
        {"pod": "chat", "sessionCount": 1, "hours": 2.0, "cost": 1.0},
        {"pod": "gone", "sessionCount": 1, "hours": 4.0, "cost": 2.0},
    ] == data(await costs.summary(call()))["byPod"]
