"""The recorders of several pods over one ledger: each keeps its own rows; a removed pod is closed once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal

import pytest
from attrs import evolve

from gpugate.billing.model import Session
from tests.billing.ledger_house import BEGINNING, Book, House, ask, off, play, seconds
from tests.billing.test_stale_starts import Honest

SEEN = BEGINNING + timedelta(minutes=5)
LEFT = Session(
    id="1",
    pod="code",
    provider="alpha",
    asked_at=BEGINNING,
    pod_id="fake-9",
    started_at=BEGINNING,
    seen_at=SEEN,
    hourly_rate=Decimal(12),
)


def houses(*pods: str) -> list[House]:
    """Return a pod each, all at the provider "alpha" of their own cloud, over one ledger."""
    book = Book()
    return [House([Honest(boot_s=10, stop_s=5)], book, pod=pod, pods=pods) for pod in pods]


def test_each_session_has_its_pod() -> None:
    """Two pods at providers of the same name have a row each."""

    async def story() -> None:
        chat, code = houses("chat", "code")
        async with chat.open() as first, code.open() as second:
            await asyncio.gather(ask(first, user="ann"), ask(second, user="bob"))
            await asyncio.gather(off(first), off(second))
        assert {("chat", "alpha", "ann"), ("code", "alpha", "bob")} == {
            (row.pod, row.provider, row.started_by) for row in chat.rows
        }
        for house, row in zip((chat, code), sorted(chat.rows, key=lambda row: row.pod), strict=True):
            assert seconds(row) == pytest.approx(house.clouds[0].total_billed_s, abs=2)

    play(story)


def test_after_a_crash_each_pod_continues_its_own_session() -> None:
    """Neither the other pod's row nor its end counts, though the provider has the same name."""

    async def story() -> None:
        chat, code = houses("chat", "code")
        async with chat.crashes() as first, code.crashes() as second:
            await asyncio.gather(ask(first), ask(second))
        async with chat.open() as first, code.open() as second:
            await asyncio.gather(off(first), off(second))
        assert ["chat", "code"] == sorted(row.pod for row in chat.rows)
        for house, row in zip((chat, code), sorted(chat.rows, key=lambda row: row.pod), strict=True):
            assert seconds(row) == pytest.approx(house.clouds[0].total_billed_s, abs=2)
        assert "configured" not in "".join([*chat.told, *code.told])

    play(story)


def test_a_pod_that_is_not_configured_any_more() -> None:
    """Its row ends at its last sign, with one alarm by the first pod's recorder, which names both."""

    async def story() -> None:
        main, chat = houses("main", "chat")
        await main.book.put(LEFT)
        await asyncio.sleep(3600)
        async with chat.open(), main.open():
            await asyncio.sleep(5)
        (row,) = main.rows
        assert (SEEN, "not configured any more", Decimal(1)) == (row.ended_at, row.end_reason, row.cost)
        assert [] == chat.told
        (told,) = main.told
        assert "the pod 'code' is not configured any more" in told
        assert "at alpha fake-9" in told

    play(story)


def test_a_removed_pod_beside_one_that_runs() -> None:
    """The first pod's session goes on, though the removed one's was open at a provider of the same name."""

    async def story() -> None:
        (chat,) = houses("chat")
        async with chat.crashes() as lifecycle:
            await ask(lifecycle)
        await chat.book.put(evolve(LEFT, id="0"))
        async with chat.open() as lifecycle:
            await off(lifecycle)
        ends = {row.pod: row.end_reason for row in chat.rows}
        assert 2 == len(chat.rows)
        assert "not configured any more" == ends["code"]
        assert "found stopped" != ends["chat"]
        (row,) = (row for row in chat.rows if row.pod == "chat")
        assert seconds(row) == pytest.approx(chat.clouds[0].total_billed_s, abs=2)

    play(story)


def test_a_provider_that_one_of_several_pods_does_not_use_any_more() -> None:
    """The alarm names the pod: another one may still be there."""

    async def story() -> None:
        chat, code = houses("chat", "code")
        await chat.book.put(evolve(LEFT, provider="gone"))
        async with chat.open(), code.open():
            await asyncio.sleep(5)
        assert [] == chat.told
        (told,) = code.told
        assert told.startswith(
            "the provider 'gone' of the pod 'code' is not configured any more, and its pod fake-9"
        )

    play(story)


@pytest.mark.parametrize("written", [False, True], ids=["open", "closed by the first recorder"])
def test_a_pod_under_a_new_name(written: bool) -> None:
    """What the provider bills under the same id is not recorded twice: it begins where the old row ended."""

    async def story() -> None:
        main, chat = houses("main", "chat")
        chat.clouds[0].turn_on()
        left = evolve(LEFT, pod_id=chat.clouds[0].report().pod_id)
        await asyncio.sleep(600)
        await main.book.put(evolve(left, ended_at=SEEN) if written else left)
        async with chat.open() as lifecycle, main.open():
            await off(lifecycle)
        before, row = main.rows
        assert ("code", "chat", before.ended_at) == (before.pod, row.pod, row.started_at)

    play(story)
