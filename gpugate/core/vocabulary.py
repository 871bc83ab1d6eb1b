"""The machine's words: states it can be in, events that happened (past), effects it orders.

Values only: no clock, no I/O. Each event that answers an effect brings back its `op` number, and
only the answer that is waited for counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from attrs import field, frozen

from gpugate.errors import GateError, ProviderError
from gpugate.ports.provider import Endpoint, PodReport


class Status(StrEnum):
    """The five words that users see (mission, system 3)."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    WARMING = "WARMING"
    READY = "READY"
    STOPPING = "STOPPING"


# --- states: each carries only what it needs -------------------------------------------------


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
    """The start was accepted; the pod does not run yet."""

    run: int
    provider: int
    attempt: int
    accepted_at: float
    since: float
    capacity_until: float


@frozen(kw_only=True)
class Warming:
    """The pod runs; its Ollama does not answer (yet).

    `probe` is the check that is out, if one is; `served` if it was READY before and fell ill.
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


@frozen(kw_only=True)
class Ready:
    """The pod serves. `doubt` is the health check that is out because an exchange failed."""

    run: int
    provider: int
    endpoints: Mapping[str, Endpoint] = field(hash=False)
    doubt: int | None = None


@frozen(kw_only=True)
class Draining:
    """Nobody new is admitted; running answers have until `until`, then the pod is stopped."""

    run: int
    provider: int
    endpoints: Mapping[str, Endpoint] = field(hash=False)
    until: float
    cause: str


@frozen
class Stopping:
    """A stop was sent and is not proved yet."""


@frozen
class Closed:
    """The gateway is going down and has nothing left to do here."""


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


# --- events: what happened --------------------------------------------------------------------


@frozen
class Opened:
    """The gateway came up."""


@frozen
class Arrived:
    """A request wants the pod; its body is read. Tickets are numbered in the order of arrival."""

    ticket: int
    model: str | None = None
    embeds: bool = False


@frozen
class Left:
    """A request is over: answered, failed, or its client hung up."""

    ticket: int


@frozen
class Begun:
    """The first byte of this request's answer has left."""

    ticket: int


@frozen
class Demanded:
    """Somebody wants the pod and it is not serving: a request joined the backlog, or a start by hand."""


@frozen
class Emptied:
    """The last lease ended."""


@frozen
class Proved:
    """Every stop that was sent is proved."""


@frozen
class StartAccepted:
    """The provider took the start."""

    op: int
    report: PodReport
    up_s: float = 0.0


@frozen
class StartRefused:
    """The start failed, or its outcome is unknown."""

    op: int
    error: ProviderError


@frozen
class StopAccepted:
    """The provider took the stop; that proves nothing."""

    op: int


@frozen
class StopRefused:
    """The stop failed, or its outcome is unknown."""

    op: int
    error: ProviderError


@frozen
class Looked:
    """The provider said what is there; `up_s` is how long it has been billed already."""

    op: int
    provider: int
    report: PodReport
    up_s: float = 0.0


@frozen
class LookFailed:
    """We could not look; that says nothing of the pod."""

    op: int
    provider: int
    error: ProviderError


@frozen
class Probed:
    """The pod's Ollama was asked whether it is healthy."""

    op: int
    healthy: bool
    detail: str = ""


@frozen
class Preloaded:
    """The preload ended, well or not."""

    op: int


@frozen
class Troubled:
    """An exchange with the pod of this run broke before its first byte."""

    run: int


@frozen
class StartWanted:
    """A start by hand."""


@frozen
class StopWanted:
    """A stop by hand; `force` cuts what is in flight."""

    force: bool = False


@frozen
class CloseWanted:
    """The gateway is to go down; `keep` leaves the pod running."""

    keep: bool = False


@frozen
class CutWanted:
    """Whatever still runs is to be cut now: a second signal."""


@frozen
class TimePassed:
    """The clock reached `wake_at`; too early is harmless."""


Event = (
    Opened
    | Arrived
    | Left
    | Begun
    | Demanded
    | Emptied
    | Proved
    | StartAccepted
    | StartRefused
    | StopAccepted
    | StopRefused
    | Looked
    | LookFailed
    | Probed
    | Preloaded
    | Troubled
    | StartWanted
    | StopWanted
    | CloseWanted
    | CutWanted
    | TimePassed
)


# --- effects: what the owner has to do --------------------------------------------------------


@frozen
class StartPod:
    """Call `start()`; answer with StartAccepted or StartRefused."""

    op: int
    provider: int


@frozen
class StopPod:
    """Call `stop()`; answer with StopAccepted or StopRefused."""

    op: int
    provider: int


@frozen
class Look:
    """Call `inspect()`; answer with Looked or LookFailed."""

    op: int
    provider: int


@frozen
class Probe:
    """Ask the pod's Ollama whether it is healthy; answer with Probed."""

    op: int
    endpoint: Endpoint


@frozen
class Preload:
    """Have the pod load this model; answer with Preloaded."""

    op: int
    endpoint: Endpoint
    model: str
    embeds: bool


@frozen
class Admit:
    """This ticket may use the pod of this run now."""

    ticket: int
    run: int


@frozen
class Refuse:
    """This ticket gets this error, unless its answer has begun."""

    ticket: int
    error: GateError


@frozen
class Requeue:
    """Give up this ticket's exchange: it waits for the pod again."""

    ticket: int


@frozen
class Cut:
    """Break this ticket's answer off: it has begun and cannot end."""

    ticket: int


@frozen
class Reply:
    """The outcome of a start or stop by hand: accepted, or why not."""

    error: GateError | None = None


@frozen
class Owe:
    """Write down at which providers a stop is sent and not proved: after a crash it must go on."""

    providers: frozenset[int]


@frozen(kw_only=True)
class SessionOpened:
    """A billed stretch began `up_s` ago."""

    run: int
    provider: int
    cause: str
    report: PodReport
    up_s: float = 0.0


@frozen(kw_only=True)
class SessionClosed:
    """The billed stretch of this provider ended: the stop is proved."""

    run: int
    provider: int
    cause: str


@frozen(kw_only=True)
class Complain:
    """A provider failed us; `alarm` when money may be running away."""

    provider: int
    message: str
    reason: str
    alarm: bool = False


Effect = (
    StartPod
    | StopPod
    | Look
    | Probe
    | Preload
    | Admit
    | Refuse
    | Requeue
    | Cut
    | Reply
    | Owe
    | SessionOpened
    | SessionClosed
    | Complain
)
