"""The rows of the table from a ready pod to a proved stop, and what is asked for by hand."""

from __future__ import annotations

from typing import TypeVar

from attrs import evolve

from gpugate.core.engine import COLD
from gpugate.core.pending_stops import PROOF
from gpugate.core.transition_table import transition
from gpugate.core.vocabulary import (
    Asking,
    Closed,
    CloseWanted,
    CutWanted,
    Demanded,
    Draining,
    Emptied,
    Looked,
    OnItsWay,
    Pausing,
    Preloading,
    Probe,
    Probed,
    Proved,
    Provisioning,
    Ready,
    Reply,
    Rest,
    Settling,
    StartWanted,
    State,
    Stopped,
    Stopping,
    StopWanted,
    TimePassed,
    Troubled,
    Unknown,
    Warming,
    Weighed,
    status_of,
)
from gpugate.core.warming import ON_CPU, WarmingRows
from gpugate.errors import BudgetExceeded, GateError, NoCapacity, PodBusy, PodStopped, ShuttingDown
from gpugate.provider_api import Phase

STARTING = Asking | Pausing | Settling | Provisioning | Warming | Preloading
Live = TypeVar("Live", Asking, Pausing, Settling, Provisioning, Warming, Preloading, Ready, Draining)
Served = TypeVar("Served", Ready, Draining)
Still = TypeVar("Still", Stopped, Stopping)


def _stopped_by_hand() -> PodStopped:
    return PodStopped("the pod was stopped by hand")


def _going_down() -> ShuttingDown:
    return ShuttingDown(retry_after_s=5)


class ServingRows(WarmingRows):
    """Ready, Draining, Stopping, and start, stop and close from any state."""

    # --- ready --------------------------------------------------------------------------------

    @transition
    def _grow_old(self, was: Ready, event: TimePassed, now: float) -> Draining | Stopping:
        """Idle for `pod.idle_timeout`: stop. Past `pod.max_session`: admit nobody, and stop soon."""
        if now >= self.session_ends:
            return self._drain_out(was, "max_session", now)
        return self._stop(was.provider, "idle", now)

    @transition
    def _watch_ready(self, was: Ready, event: Looked, now: float) -> Ready | Draining | Rest:
        """Believe the provider: a pod that is gone is lost, one that stops gets nobody new."""
        if event.provider == was.provider and event.report.phase is Phase.STOPPING:
            return self._drain_out(was, "stopped_elsewhere", now)
        if event.provider == was.provider and event.report.phase is Phase.UNREACHABLE:
            return self._doubt(was)
        return self._watch_live(was, event, now)

    @transition
    def _watch_draining(self, was: Draining, event: Looked, now: float) -> Draining | Rest:
        """A pod that is gone is lost, in its last minutes too."""
        return self._watch_live(was, event, now)

    def _watch_live(self, was: Served, event: Looked, now: float) -> Served | Rest:
        """A lost pod is noted, an address may have changed."""
        phase = event.report.phase
        if event.provider != was.provider:
            return was
        if phase in PROOF or phase is Phase.FAILED:
            return self._lose_pod(was, event, now)
        if phase is Phase.RUNNING and "ollama" in event.report.endpoints:
            return evolve(was, endpoints=event.report.endpoints)
        return was

    @transition
    def _hear_trouble(self, was: Ready, event: Troubled, now: float) -> Ready:
        """An exchange broke: look at the provider and at the pod's health, now."""
        if event.run != was.run:
            return was
        self.looks.schedule(was.provider, now)
        return self._doubt(was)

    def _doubt(self, was: Ready) -> Ready:
        if was.doubt is not None:
            return was
        op = self._next_op()
        self._effects.append(Probe(op, was.endpoints["ollama"]))
        return evolve(was, doubt=op)

    @transition
    def _settle_health(self, was: Ready, event: Probed, now: float) -> Ready | Warming:
        """Healthy after all, or back to warming: those who come now wait instead of failing."""
        if event.op != was.doubt:
            return was
        if event.healthy:
            return evolve(was, doubt=None)
        self._complain(was.provider, f"the pod runs, but its Ollama does not answer: {event.detail}")
        self.looks.schedule(was.provider, now)
        return Warming(
            run=was.run,
            provider=was.provider,
            attempt=1,
            endpoints=was.endpoints,
            since=now,
            began_at=now,
            probe=None,
            probe_at=now + self.policy.probe_pause_s(was.provider, 0.0),
            served=True,
        )

    @transition
    def _hear_processor(self, was: Ready, event: Weighed, now: float) -> Ready:
        """All that is loaded runs on the CPU: say so; nobody is disturbed for it."""
        if event.run == was.run and event.on_cpu:
            self._complain(was.provider, ON_CPU, NoCapacity(ON_CPU))
        return was

    # --- draining and stopping ----------------------------------------------------------------

    @transition
    def _end_drain(
        self, was: Draining, event: Emptied | TimePassed | CutWanted, now: float
    ) -> Stopping | Closed:
        """The last answer ended, or had its time."""
        self._cut_leases(_stopped_by_hand if not self.closing else _going_down, now)
        if self.closing and self.keep:
            return self._shut(was)
        return self._stop(was.provider, was.cause, now)

    @transition
    def _want_stopping(self, was: Stopping, event: Demanded, now: float) -> Rest:
        """Who comes now waits for the next start, which begins as soon as no stop is in its way."""
        return was if self.closing or not self._demanded else self._begin(now)

    @transition
    def _prove(self, was: Stopping, event: Proved, now: float) -> Rest:
        """Every pod was seen stopped."""
        return self._rest(now)

    # --- by hand ------------------------------------------------------------------------------

    @transition
    def _start_by_hand(self, was: Stopped | Stopping, event: StartWanted, now: float) -> Rest:
        """A start by hand is a demand without a request."""
        return self._begin(now) if self._may_start(event) else was

    @transition
    def _start_unseen(self, was: Unknown, event: StartWanted, now: float) -> Unknown | OnItsWay:
        """It happens when it is known what runs."""
        return self._judge_boot(was, now) if self._may_start(event) else was

    def _may_start(self, event: StartWanted) -> bool:
        """Whether this wish is one more reason to start; where there is one already it is granted anyway."""
        refusal = self._refusal(event)
        self._effects.append(Reply(None if self._demanded else refusal))
        self.start_wanted = self.start_wanted or refusal is None
        return refusal is None

    def _refusal(self, event: StartWanted) -> GateError | None:
        if self.closing:
            return _going_down()
        told = self.purse.told(event.user)
        return BudgetExceeded(told) if told else None

    @transition
    def _start_again(self, was: Live, event: StartWanted, now: float) -> Live:
        """Already on its way, or wanted again as soon as this stop is through."""
        if isinstance(was, COLD):
            self._may_start(event)
            return was
        self._effects.append(Reply(_going_down() if self.closing else None))
        wished = self.start_wanted or self._refusal(event) is None
        self.start_wanted = wished and not isinstance(was, Ready) and not self.closing
        self.pauses.unasked_run = 0  # it is asked for now
        return was

    @transition
    def _stop_by_hand(self, was: Live, event: StopWanted, now: float) -> Live | Stopping:
        """Refused while anybody waits or is answered, unless forced."""
        if not self._may_stop(event, now):
            return was
        return self._stop(was.provider, "forced" if event.force else "hand", now)

    @transition
    def _stop_unknown(self, was: Unknown, event: StopWanted, now: float) -> Unknown | Stopping:
        """Not known what runs: stop everything."""
        if not self._may_stop(event, now):
            return was
        for provider in range(len(self.policy.providers)):
            self._order_stop(provider, "hand", now)
        return Stopping()

    @transition
    def _stop_again(self, was: Still, event: StopWanted, now: float) -> Still | Stopping:
        """Already so, as far as is known: look again. A stop that is not proved is sent again now."""
        if not self._may_stop(event, now):
            return was
        for order in self.stops.orders.values():
            if not order.is_check:
                order.send_at = now
        self._check_rest("hand", now)
        return Stopping() if self.stops.orders else was

    @transition
    def _stop_closed(self, was: Closed, event: StartWanted | StopWanted, now: float) -> Closed:
        """Too late."""
        self._effects.append(Reply(_going_down()))
        return was

    def _may_stop(self, event: StopWanted, now: float) -> bool:
        if self.backlog.busy and not event.force:
            self._effects.append(Reply(PodBusy()))
            return False
        self._effects.append(Reply())
        self.start_wanted = False
        self._refuse_waiting(_stopped_by_hand)
        self._cut_leases(_stopped_by_hand, now)
        self.pauses.expect_nobody()
        return True

    # --- going down ---------------------------------------------------------------------------

    @transition
    def _close_early(
        self, was: Asking | Pausing | Settling | Provisioning, event: CloseWanted, now: float
    ) -> Stopping | Closed:
        """Refuse who waits; what may come up is stopped, or left to be adopted."""
        self._shut_door(event)
        self._look_around(was.provider, now)
        return self._shut(was) if event.keep else self._stop(was.provider, "shutdown", now)

    @transition
    def _close(
        self, was: Warming | Preloading | Ready, event: CloseWanted, now: float
    ) -> Draining | Stopping | Closed:
        """Refuse who waits, give running answers their grace, then stop the pod or leave it."""
        self._shut_door(event)
        self._look_around(was.provider, now)
        if self.backlog.leases:
            until = now + self.policy.shutdown_grace_s
            return Draining(
                run=was.run,
                provider=was.provider,
                endpoints=was.endpoints,
                until=until,
                cause="shutdown",
                kept=event.keep,
            )
        return self._shut(was) if event.keep else self._stop(was.provider, "shutdown", now)

    @transition
    def _close_draining(self, was: Draining, event: CloseWanted, now: float) -> Draining:
        """The answers that run have their grace already."""
        self._shut_door(event)
        self._look_around(was.provider, now)
        return evolve(was, kept=event.keep)

    @transition
    def _close_unknown(self, was: Unknown, event: CloseWanted, now: float) -> Stopping | Closed:
        """What was found is stopped; where nothing is known yet, one good try is made."""
        self._shut_door(event)
        if event.keep:
            return self._shut(was)
        for provider in range(len(self.policy.providers)):
            seen = was.seen.get(provider)
            if not isinstance(seen, Looked):
                self._order_stop(provider, "shutdown", now, firm=False)
            elif seen.report.phase not in PROOF:
                self._order_stop(provider, "shutdown", now)
        return self._shut(was)

    @transition
    def _close_resting(
        self, was: Stopped | Stopping | Closed, event: CloseWanted, now: float
    ) -> Stopping | Closed:
        """Nothing runs, as far as is known: look once more. A stop that is not proved goes on."""
        self._shut_door(event)
        if not isinstance(was, Closed):
            self._look_around(None, now)
        return self._shut(was)

    def _shut(self, was: State) -> Stopping | Closed:
        """Nothing more to do, unless a stop elsewhere is not proved yet."""
        if self.keep and not isinstance(was, Stopping | Closed):
            self.left = Closed(status_of(was), getattr(was, "provider", None))
        return Stopping() if self.stops.orders else self.left

    def _look_around(self, served_by: int | None, now: float) -> None:
        """Nobody looks after this process: what a console has started is found now, or bills for long."""
        if not self.keep:
            self._check_rest("shutdown", now, but=served_by)

    def _shut_door(self, event: CloseWanted) -> None:
        self.closing, self.keep, self.start_wanted = True, event.keep, False
        self._refuse_waiting(_going_down)
