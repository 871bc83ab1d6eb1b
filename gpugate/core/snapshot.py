"""What the machine shows of itself to its owner."""

from __future__ import annotations

from attrs import frozen

from gpugate.core.states import State, Status


@frozen(kw_only=True)
class MachineSnapshot:
    """All that the lifecycle and the status need to know of the machine, at one moment.

    Attributes:
        provider: of the pod that starts, serves, drains or was kept; None without one.
        shown_provider: `provider`, else the first with a pending stop, else the one that is asked first.
        run_id: the latest run.
        start_began_at: when the run asked the provider of a pod that is starting or warming; else None.
        idle_since: when the serving pod was last used; None while it is used, and in any other state.
        stop_due_at: when the idle stop is due; `inf` while the pod is used, and in any other state.
        next_deadline_at: when `DeadlineReached` has to come; `inf` if only other events can change anything.
        stopping_providers: the providers with a pending stop.
        confirmed: no pod is known to run that is to be stopped; at most an inspection is missing.
        inspection_is_out: an inspection of `provider` is out, so the latest report of it is being replaced.
        all_inspected: every provider was inspected since boot, successfully or not.
        last_error: what is wrong, for people.
    """

    state: State
    status: Status | None
    provider: int | None
    shown_provider: int
    run_id: int
    start_began_at: float | None
    waiting: int
    in_flight: int
    idle_since: float | None
    stop_due_at: float
    next_deadline_at: float
    stopping_providers: frozenset[int]
    confirmed: bool
    inspection_is_out: bool
    all_inspected: bool
    shutting_down: bool
    last_error: str | None
