"""PodMachine decides: events in, effects out. It has no clock, no I/O and no task.

Theory of operation. `handle(event, now)` is one synchronous step: nothing can come between looking and
deciding. A request is a ticket of the `Backlog`; a stop that is not proved is an order of the `Stops`;
a look at a provider is a slot of the `Looks`. What the pod's life does on an event stands in the
methods marked `@transition`, whose signatures are the table (`core/table.py`). Deadlines are never
timers: `wake_at` is the least of them, and `TimePassed` asks each whether it has come.

A start goes through the providers in order. Whatever goes wrong, a provider that was left is told to
stop and looked at until that is proved (docs/api.md#stops): by its order, beside the pod's life.
"""

from __future__ import annotations

from math import inf

from gpugate.core.serving import ServingRows
from gpugate.core.transition_table import read_table
from gpugate.core.vocabulary import (
    Asking,
    Closed,
    CloseWanted,
    CutWanted,
    Demanded,
    Draining,
    Emptied,
    Looked,
    LookFailed,
    Opened,
    Pausing,
    Preloaded,
    Preloading,
    Probed,
    Proved,
    Provisioning,
    Ready,
    Settling,
    StartAccepted,
    StartRefused,
    StartWanted,
    Stopped,
    Stopping,
    StopWanted,
    TimePassed,
    Troubled,
    Unknown,
    Warming,
    Weighed,
)

STATES = (
    Unknown,
    Stopped,
    Asking,
    Pausing,
    Settling,
    Provisioning,
    Warming,
    Preloading,
    Ready,
    Draining,
    Stopping,
    Closed,
)
"""Every state of the pod's life, in the order of a good day."""

EVENTS = (
    Opened,
    Demanded,
    StartAccepted,
    StartRefused,
    Looked,
    LookFailed,
    Probed,
    Preloaded,
    Weighed,
    Troubled,
    Emptied,
    Proved,
    TimePassed,
    StartWanted,
    StopWanted,
    CloseWanted,
    CutWanted,
)
"""Every event the table decides on; tickets and stop orders have their own places."""


class PodMachine(ServingRows):
    """The pod's whole life; the rows are in `core/starting.py`, `warming.py` and `serving.py`."""

    def _look_pause(self, provider: int, now: float) -> float:
        state = self.state
        if isinstance(state, Provisioning | Warming) and state.provider == provider:
            return self.policy.look_pause_s(provider, now - state.since)
        if isinstance(state, Preloading | Unknown):
            return max(self.policy.health_interval_s, self.policy.providers[provider].min_poll_s)
        return self.policy.watch_pause_s(provider)

    def _state_deadline(self) -> float:
        match self.state:
            case Ready():
                return min(self.idle_at, self.session_ends)
            case Stopped():
                return self.pauses.prewarm_at
            case Pausing(retry_at=at) | Draining(until=at):
                return at
            case Preloading(give_up_at=at):
                return min(at, self.session_ends)
            case Provisioning(accepted_at=at):
                return min(at + self.policy.start_timeout_s, self.session_ends)
            case Warming(began_at=began, probe=None, probe_at=at):
                return min(at, began + self.policy.warmup_timeout_s, self.session_ends)
            case Warming(began_at=began):
                return min(began + self.policy.warmup_timeout_s, self.session_ends)
        return inf


PodMachine.TABLE = read_table(PodMachine)

_STALE = frozenset({StartAccepted, StartRefused, Probed, Preloaded, Weighed, Troubled})
"""Answers and troubles of a run that is over, wherever they are not waited for."""

_NEWS = frozenset({Looked, LookFailed})
"""Looks that tell nothing new: what a failed one says is in `blind`."""

_NOT_HERE = frozenset({Opened, Emptied, Proved, TimePassed, CutWanted, Demanded})
"""Nothing to do: no deadline, no lease and no open stop decides this state."""

_COMMON = _STALE | _NEWS | _NOT_HERE

PodMachine.IGNORED = {
    Unknown: _COMMON - {Opened, Demanded, Looked, LookFailed},
    Stopped: _COMMON - {Demanded, Looked, TimePassed},
    Asking: _COMMON - {StartAccepted, StartRefused},
    Pausing: _COMMON - {TimePassed},
    Settling: _COMMON - {Looked, LookFailed},
    Provisioning: _COMMON - {Looked, TimePassed},
    Warming: _COMMON - {Looked, TimePassed, Probed},
    Preloading: _COMMON - {Looked, TimePassed, Preloaded},
    Ready: _COMMON - {Looked, TimePassed, Probed, Weighed, Troubled},
    Draining: _COMMON - {Looked, TimePassed, Emptied, CutWanted},
    Stopping: _COMMON - {Looked, Demanded, Proved},
    Closed: _COMMON,
}
