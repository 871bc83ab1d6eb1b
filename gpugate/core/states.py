"""The states that the pod's life can be in, each carrying only what it needs; values only."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from attrs import field, frozen

from gpugate.core.events import Looked, LookFailed
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
    """After boot, until it is known what each provider has; `seen` holds the answers so far."""

    seen: Mapping[int, Looked | LookFailed] = field(factory=dict, hash=False)


@frozen
class Stopped:
    """No pod runs, and that was seen."""


@frozen(kw_only=True)
class Asking:
    """The provider has been asked to start; its answer is out."""

    run: int
    provider: int
    attempt: int
    op: int
    since: float
    capacity_until: float


@frozen(kw_only=True)
class Pausing:
    """An attempt failed; at `retry_at` the next one, `unsure` if the pod must be looked at before it."""

    run: int
    provider: int
    attempt: int
    retry_at: float
    unsure: bool
    since: float
    capacity_until: float


@frozen(kw_only=True)
class Settling:
    """The outcome of an attempt is not known: the provider is being looked at before it is asked again."""

    run: int
    provider: int
    attempt: int
    op: int
    since: float
    capacity_until: float


@frozen(kw_only=True)
class Provisioning:
    """The start was accepted; the pod does not run yet, and `said` is what it is waiting for."""

    run: int
    provider: int
    attempt: int
    accepted_at: float
    since: float
    capacity_until: float
    said: str = ""


@frozen(kw_only=True)
class Warming:
    """The pod runs; its Ollama does not answer (yet).

    `probe` is the check that is out, if one is; `served` if it was READY before and fell ill; `flaw` is
    what has to be told of it once it serves, `said` what the provider said of it.
    """

    run: int
    provider: int
    attempt: int
    endpoints: Mapping[str, Endpoint] = field(hash=False)
    since: float
    began_at: float
    probe: int | None
    probe_at: float
    served: bool = False
    flaw: str = ""
    said: str = ""


@frozen(kw_only=True)
class Preloading:
    """Ollama answers; the model of the first waiting request is being loaded, until `give_up_at`."""

    run: int
    provider: int
    attempt: int
    endpoints: Mapping[str, Endpoint] = field(hash=False)
    since: float
    op: int
    give_up_at: float
    served: bool = False
    flaw: str = ""


@frozen(kw_only=True)
class Ready:
    """The pod serves. `doubt` is the health check that is out because an exchange failed."""

    run: int
    provider: int
    endpoints: Mapping[str, Endpoint] = field(hash=False)
    doubt: int | None = None


@frozen(kw_only=True)
class Draining:
    """Nobody new is admitted; running answers have until `until`, then the pod is stopped (or `kept`)."""

    run: int
    provider: int
    endpoints: Mapping[str, Endpoint] = field(hash=False)
    until: float
    cause: str
    kept: bool = False


@frozen
class Stopping:
    """A stop was sent and is not proved yet."""


@frozen
class Closed:
    """The gateway is going down and has nothing left to do here.

    `left` is the status of a pod that was kept, `provider` where that is.
    """

    left: Status | None = Status.STOPPED
    provider: int | None = None


State = (
    Unknown
    | Stopped
    | Asking
    | Pausing
    | Settling
    | Provisioning
    | Warming
    | Preloading
    | Ready
    | Draining
    | Stopping
    | Closed
)

Rest = Stopped | Asking | Stopping | Closed
"""What follows when nothing runs any more: rest, the next start, a proof to wait for, or the end."""
Failed = Pausing | Rest
"""What follows when an attempt failed: another one, another provider, or rest."""
OnItsWay = Provisioning | Warming | Failed
"""What follows when a provider said that a pod is there."""

STATUS: Mapping[type[Any], Status | None] = {
    Unknown: None,
    Stopped: Status.STOPPED,
    Asking: Status.STARTING,
    Pausing: Status.STARTING,
    Settling: Status.STARTING,
    Provisioning: Status.STARTING,
    Warming: Status.WARMING,
    Preloading: Status.WARMING,
    Ready: Status.READY,
    Draining: Status.STOPPING,
    Stopping: Status.STOPPING,
    Closed: Status.STOPPED,
}


def status_of(state: State) -> Status | None:
    """What users are told of a state; a pod that is kept goes on as it was (`server.on_exit`)."""
    if isinstance(state, Closed):
        return state.left
    if isinstance(state, Draining) and state.kept:
        return Status.READY
    return STATUS[type(state)]
