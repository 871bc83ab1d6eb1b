"""The states of the pod, each with the data that only it needs. Values only; see `core/machine.py`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, get_args

from attrs import field, frozen

from gpugate.core.commands import StopCause
from gpugate.core.events import InspectFailed, PodInspected
from gpugate.provider_api import Endpoint


class Status(StrEnum):
    """The five words for users; several states share one."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    WARMING = "WARMING"
    READY = "READY"
    STOPPING = "STOPPING"


class StateName(StrEnum):
    """The names of the states, as events and log lines carry them."""

    UNKNOWN = "Unknown"
    STOPPED = "Stopped"
    CALLING_START = "CallingStart"
    BACKING_OFF = "BackingOff"
    VERIFYING_START = "VerifyingStart"
    PROVISIONING = "Provisioning"
    WARMING = "Warming"
    PULLING = "Pulling"
    PRELOADING = "Preloading"
    READY = "Ready"
    DRAINING = "Draining"
    STOPPING = "Stopping"
    SHUT_DOWN = "ShutDown"


@frozen(kw_only=True)
class StartAttempt:
    """One try to start a pod at one provider.

    Attributes:
        run_id: the run it belongs to; a run goes from the decision to start to the end of its pod.
        number: counts the attempts at this provider, from 1.
        since: when the run asked this provider first.
        capacity_deadline: until then a provider without a free GPU is asked again.
    """

    run_id: int
    provider: int
    number: int
    since: float
    capacity_deadline: float


@frozen
class Unknown:
    """After boot, until it is known what runs; `inspections` has the results so far, failed ones too."""

    inspections: Mapping[int, PodInspected | InspectFailed] = field(factory=dict, hash=False)


@frozen
class Stopped:
    """No pod runs, by the last inspection of each provider."""


@frozen(kw_only=True)
class Starting:
    """Base of the states that hold a start attempt; no state itself."""

    attempt: StartAttempt

    @property
    def provider(self) -> int:
        """The provider of the attempt."""
        return self.attempt.provider

    @property
    def run_id(self) -> int:
        """The run of the attempt."""
        return self.attempt.run_id


@frozen(kw_only=True)
class CallingStart(Starting):
    """A call of `start()` is out, with number `op`."""

    op: int


@frozen(kw_only=True)
class BackingOff(Starting):
    """An attempt failed; the next, `attempt`, is due at `retry_at`, after an inspection if `must_inspect`."""

    retry_at: float
    must_inspect: bool


@frozen(kw_only=True)
class VerifyingStart(Starting):
    """The outcome of an attempt is not known: inspection `op` is out before `start()` is called again."""

    op: int


@frozen(kw_only=True)
class Provisioning(Starting):
    """The start was accepted, the pod does not run yet; `provider_detail` is the provider's text about it."""

    accepted_at: float
    provider_detail: str = ""


@frozen(kw_only=True)
class Warming(Starting):
    """The pod runs; its Ollama does not answer (yet).

    Attributes:
        began_at: when it was seen running, or when a pod that served fell ill.
        probe_op: the health probe that is out, if one is; else the next one is due at `probe_at`.
        served: the pod was READY before.
        degraded_reason: why the pod serves worse than it should (no GPU); published when it is READY.
        provider_detail: what the provider said of it last.
        probe_detail: what the last health probe saw.
    """

    endpoints: Mapping[str, Endpoint] = field(hash=False)
    began_at: float
    probe_op: int | None
    probe_at: float
    served: bool = False
    degraded_reason: str = ""
    provider_detail: str = ""
    probe_detail: str = ""


@frozen(kw_only=True)
class Pulling(Starting):
    """Ollama answers; what it lacks of `pod.pull` is pulled before the preload, until `give_up_at`.

    Attributes:
        op: of the list of its models that is out, else of the pull of the first of `models`.
        models: those that are still to be pulled; until the list is there, all of `pod.pull`.
        problem: which models could not be pulled, for people.
    """

    endpoints: Mapping[str, Endpoint] = field(hash=False)
    op: int
    give_up_at: float
    models: tuple[str, ...]
    served: bool = False
    degraded_reason: str = ""
    problem: str = ""


@frozen(kw_only=True)
class Preloading(Starting):
    """Ollama answers and loads `model` before the pod is READY, until `give_up_at` at the latest."""

    endpoints: Mapping[str, Endpoint] = field(hash=False)
    op: int
    give_up_at: float
    model: str = ""
    served: bool = False
    degraded_reason: str = ""
    problem: str = ""


@frozen(kw_only=True)
class Ready:
    """The pod serves. `probe_op` is the health probe that is out because an exchange with the pod failed."""

    run_id: int
    provider: int
    endpoints: Mapping[str, Endpoint] = field(hash=False)
    probe_op: int | None = None


@frozen(kw_only=True)
class Draining:
    """No request is admitted; running responses have until `until`, then the pod is stopped (or `kept`)."""

    run_id: int
    provider: int
    endpoints: Mapping[str, Endpoint] = field(hash=False)
    until: float
    cause: StopCause
    kept: bool = False


@frozen
class Stopping:
    """At least one stop is pending: no inspection has shown its pod stopped yet."""


@frozen
class ShutDown:
    """The gateway goes down and has nothing left to do for the pod.

    Attributes:
        kept_status: the status of a pod that was left running; STOPPED without one.
        provider: where that pod runs.
    """

    kept_status: Status | None = Status.STOPPED
    provider: int | None = None


State = (
    Unknown
    | Stopped
    | CallingStart
    | BackingOff
    | VerifyingStart
    | Provisioning
    | Warming
    | Pulling
    | Preloading
    | Ready
    | Draining
    | Stopping
    | ShutDown
)

WarmingUp = Warming | Pulling | Preloading
"""A pod that runs and does not serve, or not any more."""
AfterStop = Stopped | CallingStart | Stopping | ShutDown
"""What follows when nothing runs any more: rest, the next start, a stop to confirm, or the end."""
AfterFailure = BackingOff | AfterStop
"""What follows when an attempt failed: another attempt, another provider, or rest."""
AfterAccept = Provisioning | Warming | AfterFailure
"""What follows when a provider reported a pod that is coming up."""

_NAMES: Mapping[type[Any], StateName] = {kind: StateName(kind.__name__) for kind in get_args(State)}


def name_of(state: State) -> StateName:
    """Return the name of a state."""
    return _NAMES[type(state)]


STATUS: Mapping[StateName, Status | None] = {
    StateName.UNKNOWN: None,
    StateName.STOPPED: Status.STOPPED,
    StateName.CALLING_START: Status.STARTING,
    StateName.BACKING_OFF: Status.STARTING,
    StateName.VERIFYING_START: Status.STARTING,
    StateName.PROVISIONING: Status.STARTING,
    StateName.WARMING: Status.WARMING,
    StateName.PULLING: Status.WARMING,
    StateName.PRELOADING: Status.WARMING,
    StateName.READY: Status.READY,
    StateName.DRAINING: Status.STOPPING,
    StateName.STOPPING: Status.STOPPING,
    StateName.SHUT_DOWN: Status.STOPPED,
}


def status_of(state: State) -> Status | None:
    """Return the status of a state; None if it is not known what runs. A pod that is kept stays as it was."""
    if isinstance(state, ShutDown):
        return state.kept_status
    if isinstance(state, Draining) and state.kept:
        return Status.READY
    return STATUS[name_of(state)]


def provider_of(state: State) -> int | None:
    """Return the provider of the pod that starts, serves, drains or was kept; None without one."""
    return state.provider if isinstance(state, Starting | Ready | Draining | ShutDown) else None


def run_id_of(state: State) -> int:
    """Return the run of the pod that starts, serves or drains; 0 without one."""
    return state.run_id if isinstance(state, Starting | Ready | Draining) else 0


def op_of(state: State) -> int | None:
    """Return the number of the command whose result a state waits for; None if it waits for none."""
    return state.op if isinstance(state, CallingStart | VerifyingStart | Pulling | Preloading) else None


@frozen(kw_only=True)
class MachineSnapshot:
    """All that the lifecycle and the status need to know of the machine, at one moment.

    Attributes:
        provider: of the pod that starts, serves, drains or was kept; None without one.
        shown_provider: `provider`, else the first with a pending stop, else the one that is asked first.
        run_id: the latest run.
        start_began_at: when the run asked the provider of a pod that is starting or warming; else None.
        started_here: the latest run has called `start()`; the pod of any other was found.
        idle_since: when the serving pod was last used; None while it is used, and in any other state.
        stop_due_at: when the idle stop is due; `inf` while the pod is used, and in any other state.
        next_deadline_at: when `DeadlineReached` has to come; `inf` if only other events can change anything.
        stop_cause: why the pod is being stopped; None if it is not.
        stopping_providers: the providers with a pending stop.
        confirmed: no pod is known to run that is to be stopped; at most an inspection is missing.
        inspection_is_out: an inspection of `provider` is out, so the latest report of it is being replaced.
        all_inspected: every provider was inspected since boot, successfully or not.
        replicas: how many the pod has; None for a pod that has one for ever.
        last_error: what is wrong, for people.
    """

    state: State
    status: Status | None
    provider: int | None
    shown_provider: int
    run_id: int
    start_began_at: float | None
    started_here: bool
    waiting: int
    in_flight: int
    idle_since: float | None
    stop_due_at: float
    next_deadline_at: float
    stop_cause: StopCause | None
    stopping_providers: frozenset[int]
    confirmed: bool
    inspection_is_out: bool
    all_inspected: bool
    shutting_down: bool
    replicas: int | None
    last_error: str | None
