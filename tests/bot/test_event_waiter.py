"""Waiting for news: the first that counts, once, and given up without a trace."""

from __future__ import annotations

import asyncio

from gpugate.bot.event_waiter import EventWaiter
from gpugate.lifecycle.event_bus import QueueChanged


def full(news):
    return news.waiting if news.waiting > 1 else None


async def test_the_first_that_counts():
    """What the judge makes of it; later news change nothing."""
    watch = EventWaiter()
    found = watch.first_match(full)
    for waiting in (1, 2, 3):
        watch.on_event(QueueChanged(waiting=waiting, in_flight=0))

    assert 2 == await found


async def test_given_up():
    """News find nobody there."""
    watch = EventWaiter()
    found = watch.first_match(full)
    found.cancel()
    watch.on_event(QueueChanged(waiting=2, in_flight=0))
    await asyncio.sleep(0)

    assert (True, []) == (found.cancelled(), watch._waiting)


async def test_a_judge_that_fails():
    """The one who waits for its word hears of the failure; the others get theirs."""

    def fail(news):
        raise RuntimeError("broken")

    watch = Watch()
    broken, found = watch.first(fail), watch.first(full)
    watch.hear(QueueChanged(waiting=2, in_flight=0))

    assert 2 == await found
    with pytest.raises(RuntimeError, match="broken"):
        await broken
