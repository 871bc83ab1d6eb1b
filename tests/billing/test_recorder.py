"""The ledger's rows through a session's life: ahead of the provider, once each, and right after any crash."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal

import pytest
from attrs import define, evolve
from gpugate_testing.fakes import FakeCloud, FakeProvider, LostAnswer

from gpugate.billing.model import BY_HAND, Session
from gpugate.core.states import Status
from gpugate.errors import Ambiguous, AuthFailed, GateError, NoCapacity, PodStartFailed
from gpugate.lifecycle.lifecycle import Lifecycle
from gpugate.lifecycle.provider_worker import BEFORE_STOP_LIMIT_S, ConfiguredProvider
from gpugate.provider_api import Phase, PodReport, Price
from tests.billing.ledger_house import BEGINNING, IDLE_S, House, ask, off, play, seconds


def test_a_whole_session() -> None:
    """One row with every step, who began it, what it cost, and whose the seconds were."""

    async def story() -> None:
        house = House([FakeCloud(boot_s=60, stop_s=20)])
        async with house.open() as lifecycle:
            await ask(lifecycle)
            await off(lifecycle)
        (row,) = house.rows
        cloud = house.clouds[0]
        assert ("ann", "request", "r-1", "idle") == (
            row.started_by,
            row.start_reason,
            row.request_id,
            row.end_reason,
        )
        assert ("alpha", "fake-1", "fake GPU", "provider") == (
            row.provider,
            row.pod_id,
            row.gpu,
            row.rate_source,
        )
        steps = [row.asked_at, row.started_at, row.running_at, row.ready_at, row.last_used_at]
        steps += [row.stop_asked_at, row.ended_at]
        assert None not in steps
        assert sorted(steps) == steps  # type: ignore[type-var]
        assert seconds(row) == pytest.approx(cloud.total_billed_s, rel=0.02)
        assert row.cost == pytest.approx(cloud.price.running_per_hour * Decimal(seconds(row)) / 3600)
        (use,) = house.book.used.values()
        assert ("ann", "r-1", Decimal(10)) == (use.user, use.request_id, use.seconds)

    play(story)


def test_the_intent_is_on_disk_first() -> None:
    """The provider is not called before, and not at all when the disk takes nothing."""

    async def story() -> None:
        house = House([FakeCloud()])

        class Provider(FakeProvider):
            async def start(self) -> PodReport:
                assert house.rows[-1].ended_at is None
                return await super().start()

        async with house.open() as lifecycle:
            lifecycle._runner._workers[0]._configured = ConfiguredProvider("alpha", Provider(house.clouds[0]))
            await ask(lifecycle)
            await off(lifecycle)
            house.book.broken = True
            with pytest.raises(PodStartFailed, match="the disk is full") as refused:
                await ask(lifecycle)
            assert "config" == refused.value.reason
            assert 1 == house.clouds[0].starts
            house.book.broken = False
            await ask(lifecycle)
        assert 2 == house.clouds[0].starts

    play(story)


def test_started_by_hand() -> None:
    """Under the name of who asked; by nobody in particular without one."""

    async def story() -> None:
        house = House([FakeCloud()])
        async with house.open() as lifecycle:
            lifecycle.start("bob")
            await asyncio.sleep(5)
            await off(lifecycle)
            lifecycle.start()
            await asyncio.sleep(5)
        assert [("bob", "hand"), (BY_HAND, "hand")] == [(r.started_by, r.start_reason) for r in house.rows]

    play(story)


def test_a_start_that_fails() -> None:
    """It costs nothing, and says what was wrong; the next provider has a row of its own."""

    async def story() -> None:
        house = House([FakeCloud(), FakeCloud()])
        house.clouds[0].fail("start", NoCapacity("none free"))
        async with house.open() as lifecycle:
            await ask(lifecycle)
            await off(lifecycle)
        failed, served = sorted(house.rows, key=lambda row: row.provider)  # begun in the same instant
        assert ("alpha", "failed start: capacity", Decimal(0), None) == (
            failed.provider,
            failed.end_reason,
            failed.cost,
            failed.started_at,
        )
        assert ("beta", "idle") == (served.provider, served.end_reason)

    play(story)


def test_attempts_of_one_start() -> None:
    """They are one row, though the answer of the first is lost."""

    async def story() -> None:
        house = House([FakeCloud(boot_s=5)])
        house.clouds[0].fail("start", LostAnswer(Ambiguous("the connection broke")))
        async with house.open() as lifecycle:
            await ask(lifecycle)
            await off(lifecycle)
        (row,) = house.rows
        assert seconds(row) == pytest.approx(house.clouds[0].total_billed_s, rel=0.02, abs=1)

    play(story)


def test_no_rate_at_all() -> None:
    """No price by the provider: the configured one."""

    async def story() -> None:
        house = House([FakeCloud(price=Price())])
        async with house.open() as lifecycle:
            await ask(lifecycle)
            await off(lifecycle)
        (row,) = house.rows
        assert ("configured", Decimal("0.5")) == (row.rate_source, row.hourly_rate)
        assert row.cost is not None

    play(story)


@pytest.mark.parametrize("boot", ["boot-1", "boot-2"], ids=["the same boot", "another boot"])
def test_a_crash_in_mid_session(boot: str) -> None:
    """The next gateway adopts the pod, and the row goes on."""

    async def story() -> None:
        house = House([FakeCloud(boot_s=10, stop_s=5)])
        async with house.crashes() as lifecycle:
            await ask(lifecycle)
        await asyncio.sleep(50)
        house.boot = boot
        async with house.open() as lifecycle:
            await asyncio.sleep(5)
            assert Status.READY is lifecycle.current_status
            status = await lifecycle.status()
            assert status.uptime_seconds == pytest.approx(house.clouds[0].total_billed_s, rel=0.02)
            await ask(lifecycle, user="bob", name="r-2")
            await off(lifecycle)
        (row,) = house.rows
        assert seconds(row) == pytest.approx(house.clouds[0].total_billed_s, rel=0.02)
        assert ("ann", "request", "idle") == (row.started_by, row.start_reason, row.end_reason)
        assert {"bob"} <= {use.user for use in house.book.used.values()}

    play(story)


@pytest.mark.parametrize("full_s", [30.0, 30.0 + 2 * IDLE_S])
def test_a_crash_and_a_disk_that_is_full_for_a_while(full_s: float) -> None:
    """A gateway that starts on a full disk adopts the pod; the row goes on once there is room again, whether
    the pod still runs or was stopped, and with the usage of both gateways.
    """

    async def story() -> None:
        house = House([FakeCloud(boot_s=10, stop_s=5)])
        async with house.crashes() as lifecycle:
            await ask(lifecycle)
        await asyncio.sleep(50)
        house.book.broken = True
        async with house.open() as lifecycle:
            await asyncio.sleep(5)
            await ask(lifecycle, user="bob", name="r-2")
            await asyncio.sleep(full_s - 15)
            house.book.broken = False
            await off(lifecycle)
            await asyncio.sleep(10)
        (row,) = house.rows
        assert seconds(row) == pytest.approx(house.clouds[0].total_billed_s, rel=0.03)
        assert ("ann", "request", "idle") == (row.started_by, row.start_reason, row.end_reason)
        assert row.cost == pytest.approx(Decimal("0.44") * Decimal(seconds(row)) / 3600)
        assert {(row.id, "ann"), (row.id, "bob")} == {
            (use.session_id, use.user) for use in house.book.used.values()
        }
        assert ["the disk is full", "the ledger can be written again"] == house.told

    play(story)


def test_a_full_disk_and_a_pod_that_is_stopped_meanwhile() -> None:
    """The row that was left open ends once the ledger can be read, at the pod's last sign of life."""

    async def story() -> None:
        house = House([FakeCloud(boot_s=10)])
        async with house.crashes() as lifecycle:
            await ask(lifecycle)
            await asyncio.sleep(100)
        house.clouds[0].turn_off()
        house.book.broken = True
        async with house.open() as lifecycle:
            await asyncio.sleep(60)
            house.book.broken = False
            await asyncio.sleep(600)
        (row,) = house.rows
        assert "found stopped" == row.end_reason
        assert 20 <= seconds(row) <= house.clouds[0].total_billed_s

    play(story)


def test_a_start_after_a_boot_on_a_full_disk() -> None:
    """Refused while it is full, accepted when there is room again, without a restart."""

    async def story() -> None:
        house = House([FakeCloud(boot_s=10)])
        house.book.broken = True
        async with house.open() as lifecycle:
            with pytest.raises(GateError):
                await ask(lifecycle)
            assert 0 == house.clouds[0].starts
            house.book.broken = False
            await asyncio.sleep(60)
            await ask(lifecycle)
            await off(lifecycle)
        (row,) = house.rows
        assert ("ann", "idle") == (row.started_by, row.end_reason)

    play(story)


def test_a_crash_and_the_pod_is_stopped_meanwhile() -> None:
    """The row ends at the last sign of life, not now."""

    async def story() -> None:
        house = House([FakeCloud(boot_s=10)])
        async with house.crashes() as lifecycle:
            await ask(lifecycle)
            await asyncio.sleep(100)
        house.clouds[0].turn_off()
        await asyncio.sleep(3600)
        async with house.open() as lifecycle:
            await asyncio.sleep(5)
        (row,) = house.rows
        assert "found stopped" == row.end_reason
        assert 20 <= seconds(row) <= house.clouds[0].total_billed_s

    play(story)


def test_a_crash_right_after_the_intent() -> None:
    """The pod that came of it is adopted under that row; if none came, the row ends and cost nothing."""

    async def story() -> None:
        for came in (True, False):
            house = House([FakeCloud()])
            await house.book.put(Session(id="1", provider="alpha", asked_at=BEGINNING, started_by="ann"))
            if came:
                house.clouds[0].turn_on()
            await asyncio.sleep(5)
            async with house.open() as lifecycle:
                await asyncio.sleep(5)
                await off(lifecycle)
            (row,) = house.rows
            assert "ann" == row.started_by
            assert ("idle" if came else "failed start") == row.end_reason
            assert came is (row.cost != 0)

    play(story)


def test_a_crash_while_a_stop_is_unproved() -> None:
    """The next gateway goes on stopping, and closes the row when it is proved."""

    async def story() -> None:
        house = House([FakeCloud(stop_s=100)])
        async with house.crashes() as lifecycle:
            await ask(lifecycle)
            lifecycle.stop(force=True)
            await asyncio.sleep(10)
        async with house.open() as lifecycle:
            await off(lifecycle)
        (row,) = house.rows
        assert "restart" == row.end_reason
        assert seconds(row) == pytest.approx(house.clouds[0].total_billed_s, rel=0.1)

    play(story)


def test_a_crash_while_a_stop_is_unproved_and_hours_pass() -> None:
    """Nobody pays for the hours in which the pod was off: the row ends where it was known last."""

    async def story() -> None:
        house = House([FakeCloud(stop_s=1)])
        async with house.crashes() as lifecycle:
            await ask(lifecycle, 600)
            lifecycle.stop(force=True)
            await asyncio.sleep(0.5)
        assert house.debts.names
        await asyncio.sleep(3 * 3600)
        async with house.open() as lifecycle:
            await off(lifecycle)
        (row,) = house.rows
        assert row.ended_at is not None
        assert seconds(row) == pytest.approx(house.clouds[0].total_billed_s, abs=2)

    play(story)


@define
class Ahead(FakeCloud):
    """A cloud whose clock is an hour ahead of ours."""

    def report(self) -> PodReport:
        began = BEGINNING + timedelta(seconds=self._billed_since or 0.0, hours=1)
        return evolve(super().report(), started_at=began)


def test_a_crash_and_a_cloud_whose_clock_is_ahead() -> None:
    """A pod cannot have started in the future: it is the one that the row is about."""

    async def story() -> None:
        house = House([Ahead()])
        async with house.crashes() as lifecycle:
            await ask(lifecycle, 600)
        async with house.open() as lifecycle:
            await off(lifecycle)
        (row,) = house.rows
        assert seconds(row) == pytest.approx(house.clouds[0].total_billed_s, rel=0.02)

    play(story)


def test_another_pod_is_found() -> None:
    """The old row ends; the pod that is there has a row of its own, adopted."""

    async def story() -> None:
        house = House([FakeCloud()])
        old = Session(id="1", provider="alpha", asked_at=BEGINNING, pod_id="gone-9", started_at=BEGINNING)
        await house.book.put(old)
        house.clouds[0].turn_on()
        async with house.open() as lifecycle:
            await asyncio.sleep(5)
            await off(lifecycle)
        first, second = house.rows
        assert "found stopped" == first.end_reason
        assert ("fake-1", "adopted") == (second.pod_id, second.start_reason)

    play(story)


def test_a_calendar_set_back_an_hour() -> None:
    """In mid-session and over a crash: the seconds are what they were."""

    async def story() -> None:
        house = House([FakeCloud(boot_s=10, stop_s=5)])
        async with house.crashes() as lifecycle:
            await ask(lifecycle)
        house.set_back = timedelta(hours=1)
        async with house.open() as lifecycle:
            await ask(lifecycle)
            house.set_back = timedelta(hours=2)
            await off(lifecycle)
        (row,) = house.rows
        assert seconds(row) == pytest.approx(house.clouds[0].total_billed_s, rel=0.02)

    play(story)


def test_a_disk_that_is_full_for_a_while() -> None:
    """What happened meanwhile is told once, kept, and written when it can be."""

    async def story() -> None:
        house = House([FakeCloud()])
        async with house.open() as lifecycle:
            await ask(lifecycle)
            house.book.broken = True
            await off(lifecycle)
            (row,) = house.rows
            assert row.ended_at is None
            house.book.broken = False
            await asyncio.sleep(20)
            (row,) = house.rows
            assert "idle" == row.end_reason
        assert 2 == len(house.told), house.told
        assert "written again" in house.told[1]

    play(story)


def test_two_users_at_once() -> None:
    """Each second is shared; together they are the time in which anybody was served."""

    async def story() -> None:
        house = House([FakeCloud()], numbers={"drain_concurrency": 5})
        async with house.open() as lifecycle:
            lifecycle.start()
            await asyncio.sleep(5)
            await asyncio.gather(ask(lifecycle, 10, "ann", "a"), ask(lifecycle, 30, "bob", "b"))
            await off(lifecycle)
        shares = {use.user: use.seconds for use in house.book.used.values()}
        assert {"ann": Decimal(5), "bob": Decimal(25)} == shares

    play(story)


def test_one_name_for_all_requests() -> None:
    """A client may send the same X-Request-Id again, at once, later, over a restart: no second is lost."""

    async def story() -> None:
        house = House([FakeCloud()], numbers={"drain_concurrency": 5})
        async with house.open() as lifecycle:
            lifecycle.start()
            await asyncio.sleep(5)
            await asyncio.gather(ask(lifecycle, 10), ask(lifecycle, 30))
            await ask(lifecycle, 7)
        async with house.open() as lifecycle:
            await asyncio.sleep(5)
            await ask(lifecycle, 4)
        assert 1 == len(house.rows)
        assert Decimal(41) == sum(use.seconds for use in house.book.used.values())

    play(story)


def test_a_provider_that_is_not_configured_any_more() -> None:
    """Its row ends at the last sign of life, and somebody is told to see to the pod."""

    async def story() -> None:
        house = House([FakeCloud()])
        seen = BEGINNING + timedelta(minutes=5)
        await house.book.put(
            Session(
                id="1",
                provider="gone",
                asked_at=BEGINNING,
                pod_id="p-7",
                started_at=BEGINNING,
                seen_at=seen,
                hourly_rate=Decimal(12),
            )
        )
        await asyncio.sleep(3600)
        async with house.open():
            await asyncio.sleep(5)
        (row,) = house.rows
        assert (seen, "not configured any more", Decimal(1)) == (row.ended_at, row.end_reason, row.cost)
        (told,) = house.told
        assert "gone" in told
        assert "p-7" in told

    play(story)


def test_a_refusal_is_no_mystery() -> None:
    """Bad credentials: the row says so."""

    async def story() -> None:
        house = House([FakeCloud()])
        house.clouds[0].fail("start", AuthFailed("no"))
        async with house.open() as lifecycle:
            with pytest.raises(PodStartFailed):
                await ask(lifecycle)
            await asyncio.sleep(30)
        (row,) = house.rows
        assert "failed start: auth" == row.end_reason
        assert Phase.STOPPED is house.clouds[0].phase

    play(story)


def test_a_stop_is_on_disk_first() -> None:
    """A crash in the same moment leaves it on record: the seconds until then are known to be paid."""

    async def story() -> None:
        house = House([FakeCloud(stop_s=1)])
        async with house.crashes() as lifecycle:
            await ask(lifecycle, 59)
            house.book.takes_s = 0.3
            lifecycle.stop(force=True)
            while "stop" not in house.clouds[0].calls:
                await asyncio.sleep(0.001)
        await asyncio.sleep(3 * 3600)
        house.book.takes_s = 0.0
        async with house.open() as lifecycle:
            await off(lifecycle)
        (row,) = house.rows
        assert seconds(row) == pytest.approx(house.clouds[0].total_billed_s, abs=2)

    play(story)


@pytest.mark.parametrize("broken", [False, True])
def test_no_disk_holds_up_a_stop(broken: bool) -> None:
    """One that hangs does so for a second at most, one that takes nothing not at all."""

    async def story() -> None:
        house = House([FakeCloud(stop_s=1)])
        async with house.open() as lifecycle:
            await ask(lifecycle, 60)
            house.book.broken, house.book.takes_s = broken, 0.0 if broken else 600.0
            asked_at = house.clouds[0].now
            lifecycle.stop(force=True)
            while "stop" not in house.clouds[0].calls:
                await asyncio.sleep(0.01)
            assert house.clouds[0].now - asked_at <= (0.1 if broken else BEFORE_STOP_LIMIT_S + 0.1)
            house.book.broken, house.book.takes_s = False, 0.0
            await off(lifecycle)
            await asyncio.sleep(601)
        (row,) = house.rows
        assert row.end_reason == "forced"

    play(story)


@pytest.mark.parametrize("ignored", [0, 2])
def test_a_pod_that_was_refused_and_is_started_all_the_same(ignored: int) -> None:
    """The provider says that it has no GPU, and bills one: what it takes to stop it is on record."""

    async def story() -> None:
        liar = FakeCloud(boot_s=300, stop_s=50, ignore_stops=ignored)
        liar.fail("start", LostAnswer(NoCapacity()))
        house = House([liar, FakeCloud()])
        async with house.open() as lifecycle:
            await ask(lifecycle)
            await off(lifecycle)
        lied, _ = sorted(house.rows, key=lambda row: row.provider)
        assert seconds(lied) == pytest.approx(liar.total_billed_s, abs=1)
        assert lied.cost == pytest.approx(Decimal("0.44") * Decimal(seconds(lied)) / 3600)
        assert lied.end_reason == "failed start: capacity"

    play(story)


@pytest.mark.parametrize("crashes", [False, True])
def test_a_provider_that_tells_when_the_bill_ended(crashes: bool) -> None:
    """The row ends then, not when the gateway has seen it, before or after a crash; never before it began."""

    async def story() -> None:
        house = House([FakeCloud(boot_s=60)])
        ends: list[object] = []

        class Provider(FakeProvider):
            async def inspect(self) -> PodReport:
                report = await super().inspect()
                if report.phase is not Phase.STOPPED or not house.clouds[0].total_billed_s:
                    return report
                if not ends:
                    ends.append(house.wall() - timedelta(seconds=20))
                return evolve(report, pod_id="fake-1", ended_at=ends[0])

        async def gateway(lifecycle: Lifecycle) -> None:
            lifecycle._runner._workers[0]._configured = ConfiguredProvider("alpha", Provider(house.clouds[0]))

        if crashes:
            async with house.crashes() as lifecycle:
                await gateway(lifecycle)
                await ask(lifecycle)
            await asyncio.sleep(900)
            house.clouds[0].turn_off()
            ends.append(house.wall() - timedelta(seconds=700))
            await asyncio.sleep(100)
        async with house.open() as lifecycle:
            await gateway(lifecycle)
            if not crashes:
                await ask(lifecycle)
                await off(lifecycle)
            await asyncio.sleep(60)
        (row,) = house.rows
        assert ends == [row.ended_at]
        assert row.cost == pytest.approx(row.hourly_rate * Decimal(seconds(row)) / 3600)

    play(story)
