"""Waiting for news: the first that counts, once, and given up without a trace."""

from __future__ import annotations

import asyncio

import pytest

from gpugate.bot.assistant import EventWaiter
from gpugate.lifecycle.status import QueueChanged


def full(news):
    return news.waiting if news.waiting > 1 else None


async def test_the_first_that_counts():
    """What the judge makes of it; later news change nothing."""
    waiter = EventWaiter()
    found = waiter.first_match(full)
    for waiting in (1, 2, 3):
        waiter.on_event(QueueChanged(waiting=waiting, in_flight=0))

    assert 2 == await found


async def test_given_up():
    """News find nobody there."""
    waiter = EventWaiter()
    found = waiter.first_match(full)
    found.cancel()
    waiter.on_event(QueueChanged(waiting=2, in_flight=0))
    await asyncio.sleep(0)

    assert (True, []) == (found.cancelled(), waiter._waiting)


async def test_a_function_that_fails():
    """Its error goes to the coroutine that waits for it; the others get their events."""

    def fail(event):
        raise RuntimeError("broken")

    waiter = EventWaiter()
    broken, found = waiter.first_match(fail), waiter.first_match(full)
    waiter.on_event(QueueChanged(waiting=2, in_flight=0))

    assert 2 == await found
    with pytest.raises(RuntimeError, match="broken"):
        await broken
