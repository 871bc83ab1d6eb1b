"""One rented machine of a simulated cloud: where it is on its way, and for how long it was billed.

It keeps a plan of what will happen when, and moves along it whenever it is asked; it has no timer, and
knows neither HTTP nor which cloud it lives at.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from math import inf
from typing import Any

from attrs import define, field, frozen

from gpugate.provider_api import Phase
from gpugate_testing.clouds.clocks import Clock

OFF = frozenset({Phase.STOPPED, Phase.FAILED, Phase.GONE})
ON_ITS_WAY = frozenset({Phase.QUEUED, Phase.PROVISIONING, Phase.STARTING, Phase.RUNNING})


@frozen
class Delays:
    """How long things take at the cloud, in its seconds.

    Attributes:
        provision_s: from an accepted start to a machine.
        start_s: from there to a running container.
        ready_s: from there to a service that answers.
        stop_s: from an accepted stop, or deletion, to the end of the bill.
    """

    provision_s: float = 2.0
    start_s: float = 8.0
    ready_s: float = 5.0
    stop_s: float = 3.0


@define
class BilledInterval:
    """Seconds that are billed without a break; `until` is None while it lasts."""

    since: float
    until: float | None = None


@define(kw_only=True)
class SimPod:
    """A pod or instance.

    Attributes:
        billed_in: the phases in which its GPU is billed.
        made: through the API while the cloud ran; others were there from the beginning.
        spec: what it was made from, in the cloud's own words.
        starts: accepted starts, queued ones included once they run.
        stretches: its bill.
        locked: its stop is refused.
        never_runs: it stays where it is provisioned.
        never_ready: it runs, and its service never answers.
        crash_after_s: it fails so long after it runs; once.
        ignore_stops: so many stops are accepted and have no effect.
        uptime_zero: it runs, and its container never begins.
        was: its phase before the last command, for stale reads.
    """

    id: str
    name: str
    clock: Clock
    delays: Delays
    billed_in: Collection[Phase]
    spec: dict[str, Any] = field(factory=dict, repr=False)
    made: bool = False
    phase: Phase = Phase.STOPPED
    created_at: float = field(init=False)
    running_since: float | None = None
    starts: int = 0
    stretches: list[BilledInterval] = field(factory=list)
    locked: bool = False
    never_runs: bool = False
    never_ready: bool = False
    crash_after_s: float | None = None
    ignore_stops: int = 0
    uptime_zero: bool = False
    was: SimPod | None = field(default=None, repr=False)
    _plan: list[tuple[float, Phase]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.created_at = self.clock.now()

    # --- what is seen -------------------------------------------------------------------------

    def look(self) -> Phase:
        """Where it is now."""
        while self._plan and self._plan[0][0] <= self.clock.now():
            at, phase = self._plan.pop(0)
            self._enter(phase, at)
        return self.phase

    @property
    def serves(self) -> bool:
        """Its service answers."""
        up_s = self.uptime_s
        return up_s is not None and up_s >= self.delays.ready_s and not (self.never_ready or self.uptime_zero)

    @property
    def uptime_s(self) -> float | None:
        """How long it has been running; None while it does not."""
        if self.look() is not Phase.RUNNING or self.running_since is None:
            return None
        return self.clock.now() - self.running_since

    @property
    def billed_s(self) -> float:
        """Billed seconds up to now."""
        self.look()
        now = self.clock.now()
        return sum((now if s.until is None else s.until) - s.since for s in self.stretches)

    def billed_between(self, since: float, until: float) -> float:
        """Billed seconds between two of the clock's, none of them in the future."""
        self.look()
        until = min(until, self.clock.now())
        ends = ((s.since, until if s.until is None else s.until) for s in self.stretches)
        return sum(max(0.0, min(end, until) - max(begin, since)) for begin, end in ends)

    # --- commands, and what happens behind everybody's back -------------------------------------

    def start(self, *, queued_s: float = 0.0) -> None:
        """Accept a start; with `queued_s` it waits for a GPU so long first (`inf`: for ever)."""
        self._remember()
        if self.look() in ON_ITS_WAY:
            return
        self._plan.clear()
        now = self.clock.now()
        if queued_s > 0:
            self._enter(Phase.QUEUED, now)
            if queued_s == inf:
                return
            self._plan.append((now + queued_s, Phase.PROVISIONING))
        else:
            self._enter(Phase.PROVISIONING, now)
        if self.never_runs:
            return
        provisioned = now + queued_s + self.delays.provision_s
        self._plan += [(provisioned, Phase.STARTING), (provisioned + self.delays.start_s, Phase.RUNNING)]
        self.look()

    def stop(self, to: Phase = Phase.STOPPED) -> None:
        """Accept a stop; a queued start is cancelled at once."""
        self._remember()
        if self.look() is to or self.phase is Phase.GONE:
            return
        if self.ignore_stops:
            self.ignore_stops -= 1
            return
        waits = self.phase in (Phase.RUNNING, Phase.STARTING, Phase.PROVISIONING, Phase.STOPPING)
        now = self.clock.now()
        if self.phase is not Phase.STOPPING:
            self._plan.clear()
        if waits and self.phase is not Phase.STOPPING:
            self._enter(Phase.STOPPING, now)
            self._plan.append((now + self.delays.stop_s, to))
        elif self.phase is Phase.STOPPING:
            self._plan = [(at, to) for at, _ in self._plan]
        else:
            self._enter(to, now)
        self.look()

    def restart(self) -> None:
        """Accept a restart of the container; billed on."""
        self._remember()
        self._plan.clear()
        now = self.clock.now()
        self._enter(Phase.STARTING, now)
        self._plan.append((now + self.delays.start_s, Phase.RUNNING))

    def delete(self) -> None:
        """Accept a deletion."""
        self.stop(Phase.GONE)

    def become(self, phase: Phase, *, back_after_s: float | None = None) -> None:
        """Be stopped, deleted, started, lost or broken from elsewhere, at once.

        `back_after_s`: run again after so long, as a host that lost its network does.
        """
        self.look()
        before = self.phase
        self._plan.clear()
        self._enter(phase, self.clock.now())
        if back_after_s is not None:
            self._plan.append((self.clock.now() + back_after_s, before))

    # --- moving along -------------------------------------------------------------------------

    def _remember(self) -> None:
        self.look()
        self.was = copy(self)
        self.was.was, self.was._plan, self.was.stretches = None, [], []

    def _enter(self, phase: Phase, at: float) -> None:
        was, self.phase = self.phase, phase
        if phase is Phase.PROVISIONING or (phase in ON_ITS_WAY and was in OFF and phase is not Phase.QUEUED):
            self.starts += 1
        self._charge(phase, at)
        if phase is Phase.RUNNING:
            self.running_since = at if was is not Phase.UNREACHABLE else self.running_since
            if self.crash_after_s is not None:
                self._plan.append((at + self.crash_after_s, Phase.FAILED))
                self.crash_after_s = None

    def _charge(self, phase: Phase, at: float) -> None:
        open_now = bool(self.stretches) and self.stretches[-1].until is None
        if phase in self.billed_in and not open_now:
            self.stretches.append(BilledInterval(at))
        elif phase not in self.billed_in and open_now:
            self.stretches[-1].until = at
