"""PodMachine decides: events in, effects out. It has no clock, no I/O and no task.

Theory of operation. `handle(event, now)` is one synchronous step: nothing can come between looking and
deciding. A request is a ticket of the `RequestQueue`; an unconfirmed stop is one of the `PendingStops`;
a look at a provider is a slot of the `InspectSchedule`. What the pod's life does on an event stands in the
methods marked `@transition`, whose signatures are the table (`core/table.py`). Deadlines are never
timers: `wake_at` is the least of them, and `DeadlineReached` asks each whether it has come.

A start goes through the providers in order. Whatever goes wrong, a provider that was left is told to
stop and looked at until that is proved (docs/api.md#stops): by its order, beside the pod's life.
"""

from __future__ import annotations

from math import inf

from gpugate.core.events import (
    AllStopsConfirmed,
    DeadlineReached,
    DemandRaised,
    DeviceChecked,
    ForcedShutdownRequested,
    GatewayStarted,
    InspectFailed,
    LastLeaseReleased,
    ManualStartRequested,
    ManualStopRequested,
    PodInspected,
    PreloadFinished,
    ProbeFinished,
    ShutdownRequested,
    StartAccepted,
    StartCallFailed,
    UpstreamFailed,
)
from gpugate.core.serving import ServeTransitions
from gpugate.core.states import (
    BackingOff,
    CallingStart,
    Draining,
    Preloading,
    Provisioning,
    Ready,
    ShutDown,
    Stopped,
    Stopping,
    Unknown,
    VerifyingStart,
    Warming,
)
from gpugate.core.transition_table import read_table

STATES = (
    Unknown,
    Stopped,
    CallingStart,
    BackingOff,
    VerifyingStart,
    Provisioning,
    Warming,
    Preloading,
    Ready,
    Draining,
    Stopping,
    ShutDown,
)
"""Every state of the pod's life, in the order of a good day."""

EVENTS = (
    GatewayStarted,
    DemandRaised,
    StartAccepted,
    StartCallFailed,
    PodInspected,
    InspectFailed,
    ProbeFinished,
    PreloadFinished,
    DeviceChecked,
    UpstreamFailed,
    LastLeaseReleased,
    AllStopsConfirmed,
    DeadlineReached,
    ManualStartRequested,
    ManualStopRequested,
    ShutdownRequested,
    ForcedShutdownRequested,
)
"""Every event the table decides on; tickets and stop orders have their own places."""


class PodMachine(ServeTransitions):
    """The pod's whole life; the rows are in `core/starting.py`, `warming.py` and `serving.py`."""

    def inspect_delay_s(self, provider: int, now: float) -> float:
        state = self.state
        if isinstance(state, Provisioning | Warming) and state.provider == provider:
            return self.policy.inspect_interval_s(provider, now - state.since)
        if isinstance(state, Preloading | Unknown):
            return max(self.policy.health_interval, self.policy.providers[provider].min_poll_s)
        return self.policy.reconcile_interval_s(provider)

    def state_deadline(self) -> float:
        match self.state:
            case Ready():
                return min(self.idle_deadline_at, self.session_deadline_at)
            case Stopped():
                return self.idle_timer.prewarm_at
            case BackingOff(retry_at=at) | Draining(until=at):
                return at
            case Preloading(give_up_at=at):
                return min(at, self.session_deadline_at)
            case Provisioning(accepted_at=at):
                return min(at + self.policy.start_timeout, self.session_deadline_at)
            case Warming(began_at=began, probe_op=None, probe_at=at):
                return min(at, began + self.policy.warmup_timeout, self.session_deadline_at)
            case Warming(began_at=began):
                return min(began + self.policy.warmup_timeout, self.session_deadline_at)
        return inf


PodMachine.TABLE = read_table(PodMachine)

STALE_RESULTS = frozenset(
    {StartAccepted, StartCallFailed, ProbeFinished, PreloadFinished, DeviceChecked, UpstreamFailed}
)
"""Answers and troubles of a run that is over, wherever they are not waited for."""

ROUTINE_INSPECTIONS = frozenset({PodInspected, InspectFailed})
"""Looks that tell nothing new: what a failed one says is in `blind`."""

NOT_APPLICABLE = frozenset(
    {
        GatewayStarted,
        LastLeaseReleased,
        AllStopsConfirmed,
        DeadlineReached,
        ForcedShutdownRequested,
        DemandRaised,
    }
)
"""Nothing to do: no deadline, no lease and no open stop decides this state."""

IGNORED_BY_DEFAULT = STALE_RESULTS | ROUTINE_INSPECTIONS | NOT_APPLICABLE

PodMachine.IGNORED = {
    Unknown: IGNORED_BY_DEFAULT - {GatewayStarted, DemandRaised, PodInspected, InspectFailed},
    Stopped: IGNORED_BY_DEFAULT - {DemandRaised, PodInspected, DeadlineReached},
    CallingStart: IGNORED_BY_DEFAULT - {StartAccepted, StartCallFailed},
    BackingOff: IGNORED_BY_DEFAULT - {DeadlineReached},
    VerifyingStart: IGNORED_BY_DEFAULT - {PodInspected, InspectFailed},
    Provisioning: IGNORED_BY_DEFAULT - {PodInspected, DeadlineReached},
    Warming: IGNORED_BY_DEFAULT - {PodInspected, DeadlineReached, ProbeFinished},
    Preloading: IGNORED_BY_DEFAULT - {PodInspected, DeadlineReached, PreloadFinished},
    Ready: IGNORED_BY_DEFAULT - {PodInspected, DeadlineReached, ProbeFinished, DeviceChecked, UpstreamFailed},
    Draining: IGNORED_BY_DEFAULT
    - {PodInspected, DeadlineReached, LastLeaseReleased, ForcedShutdownRequested},
    Stopping: IGNORED_BY_DEFAULT - {PodInspected, DemandRaised, AllStopsConfirmed},
    ShutDown: IGNORED_BY_DEFAULT,
}
