"""Two ledgers as one: what is put comes back, and nothing of a simulated provider is in the real one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import attrs
import pytest
from gpugate_testing.fakes import MemoryLedger

from gpugate.billing.ledger import SplitLedger
from gpugate.billing.model import PodUsage, Session
from gpugate.errors import LedgerError

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
REAL = Session(id="r", provider="runpod", asked_at=NOON, started_at=NOON)
PLAY = Session(id="p", provider="demo", asked_at=NOON + HOUR, started_at=NOON + HOUR)


def use(session_id: str, number: int = 1) -> PodUsage:
    return PodUsage(
        session_id=session_id,
        id=str(number),
        request_id="r",
        user="ann",
        began_at=NOON,
        ended_at=NOON + HOUR,
        seconds=Decimal(1),
    )


@pytest.fixture
def real() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def play() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def ledger(real: MemoryLedger, play: MemoryLedger) -> SplitLedger:
    return SplitLedger(real, play, {"demo"})


async def test_each_row_in_its_own(ledger: SplitLedger, real: MemoryLedger, play: MemoryLedger) -> None:
    """Sessions by their provider, uses by their session; read together, in order."""
    await ledger.put(PLAY)
    await ledger.put(REAL)
    await ledger.put_usage([use("p"), use("r")])
    await ledger.put_usage([use("p", 2)])
    await ledger.mark_threshold_notified("2026-11", 50)

    assert ({"r"}, {"p"}) == (real.rows.keys(), play.rows.keys())
    assert ([("r", "1")], [("p", "1"), ("p", "2")]) == (list(real.used), list(play.used))
    assert ({"2026-11": 50}, {}) == (real.notified_thresholds, play.notified_thresholds)
    assert [REAL, PLAY] == await ledger.sessions(NOON, NOON + 2 * HOUR)
    assert [REAL, PLAY] == await ledger.starts(2)
    assert [REAL] == await ledger.starts(1)
    assert [REAL, PLAY] == await ledger.open_sessions()
    assert [PLAY] == await ledger.sessions(NOON, NOON + 2 * HOUR, limit=1)
    assert [REAL] == await ledger.sessions(NOON, NOON + 2 * HOUR, limit=1, before=PLAY)
    assert (REAL, PLAY, None) == tuple([await ledger.session(name) for name in ("r", "p", "x")])
    assert (1, 2) == (len(await ledger.usage("r")), len(await ledger.usage("p")))
    assert 50 == await ledger.last_notified_threshold("2026-11")


async def test_after_a_restart(real: MemoryLedger, play: MemoryLedger) -> None:
    """Uses of a session that was left open go where it stands."""
    play.rows["p"] = PLAY
    ledger = SplitLedger(real, play, {"demo"})
    await ledger.open_sessions()
    await ledger.put_usage([use("p")])

    assert ({}, 1) == (real.used, len(play.used))


async def test_a_row_that_an_older_gpugate_left_open(
    ledger: SplitLedger, real: MemoryLedger, play: MemoryLedger
) -> None:
    """It ends where it was known last, and nobody adopts it."""
    real.rows = {"p": PLAY, "r": REAL}

    assert [REAL] == await ledger.open_sessions()
    assert attrs.evolve(PLAY, ended_at=PLAY.started_at, end_reason="simulated") == real.rows["p"]
    assert {} == play.rows


async def test_the_last_ends(ledger: SplitLedger, real: MemoryLedger) -> None:
    """Of both; what an older gpugate wrote of a simulated provider gives way."""
    real.rows["old"] = attrs.evolve(PLAY, id="old", ended_at=NOON + 9 * HOUR)
    await ledger.put(attrs.evolve(PLAY, ended_at=NOON + 2 * HOUR))
    await ledger.put(attrs.evolve(REAL, ended_at=NOON + HOUR))

    found = {row.provider: row.ended_at for row in await ledger.last_ended()}
    assert {"demo": NOON + 2 * HOUR, "runpod": NOON + HOUR} == found


async def test_one_that_cannot_be_used(ledger: SplitLedger, real: MemoryLedger, play: MemoryLedger) -> None:
    """The other goes on."""
    real.broken = True
    await ledger.put(PLAY)
    with pytest.raises(LedgerError):
        await ledger.put(REAL)
    real.broken, play.broken = False, True
    await ledger.put(REAL)
    with pytest.raises(LedgerError):
        await ledger.put(PLAY)
