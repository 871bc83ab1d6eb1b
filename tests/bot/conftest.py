"""Both ways to Telegram, for tests of what does not depend on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.bot.support import MODES, Line, line


@pytest.fixture(params=MODES)
async def talk(request: pytest.FixtureRequest) -> AsyncIterator[Line]:
    """A bot at work that says again what it hears."""
    async with line(request.param) as one:
        yield one
