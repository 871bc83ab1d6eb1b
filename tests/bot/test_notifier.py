"""News, unasked: each once, to each chat, and never in the pod's way. In virtual time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from attrs import define, evolve, field
from gpugate_testing import virtual_time
from gpugate_testing.fakes import PRICE, FakeCloud, FakeDebts

from gpugate.bot import messages, notifier
from gpugate.bot.notifier import MAX_PENDING, SEND_TIMEOUT_S, Notifier, summary_times
from gpugate.core.states import Status
from gpugate.errors import LedgerError, NoFunds
from gpugate.lifecycle.status import (
    BudgetThresholdCrossed,
    ProviderProblem,
    SessionEnded,
    SessionStarted,
    StateChanged,
)
from gpugate.provider_api import Phase, PodReport, Price
from tests.bot.chats import NOON, FakeCosts, Summary, wall
from tests.lifecycle.support import Stage

PODS = ("main", "code")
ALARM = ProviderProblem(
    provider="alpha", message="the stop is not proved (try 2)", reason="transient", alarm=True, at=NOON
)


def began(cause: str, price: Price | None = PRICE) -> SessionStarted:
    report = PodReport(Phase.STARTING, "p", price=price)
    return SessionStarted(run_id=1, provider="runpod", cause=cause, report=report, at=NOON)


def ended(cause: str, cost: Decimal | None = Decimal("0.17")) -> SessionEnded:
    at = NOON + timedelta(minutes=23)
    return SessionEnded(run_id=1, provider="runpod", cause=cause, began_at=NOON, cost=cost, at=at)


@define
class Room:
    """Chats that get news; one of them may be slow, or broken."""

    chats: Sequence[str] = ("7",)
    slow: dict[str, float] = field(factory=dict)
    broken: set[str] = field(factory=set)
    costs: FakeCosts = field(factory=FakeCosts)
    told: list[tuple[str, str]] = field(factory=list)
    crashes: list[str] = field(factory=list)
    notifier: Notifier = field(init=False)

    async def tell(self, chat: str, text: str) -> None:
        await asyncio.sleep(self.slow.get(chat, 0.0))
        if chat in self.broken:
            raise RuntimeError(chat)
        self.told.append((chat, text))

    async def __aenter__(self) -> Room:
        self.notifier = Notifier(
            chats=self.chats,
            send=self.tell,
            costs=self.costs,  # type: ignore[arg-type]
            user_of=lambda pod, provider: f"telegram:{PODS.index(pod) + 7}",
            wall=wall,
            on_crash=lambda name, error: self.crashes.append(name),
        )
        self.notifier.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.notifier.aclose()

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.told]


def play(plot: Any, room: Room | None = None) -> Room:
    """Play a plot in this room, and let it close."""
    room = room or Room()

    async def told() -> None:
        async with room:
            await plot(room)

    virtual_time.run(told())
    return room


class TestLife:
    def test_a_session(self):
        """Started by whom, stopped why and for how much; nothing between."""

        async def plot(room):
            async with Stage(
                [FakeCloud(boot_s=40, stop_s=3)], listeners=(room.notifier.on_event,), wall=wall
            ) as stage:
                stage.lifecycle.start()
                await asyncio.sleep(23 * 60)

        assert [
            "Pod started at alpha: telegram:7 started it by hand. It costs $0.44 per hour.",
            "Pod stopped at alpha: nobody used it. It ran for 16 minutes and cost $0.12.",
        ] == play(plot).texts

    def test_several_pods(self):
        """Each text begins with its pod, whose troubles are its own; a budget is everybody's."""

        async def plot(room):
            room.notifier._names_pods = True
            for pod in PODS:
                for event in (began("hand", None), ALARM, began("schedule", None)):
                    room.notifier.on_event(evolve(event, pod=pod))
            room.notifier.on_event(
                BudgetThresholdCrossed(percent=50, spent=Decimal(5), budget=Decimal(10), month="2026-11")
            )

        texts = play(plot).texts
        assert [
            "main: Pod started at runpod: telegram:7 started it by hand.",
            "code: Pod started at runpod: telegram:8 started it by hand.",
        ] == [text for text in texts if "by hand" in text]
        assert ["main: ALARM from alpha", "code: ALARM from alpha"] == [
            text.rpartition(": ")[0] for text in texts if "ALARM" in text
        ]
        assert 2 == sum("a schedule wanted it" in text for text in texts)
        assert texts[-1].startswith("50 % of the budget")

    def test_start_that_fails(self):
        """With its reason, once."""

        async def plot(room):
            cloud = FakeCloud()
            cloud.fail("start", NoFunds("the account is empty"))
            async with Stage([cloud], listeners=(room.notifier.on_event,), wall=wall) as stage:
                stage.lifecycle.start()
                await asyncio.sleep(60)

        assert ["The pod could not be started: alpha: the account is empty."] == play(plot).texts

    def test_start_that_fails_again_and_again(self):
        """Is told of once an hour while its reason is the same, at once where it is another."""

        async def plot(room):
            cloud = FakeCloud()
            async with Stage([cloud], listeners=(room.notifier.on_event,), wall=wall) as stage:
                for reason in (*["try 1", "try 2"] * 40, "another"):
                    cloud.fail("start", NoFunds(reason))
                    stage.lifecycle.start()
                    await asyncio.sleep(60)

        assert ["try 1.", "try 1.", "another."] == [text.partition("alpha: ")[2] for text in play(plot).texts]

    def test_start_that_is_called_off(self):
        """Has not failed."""

        async def plot(room):
            async with Stage([FakeCloud(boot_s=40)], listeners=(room.notifier.on_event,), wall=wall) as stage:
                stage.lifecycle.start()
                await asyncio.sleep(5)
                stage.lifecycle.stop()
                await asyncio.sleep(30)

        assert ["Pod started at alpha", "Pod stopped at alpha"] == [
            text.split(":")[0] for text in play(plot).texts
        ]

    def test_stop_that_is_not_proved(self):
        """Is an alarm: one, however often it is tried; the next session's is another."""

        async def plot(room):
            cloud = FakeCloud()
            async with Stage([cloud], listeners=(room.notifier.on_event,), wall=wall) as stage:
                for _ in range(2):
                    stage.lifecycle.start()
                    await asyncio.sleep(60)
                    cloud.ignore_stops = 5
                    stage.lifecycle.stop()
                    await asyncio.sleep(900)

        alarms = [text for text in play(plot).texts if text.startswith("ALARM")]
        assert 2 == len(alarms)
        assert "The pod may still be billing" in alarms[0]

    @pytest.mark.parametrize("ignored", [0, 2])
    def test_stop_that_an_earlier_gateway_ordered(self, ignored):
        """Is told when it is seen, whether or not it was an alarm in between; once."""

        async def plot(room):
            cloud = FakeCloud(stop_s=3)
            cloud.turn_on()
            cloud.ignore_stops = ignored
            debts = FakeDebts(frozenset({"alpha"}))
            async with Stage([cloud], listeners=(room.notifier.on_event,), wall=wall, debts=debts) as stage:
                await asyncio.sleep(600)
                stage.lifecycle.start()
                await asyncio.sleep(60)

        *alarms, stopped, _started = play(plot).texts
        assert bool(ignored) == any(text.startswith("ALARM") for text in alarms)
        assert "The pod at alpha is seen stopped now." == stopped
        assert 1 >= len(alarms)

    def test_pods_at_one_provider(self):
        """Each has its own alarm, its own trouble, and its own user."""

        async def plot(room):
            for pod in PODS:
                room.notifier.on_event(evolve(ALARM, pod=pod))
            room.notifier.on_event(evolve(began("hand"), pod="code", provider="alpha"))
            for pod in PODS:  # the session of `code` is over this one's alarm only
                room.notifier.on_event(evolve(ALARM, pod=pod))
            await asyncio.sleep(1)

        texts = play(plot).texts
        assert ["ALARM", "ALARM", "Pod", "ALARM"] == [re.split(r"\W", text)[0] for text in texts]
        assert "telegram:8 started it by hand" in texts[2]

    def test_trouble_of_another_start(self):
        """Is not given as the reason of this one."""

        async def plot(room):
            room.notifier.on_event(evolve(ALARM, alarm=False))
            for was, status in ((Status.STOPPED, Status.STARTING), (Status.STARTING, Status.STOPPED)):
                room.notifier.on_event(
                    StateChanged(
                        was="",
                        now="",
                        was_status=was,
                        status=status,
                        cause="DeadlineReached",
                        run_id=1,
                        provider="alpha",
                        at=NOON,
                    )
                )

        assert ["The pod could not be started."] == play(plot).texts

    def test_shutdown(self):
        """What comes last is told as well, within a patience."""

        async def plot(room):
            room.notifier.on_event(ALARM)
            await asyncio.sleep(1)
            room.told.clear()
            room.notifier.on_event(ended("shutdown"))

        assert ["Pod stopped at runpod: the gateway shut down. It ran for 23 minutes and cost $0.17."] == (
            play(plot).texts
        )


class TestMessenger:
    def test_slow(self):
        """Is given up for this text; others wait for it, the pod does not."""

        async def plot(room):
            room.notifier.on_event(ended("idle"))
            room.notifier.on_event(ALARM)
            assert [] == room.told
            await asyncio.sleep(3 * SEND_TIMEOUT_S)

        room = play(plot, Room(("1", "2"), slow={"1": 2 * SEND_TIMEOUT_S}))
        assert ["2", "2"] == [chat for chat, _ in room.told]
        assert ["notification to a chat", "notification to a chat"] == room.crashes

    def test_broken(self):
        """The next chat hears all the same."""

        async def plot(room):
            room.notifier.on_event(ALARM)
            await asyncio.sleep(1)

        room = play(plot, Room(("1", "2"), broken={"1"}))
        assert ["2"] == [chat for chat, _ in room.told]

    def test_hanging_at_the_end(self):
        """Does not hold the shutdown up."""

        async def plot(room):
            room.notifier.on_event(ALARM)
            await asyncio.sleep(1)
            before = asyncio.get_running_loop().time()
            await room.notifier.aclose(5.0)
            assert 5.0 == pytest.approx(asyncio.get_running_loop().time() - before)

        play(plot, Room(slow={"7": 50.0}))

    def test_flood(self):
        """Of too many the newest are told."""

        async def plot(room):
            for percent in range(MAX_PENDING + 5):
                room.notifier.on_event(
                    BudgetThresholdCrossed(
                        percent=percent, spent=Decimal(1), budget=Decimal(2), month="2026-11"
                    )
                )
            await asyncio.sleep(1)

        texts = play(plot).texts
        assert (MAX_PENDING, "5 %") == (len(texts), texts[0][:3])

    def test_nobody(self):
        """Wants news: nothing is kept."""

        async def plot(room):
            room.notifier.on_event(ALARM)
            await asyncio.sleep(100_000)

        assert [] == play(plot, Room(())).told


class TestDaily:
    def test_once_a_day(self):
        """At nine by the machine's clock, where there was a session."""

        async def plot(room):
            await asyncio.sleep(2 * 86400)
            room.costs.rows, room.costs.day = (), Decimal(0)
            await asyncio.sleep(2 * 86400)

        room = play(plot, Room(costs=FakeCosts(rows=("a", "b"))))
        text = (
            "In the last 24 hours there were 2 sessions, estimated cost is $0.40. "
            "This month so far: 7 sessions, $4.90."
        )
        assert [text, text] == room.texts
        assert [timedelta(days=1)] * 4 == [until - since for since, until in room.costs.asked]
        assert all(9 == until.astimezone().hour for _, until in room.costs.asked)

    def test_a_session_that_goes_on(self):
        """Costs, though none began."""

        async def plot(room):
            await asyncio.sleep(86400)

        texts = play(plot).texts
        assert ["In the last 24 hours the pod went on, estimated cost is $0.40"] == [
            text.partition(". ")[0] for text in texts
        ]

    def test_no_ledger(self):
        """Is heard of, and the next day is another."""

        async def plot(room):
            room.costs.day = LedgerError("locked")
            await asyncio.sleep(86400)
            room.costs.day = Decimal("0.10")
            await asyncio.sleep(86400)

        room = play(plot, Room(costs=FakeCosts(rows=("a",))))
        assert (["the daily summary"], 1) == (room.crashes, len(room.texts))
        assert "there was 1 session," in room.texts[0]

    def test_times(self):
        """A day from nine to nine, the next one that ends."""
        at = datetime(2026, 11, 21, 9, 0).astimezone(UTC)
        day = timedelta(days=1)
        assert (at, at + day) == summary_times(at)
        assert (at - day, at) == summary_times(at - timedelta(seconds=1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            notifier.session_started(began("request"), "alice", "USD"),
            "Pod started at runpod: a request of alice woke it. It costs $0.44 per hour.",
        ),
        (
            notifier.session_started(began("request", None), "hand", "USD"),
            "Pod started at runpod: a request woke it.",
        ),
        (
            notifier.session_started(began("hand", Price()), "", "USD"),
            "Pod started at runpod: somebody started it by hand.",
        ),
        (
            notifier.session_started(began("prewarm", None), "", "USD"),
            "Pod started at runpod: it is usually needed about now.",
        ),
        (
            notifier.session_started(began("adopted"), "", "EUR"),
            "Pod found running at runpod; from now on it is looked after. It costs 0.44 EUR per hour.",
        ),
        (
            notifier.session_ended(ended("forced", None), "USD"),
            "Pod stopped at runpod: somebody stopped it by hand. It ran for 23 minutes.",
        ),
        (
            notifier.session_ended(ended("a new word"), "USD"),
            "Pod stopped at runpod: a new word. It ran for 23 minutes and cost $0.17.",
        ),
        (messages.start_failed("", ""), "The pod could not be started."),
        (
            notifier.budget_crossed(
                BudgetThresholdCrossed(
                    percent=80, spent=Decimal("40.1"), budget=Decimal(50), month="2026-11"
                ),
                "USD",
            ),
            "80 % of the budget for 2026-11 is spent: $40.10 of $50.00.",
        ),
        (
            notifier.budget_crossed(
                BudgetThresholdCrossed(percent=100, spent=Decimal(50), budget=Decimal(50), month="2026-11"),
                "EUR",
            ),
            "The budget for 2026-11 is spent: 50.00 EUR of 50.00 EUR. "
            "No new pod starts until the month is over.",
        ),
        (
            notifier.daily(1, Decimal(0), Summary(session_count=1), "USD"),
            "In the last 24 hours there was 1 session, estimated cost is $0.00. "
            "This month so far: 1 session, $4.90.",
        ),
    ],
)
def test_words(text, said):
    """Of each kind of news."""
    assert said == text
