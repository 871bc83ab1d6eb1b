"""Replicas: as many as the waiting and running requests need, at once; fewer after a while of less need."""

from __future__ import annotations

from decimal import Decimal
from math import ceil, isfinite
from typing import Any

import pytest
from attrs import evolve
from gpugate_testing.playbook import (
    RUNNING,
    STOPPED,
    ScaleError,
    ScaleOk,
    Scenario,
    StartOk,
    StopOk,
    policy,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gpugate.core.commands import InspectPod, Probe, PublishProviderProblem, ScalePod, StartPod
from gpugate.core.events import (
    BudgetUpdated,
    DeadlineReached,
    GatewayStarted,
    ManualStopRequested,
    PodInspected,
    ProbeFinished,
    RequestArrived,
    RequestFinished,
    ScaleAnswered,
    StartAccepted,
)
from gpugate.core.machine import PodMachine
from gpugate.core.policy import Policy, ProviderLimits, replica_range
from gpugate.core.replicas import ReplicaScale
from gpugate.core.request_queue import BudgetVerdict
from gpugate.core.states import Ready, Stopping
from gpugate.core.transitions import TABLE
from gpugate.errors import Ambiguous, NoCapacity, RateLimited
from gpugate.provider_api import PodReport, Price


def arrivals(first: int, last: int) -> list[RequestArrived]:
    """So many requests at once."""
    return [RequestArrived(ticket) for ticket in range(first, last + 1)]


def ends(first: int, last: int) -> list[RequestFinished]:
    """Their ends."""
    return [RequestFinished(ticket) for ticket in range(first, last + 1)]


def serving(replicas: str = "1..4", report: PodReport = RUNNING, **numbers: Any) -> Scenario:
    """A pod that serves at 0 s, with room for two requests in each replica, and nothing to do."""
    numbers = {"target_in_flight": 2, "drain_concurrency": 9, "idle_timeout": 100.0, **numbers}
    play = Scenario(policy(replicas=replicas, **numbers))
    play.at(0, GatewayStarted(), RequestArrived(1)).set_report(0, report)
    return play.at(0, StartOk(report=report), RequestFinished(1), state=Ready)


def with_price(count: int, total: str) -> PodReport:
    """A running pod of so many replicas that cost so much together."""
    return evolve(RUNNING, replicas=count, price=Price(total))


# --- how many ------------------------------------------------------------------------------------


def test_more_are_asked_for_at_once() -> None:
    """The third request needs a second replica, the fifth a third one; one call is out at a time."""
    play = serving().at(1, *arrivals(2, 3), gives=["admit 2 run 1", "admit 3 run 1"])
    play.at(2, RequestArrived(4), gives=["admit 4 run 1", "scale 0 to 2"])
    play.at(3, *arrivals(5, 8), gives=[f"admit {ticket} run 1" for ticket in range(5, 9)])
    play.at(4, ScaleOk(), gives=["scale 0 to 4"])


def test_those_who_wait_for_a_start_count() -> None:
    """The replicas are asked for when the pod runs, before it is healthy: they start beside each other."""
    play = Scenario(policy(replicas="1..4", target_in_flight=2), healthy=None)
    play.at(0, GatewayStarted(), *arrivals(1, 5), gives=["start 0"]).at(1, StartOk())
    play.at(2).set_report(0, RUNNING).at(10, gives=["scale 0 to 3"])


def test_never_more_than_the_range() -> None:
    """Twenty requests would need ten."""
    play = serving("1..3").at(1, *arrivals(2, 21)).at(2, ScaleOk(), gives=["scale 0 to 3"])
    play.at(3, ScaleOk(), gives=[])


def test_a_fixed_number_is_asked_for_once() -> None:
    """ "2" is a range, too."""
    play = serving("2")
    assert [call.replicas for call in play.out(ScalePod)] == [2]
    play.at(2, ScaleOk(), gives=[]).set_report(0, evolve(RUNNING, replicas=2)).at(90, gives=[])


def test_a_pod_without_replicas_is_never_scaled() -> None:
    """Whatever comes, and however many replicas its provider says it has."""
    play = serving("1", evolve(RUNNING, replicas=3)).at(1, *arrivals(2, 50)).at(900)
    assert play.machine.replicas is None
    assert play.out(ScalePod) == []


def test_fewer_after_a_while_of_less_need() -> None:
    """As many as were needed at most in that while."""
    play = serving().at(1, *arrivals(2, 9)).at(1, ScaleOk()).at(1, ScaleOk())
    play.set_report(0, evolve(RUNNING, replicas=4)).at(10, *ends(2, 4)).at(50, *ends(5, 7))
    play.at(109.9, state=Ready).at(110, gives=["scale 0 to 3"])
    play.at(110, ScaleOk()).set_report(0, evolve(RUNNING, replicas=3)).at(149.9, gives=[])
    play.at(150, gives=["scale 0 to 1"])


def test_a_load_that_comes_and_goes_does_not_flap() -> None:
    """A peak each minute keeps its replicas."""
    play = serving().at(1, *arrivals(2, 5)).at(1, ScaleOk()).set_report(0, evolve(RUNNING, replicas=2))
    ticket = 5
    for minute in range(1, 20):
        play.at(60 * minute - 10, *ends(ticket - 3, ticket))
        play.at(60 * minute, *arrivals(ticket + 1, ticket + 4))
        ticket += 4
    assert play.out(ScalePod) == []


# --- what limits it ------------------------------------------------------------------------------


def test_never_above_the_hourly_rate() -> None:
    """Of all together, as the provider prices them."""
    play = serving("1..9", with_price(1, "0.50"), max_hourly_rate=Decimal("1.60"))
    play.at(1, *arrivals(2, 21)).at(2, ScaleOk(with_price(2, "1.00")), gives=None)
    assert [call.replicas for call in play.out(ScalePod)] == [3]


def test_dearer_than_the_rate_allows() -> None:
    """Fewer at once; a price that falls again later brings none back."""
    report = with_price(3, "1.50")
    play = serving("1..9", report, max_hourly_rate=Decimal("1.60")).at(1, *arrivals(2, 9))
    play.set_report(0, with_price(3, "1.80")).at(40, gives=None)
    assert [call.replicas for call in play.out(ScalePod)] == [2]
    play.set_report(0, with_price(2, "1.00")).at(41, ScaleOk(with_price(2, "1.00"))).at(90, gives=[])


def test_the_first_replica_is_always_allowed() -> None:
    """Whether a pod is started at all is no matter of its rate."""
    play = serving("2..4", with_price(1, "5"), max_hourly_rate=Decimal(2)).at(1, *arrivals(2, 9))
    assert play.out(ScalePod) == []


def test_a_price_that_is_not_known() -> None:
    """One replica, and that is told once; with `cost.hourly_rate` that price counts."""
    play = serving(max_hourly_rate=Decimal(2), report=RUNNING)
    play.hidden -= {PublishProviderProblem}
    play.at(
        1, *arrivals(2, 4), gives=[*(f"admit {ticket} run 1" for ticket in (2, 3, 4)), "complain 0 config"]
    )
    play.at(2, *ends(2, 4)).at(3, *arrivals(5, 6), gives=["admit 5 run 1", "admit 6 run 1"])
    assert play.out(ScalePod) == []
    priced = serving(max_hourly_rate=Decimal(2), fallback_hourly_rate=Decimal("0.7")).at(1, *arrivals(2, 9))
    assert [call.replicas for call in priced.out(ScalePod)] == [2]


def test_a_spent_budget() -> None:
    """It allows no more than there are, and takes none away."""
    spent = BudgetUpdated(BudgetVerdict(exhausted_reason="spent"))
    play = serving().at(1, *arrivals(2, 5)).at(1, ScaleOk()).set_report(0, evolve(RUNNING, replicas=2))
    play.at(2, spent, *arrivals(6, 9), gives=None).at(90, gives=[])
    play.at(91, BudgetUpdated(BudgetVerdict()), gives=["scale 0 to 4"])


# --- calls that go wrong -------------------------------------------------------------------------


def test_a_failed_call_is_repeated_and_told() -> None:
    """With growing pauses, for as long as it is wanted."""
    play = serving().at(1, *arrivals(2, 4)).at(1, ScaleError(NoCapacity("no GPU is free")))
    assert play.machine.last_error == "alpha: 2 replicas were asked for: no GPU is free"
    play.at(1.9, gives=None).at(2, gives=["scale 0 to 2"]).at(2, ScaleError(NoCapacity()))
    play.at(3.9, gives=[]).at(4, gives=["scale 0 to 2"]).at(4, ScaleError(RateLimited(30)))
    play.at(33.9, gives=[]).at(34, gives=["scale 0 to 2"])
    play.at(35, ScaleError(NoCapacity())).at(36, *ends(2, 4)).at(90, gives=[])
    assert play.machine.last_error is None


def test_an_answer_that_was_lost() -> None:
    """The replicas that run all the same are kept for the usual while, then given back."""
    play = serving().at(1, *arrivals(2, 4)).at(2, ScaleError(Ambiguous("no answer")))
    play.set_report(0, evolve(RUNNING, replicas=2)).at(2, *ends(2, 4)).at(31, *arrivals(5, 5), gives=None)
    assert play.out(ScalePod) == []
    play.at(101.9, gives=[]).at(102, gives=["scale 0 to 1"])


def test_a_call_without_effect_is_repeated() -> None:
    """After `start_timeout`: replicas may take as long as a pod."""
    play = serving(start_timeout=60.0).at(1, *arrivals(2, 4)).at(1, ScaleOk(RUNNING), gives=None)
    play.at(60.9, gives=[]).at(61, gives=["scale 0 to 2"])


def test_a_changing_pod_is_looked_at_often() -> None:
    """Its price changes when another replica runs, not when that is asked for."""
    play = serving().at(1, *arrivals(2, 4)).at(1, ScaleOk(RUNNING))
    assert play.machine.next_deadline_at < 2
    play.set_report(0, evolve(RUNNING, replicas=2)).at(10)
    assert play.machine.next_deadline_at > 30


def test_a_stop_does_not_wait_for_a_call() -> None:
    """And the call's late answer changes nothing."""
    play = serving().at(1, *arrivals(2, 4), gives=None)
    play.at(2, ManualStopRequested(force=True), state=Stopping).at(3, ScaleOk(), gives=None, state=Stopping)
    play.set_report(0, STOPPED).at(4, StopOk()).at(2000, gives=None)
    assert play.out(ScalePod) == []


def test_the_next_pod_begins_with_one() -> None:
    """The number belongs to a run."""
    play = serving().at(1, *arrivals(2, 5)).at(1, ScaleOk()).at(2, *ends(2, 5))
    play.at(3, ManualStopRequested()).set_report(0, STOPPED).at(3, StopOk()).at(60)
    play.at(61, RequestArrived(9)).set_report(0, RUNNING).at(61, StartOk(report=RUNNING), gives=None)
    assert play.machine.snapshot().replicas == 1
    assert play.out(ScalePod) == []


# --- what is found, and what changes -------------------------------------------------------------


def test_a_pod_is_found_with_replicas() -> None:
    """They are kept for the usual while."""
    play = Scenario(policy(replicas="1..4", idle_timeout=100.0)).set_report(0, evolve(RUNNING, replicas=3))
    play.at(0, GatewayStarted(), RequestArrived(1), state=Ready)
    play.at(99.9).at(100, gives=["scale 0 to 1"])


def test_each_replica_takes_of_the_queue() -> None:
    """`queue.drain_concurrency` is for each of them that runs."""
    play = Scenario(policy(replicas="1..4", drain_concurrency=2)).set_report(0, evolve(RUNNING, replicas=2))
    play.at(0, *arrivals(1, 9), GatewayStarted(), state=Ready)
    assert len(play.machine.queue.leases) == 4


def test_a_reload_changes_the_range() -> None:
    """More at once, fewer at once: it is the owner's word."""
    play = serving().at(1, *arrivals(2, 9)).at(1, ScaleOk()).at(1, ScaleOk())
    play.set_report(0, evolve(RUNNING, replicas=4)).at(40, gives=None)
    play.machine.set_policy(evolve(play.policy, replicas="1"))
    play.at(41, DeadlineReached(), gives=["scale 0 to 1"])


@pytest.mark.parametrize(
    ("text", "wanted"), [("1", (1, 1)), ("3", (3, 3)), ("1..4", (1, 4)), (" 2..2 ", (2, 2))]
)
def test_a_range(text: str, wanted: tuple[int, int]) -> None:
    """A number, or two."""
    assert wanted == replica_range(text)


@pytest.mark.parametrize("text", ["", "0", "0..2", "4..1", "1..", "1-4", "x", "1..4..5", "99999", "-1", "١"])
def test_no_range(text: str) -> None:
    """Said in a way that can be acted on."""
    with pytest.raises(ValueError, match=r'a number or a range, such as "2" or "1\.\.4"'):
        replica_range(text)


# --- properties ----------------------------------------------------------------------------------

STEP = st.tuples(
    st.sampled_from(["arrive", "arrive", "end", "wait", "answer", "fail", "look"]),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.5, 7.0, 40.0, 130.0]),
)
PRICE = Decimal("0.30")


class World:
    """A pod that always serves, and the calls that its machine makes; the cloud obeys at once or fails."""

    def __init__(self, target: int, low: int, high: int, rate: Decimal) -> None:
        self.low, self.high, self.target = low, high, target
        self.most = min(high, max(1, int(rate / PRICE)) if rate else high)
        self.policy = Policy(
            providers=(ProviderLimits(name="alpha"),),
            replicas=f"{low}..{high}",
            target_in_flight=target,
            max_hourly_rate=rate,
            idle_timeout=60.0,
            drain_concurrency=1000,
            max_waiting=1000,
        )
        self.machine = PodMachine(TABLE, self.policy, lambda: 0.5)
        self.now, self.replicas, self.tickets = 0.0, 1, 0
        self.open: list[int] = []
        self.call: ScalePod | None = None
        self.loads = [(0.0, 0)]  # when it was how large
        self.asked: list[tuple[float, int, int]] = []  # when, from how many, to how many
        self.feed(GatewayStarted())
        self.feed(RequestArrived(0))

    def report(self) -> PodReport:
        """What the cloud says."""
        return evolve(RUNNING, replicas=self.replicas, price=Price(PRICE * self.replicas))

    def feed(self, event: Any) -> None:
        """One step of the machine; inspections and probes are answered at once."""
        for command in self.machine.handle(event, self.now):
            match command:
                case ScalePod(replicas=wanted):
                    assert self.call is None, "two calls are out"
                    self.call = command
                    self.asked.append((self.now, self.part.asked, wanted))
                case InspectPod(op):
                    self.feed(PodInspected(op, 0, self.report()))
                case StartPod(op):
                    self.feed(StartAccepted(op, self.report()))
                case Probe(op):
                    self.feed(ProbeFinished(op, True))

    @property
    def part(self) -> ReplicaScale:
        """The one under test."""
        assert self.machine.replicas is not None
        return self.machine.replicas

    def note(self) -> None:
        """Remember the load."""
        self.loads.append((self.now, len(self.open) + 1))

    def step(self, what: str, count: int, seconds: float) -> None:
        """Something happens."""
        if what == "arrive":
            for _ in range(count):
                self.tickets += 1
                self.open.append(self.tickets)
                self.note()
                self.feed(RequestArrived(self.tickets))
        elif what == "end":
            for ticket in self.open[:count]:
                self.open.remove(ticket)
                self.note()
                self.feed(RequestFinished(ticket))
        elif what == "wait":
            end = self.now + seconds
            while self.machine.next_deadline_at <= end:
                self.now = max(self.now, self.machine.next_deadline_at)
                self.feed(DeadlineReached())
            self.now = end
        elif self.call is not None and what in ("answer", "fail"):
            call, self.call = self.call, None
            if what == "answer":
                self.replicas = call.replicas
            self.feed(ScaleAnswered(call.op, self.report() if what == "answer" else NoCapacity()))

    def need(self, since: float) -> int:
        """How many were needed at most since then."""
        before = [load for at, load in self.loads if at <= since][-1:]
        lately = [load for at, load in self.loads if at > since]
        return ceil(max([*before, *lately], default=0) / self.target)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(STEP, max_size=40),
    target=st.integers(1, 4),
    low=st.integers(1, 3),
    more=st.integers(0, 4),
    rate=st.sampled_from([Decimal(0), Decimal("0.1"), Decimal("0.6"), Decimal("1.0")]),
)
def test_whatever_comes(
    steps: list[tuple[str, int, float]], target: int, low: int, more: int, rate: Decimal
) -> None:
    """Never below the need, never above the rate, and none is given back that was needed lately."""
    world = World(target, low, max(2, low + more), rate)
    for step in steps:
        world.step(*step)
        part = world.part
        need = min(max(world.need(world.now), low), world.most)
        busy_or_failed = world.call is not None or isfinite(part.next_due) or part.problem is not None
        assert part.asked >= need or busy_or_failed, (
            f"{part.asked} are fewer than {need}, and none is asked for"
        )
        assert part.asked <= world.most
    for at, was, wanted in world.asked:
        assert wanted <= world.most, "more than range and rate allow"
        if wanted < was:
            assert wanted >= min(world.need(at - 60.0 + 1e-6), world.most), "given back, and needed lately"
    for (_, _, one), (then, was, other) in zip(world.asked, world.asked[1:], strict=False):
        if other < one == was:
            earlier = max(at for at, _, count in world.asked if count == one)
            assert then - earlier >= 60.0, "asked for, and given back at once"
    assert all(world.low <= wanted or wanted == world.most for _, _, wanted in world.asked)


def test_the_part_is_the_machines() -> None:
    """A pod with replicas has one."""
    assert isinstance(serving().machine.replicas, ReplicaScale)
