"""Buttons: each means something once, for a while, in its own chat."""

from __future__ import annotations

import asyncio

from gpugate_testing import virtual_time

from gpugate.bot.confirmations import MOST, OPEN_S, Questions


async def nothing(*_: object) -> None:
    return None


def test_life_of_a_question():
    """Yes, no, twice, too late, elsewhere."""

    async def told():
        questions = Questions()
        yes, _ = questions.ask("7", "Do it", "No", nothing)
        assert ("Do it", (True, nothing), None) == (
            yes.text,
            questions.pressed("7", yes.verb),
            questions.pressed("7", yes.verb),
        )
        yes, no = questions.ask("7", "Do it", "No", nothing)
        assert None is questions.pressed("8", yes.verb)
        assert (False, nothing) == questions.pressed("7", no.verb)
        yes, _ = questions.ask("7", "Do it", "No", nothing)
        await asyncio.sleep(OPEN_S)
        assert None is questions.pressed("7", yes.verb)

    virtual_time.run(told())


def test_forged():
    """Means nothing."""

    async def told():
        questions = Questions()
        yes, _ = questions.ask("7", "Do it", "No", nothing)
        name = yes.verb.partition(":")[2]
        for verb in ("", "yes", "yes:", f"maybe:{name}", f"YES:{name}", f"yes:{name} ", name):
            assert None is questions.pressed("7", verb)

    virtual_time.run(told())


def test_many():
    """The oldest are forgotten; a verb fits its 64 bytes."""

    async def told():
        questions = Questions()
        verbs = [questions.ask("7", "Do it", "No", nothing)[0].verb for _ in range(MOST + 1)]
        assert len(set(verbs)) == len(verbs)
        assert all(len(verb.encode()) <= 64 for verb in verbs)
        assert None is questions.pressed("7", verbs[0])
        assert questions.pressed("7", verbs[1]) is not None

    virtual_time.run(told())
