"""What happened, in the past tense; values only. Their counterparts, the orders, are in `core/effects.py`.

An event that answers an effect brings back its `op` number, and only the answer that is waited for counts.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from gpugate.errors import ProviderError
from gpugate.provider_api import PodReport


@frozen
class GatewayStarted:
    """The gateway came up."""


@frozen
class RequestArrived:
    """A request wants the pod; its body is read. Tickets are numbered in the order of arrival."""

    ticket: int
    model: str | None = None
    embeds: bool = False
    user: str = ""


@frozen
class RequestFinished:
    """A request is over: answered, failed, or its client hung up."""

    ticket: int


@frozen
class ResponseStarted:
    """The first byte of this request's answer has left."""

    ticket: int


@frozen
class DemandRaised:
    """Somebody wants the pod and it is not serving: a request joined the backlog, or a start by hand."""


@frozen
class LastLeaseReleased:
    """The last lease ended."""


@frozen
class AllStopsConfirmed:
    """Every stop that was sent is proved."""


@frozen
class StartAccepted:
    """The provider took the start."""

    op: int
    report: PodReport
    up_s: float = 0.0


@frozen
class StartCallFailed:
    """The start failed, or its outcome is unknown."""

    op: int
    error: ProviderError


@frozen
class StopAccepted:
    """The provider took the stop; that proves nothing."""

    op: int


@frozen
class StopCallFailed:
    """The stop failed, or its outcome is unknown."""

    op: int
    error: ProviderError


@frozen
class PodInspected:
    """The provider said what is there; `up_s` is how long it has been billed already."""

    op: int
    provider: int
    report: PodReport
    up_s: float = 0.0


@frozen
class InspectFailed:
    """We could not look; that says nothing of the pod."""

    op: int
    provider: int
    error: ProviderError


@frozen
class ProbeFinished:
    """The pod's Ollama was asked whether it is healthy."""

    op: int
    healthy: bool
    detail: str = ""


@frozen
class PreloadFinished:
    """The preload ended, well or not; `on_cpu` if the model was seen to run on the CPU only."""

    op: int
    on_cpu: bool = False


@frozen
class DeviceChecked:
    """It is known what the models of this run's pod run on; `on_cpu` if all that are loaded do."""

    run_id: int
    on_cpu: bool


@frozen
class UpstreamFailed:
    """An exchange with the pod of this run broke before its first byte."""

    run_id: int


@frozen
class ManualStartRequested:
    """A start by hand, by this user."""

    user: str = ""


@frozen
class BudgetUpdated:
    """Who may have a pod started is known anew.

    Attributes:
        exhausted_reason: what everybody is told who wants a start; empty while the month's budget allows one.
        users_over_share: what those users are told who have spent their share of it.
    """

    exhausted_reason: str = ""
    users_over_share: Mapping[str, str] = field(factory=dict, hash=False)


@frozen
class ManualStopRequested:
    """A stop by hand; `force` cuts what is in flight."""

    force: bool = False


@frozen
class ShutdownRequested:
    """The gateway is to go down; `keep` leaves the pod running."""

    keep: bool = False


@frozen
class ForcedShutdownRequested:
    """Whatever still runs is to be cut now: a second signal."""


@frozen
class DeadlineReached:
    """The clock reached `wake_at`; too early is harmless."""


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
    | ProbeFinished
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
