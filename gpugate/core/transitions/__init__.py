"""The transition table, assembled from the modules of this package, and which events each state ignores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from gpugate.core import events, states
from gpugate.core.transition_table import read_table
from gpugate.core.transitions import boot, manual, serve, start, warmup

TABLE = read_table(boot, start, warmup, serve, manual)

STATES: tuple[type[Any], ...] = get_args(states.State)
"""Every state, in the order of a start, a use and a stop without trouble."""

HANDLED_BY_PARTS = (
    events.RequestArrived,
    events.RequestFinished,
    events.ResponseStarted,
    events.StopAccepted,
    events.StopCallFailed,
    events.ScaleAnswered,
    events.BudgetUpdated,
)

EVENTS: tuple[type[Any], ...] = tuple(e for e in get_args(events.Event) if e not in HANDLED_BY_PARTS)
"""Every event that is the state's; the others are those of the parts."""

STALE_RESULTS = frozenset(
    {
        events.StartAccepted,
        events.StartCallFailed,
        events.ProbeFinished,
        events.ModelsListed,
        events.ModelPulled,
        events.PreloadFinished,
        events.DeviceChecked,
        events.UpstreamFailed,
    }
)
"""Results and failures of a run that is over, in states that do not wait for them."""

ROUTINE_INSPECTIONS = frozenset({events.PodInspected, events.InspectFailed})
"""Inspections that change nothing; `ProviderViews.errors` has what a failed one says."""

NOT_APPLICABLE = frozenset(
    {
        events.GatewayStarted,
        events.LastLeaseReleased,
        events.AllStopsConfirmed,
        events.DeadlineReached,
        events.ForcedShutdownRequested,
        events.DemandRaised,
    }
)
"""Events about a deadline, lease or stop that the state does not have."""

IGNORED_BY_DEFAULT = STALE_RESULTS | ROUTINE_INSPECTIONS | NOT_APPLICABLE

IGNORED: Mapping[type[Any], frozenset[type[Any]]] = {
    states.Unknown: IGNORED_BY_DEFAULT
    - {events.GatewayStarted, events.DemandRaised, events.AllStopsConfirmed}
    - ROUTINE_INSPECTIONS,
    states.Stopped: IGNORED_BY_DEFAULT - {events.DemandRaised, events.PodInspected, events.DeadlineReached},
    states.CallingStart: IGNORED_BY_DEFAULT - {events.StartAccepted, events.StartCallFailed},
    states.BackingOff: IGNORED_BY_DEFAULT - {events.DeadlineReached},
    states.VerifyingStart: IGNORED_BY_DEFAULT - {events.PodInspected, events.InspectFailed},
    states.Provisioning: IGNORED_BY_DEFAULT - {events.PodInspected, events.DeadlineReached},
    states.Warming: IGNORED_BY_DEFAULT
    - {events.PodInspected, events.DeadlineReached, events.ProbeFinished, events.UpstreamFailed},
    states.Pulling: IGNORED_BY_DEFAULT
    - {
        events.PodInspected,
        events.DeadlineReached,
        events.ModelsListed,
        events.ModelPulled,
        events.UpstreamFailed,
    },
    states.Preloading: IGNORED_BY_DEFAULT
    - {events.PodInspected, events.DeadlineReached, events.PreloadFinished, events.UpstreamFailed},
    states.Ready: IGNORED_BY_DEFAULT
    - {
        events.PodInspected,
        events.DeadlineReached,
        events.ProbeFinished,
        events.DeviceChecked,
        events.UpstreamFailed,
    },
    states.Draining: IGNORED_BY_DEFAULT
    - {events.PodInspected, events.DeadlineReached, events.LastLeaseReleased, events.ForcedShutdownRequested},
    states.Stopping: IGNORED_BY_DEFAULT
    - {events.PodInspected, events.DemandRaised, events.AllStopsConfirmed},
    states.ShutDown: IGNORED_BY_DEFAULT,
}
"""The events that a state ignores on purpose. With the table these are all states times all events."""
