"""The states that the pod's life can be in, each carrying only what it needs; values only."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from attrs import field, frozen

from gpugate.core.events import InspectFailed, PodInspected
from gpugate.provider_api import Endpoint


class Status(StrEnum):
    """The five words that users see."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    WARMING = "WARMING"
    READY = "READY"
    STOPPING = "STOPPING"


@frozen
class Unknown:
    """After boot, until it is known what each provider has; `inspections` holds the answers so far."""

    inspections: Mapping[int, PodInspected | InspectFailed] = field(factory=dict, hash=False)


@frozen
class Stopped:
    """No pod runs, and that was seen."""


@frozen(kw_only=True)
class CallingStart:
    """The provider has been asked to start; its answer is out."""

    run_id: int
    provider: int
    attempt: int
    op: int
    since: float
    capacity_deadline: float


@frozen(kw_only=True)
class BackingOff:
    """An attempt failed; the next one is due at `retry_at`, after an inspection if `must_inspect`."""

    run_id: int
    provider: int
    attempt: int
    retry_at: float
    must_inspect: bool
    since: float
    capacity_deadline: float


@frozen(kw_only=True)
class VerifyingStart:
    """The outcome of an attempt is not known: the provider is being looked at before it is asked again."""

    run_id: int
    provider: int
    attempt: int
    op: int
    since: float
    capacity_deadline: float


@frozen(kw_only=True)
class Provisioning:
    """The start was accepted; the pod does not run yet, and `provider_detail` is what it is waiting for."""

    run_id: int
    provider: int
    attempt: int
    accepted_at: float
    since: float
    capacity_deadline: float
    provider_detail: str = ""


@frozen(kw_only=True)
class Warming:
    """The pod runs; its Ollama does not answer (yet).

    `probe_op` is the check that is out, if one is; `served` if it was READY before; `degraded_reason` is
    what has to be told of it once it serves, `provider_detail` what the provider said of it.
    """

    run_id: int
    provider: int
    attempt: int
    endpoints: Mapping[str, Endpoint] = field(hash=False)
    since: float
    began_at: float
    probe_op: int | None
    probe_at: float
    served: bool = False
    degraded_reason: str = ""
    provider_detail: str = ""


@frozen(kw_only=True)
class Preloading:
    """Ollama answers; the model of the first waiting request is being loaded, until `give_up_at`."""

    run_id: int
    provider: int
    attempt: int
    endpoints: Mapping[str, Endpoint] = field(hash=False)
    since: float
    op: int
    give_up_at: float
    served: bool = False
    degraded_reason: str = ""


@frozen(kw_only=True)
class Ready:
    """The pod serves. `probe_op` is the health check that is out because an exchange failed."""

    run_id: int
    provider: int
    endpoints: Mapping[str, Endpoint] = field(hash=False)
    probe_op: int | None = None


@frozen(kw_only=True)
class Draining:
    """Nobody new is admitted; running answers have until `until`, then the pod is stopped (or `kept`)."""

    run_id: int
    provider: int
    endpoints: Mapping[str, Endpoint] = field(hash=False)
    until: float
    cause: str
    kept: bool = False


@frozen
class Stopping:
    """A stop was sent and is not proved yet."""


@frozen
class ShutDown:
    """The gateway is going down and has nothing left to do here.

    `kept_status` is the status of a pod that was kept, `provider` where that is.
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
    | Preloading
    | Ready
    | Draining
    | Stopping
    | ShutDown
)

AfterStop = Stopped | CallingStart | Stopping | ShutDown
"""What follows when nothing runs any more: rest, the next start, a proof to wait for, or the end."""
AfterFailure = BackingOff | AfterStop
"""What follows when an attempt failed: another one, another provider, or rest."""
AfterAccept = Provisioning | Warming | AfterFailure
"""What follows when a provider said that a pod is there."""

STATUS: Mapping[type[Any], Status | None] = {
    Unknown: None,
    Stopped: Status.STOPPED,
    CallingStart: Status.STARTING,
    BackingOff: Status.STARTING,
    VerifyingStart: Status.STARTING,
    Provisioning: Status.STARTING,
    Warming: Status.WARMING,
    Preloading: Status.WARMING,
    Ready: Status.READY,
    Draining: Status.STOPPING,
    Stopping: Status.STOPPING,
    ShutDown: Status.STOPPED,
}


def status_of(state: State) -> Status | None:
    """What users are told of a state; a pod that is kept goes on as it was (`server.on_exit`)."""
    if isinstance(state, ShutDown):
        return state.kept_status
    if isinstance(state, Draining) and state.kept:
        return Status.READY
    return STATUS[type(state)]
