"""What the cluster shows of Pods, read and put into gpugate's words; asks nobody.

Words and meanings: docs/providers.md#kubernetes-pods.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import field, frozen

from gpugate import Misconfigured, Phase, ProviderError, Transient

STARTING_UP = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Reasons of a container that waits, and will run by itself."""
REPLACED_WITHIN = timedelta(minutes=1)
"""A controller replaces a Pod that its node refused within seconds; an older one is of another day."""
LONGEST_WORDS = 300


@frozen
class Pod:
    """A Pod as the cluster shows it.

    Attributes:
        node: where it was scheduled to; empty before. From here on it is paid for.
        scheduled_at: since when.
        finished: it holds nothing any more: succeeded, failed or evicted; the cluster still shows it.
        phase: where it is, as if it were the only one.
        detail: what the cluster says about that.
        failure: with FAILED: why another try would change nothing.
        refused: its node would not have it, such as for a GPU that is missing.
        ready: its readiness probe succeeds.
    """

    name: str
    uid: str
    node: str
    phase: Phase
    host_ip: str = ""
    created_at: datetime | None = None
    scheduled_at: datetime | None = None
    terminating: bool = False
    finished: bool = False
    detail: str = ""
    failure: ProviderError | None = field(default=None, eq=False)
    refused: bool = False
    ready: bool = False

    @property
    def is_paid(self) -> bool:
        """It has a node, and has not been removed from it."""
        return bool(self.node) and not self.finished

    @property
    def is_active(self) -> bool:
        """It serves, or will."""
        return not self.finished and not self.terminating


@frozen
class Seen:
    """All Pods of ours together, as one pod.

    Attributes:
        pods: those that count.
        detail, failure: as a `PodReport` has them.
    """

    phase: Phase
    pods: Sequence[Pod] = ()
    detail: str = ""
    failure: ProviderError | None = field(default=None, eq=False)

    @property
    def running(self) -> list[Pod]:
        """Those that run, those that are ready first."""
        return sorted(
            (p for p in self.pods if p.is_active and p.phase is Phase.RUNNING), key=lambda p: not p.ready
        )

    @property
    def paid(self) -> list[Pod]:
        """Those that are paid for, terminating ones included."""
        return [pod for pod in self.pods if pod.is_paid]


def pod_of(manifest: Mapping[str, Any]) -> Pod:
    """Read a Pod.

    Raises: Transient, it has no name or no status, so it is no Pod.
    """
    metadata, spec, status = (_mapping(manifest, key) for key in ("metadata", "spec", "status"))
    name = metadata.get("name")
    if not isinstance(name, str) or not name or "status" not in manifest:
        raise Transient("the cluster answered something that is no Pod")
    conditions = {str(c.get("type")): c for c in _mappings(status, "conditions")}
    finished = status.get("phase") in ("Succeeded", "Failed")
    phase, detail, failure = _finished(status) if finished else _living(spec, status, conditions)
    scheduled = conditions.get("PodScheduled", {})
    return Pod(
        name=name,
        uid=str(metadata.get("uid") or name),
        node=str(spec.get("nodeName") or ""),
        phase=phase,
        host_ip=str(status.get("hostIP") or ""),
        created_at=_instant(metadata.get("creationTimestamp")),
        scheduled_at=_instant(
            scheduled.get("lastTransitionTime") if scheduled.get("status") == "True" else None
        )
        or _instant(status.get("startTime")),
        terminating=bool(metadata.get("deletionTimestamp")),
        finished=finished,
        detail=detail,
        failure=failure,
        refused=finished and _is_refused(status),
        ready=conditions.get("Ready", {}).get("status") == "True",
    )


def together(pods: Sequence[Pod], known: Collection[str] = ()) -> Seen:
    """What Pods that are wanted are as one pod; `known`: uids of Pods that had ended before this start."""
    active = [pod for pod in pods if pod.is_active]
    notes = [pod.detail for pod in pods if pod.finished and pod.detail and pod.uid not in known]
    for phase in (Phase.RUNNING, Phase.STARTING, Phase.UNREACHABLE):
        if found := [pod for pod in active if pod.phase is phase]:
            return Seen(phase, pods, found[0].detail)
    if failed := [pod for pod in active if pod.phase is Phase.FAILED]:
        return Seen(Phase.FAILED, pods, failed[0].detail, failed[0].failure)
    if refused := [
        pod for pod in pods if pod.refused and pod.uid not in known and _has_successor(pod, active)
    ]:
        return Seen(Phase.FAILED, pods, refused[0].detail, refused[0].failure)
    if queued := [pod for pod in active if pod.phase is Phase.QUEUED]:
        return Seen(Phase.QUEUED, pods, queued[0].detail)
    return Seen(Phase.PROVISIONING, pods, notes[-1] if notes else "")


def _has_successor(pod: Pod, active: Sequence[Pod]) -> bool:
    newest = max((other.created_at for other in active if other.created_at), default=None)
    if newest is None or pod.created_at is None:
        return not active
    return newest - pod.created_at <= REPLACED_WITHIN


# --- one Pod ------------------------------------------------------------------------------------


def _living(
    spec: Mapping[str, Any], status: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]
) -> tuple[Phase, str, ProviderError | None]:
    """Phase, detail and failure of a Pod that has not ended."""
    if not spec.get("nodeName"):
        scheduled = conditions.get("PodScheduled", {})
        if scheduled.get("status") == "False":
            return Phase.QUEUED, _words(scheduled.get("message") or scheduled.get("reason")), None
        return Phase.PROVISIONING, "", None
    if status.get("reason") == "NodeLost" or conditions.get("Ready", {}).get("status") == "Unknown":
        said = status.get("message") or f"node {spec['nodeName']} does not answer"
        return Phase.UNREACHABLE, _words(said), None
    containers = [*_mappings(status, "initContainerStatuses"), *_mappings(status, "containerStatuses")]
    for container in containers:
        waiting = _mapping(_mapping(container, "state"), "waiting")
        reason = str(waiting.get("reason") or "")
        if reason not in STARTING_UP:
            said = (
                f"{reason}: {_words(waiting.get('message') or container.get('name'))}{_last_words(container)}"
            )
            return Phase.FAILED, said, Misconfigured(said)
    main = _mappings(status, "containerStatuses")
    if main and all("running" in _mapping(container, "state") for container in main):
        if conditions.get("Ready", {}).get("status") == "False":
            return (
                Phase.RUNNING,
                _words(conditions["Ready"].get("message") or "its readiness probe fails"),
                None,
            )
        return Phase.RUNNING, "", None
    return Phase.STARTING, _starting(containers), None


def _finished(status: Mapping[str, Any]) -> tuple[Phase, str, ProviderError | None]:
    """The same of a Pod that has ended."""
    if status.get("phase") == "Succeeded":
        return Phase.FAILED, "the Pod ended by itself", None
    reason, message = str(status.get("reason") or "Failed"), _words(status.get("message"))
    for container in [*_mappings(status, "initContainerStatuses"), *_mappings(status, "containerStatuses")]:
        message += _last_words(container)
    said = f"{reason}: {message}" if message else reason
    return Phase.FAILED, said, Misconfigured(said) if _is_refused(status) else None


def _is_refused(status: Mapping[str, Any]) -> bool:
    """The kubelet did not admit it: no GPU of those that its node had promised, or another thing missing."""
    reason = str(status.get("reason") or "")
    return reason == "UnexpectedAdmissionError" or reason.startswith("OutOf")


def _last_words(container: Mapping[str, Any]) -> str:
    """Why a container ended, for one that is not begun again at once."""
    for key in ("state", "lastState"):
        ended = _mapping(_mapping(container, key), "terminated")
        if ended:
            said = _words(ended.get("message"))
            reason = f" ({ended.get('reason') or 'ended'}, exit status {ended.get('exitCode', 0)}"
            return f"{reason}: {said})" if said else f"{reason})"
    return ""


def _starting(containers: Sequence[Mapping[str, Any]]) -> str:
    ended = [_last_words(container) for container in containers if _mapping(container, "lastState")]
    return f"its container ended and is begun again{ended[0]}" if ended and ended[0] else ""


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _mappings(value: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = value.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _words(said: object) -> str:
    words = " ".join(str(said or "").split())
    return words if len(words) <= LONGEST_WORDS else words[:LONGEST_WORDS] + "..."


def _instant(said: object) -> datetime | None:
    """A time of Kubernetes: RFC 3339 in UTC."""
    try:
        at = datetime.fromisoformat(str(said)) if said else None
    except ValueError:
        return None
    return at if at is not None and at.tzinfo is not None else None


def condition(manifest: Mapping[str, Any], kind: str) -> Iterator[str]:
    """The message of each condition of this kind that holds, of a workload or Job."""
    for found in _mappings(_mapping(manifest, "status"), "conditions"):
        if found.get("type") == kind and found.get("status") == "True":
            yield _words(found.get("message") or found.get("reason") or kind)
