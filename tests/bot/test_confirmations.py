"""Buttons: each means something once, for a while, in its own chat."""

from __future__ import annotations

import asyncio

from gpugate_testing import virtual_time

from gpugate.bot.confirmations import MAX_PENDING, TTL_S, Confirmations


async def nothing(*_: object) -> None:
    return None


def test_life_of_a_question():
    """Yes, no, twice, too late, elsewhere."""

    async def told():
        confirmations = Confirmations()
        yes, _ = confirmations.create("7", "Do it", "No", nothing)
        assert ("Do it", (True, nothing), None) == (
            yes.text,
            confirmations.resolve("7", yes.callback_id),
            confirmations.resolve("7", yes.callback_id),
        )
        yes, no = confirmations.create("7", "Do it", "No", nothing)
        assert None is confirmations.resolve("8", yes.callback_id)
        assert (False, nothing) == confirmations.resolve("7", no.callback_id)
        yes, _ = confirmations.create("7", "Do it", "No", nothing)
        await asyncio.sleep(TTL_S)
        assert None is confirmations.resolve("7", yes.callback_id)

    virtual_time.run(told())


def test_forged():
    """Means nothing."""

    async def told():
        confirmations = Confirmations()
        yes, _ = confirmations.create("7", "Do it", "No", nothing)
        name = yes.callback_id.partition(":")[2]
        for callback_id in ("", "yes", "yes:", f"maybe:{name}", f"YES:{name}", f"yes:{name} ", name):
            assert None is confirmations.resolve("7", callback_id)

    virtual_time.run(told())


def test_many():
    """The oldest are forgotten; a callback_id fits its 64 bytes."""

    async def told():
        confirmations = Confirmations()
        callback_ids = [
            confirmations.create("7", "Do it", "No", nothing)[0].callback_id for _ in range(MAX_PENDING + 1)
        ]
        assert len(set(callback_ids)) == len(callback_ids)
        assert all(len(callback_id.encode()) <= 64 for callback_id in callback_ids)
        assert None is confirmations.resolve("7", callback_ids[0])
        assert confirmations.resolve("7", callback_ids[1]) is not None

    virtual_time.run(told())
