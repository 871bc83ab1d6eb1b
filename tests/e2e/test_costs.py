"""`/api/v1/cost/*` of a gateway that has run pods: the contract's shapes, and sums that are right."""

from __future__ import annotations

import csv
import io
import math
import re
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from attrs import evolve

from gpugate.billing import sqlite_ledger
from gpugate.billing.model import Session
from gpugate.billing.sqlite_ledger import SqliteLedger
from tests.e2e.support import House, bearer

MONTH = f"{datetime.now(UTC):%Y-%m}"
ROW_KEYS = [
    *("id", "provider", "pod_id", "gpu", "started_at", "ready_at", "ended_at", "seconds", "hourly_rate"),
    *("rate_source", "cost", "currency", "started_by", "start_reason", "end_reason"),
]
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


async def data(house: House, path: str):
    answer = await house.ask("GET", f"/api/v1/cost/{path}")
    assert 200 == answer.status, answer.body
    assert "success" == answer.json["status"]
    return answer.json["data"]


async def test_the_open_session(house: House):
    """Null without one; else what it costs so far."""
    assert await data(house, "session") is None
    await house.chat()
    cost = await data(house, "session")
    assert {"estimatedCost", "currency", "sessionDuration", "provider", "hourlyRate"} == set(cost)
    assert 0.44 == cost["hourlyRate"]
    assert math.isclose(cost["estimatedCost"], 0.44 * cost["sessionDuration"] / 3600, abs_tol=1e-5)


async def test_a_month_of_nothing(house: House):
    """All sums are 0; any month can be asked for."""
    told = await data(house, "summary?month=2031-02")
    assert ("2031-02", 0, 0, 0, "USD", [], [], []) == tuple(
        told[key]
        for key in (
            *("month", "sessionCount", "totalHours", "estimatedTotal", "currency"),
            *("byProvider", "byDay", "byUser"),
        )
    )


def as_written(value: object) -> str:
    """In CSV: small amounts without an exponent."""
    if isinstance(value, float):
        return f"{Decimal(str(value)):f}"
    return "" if value is None else str(value)


async def test_after_a_session(house: House):
    """Summary, list and CSV tell the same of it; the parts sum to the whole; whoever asked is named."""
    await house.chat()
    await house.stop()
    await house.off()
    (row,) = (await data(house, "sessions"))["sessions"]
    assert ROW_KEYS == list(row)
    assert ("tester", "request") == (row["started_by"], row["start_reason"])
    assert all(INSTANT.fullmatch(row[key]) for key in ("started_at", "ready_at", "ended_at"))
    told = await data(house, "summary")
    assert (MONTH, 1, row["provider"]) == (
        told["month"],
        told["sessionCount"],
        told["byProvider"][0]["provider"],
    )
    assert math.isclose(told["estimatedTotal"], row["cost"], abs_tol=2e-6)
    for part in ("byProvider", "byDay", "byUser"):
        assert math.isclose(told["estimatedTotal"], sum(line["cost"] for line in told[part]), abs_tol=1e-9)
        assert math.isclose(told["totalHours"], sum(line["hours"] for line in told[part]), abs_tol=1e-9)
    assert {"provider", "sessionCount", "hours", "cost"} == set(told["byProvider"][0])
    assert {"date", "sessionCount", "hours", "cost"} == set(told["byDay"][0])
    assert {"user", "hours", "cost"} == set(told["byUser"][0])
    assert "tester" in {line["user"] for line in told["byUser"]}

    answer = await house.ask("GET", "/api/v1/cost/sessions?format=csv")
    assert "text/csv" in answer.headers["Content-Type"]
    (written,) = csv.DictReader(io.StringIO(answer.body.decode(), newline=""))
    assert ROW_KEYS == list(written)
    assert {key: as_written(value) for key, value in row.items()} == written

    receipt = await data(house, f"receipt?id={row['id']}")
    assert math.isclose(row["seconds"], sum(line["seconds"] for line in receipt["lines"]), abs_tol=2e-3)
    assert Decimal(str(row["cost"])) == sum(Decimal(str(line["cost"])) for line in receipt["lines"])


async def test_an_open_session_in_the_list(house: House):
    """It has no end, and costs what it cost so far."""
    await house.warm()
    (row,) = (await data(house, "sessions"))["sessions"]
    assert (None, None) == (row["ended_at"], row["end_reason"])
    assert row["cost"] >= 0


OLD = Session(id="", provider="runpod", asked_at=datetime(2026, 3, 1, tzinfo=UTC), hourly_rate=Decimal("0.5"))


async def old_sessions(path) -> None:
    ledger = await SqliteLedger.open(path / "ledger.sqlite3")
    for day in (1, 2, 3):
        begin = datetime(2026, 3, day, tzinfo=UTC)
        await ledger.put(
            Session(
                id=f"day-{day}",
                provider="=cmd()",
                asked_at=begin,
                started_at=begin,
                ended_at=begin + timedelta(hours=day),
                hourly_rate=Decimal("0.5"),
            )
        )
    await ledger.aclose()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [1, 2, 3]),
        ("from=2026-03-02", [2, 3]),
        ("to=2026-03-02", [1]),
        ("from=2026-03-02&to=2026-03-03", [2]),
        ("from=2026-03-02T00:00:01Z", [3]),
        ("from=2026-03-02T01:00:00%2B01:00", [2, 3]),
        ("from=2026-03-02T01:00:00+01:00", [2, 3]),
        ("from=2026-03-02%2000:00&to=2026-03-02T00:00:01", [2]),
        ("from=2026-03-02T01:00:00.5+0100", [3]),
        ("from=2026-03-05&to=2026-03-01", []),
    ],
)
async def test_a_span(tmp_path, opened, query: str, expected: list[int]):
    """`from` is in it, `to` is not; dates and instants, whatever their zone."""
    await old_sessions(tmp_path)
    house = await opened()
    rows = (await data(house, f"sessions?{query}"))["sessions"]
    assert [f"day-{day}" for day in expected] == [row["id"] for row in rows]


async def test_many_sessions(tmp_path, opened):
    """A list of megabytes is whole, in JSON and CSV; `limit` returns the newest, in order."""
    house = await opened()
    begin = datetime(2026, 3, 1, tzinfo=UTC)
    rows = [
        evolve(OLD, id=f"{n:04}", asked_at=at, started_at=at, ended_at=at + timedelta(seconds=3))
        for n, at in enumerate(begin + timedelta(seconds=5 * n) for n in range(3000))
    ]
    with closing(sqlite_ledger.connect(tmp_path / "ledger.sqlite3")) as database:
        sqlite_ledger.put_rows(database, rows)

    every = [row["id"] for row in (await data(house, "sessions"))["sessions"]]
    assert [row.id for row in rows] == every
    text = (await house.ask("GET", "/api/v1/cost/sessions?format=csv")).body.decode()
    assert every == [row["id"] for row in csv.DictReader(io.StringIO(text, newline=""))]
    assert every[-70:] == [row["id"] for row in (await data(house, "sessions?limit=70"))["sessions"]]
    head = await house.ask("HEAD", "/api/v1/cost/sessions")
    assert (200, b"") == (head.status, head.body)
    told = await data(house, "summary?month=2026-03")
    assert (3000, 1.25) == (told["sessionCount"], told["estimatedTotal"])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("from=2026-03-02", [2, 3]),  # that day began at 23:00 UTC of the day before
        ("to=2026-03-02", [1]),
        ("from=2026-03-02T01:00:00", [2, 3]),
        ("from=2026-03-02T01:00:01", [3]),
        ("from=2026-03-02T00:00:01Z", [3]),
        ("from=2026-03-02T01:00:00%2B01:00&to=2026-03-03T01:00:00", [2]),
    ],
)
async def test_a_span_in_another_zone(tmp_path, opened, query: str, expected: list[int]):
    """Dates and times without an offset are those of `cost.timezone`."""
    await old_sessions(tmp_path)
    house = await opened(cost__timezone="Europe/Berlin")
    rows = (await data(house, f"sessions?{query}"))["sessions"]
    assert [f"day-{day}" for day in expected] == [row["id"] for row in rows]
    days = (await data(house, "summary?month=2026-03"))["byDay"]
    assert ["2026-03-01", "2026-03-02", "2026-03-03"] == [line["date"] for line in days]


async def test_a_name_like_a_formula(tmp_path, opened):
    """A spreadsheet must not run it."""
    await old_sessions(tmp_path)
    house = await opened()
    text = (await house.ask("GET", "/api/v1/cost/sessions?format=csv")).body.decode()
    assert "'=cmd()" in text


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("summary?month=2026-13", "month"),
        ("summary?month=november", "month"),
        ("summary?month=2026-1", "month"),
        ("summary?month=0000-01", "month"),
        ("summary?month=9999-12", "month"),
        ("reconcile?month=2026-00", "month"),
        ("summary?mounth=2026-11", "mounth"),
        ("sessions?until=2026-11-01", "until"),
        ("session?month=2026-11", "month"),
        ("sessions?from=yesterday", "from"),
        ("sessions?to=2026-02-30", "to"),
        ("sessions?format=xml", "format"),
        ("receipt", "id"),
    ],
)
async def test_a_wrong_question(house: House, path: str, field: str):
    """400, naming the field."""
    answer = await house.ask("GET", f"/api/v1/cost/{path}")
    assert (400, "INVALID_REQUEST") == (answer.status, answer.json["error"]["code"])
    assert answer.json["error"]["message"].startswith(field)


async def test_no_pod_is_touched(house: House):
    """Asking wakes nothing."""
    for path in ("session", "summary", "sessions", "reconcile"):
        await data(house, path)
    assert 0 == house.cloud.starts


async def test_head(house: House):
    """The same head as GET's, without the body."""
    for path in ("session", "summary?month=2026-11", "sessions?format=csv"):
        told = await house.ask("GET", f"/api/v1/cost/{path}")
        head = await house.ask("HEAD", f"/api/v1/cost/{path}")
        assert (200, b"") == (head.status, head.body)
        assert told.headers["Content-Type"] == head.headers["Content-Type"]


async def test_who_may_ask(house: House):
    """The scope `cost`, and no other but `admin`."""
    for path in ("session", "summary", "sessions", "receipt?id=x", "reconcile"):
        chat = await house.ask("GET", f"/api/v1/cost/{path}", headers=bearer(scope="chat pod"))
        assert (403, "FORBIDDEN") == (chat.status, chat.json["error"]["code"])
        cost = await house.ask("GET", f"/api/v1/cost/{path}", headers=bearer(scope="cost"))
        assert (404 if "receipt" in path else 200) == cost.status


async def test_a_provider_without_a_bill(house: House):
    """That is said beside the estimate."""
    await house.chat()
    await house.stop()
    told = await data(house, "reconcile")
    assert (MONTH, "USD") == (told["month"], told["currency"])
    (one,) = told["providers"]
    assert ("fake", None, {}, "this provider has no billing API") == (
        *(one[key] for key in ("provider", "bill", "parts", "note")),
    )
    assert one["estimate"] > 0


async def test_without_a_ledger(opened):
    """503 that does not tell where the file is; the open session is told all the same."""
    house = await opened(state__dir="/proc/nothing-can-be-made-here")
    answer = await house.ask("GET", "/api/v1/cost/summary")
    assert 503 == answer.status
    assert "the ledger cannot be used" in answer.json["error"]["message"]
    chat = await house.chat()
    assert 503 == chat.status
    for body in (answer.body, chat.body):
        assert b"ledger" in body
        assert b"sqlite3" not in body
        assert b"/proc" not in body
    assert await data(house, "session") is None
