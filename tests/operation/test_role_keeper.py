"""The role of the active gateway: won, confirmed, lost in time, given back (docs/api.md#two-gateways)."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from gpugate_testing.virtual_time import run

from gpugate.errors import Transient
from gpugate.operation.role_keeper import RoleKeeper
from gpugate.provider_api import ActiveRole

DURATION_S = 10.0


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in virtual time."""

    @functools.wraps(test)
    def wrapped(**given: Any) -> None:
        run(test(**given))

    return wrapped


class FakeRole(ActiveRole):
    """A role that answers as the test wants; None: it cannot be asked."""

    duration_s = DURATION_S

    def __init__(self) -> None:
        self.answer: bool | None = True
        self.hangs = False
        self.asked: list[float] = []
        self.given_back = 0

    async def take(self) -> bool:
        self.asked.append(asyncio.get_running_loop().time())
        if self.hangs:
            await asyncio.sleep(3600)
        if self.answer is None:
            raise Transient("no API")
        return self.answer

    async def give_back(self) -> None:
        self.given_back += 1

    async def aclose(self) -> None:
        pass


async def won() -> tuple[FakeRole, RoleKeeper, float]:
    role = FakeRole()
    keeper = RoleKeeper(role)
    await keeper.win()
    return role, keeper, asyncio.get_running_loop().time()


async def lost_after(keeper: RoleKeeper, began: float) -> float:
    await keeper.lost.wait()
    return asyncio.get_running_loop().time() - began


@virtual
async def test_it_waits_for_the_role() -> None:
    """As long as another one has it, or nobody can be asked."""
    role = FakeRole()
    role.answer = False
    keeper = RoleKeeper(role)
    winning = asyncio.ensure_future(keeper.win())
    await asyncio.sleep(60)
    role.answer = None
    await asyncio.sleep(60)
    assert not winning.done()
    role.answer = True
    await asyncio.wait_for(winning, DURATION_S)
    await keeper.aclose()


@virtual
async def test_it_is_confirmed() -> None:
    """Five times in its duration; given back once."""
    role, keeper, began = await won()
    await asyncio.sleep(100)
    assert not keeper.lost.is_set()
    pauses = [later - earlier for earlier, later in zip(role.asked, role.asked[1:], strict=False)]
    assert max(pauses) == pytest.approx(2.0)
    await keeper.aclose()
    assert role.given_back == 1
    assert began >= 0


@pytest.mark.parametrize("hangs", [False, True])
@virtual
async def test_it_cannot_be_confirmed(hangs: bool) -> None:
    """Lost before the duration since the last confirmation is over, also by a call that does not end."""
    role, keeper, began = await won()
    role.answer, role.hangs = None, hangs
    assert await lost_after(keeper, began) == pytest.approx(9.0)
    await keeper.aclose()


@virtual
async def test_a_short_outage() -> None:
    """Is no loss."""
    role, keeper, _ = await won()
    role.answer = None
    await asyncio.sleep(7)
    role.answer = True
    await asyncio.sleep(60)
    assert not keeper.lost.is_set()
    await keeper.aclose()


@virtual
async def test_another_one_has_it() -> None:
    """Lost at once; it can be won again."""
    role, keeper, began = await won()
    role.answer = False
    assert await lost_after(keeper, began) <= 2.0
    role.answer = True
    await keeper.win()
    assert not keeper.lost.is_set()
    await keeper.aclose()
