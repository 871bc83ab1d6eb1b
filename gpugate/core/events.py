"""What happened, in the past tense. Values only; the commands they answer are in `core/commands.py`.

The result of a command carries the command's `op` number; the machine ignores results with a number that it
does not wait for any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, get_args

from attrs import frozen

from gpugate.core.commands import AS_IT_COMES, LoadOptions
from gpugate.core.request_queue import BudgetVerdict
from gpugate.errors import ProviderError
from gpugate.provider_api import PodReport


class Cause(StrEnum):
    """The names of the events, as the cause of a change of state."""

    GATEWAY_STARTED = "GatewayStarted"
    REQUEST_ARRIVED = "RequestArrived"
    REQUEST_FINISHED = "RequestFinished"
    RESPONSE_STARTED = "ResponseStarted"
    DEMAND_RAISED = "DemandRaised"
    LAST_LEASE_RELEASED = "LastLeaseReleased"
    ALL_STOPS_CONFIRMED = "AllStopsConfirmed"
    START_ACCEPTED = "StartAccepted"
    START_CALL_FAILED = "StartCallFailed"
    STOP_ACCEPTED = "StopAccepted"
    STOP_CALL_FAILED = "StopCallFailed"
    POD_INSPECTED = "PodInspected"
    INSPECT_FAILED = "InspectFailed"
    SCALE_ANSWERED = "ScaleAnswered"
    PROBE_FINISHED = "ProbeFinished"
    MODELS_LISTED = "ModelsListed"
    MODEL_PULLED = "ModelPulled"
    PRELOAD_FINISHED = "PreloadFinished"
    DEVICE_CHECKED = "DeviceChecked"
    UPSTREAM_FAILED = "UpstreamFailed"
    MANUAL_START_REQUESTED = "ManualStartRequested"
    BUDGET_UPDATED = "BudgetUpdated"
    MANUAL_STOP_REQUESTED = "ManualStopRequested"
    SHUTDOWN_REQUESTED = "ShutdownRequested"
    FORCED_SHUTDOWN_REQUESTED = "ForcedShutdownRequested"
    DEADLINE_REACHED = "DeadlineReached"


@frozen
class GatewayStarted:
    """The gateway came up."""


@frozen
class RequestArrived:
    """A request needs the pod; its body is read. Ticket numbers increase in the order of arrival."""

    ticket: int
    model: str | None = None
    load: LoadOptions = AS_IT_COMES
    user: str = ""
    body_bytes: int = 0


@frozen
class RequestFinished:
    """A request is over: answered, failed, or its client disconnected."""

    ticket: int


@frozen
class ResponseStarted:
    """The first byte of this request's response was sent to the client."""

    ticket: int


@frozen
class DemandRaised:
    """The machine tells itself: a request joined the queue, or a stop stands no longer in a start's way."""


@frozen
class LastLeaseReleased:
    """The machine tells itself: the last lease was released while the pod does not simply serve on."""


@frozen
class AllStopsConfirmed:
    """The machine tells itself: no stop is pending any more."""


@frozen
class StartAccepted:
    """`start()` returned this report; the pod has been billed for `up_s` seconds already."""

    op: int
    report: PodReport
    up_s: float = 0.0


@frozen
class StartCallFailed:
    """`start()` failed, or its outcome is unknown."""

    op: int
    error: ProviderError


@frozen
class StopAccepted:
    """`stop()` returned. That confirms nothing: only an inspection does."""

    op: int


@frozen
class StopCallFailed:
    """`stop()` failed, or its outcome is unknown."""

    op: int
    error: ProviderError


@frozen
class PodInspected:
    """`inspect()` returned this report; the pod has been billed for `up_s` seconds already."""

    op: int
    provider: int
    report: PodReport
    up_s: float = 0.0


@frozen
class InspectFailed:
    """`inspect()` failed; that says nothing about the pod."""

    op: int
    provider: int
    error: ProviderError


@frozen
class ScaleAnswered:
    """`scale()` returned this report, or failed with this error."""

    op: int
    answer: PodReport | ProviderError


@frozen
class ProbeFinished:
    """A health probe of the pod's Ollama ended; `detail` says what is wrong with it."""

    op: int
    healthy: bool
    detail: str = ""


@frozen
class ModelsListed:
    """The full names of the models that the pod has; none if it does not tell."""

    op: int
    models: frozenset[str] = frozenset()


@frozen
class ModelPulled:
    """The pull of a model ended.

    Attributes:
        error: why it failed; empty if the model is there.
        anywhere: another pod could not pull it either, such as a model that does not exist.
    """

    op: int
    error: str = ""
    anywhere: bool = False


@frozen
class PreloadFinished:
    """The preload ended, well or not; `on_cpu` if the model was seen to run on the CPU only."""

    op: int
    on_cpu: bool = False


@frozen
class DeviceChecked:
    """What the loaded models of this run's pod run on is known; `on_cpu` if all of them run on the CPU."""

    run_id: int
    on_cpu: bool


@frozen
class UpstreamFailed:
    """An exchange with the pod of this run broke before the first byte of the response.

    `resendable` is its ticket, if the request can be sent again: it waits in the queue while the pod is
    unhealthy.
    """

    run_id: int
    resendable: int | None = None


@frozen
class ManualStartRequested:
    """This user asked for the pod without a request; `denied` is why a wake rule forbids it to start one.

    A schedule also asks to keep it, used or not, for `keep_s` from READY on, and to load `model` first.
    """

    user: str = ""
    denied: str = ""
    keep_s: float = 0.0
    model: str | None = None


@frozen
class BudgetUpdated:
    """The budget monitor has a new verdict."""

    verdict: BudgetVerdict


@frozen
class ManualStopRequested:
    """The pod is to be stopped; `force` aborts running responses."""

    force: bool = False


@frozen
class ShutdownRequested:
    """The gateway is to go down; `keep` leaves the pod running."""

    keep: bool = False


@frozen
class ForcedShutdownRequested:
    """A second signal: responses that still run are to be aborted now."""


@frozen
class DeadlineReached:
    """The clock reached `next_deadline_at`. Too early is harmless."""


Event = (
    GatewayStarted
    | RequestArrived
    | RequestFinished
    | ResponseStarted
    | DemandRaised
    | LastLeaseReleased
    | AllStopsConfirmed
    | StartAccepted
    | StartCallFailed
    | StopAccepted
    | StopCallFailed
    | PodInspected
    | InspectFailed
    | ScaleAnswered
    | ProbeFinished
    | ModelsListed
    | ModelPulled
    | PreloadFinished
    | DeviceChecked
    | UpstreamFailed
    | ManualStartRequested
    | BudgetUpdated
    | ManualStopRequested
    | ShutdownRequested
    | ForcedShutdownRequested
    | DeadlineReached
)

_CAUSES: Mapping[type[Any], Cause] = {kind: Cause(kind.__name__) for kind in get_args(Event)}


def cause_of(event: Event) -> Cause:
    """Return the name of an event."""
    return _CAUSES[type(event)]
