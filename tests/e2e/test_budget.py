"""A gateway whose budget is spent: what clients of each dialect hear, and what goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import aiohttp
from attrs import define, field, frozen
from gpugate_demo.faults import HangAfter
from gpugate_demo.ollama import SimulatedOllama
from gpugate_testing.fakes import FakeCloud, FakeProvider

from gpugate.app import build
from gpugate.billing.budget import BudgetMonitor
from gpugate.billing.model import Session
from gpugate.billing.sqlite_ledger import SqliteLedger
from gpugate.errors import NoCapacity
from gpugate.provider_api import Capabilities, Provider
from tests.e2e.support import CHAT, MODEL, SOON, House, bearer, open_house, part_of, settings_for

SAID = "the budget of 20 USD for 20"
MESSAGES = {"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}


@frozen
class OpenSession:
    """A pod that costs so much per hour."""

    hourly_rate: Decimal | None = Decimal(1)


@define
class Book:
    """What was spent, as the test says; what was told."""

    spent: Decimal = Decimal(0)
    users: dict[str, Decimal] = field(factory=dict)
    told: dict[str, int] = field(factory=dict)
    open: bool = False

    async def session(self) -> OpenSession | None:
        return OpenSession() if self.open else None

    async def spent_in_month(self, month: str | None = None) -> Decimal:
        return self.spent

    async def spent_by_user(self, month: str | None = None) -> Mapping[str, Decimal]:
        return self.users

    async def last_notified_threshold(self, month: str) -> int:
        return self.told.get(month, 0)

    async def mark_threshold_notified(self, month: str, percent: int) -> None:
        self.told[month] = percent


def poor_house(tmp_path, ollama, book: Book, **more: object):
    """A gateway with a budget of 20."""
    return open_house(tmp_path, ollama, money=book, cost__monthly_budget=20.0, **more)


async def test_a_spent_budget_in_each_dialect(tmp_path, ollama):
    """402 where a start would be needed, in the words of each path; the provider is asked for nothing."""
    async with poor_house(tmp_path, ollama, Book(Decimal(20))) as house:
        native = await house.chat()
        assert (402, "BUDGET_EXCEEDED") == (native.status, native.json["code"])
        assert SAID in native.json["error"]

        openai = await house.chat("/v1/chat/completions")
        assert 402 == openai.status
        assert SAID in openai.json["error"]["message"]

        anthropic = await house.ask("POST", "/v1/messages", json=MESSAGES)
        assert (402, "error") == (anthropic.status, anthropic.json["type"])
        assert SAID in anthropic.json["error"]["message"]

        for path, body in (
            ("/api/v1/gpu/start", None),
            ("/api/v1/code/assist", {"code": "x = 1", "question": "What is x?"}),
        ):
            own = await house.ask("POST", path, json=body)
            assert (402, "BUDGET_EXCEEDED") == (own.status, own.json["error"]["code"])
            assert SAID in own.json["error"]["message"]

        assert "STOPPED" == (await house.status())["status"]
        assert "start" not in house.cloud.calls
        assert "Retry-After" not in native.headers


async def test_the_budget_is_spent_while_an_answer_runs(tmp_path, ollama):
    """It ends, and the pod serves on until it is stopped; the events tell of every threshold."""
    book = Book(open=True)
    async with poor_house(tmp_path, ollama, book) as house:
        await house.warm()
        go_on = asyncio.Event()
        house.ollama.faults.add("/api/chat", HangAfter(1, until=go_on))
        answer = asyncio.ensure_future(house.chat())
        await house.until(lambda: house.in_flight == 1)
        async with house.call("GET", "/api/v1/gpu/events") as events:
            book.spent = Decimal(21)
            part_of(house.gateway, BudgetMonitor)._soon.set()
            told: list[dict[str, object]] = []
            async with asyncio.timeout(SOON):
                while len(told) < 3:
                    line = (await events.content.readline()).decode()
                    if line.startswith("event: budget"):
                        data = await events.content.readline()
                        told.append(json.loads(data.decode().partition(": ")[2]))
        go_on.set()

        assert [50, 80, 100] == [event["percent"] for event in told]
        assert {"percent", "spent", "budget", "month"} == set(told[0])
        assert (await answer).lines[-1]["done"] is True
        assert 200 == (await house.chat()).status
        assert 202 == (await house.ask("POST", "/api/v1/gpu/start")).status

        await house.stop()
        await house.off()
        assert 402 == (await house.chat()).status


async def test_what_the_ledger_says_was_spent(tmp_path, opened):
    """The real one: a budget that its sessions have spent bars a start; each threshold is noted as told."""
    now = datetime.now(UTC)
    ledger = await SqliteLedger.open(tmp_path / "ledger.sqlite3")
    await ledger.put(
        Session(
            id="earlier",
            provider="fake",
            asked_at=now,
            started_at=now,
            ended_at=now + timedelta(microseconds=36),
            hourly_rate=Decimal(20 * 10**8),
        )
    )
    await ledger.aclose()

    house = await opened(cost__monthly_budget=20.0)
    assert 402 == (await house.chat()).status
    assert 0 == house.cloud.starts
    ledger = await SqliteLedger.open(tmp_path / "ledger.sqlite3")
    async with asyncio.timeout(SOON):
        while await ledger.last_notified_threshold(f"{now:%Y-%m}") < 100:
            await asyncio.sleep(0.01)
    await ledger.aclose()


async def test_a_users_share(tmp_path, ollama):
    """Who has spent it starts nothing, by any path; what somebody else has started serves him as well."""
    book = Book(Decimal(9), {"anne": Decimal(5)})
    async with poor_house(tmp_path, ollama, book, cost__user_share=0.25) as house:
        anne = bearer(sub="anne")
        for path in ("/api/chat", "/v1/chat/completions", "/api/v1/gpu/start"):
            refused = await house.ask("POST", path, json=dict(CHAT), headers=anne)
            assert 402 == refused.status
            assert b"your share of the budget" in refused.body

        assert 200 == (await house.chat()).status
        assert 200 == (await house.ask("POST", "/api/chat", json=dict(CHAT), headers=anne)).status


class Play(FakeProvider):
    """A simulated provider."""

    capabilities = Capabilities(simulated=True)


@asynccontextmanager
async def play_house(
    tmp_path: Path, ollama: SimulatedOllama, clouds: Mapping[str, FakeCloud], play: set[str]
) -> AsyncIterator[House]:
    """A gateway with a budget of 20 whose providers in `play` are simulated."""

    def find(name: str) -> type[Provider]:
        class Kind(Play if name in play else FakeProvider):  # type: ignore[misc]
            def __init__(self, config: object, session: object) -> None:
                super().__init__(clouds[name], session)

        return Kind

    for cloud in clouds.values():
        cloud.url = ollama.url
    settings = settings_for(tmp_path, pod__provider=tuple(clouds), cost__monthly_budget=20.0)
    gateway = await build(settings, find=find)
    await gateway.open()
    try:
        async with aiohttp.ClientSession() as http:
            yield House(tmp_path, next(iter(clouds.values())), ollama, gateway, http)
    finally:
        await gateway.close()


async def put_expensive(path: Path, provider: str, *, ended: bool = True) -> None:
    """A session of this month that cost 30, in the file."""
    ledger = await SqliteLedger.open(path)
    now = datetime.now(UTC)
    began = max(now - timedelta(hours=1), now.replace(day=1, hour=0, minute=0, second=0, microsecond=0))
    rate = Decimal(30) * 3600 / max(Decimal(1), Decimal(str((now - began).total_seconds())))
    row = Session(
        id=f"{provider}-old",
        provider=provider,
        asked_at=began,
        started_at=began,
        seen_at=now,
        ended_at=now if ended else None,
        hourly_rate=rate,
    )
    await ledger.put(row)
    await ledger.aclose()


async def rows_of(path: Path) -> list[Session]:
    """What is in this file."""
    ledger = await SqliteLedger.open(path)
    try:
        return await ledger.starts(100)
    finally:
        await ledger.aclose()


async def test_simulated_providers_alone(tmp_path, ollama):
    """Nothing of the real ledger is touched, and neither its sums nor play money bar a start."""
    real = tmp_path / "ledger.sqlite3"
    await put_expensive(real, "runpod")
    await put_expensive(tmp_path / "simulated" / "ledger.sqlite3", "demo")
    before = real.read_bytes()
    async with play_house(tmp_path, ollama, {"demo": FakeCloud()}, {"demo"}) as house:
        assert 200 == (await house.chat()).status
        summary = (await house.ask("GET", "/api/v1/cost/summary")).json["data"]
        assert (0, 0) == (summary["sessionCount"], summary["estimatedTotal"])
        assert "simulated" in summary["warnings"][0]
    assert before == real.read_bytes()
    assert {"demo"} == {row.provider for row in await rows_of(tmp_path / "simulated" / "ledger.sqlite3")}


async def test_simulated_providers_among_real_ones(tmp_path, ollama):
    """Each session is in its own ledger; what an older version wrote into the real one does not count."""
    real = tmp_path / "ledger.sqlite3"
    await put_expensive(real, "toy", ended=False)
    await put_expensive(real, "demo")
    clouds = {"runpod": FakeCloud(), "toy": FakeCloud()}
    clouds["runpod"].fail("start", NoCapacity("none free"))
    async with play_house(tmp_path, ollama, clouds, {"toy"}) as house:
        assert 200 == (await house.chat()).status
        summary = (await house.ask("GET", "/api/v1/cost/summary")).json["data"]
        assert 0 == summary["estimatedTotal"]
    rows = {row.id: row for row in await rows_of(real)}
    assert "simulated" == rows.pop("toy-old").end_reason
    assert "" == rows.pop("demo-old").end_reason
    assert ["runpod"] == [row.provider for row in rows.values()]
    assert ["toy"] == [row.provider for row in await rows_of(tmp_path / "simulated" / "ledger.sqlite3")]


async def test_a_real_provider_and_the_old_rows_of_the_demo(tmp_path, ollama):
    """Without the demo in the configuration its old rows do not count either."""
    await put_expensive(tmp_path / "ledger.sqlite3", "demo")
    async with play_house(tmp_path, ollama, {"runpod": FakeCloud()}, set()) as house:
        assert 200 == (await house.chat()).status
    assert not (tmp_path / "simulated").exists()
