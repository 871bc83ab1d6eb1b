"""What the owner of the machine has to do, in the order given. Values only; results are `core/events.py`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from attrs import field, frozen

from gpugate.errors import GateError
from gpugate.provider_api import Endpoint, PodReport


class StartCause(StrEnum):
    """Why a billed session began; a value of the ledger."""

    REQUEST = "request"
    MANUAL = "hand"
    PREWARM = "prewarm"
    SCHEDULE = "schedule"
    ADOPTED = "adopted"


class StopCause(StrEnum):
    """Why a pod is stopped; a value of the ledger, and of messages."""

    IDLE = "idle"
    MANUAL = "hand"
    FORCED = "forced"
    MAX_SESSION = "max_session"
    STOPPED_ELSEWHERE = "stopped_elsewhere"
    EXTRA_POD = "stray"
    RESTART = "restart"
    START_FAILED = "start_failed"
    LOST = "lost"
    QUEUED = "queued"
    SHUTDOWN = "shutdown"


@frozen
class StartPod:
    """Call the provider's `start()`; the result is StartAccepted or StartCallFailed."""

    op: int
    provider: int


@frozen
class StopPod:
    """Call the provider's `stop()`; the result is StopAccepted or StopCallFailed."""

    op: int
    provider: int


@frozen
class InspectPod:
    """Call the provider's `inspect()`; the result is PodInspected or InspectFailed."""

    op: int
    provider: int


@frozen
class ScalePod:
    """Call the provider's `scale()` for so many replicas; the result is ScaleAnswered."""

    op: int
    provider: int
    replicas: int


@frozen
class CleanUpOrphans:
    """Have the provider delete what it bills beside the serving pod. The next inspection is the result."""

    provider: int


@frozen
class Probe:
    """Probe the health of the pod's Ollama; the result is ProbeFinished."""

    op: int
    endpoint: Endpoint


@frozen
class LoadOptions:
    """How a request wants its model loaded.

    Attributes:
        embeds: it wants embeddings; such a model is loaded through another endpoint.
        fields: what the request says of the load, as the engine spells it. Where a later request differs in
            it, the engine loads the model again.
    """

    embeds: bool = False
    fields: Mapping[str, object] = field(factory=dict, hash=False)


AS_IT_COMES = LoadOptions()
"""For a request that says nothing of how its model is loaded."""


@frozen
class ListModels:
    """Ask the pod's Ollama which models it has; the result is ModelsListed."""

    op: int
    endpoint: Endpoint


@frozen
class PullModel:
    """Have the pod's Ollama pull this model; the result is ModelPulled."""

    op: int
    endpoint: Endpoint
    provider: int
    model: str


@frozen
class PreloadModel:
    """Have the pod load this model; the result is PreloadFinished."""

    op: int
    endpoint: Endpoint
    model: str
    options: LoadOptions = AS_IT_COMES


@frozen
class CheckDevice:
    """Ask the pod's Ollama whether its loaded models run on a GPU; the result is DeviceChecked."""

    run_id: int
    endpoint: Endpoint


@frozen
class Admit:
    """This ticket holds a lease of this run's pod now."""

    ticket: int
    run_id: int


@frozen
class Reject:
    """This ticket ends with this error; its response has not started."""

    ticket: int
    error: GateError


@frozen
class Requeue:
    """Abandon this ticket's exchange: it waits for the pod again."""

    ticket: int


@frozen
class AbortResponse:
    """Break this ticket's response off: it has started and cannot be completed."""

    ticket: int


@frozen
class ResolveManualRequest:
    """The outcome of a manual start or stop: accepted if `error` is None."""

    error: GateError | None = None


@frozen
class PersistPendingStops:
    """Write down at which providers a pod may run that is to be stopped: a restart goes on with these."""

    providers: frozenset[int]


@frozen(kw_only=True)
class RecordSessionStart:
    """A billed session began `up_s` seconds ago."""

    run_id: int
    provider: int
    cause: StartCause
    report: PodReport
    up_s: float = 0.0


@frozen(kw_only=True)
class RecordSessionEnd:
    """The billed session of this provider ended: its pod was seen stopped, or is not billed any more.

    `billed` is False if it never was, because the accepted start went into the provider's queue.
    """

    run_id: int
    provider: int
    cause: StopCause
    billed: bool = True


@frozen(kw_only=True)
class PublishProviderProblem:
    """Something went wrong at a provider; `alarm` if a pod may be billed that nobody uses."""

    provider: int
    message: str
    reason: str
    alarm: bool = False


Command = (
    StartPod
    | StopPod
    | InspectPod
    | ScalePod
    | CleanUpOrphans
    | Probe
    | ListModels
    | PullModel
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
