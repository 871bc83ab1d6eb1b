"""Random lives of a pod: whatever happens in whatever order, what has to hold at every moment holds.

The machine plays against a small world that keeps its own books: which tickets were sent in, which
commands are out, where a pod really runs. Time is the machine's own: nothing later than `next_deadline_at`
happens before the machine was told that it has come.
"""

from __future__ import annotations

import os
from math import inf, isfinite
from typing import Any

from attrs import define, field
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpugate.core.commands import (
    AbortResponse,
    Admit,
    CheckDevice,
    Command,
    InspectPod,
    ListModels,
    PersistPendingStops,
    PreloadModel,
    Probe,
    PullModel,
    RecordSessionEnd,
    RecordSessionStart,
    Reject,
    Requeue,
    ScalePod,
    StartPod,
    StopPod,
)
from gpugate.core.events import (
    BudgetUpdated,
    DeadlineReached,
    DeviceChecked,
    Event,
    ForcedShutdownRequested,
    GatewayStarted,
    InspectFailed,
    ManualStartRequested,
    ManualStopRequested,
    ModelPulled,
    ModelsListed,
    PodInspected,
    PreloadFinished,
    ProbeFinished,
    RequestArrived,
    RequestFinished,
    ResponseStarted,
    ScaleAnswered,
    ShutdownRequested,
    StartAccepted,
    StartCallFailed,
    StopAccepted,
    StopCallFailed,
    UpstreamFailed,
)
from gpugate.core.idle_policy import FixedIdlePolicy, PrewarmWindow
from gpugate.core.machine import NEEDS_NEW_START, PodMachine
from gpugate.core.policy import Policy, ProviderLimits
from gpugate.core.replicas import SCALABLE
from gpugate.core.request_queue import BudgetVerdict
from gpugate.core.states import Draining, Ready, ShutDown, Stopped, Stopping, Unknown, Warming, WarmingUp
from gpugate.core.transitions import TABLE
from gpugate.errors import (
    Ambiguous,
    AuthFailed,
    Conflict,
    NoCapacity,
    NoFunds,
    NotFound,
    ProviderError,
    RateLimited,
    Transient,
)
from gpugate.provider_api import Endpoint, Phase, PodReport

ERRORS: tuple[ProviderError, ...] = (
    Transient(),
    Ambiguous(),
    Conflict(),
    RateLimited(7),
    RateLimited(),
    NoCapacity(),
    NoCapacity(queued=True),
    NoFunds(),
    AuthFailed(),
    NotFound(),
)
USERS = ("anne", "ben")
JUDGEMENTS = (
    BudgetUpdated(BudgetVerdict()),
    BudgetUpdated(BudgetVerdict(users_over_share={"anne": "spent"})),
    BudgetUpdated(BudgetVerdict(users_over_share={"anne": "spent", "ben": "spent"})),
    BudgetUpdated(BudgetVerdict(exhausted_reason="spent")),
)
HERE = {"ollama": Endpoint("http://127.0.0.1:1")}
PROOF = (Phase.STOPPED, Phase.GONE)
COMMANDS = (StartPod, StopPod, InspectPod)


class Honest(PodMachine):
    """Holds every row of the table to the states that its signature names."""

    def apply_transition(self, event: Event, now: float) -> None:
        entry = self.table.get((type(self.state), type(event)))
        super().apply_transition(event, now)
        assert entry is None or type(self.state) in entry.leads_to, f"{entry.function} led to {self.state}"


@define
class World:
    """What is true at one provider, and which commands are out there, in order."""

    phase: Phase = Phase.STOPPED
    line: list[Any] = field(factory=list)
    replicas: int = 1
    unbilled: bool = False  # by the latest inspection, as a pod that serves and is said to be queued

    def report(self) -> PodReport:
        here = HERE if self.phase is Phase.RUNNING else {}
        return PodReport(self.phase, "pod-1", here, replicas=self.replicas)


Errand = Probe | ListModels | PullModel | PreloadModel | CheckDevice


def came_of(errand: Errand, well: bool) -> Event:
    """The answer: healthy, pulled, and on the GPU, or not."""
    match errand:
        case ListModels(op):
            return ModelsListed(op, frozenset({"llama3:latest"} if well else ()))
        case PullModel(op=op, model=model):
            return ModelPulled(op, "" if well else "no such model", anywhere=model == "qwen3")
        case Probe(op):
            return ProbeFinished(op, well)
        case PreloadModel(op):
            return PreloadFinished(op, on_cpu=not well)
        case CheckDevice(run):
            return DeviceChecked(run, on_cpu=not well)


class Lives(RuleBasedStateMachine):
    """Arrivals, ends, answers in order or late or wrong, lost pods, waits, and people who press buttons."""

    count = 1
    slots = False  # the second provider is the second slot of the first

    @initialize(
        preload=st.sampled_from(["requested", "none", "qwen3"]),
        pull=st.sampled_from([(), (), ("llama3", "qwen3")]),
        drain=st.sampled_from([1, 2]),
        capacity=st.sampled_from([0.0, 40.0]),
        session=st.sampled_from([0.0, 200.0]),
        replicas=st.sampled_from(["1", "1", "1..3"]),
        idle=st.sampled_from([None, FixedIdlePolicy(20.0, PrewarmWindow(100.0, 180.0))]),
        owed=st.sets(st.integers(0, 0)),
        phases=st.lists(st.sampled_from(list(Phase)), min_size=2, max_size=2),
    )
    def come_up(
        self,
        preload: str,
        pull: tuple[str, ...],
        drain: int,
        capacity: float,
        session: float,
        replicas: str,
        idle: FixedIdlePolicy | None,
        owed: set[int],
        phases: list[Phase],
    ) -> None:
        names = ("alpha", "beta")[: self.count]
        self.policy = Policy(
            providers=tuple(
                ProviderLimits(
                    name=name,
                    min_poll_s=1.0,
                    min_probe_s=1.0,
                    twin=1 - index if self.slots else None,
                    is_second=self.slots and index == 1,
                )
                for index, name in enumerate(names)
            ),
            preload=preload,
            pull=pull,
            pull_timeout=70.0,
            drain_concurrency=drain,
            capacity_wait=capacity,
            max_session=session,
            replicas=replicas,
            target_in_flight=1,
            max_waiting=5,
            max_wait=90.0,
            idle_timeout=60.0,
            start_timeout=120.0,
            warmup_timeout=50.0,
        )
        self.machine = Honest(TABLE, self.policy, lambda: 0.5, frozenset(owed), idle)
        self.worlds = [World(phase) for phase in phases[: self.count]]
        self.errands: list[Errand] = []
        self.old: list[Event] = []
        self.now = 0.0
        self.tickets = 0
        self.places: dict[int, str] = {}
        self.users: dict[int, str] = {}
        self.judged = BudgetUpdated(BudgetVerdict())
        self.wished = False
        self.begun: set[int] = set()
        self.sessions: set[int] = set()
        self.owed = frozenset(owed)
        self.feed(GatewayStarted())

    # --- the world ----------------------------------------------------------------------------

    def feed(self, event: Event) -> list[Command]:
        before = self.machine.queue
        first = [ticket.number for ticket in before.waiting]
        effects = self.machine.handle(event, self.now)
        for effect in effects:
            self.carry_out(effect, first)
        if self.machine.next_deadline_at < inf:
            assert self.machine.next_deadline_at >= self.now, "an alarm lies in the past"
        return effects

    def carry_out(self, effect: Command, first: list[int]) -> None:
        match effect:
            case StartPod() | StopPod() | InspectPod() | ScalePod():
                line = self.worlds[effect.provider].line
                if isinstance(effect, ScalePod):
                    state = self.machine.state
                    assert isinstance(state, SCALABLE), "a pod that does not run is scaled"
                    assert effect.provider == state.provider
                if isinstance(effect, StartPod):
                    assert not any(isinstance(out, StartPod) for out in line), "two starts are out"
                    second = self.machine.hand_over and self.machine.hand_over.successor
                    assert second or self.is_paid_for(), "a start that nobody pays for"
                line.append(effect)
            case Probe() | ListModels() | PullModel() | PreloadModel() | CheckDevice():
                self.errands.append(effect)
            case Admit(ticket, run):
                assert self.places[ticket] == "waits"
                assert isinstance(self.machine.state, Ready)
                assert run == self.machine.state.run_id
                waiting = [number for number, place in self.places.items() if place == "waits"]
                assert ticket == min(waiting), "somebody was overtaken"
                self.places[ticket] = "leased"
            case Reject(ticket, error):
                assert self.places[ticket] in ("waits", "leased")
                assert ticket not in self.begun, "an answer that has begun cannot be refused"
                if error.code == "BUDGET_EXCEEDED":
                    assert (
                        self.judged.verdict.exhausted_reason
                        or self.users[ticket] in self.judged.verdict.users_over_share
                    )
                    assert not isinstance(self.machine.state, Ready | Warming)
                self.places[ticket] = "over"
            case Requeue(ticket):
                assert self.places[ticket] == "leased"
                assert ticket not in self.begun
                self.places[ticket] = "waits"
            case AbortResponse(ticket):
                assert self.places[ticket] == "leased"
                assert ticket in self.begun
                self.places[ticket] = "over"
            case RecordSessionStart(provider=provider):
                assert provider not in self.sessions
                self.sessions.add(provider)
            case RecordSessionEnd(provider=provider):
                self.sessions.remove(provider)
            case PersistPendingStops(providers):
                self.owed = providers

    def answer(self, provider: int, error: ProviderError | None, phase: Phase | None) -> None:
        """The oldest command that is out at this provider gets its answer."""
        world = self.worlds[provider]
        order = world.line.pop(0)
        event: Event
        match order:
            case StartPod(op=op):
                if error is None or isinstance(error, Ambiguous):
                    world.phase = phase or Phase.STARTING
                elif isinstance(error, NoCapacity) and error.queued:
                    world.phase = Phase.QUEUED
                event = StartCallFailed(op, error) if error else StartAccepted(op, world.report())
            case ScalePod(op=op, replicas=replicas):
                if error is None or isinstance(error, Ambiguous):
                    world.replicas = replicas
                event = ScaleAnswered(op, error or world.report())
            case StopPod(op=op):
                if error is None:
                    world.phase = phase or Phase.STOPPED
                    world.replicas = 1
                event = StopCallFailed(op, error) if error else StopAccepted(op)
            case InspectPod(op=op):
                world.unbilled = world.unbilled if error else not world.report().is_billed
                event = (
                    InspectFailed(op, provider, error)
                    if error
                    else PodInspected(op, provider, world.report())
                )
        self.feed(event)
        self.old.append(event)

    def is_paid_for(self) -> bool:
        """The budget allows a start, and somebody whose share is not spent waits or wished for one."""
        waiting = {self.users[number] for number, place in self.places.items() if place == "waits"}
        asked = self.wished or bool(waiting - set(self.judged.verdict.users_over_share))
        return not self.judged.verdict.exhausted_reason and (
            asked or self.machine.idle_timer.policy.window is not None
        )

    # --- rules: people ------------------------------------------------------------------------

    @rule(model=st.sampled_from([None, "llama3"]), user=st.sampled_from(USERS))
    def arrive(self, model: str | None, user: str) -> None:
        self.tickets += 1
        self.places[self.tickets] = "waits"
        self.users[self.tickets] = user
        self.feed(RequestArrived(self.tickets, model, user=user))

    @rule(judged=st.sampled_from(JUDGEMENTS))
    def judge(self, judged: BudgetUpdated) -> None:
        self.judged = judged
        self.feed(judged)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.integers(1, self.tickets))
        if self.places[ticket] != "over":
            self.places[ticket] = "over"
            self.feed(RequestFinished(ticket))

    @precondition(lambda self: self.machine.queue.leases)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.machine.queue.leases)))
        self.begun.add(ticket)
        assert self.feed(ResponseStarted(ticket)) == []

    @rule(user=st.sampled_from(USERS))
    def start_by_hand(self, user: str) -> None:
        self.wished = self.wished or user not in self.judged.verdict.users_over_share
        self.feed(ManualStartRequested(user))

    @rule(force=st.booleans())
    def stop_by_hand(self, force: bool) -> None:
        busy = self.machine.queue.busy
        before = self.machine.state
        self.feed(ManualStopRequested(force))
        if busy and not force and not isinstance(before, ShutDown):
            assert type(self.machine.state) is type(before)

    @precondition(lambda self: self.tickets > 3)
    @rule(keep=st.booleans())
    def close(self, keep: bool) -> None:
        self.feed(ShutdownRequested(self.machine.keep_pod if self.machine.shutting_down else keep))

    @precondition(lambda self: self.machine.shutting_down)
    @rule()
    def cut(self) -> None:
        self.feed(ForcedShutdownRequested())

    # --- rules: the world ---------------------------------------------------------------------

    @rule(
        data=st.data(), well=st.booleans(), error=st.sampled_from(ERRORS), phase=st.sampled_from(list(Phase))
    )
    def answer_command(self, data: st.DataObject, well: bool, error: ProviderError, phase: Phase) -> None:
        busy = [index for index, world in enumerate(self.worlds) if world.line]
        if busy:
            provider = data.draw(st.sampled_from(busy))
            self.answer(provider, None if well else error, phase if data.draw(st.booleans()) else None)

    @rule()
    def answer_well(self) -> None:
        for provider, world in enumerate(self.worlds):
            for _ in range(len(world.line)):
                self.answer(provider, None, None)

    @precondition(lambda self: self.errands)
    @rule(healthy=st.booleans(), data=st.data())
    def answer_errand(self, healthy: bool, data: st.DataObject) -> None:
        errand = self.errands.pop(data.draw(st.integers(0, len(self.errands) - 1)))
        event = came_of(errand, healthy)
        self.feed(event)
        if not isinstance(event, DeviceChecked):  # true of a whole run, so it never goes stale
            self.old.append(event)

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def answer_again(self, data: st.DataObject) -> None:
        """A stale answer changes nothing."""
        event = data.draw(st.sampled_from(self.old[-20:]))
        before = (
            self.machine.state,
            self.machine.next_deadline_at,
            dict(self.machine.pending_stops.by_provider),
        )
        if self.machine.next_deadline_at > self.now:
            assert self.feed(event) == []
            assert before == (
                self.machine.state,
                self.machine.next_deadline_at,
                self.machine.pending_stops.by_provider,
            )

    @rule(phase=st.sampled_from(list(Phase)), data=st.data())
    def pod_changes(self, phase: Phase, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.worlds)).phase = phase

    @rule()
    def pods_come_up(self) -> None:
        for world in self.worlds:
            if world.phase in (Phase.STARTING, Phase.PROVISIONING, Phase.QUEUED):
                world.phase = Phase.RUNNING

    @rule()
    def all_goes_well(self) -> None:
        """Without this the pod would seldom live to serve."""
        for _ in range(4):
            self.answer_well()
            self.pods_come_up()
            while self.errands:
                errand = self.errands.pop()
                self.feed(came_of(errand, True))
            self.wait(1.0)

    @rule(behind=st.integers(0, 1))
    def trouble(self, behind: int) -> None:
        leases = self.machine.queue.leases
        ticket = next((number for number, lease in leases.items() if not lease.response_started), None)
        self.feed(UpstreamFailed(self.machine.plan.run_id - behind, ticket))

    @rule(seconds=st.sampled_from([0.5, 3.0, 12.0, 45.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.wait(seconds)

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.machine.next_deadline_at <= end:
            self.now = max(self.now, self.machine.next_deadline_at)
            self.feed(DeadlineReached())
            assert self.machine.next_deadline_at > self.now, "the clock stands still"
        self.now = end

    # --- what holds at every moment -----------------------------------------------------------

    @invariant()
    def nobody_is_lost(self) -> None:
        backlog = self.machine.queue
        waiting = [ticket.number for ticket in backlog.waiting]
        assert waiting == sorted({n for n, place in self.places.items() if place == "waits"})
        assert set(backlog.leases) == {n for n, place in self.places.items() if place == "leased"}

    @invariant()
    def the_books_agree(self) -> None:
        backlog = self.machine.queue
        assert backlog.admit_slots_used == sum(lease.holds_admit_slot for lease in backlog.leases.values())
        most = 1 if self.machine.replicas is None else 3  # replicas
        assert backlog.admit_slots_used <= self.policy.drain_concurrency * most
        assert set(self.machine.open_sessions.by_provider) == self.sessions
        if not self.machine.shutting_down or not self.machine.keep_pod:
            assert self.owed == self.machine.pending_stops.unconfirmed_providers

    @invariant()
    def no_idle_clock_under_a_lease(self) -> None:
        if self.machine.queue.leases:
            assert self.machine.queue.idle_since is None
            assert self.machine.idle_deadline_at == inf
        if isinstance(self.machine.state, Ready) and not self.machine.queue.busy:
            assert isfinite(self.machine.idle_deadline_at)

    @invariant()
    def leases_need_a_pod(self) -> None:
        state = self.machine.state
        leaving = self.machine.hand_over and self.machine.hand_over.leaving
        runs = {lease.run_id for lease in self.machine.queue.leases.values()}
        if leaving:
            assert leaving.provider not in self.machine.pending_stops.by_provider
            assert leaving.provider != getattr(state, "provider", None)
            runs -= {leaving.run_id}
        if runs:
            assert isinstance(state, Ready | Draining | WarmingUp)
            assert runs == {state.run_id}

    @invariant()
    def who_can_go_goes(self) -> None:
        backlog = self.machine.queue
        if isinstance(self.machine.state, Ready) and backlog.waiting:
            assert backlog.admit_slots_used >= backlog.drain_concurrency

    @invariant()
    def someone_will_call(self) -> None:
        machine = self.machine
        out = any(world.line for world in self.worlds) or self.errands
        if not isinstance(machine.state, ShutDown):
            assert out or machine.queue.leases or isfinite(machine.next_deadline_at)
        if machine.queue.waiting:
            assert isfinite(machine.next_deadline_at)
        if isinstance(machine.state, Stopping | Unknown):
            assert any(world.line for world in self.worlds) or isfinite(machine.next_deadline_at)

    @invariant()
    def a_warming_pod_is_checked(self) -> None:
        state = self.machine.state
        if isinstance(state, Warming):
            assert state.probe_op is not None or isfinite(state.probe_at)

    @invariant()
    def a_session_has_a_reason(self) -> None:
        """What is billed serves, starts, drains, or is being stopped."""
        state, stops = self.machine.state, self.machine.pending_stops.by_provider
        for provider in self.sessions:
            meant = getattr(state, "provider", None) == provider
            second = self.machine.hand_over and self.machine.hand_over.concerns(provider)
            assert meant or second or provider in stops or self.machine.keep_pod

    @invariant()
    def the_states_are_honest(self) -> None:
        state = self.machine.state
        self.wished = self.machine.plan.start_requested
        if isinstance(state, NEEDS_NEW_START) and self.machine.queue.waiting:
            assert self.is_paid_for()
        if isinstance(state, Stopped):
            assert not self.machine.pending_stops.by_provider
            assert not self.machine.queue.waiting
        if isinstance(state, Stopping):
            leaving = self.machine.hand_over and self.machine.hand_over.leaving
            assert self.machine.pending_stops.by_provider or leaving
        if isinstance(state, Ready | Draining | Warming):
            assert state.provider in self.sessions or self.worlds[state.provider].unbilled
            assert state.provider not in self.machine.pending_stops.by_provider
        if isinstance(state, ShutDown):
            assert not self.machine.queue.busy
            assert not self.machine.pending_stops.by_provider

    def teardown(self) -> None:
        """A good provider brings all to rest."""
        if not hasattr(self, "machine"):
            return
        end = self.now + 3000.0
        while self.now < end:
            self.calm_down()
            self.now = max(self.now, min(self.machine.next_deadline_at, end))
            if self.now < end:
                self.feed(DeadlineReached())
        assert isinstance(self.machine.state, Stopped | Ready | ShutDown), self.machine.state
        assert "waits" not in self.places.values()
        assert self.machine.keep_pod or isinstance(self.machine.state, Ready) or not self.sessions

    def calm_down(self) -> None:
        """Everything that is out is answered well, and every request ends."""
        for _ in range(100):
            for provider, world in enumerate(self.worlds):
                if world.phase not in (Phase.RUNNING, Phase.STOPPED):
                    world.phase = Phase.RUNNING if world.phase in _COMING else Phase.STOPPED
                while world.line:
                    self.answer(provider, None, None)
            while self.errands:
                errand = self.errands.pop()
                self.feed(came_of(errand, True))
            for ticket in sorted(self.machine.queue.leases):
                self.places[ticket] = "over"
                self.feed(RequestFinished(ticket))
            if not any(world.line for world in self.worlds) and not self.errands:
                return
        raise AssertionError("it never comes to rest")


_COMING = (Phase.QUEUED, Phase.PROVISIONING, Phase.STARTING)


class LivesOfTwo(Lives):
    """The same with a list of two providers."""

    count = 2


class LivesOfSlots(Lives):
    """The same with a provider that can run two pods, and hands over before each time limit."""

    count = 2
    slots = True


# GPUGATE_LIVES=5000: a long random run; GPUGATE_SHRINK=1: look for the shortest life that fails.
_many = int(os.environ.get("GPUGATE_LIVES", "100"))
_profile = settings(
    max_examples=_many,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="GPUGATE_LIVES" not in os.environ,
    phases=(Stage.generate, Stage.shrink) if "GPUGATE_SHRINK" in os.environ else (Stage.generate,),
    database=None,
)

TestOneProvider = Lives.TestCase
TestOneProvider.settings = _profile
TestTwoProviders = LivesOfTwo.TestCase
TestTwoProviders.settings = _profile
TestTwoSlots = LivesOfSlots.TestCase
TestTwoSlots.settings = _profile
