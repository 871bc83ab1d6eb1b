"""What the owner has to do, in the order given; values only. What comes back is in `core/events.py`."""

from __future__ import annotations

from attrs import frozen

from gpugate.errors import GateError
from gpugate.provider_api import Endpoint, PodReport


@frozen
class StartPod:
    """Call `start()`; answer with StartAccepted or StartCallFailed."""

    op: int
    provider: int


@frozen
class StopPod:
    """Call `stop()`; answer with StopAccepted or StopCallFailed."""

    op: int
    provider: int


@frozen
class InspectPod:
    """Call `inspect()`; answer with Looked or InspectFailed."""

    op: int
    provider: int


@frozen
class CleanUpOrphans:
    """Call `sweep()`: this provider bills for more than the pod that serves. The next look is the answer."""

    provider: int


@frozen
class Probe:
    """Ask the pod's Ollama whether it is healthy; answer with Probed."""

    op: int
    endpoint: Endpoint


@frozen
class PreloadModel:
    """Have the pod load this model; answer with Preloaded."""

    op: int
    endpoint: Endpoint
    model: str
    embeds: bool


@frozen
class CheckDevice:
    """Ask the pod's Ollama of this run what its models run on; answer with Weighed."""

    run_id: int
    endpoint: Endpoint


@frozen
class Admit:
    """This ticket may use the pod of this run now."""

    ticket: int
    run_id: int


@frozen
class Reject:
    """This ticket gets this error, unless its answer has begun."""

    ticket: int
    error: GateError


@frozen
class Requeue:
    """Give up this ticket's exchange: it waits for the pod again."""

    ticket: int


@frozen
class AbortResponse:
    """Break this ticket's answer off: it has begun and cannot end."""

    ticket: int


@frozen
class ResolveManualRequest:
    """The outcome of a start or stop by hand: accepted, or why not."""

    error: GateError | None = None


@frozen
class PersistPendingStops:
    """Write down at which providers a stop is sent and not proved: after a crash it must go on."""

    providers: frozenset[int]


@frozen(kw_only=True)
class RecordSessionStart:
    """A billed stretch began `up_s` ago."""

    run_id: int
    provider: int
    cause: str
    report: PodReport
    up_s: float = 0.0


@frozen(kw_only=True)
class RecordSessionEnd:
    """The billed stretch of this provider ended: the stop is proved."""

    run_id: int
    provider: int
    cause: str


@frozen(kw_only=True)
class PublishProviderProblem:
    """A provider failed us; `alarm` when money may be running away."""

    provider: int
    message: str
    reason: str
    alarm: bool = False


Command = (
    StartPod
    | StopPod
    | InspectPod
    | CleanUpOrphans
    | Probe
    | PreloadModel
    | CheckDevice
    | Admit
    | Reject
    | Requeue
    | AbortResponse
    | ResolveManualRequest
    | PersistPendingStops
    | RecordSessionStart
    | RecordSessionEnd
    | PublishProviderProblem
)
