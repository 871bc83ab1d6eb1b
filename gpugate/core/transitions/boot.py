"""After boot: find out what each provider has, adopt a pod that runs, stop what should not run."""

from __future__ import annotations

from gpugate.core.commands import StartCause, StopCause
from gpugate.core.events import AllStopsConfirmed, DemandRaised, GatewayStarted, InspectFailed, PodInspected
from gpugate.core.machine import PodMachine
from gpugate.core.pending_stops import ACTIVE_PHASES, STOPPED_PHASES
from gpugate.core.states import AfterAccept, Stopped, Stopping, Unknown
from gpugate.core.transition_table import transition
from gpugate.core.transitions.start import after_accept, first_attempt, when_nothing_runs
from gpugate.provider_api import Phase

NOTHING_TO_ADOPT = STOPPED_PHASES | {Phase.UNREACHABLE}


@transition
def gateway_started(pod: PodMachine, was: Unknown, event: GatewayStarted, now: float) -> Unknown | Stopping:
    """Inspect every provider; where a stop was pending before the restart, go on stopping."""
    for provider in range(len(pod.policy.providers)):
        if provider in pod.restored_stops:
            pod.order_stop(provider, StopCause.RESTART, now)
        else:
            pod.inspect_schedule.schedule(provider, now)
    return Stopping() if len(pod.restored_stops) == len(pod.policy.providers) else was


@transition
def boot_inspected(
    pod: PodMachine, was: Unknown, event: PodInspected | InspectFailed, now: float
) -> Unknown | AfterAccept:
    """Adopt a pod that runs; with none found, rest; while an inspection fails, keep inspecting."""
    return judge_boot(pod, Unknown({**was.inspections, event.provider: event}), now)


@transition
def demand_at_boot(
    pod: PodMachine, was: Unknown, event: DemandRaised | AllStopsConfirmed, now: float
) -> Unknown | AfterAccept:
    """Once every provider was inspected, a start tells as much as another inspection would."""
    return judge_boot(pod, was, now)


# What follows an inspection at boot:
#
# 1. A provider has not been inspected yet, and no stop is pending there: wait, so that the first in the list
#    is adopted and not the first that answers.
# 2. A pod was found at a provider: adopt or stop (see `adopt_first_active`).
# 3. A start is wanted, or every provider was seen: nothing runs, as far as is known. `start()` is idempotent,
#    so a pod behind a failed inspection would be found by it.
# 4. Otherwise an inspection failed, or a host is unreachable, and no start is wanted: keep inspecting.
def judge_boot(pod: PodMachine, was: Unknown, now: float) -> Unknown | AfterAccept:
    """Return the state that follows from the inspections since boot."""
    if pod.unasked_providers(was):  # 1
        return was
    found = {p: seen for p, seen in sorted(was.inspections.items()) if isinstance(seen, PodInspected)}
    if any(seen.report.phase not in NOTHING_TO_ADOPT for seen in found.values()):  # 2
        return adopt_first_active(pod, found, now)
    if pod.has_payable_demand or pod.pending_stops.by_provider.keys() | pod.views.seen >= set(
        range(len(pod.policy.providers))
    ):  # 3
        return when_nothing_runs(pod, now)
    return was  # 4


def adopt_first_active(pod: PodMachine, found: dict[int, PodInspected], now: float) -> AfterAccept:
    """Adopt the first pod that runs or comes up, and stop every other one (docs/api.md#adoption)."""
    active = [p for p, seen in found.items() if seen.report.phase in ACTIVE_PHASES]
    for provider, seen in found.items():
        if provider in active[1:] or seen.report.phase in (Phase.STOPPING, Phase.FAILED):
            pod.stop_found_pod(seen, StopCause.EXTRA_POD, now)
    return adopt(pod, found[active[0]], now) if active else when_nothing_runs(pod, now)


def adopt(pod: PodMachine, event: PodInspected, now: float) -> AfterAccept:
    """Begin a run with a pod that this process did not start."""
    run_id, report = pod.plan.new_run(), event.report
    pod.open_session(event.provider, run_id, StartCause.ADOPTED, report, event.up_s, now)
    return after_accept(pod, first_attempt(pod, event.provider, now), report, event.up_s, now)


@transition
def pod_found(pod: PodMachine, was: Stopped | Stopping, event: PodInspected, now: float) -> AfterAccept:
    """A pod that runs although it was not started here is adopted; during a shutdown it is stopped."""
    if event.report.phase in NOTHING_TO_ADOPT:
        return was
    if pod.shutting_down:
        if not pod.keep_pod:
            pod.stop_found_pod(event, StopCause.SHUTDOWN, now)
        return was
    return adopt_first_active(pod, {event.provider: event}, now)
