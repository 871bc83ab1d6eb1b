"""Says in plain words why a session began and ended, and why a request waited. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, tzinfo
from functools import partial

from attrs import frozen

from gpugate.billing.model import BY_HAND, Session
from gpugate.core.states import Status
from gpugate.lifecycle.lease import OpenRequest
from gpugate.lifecycle.status import PodStatus
from gpugate.observability.event_log import STOP_REASONS
from gpugate.observability.history import Doing, Part, Wait
from gpugate.wording import duration

PURPOSES: Mapping[str, str] = {
    "v1/chat/completions": "chat",
    "v1/messages": "chat",
    "v1/responses": "chat",
    "generate": "completion",
    "v1/completions": "completion",
    "embed": "embedding",
    "embeddings": "embedding",
    "v1/embeddings": "embedding",
    "v1/audio/transcriptions": "transcription",
    "code": "question about code",
    "image": "picture",
}
"""What a request is called, by its endpoint, where the endpoint's name is no noun."""
_STARTS: Mapping[str, str] = {
    "prewarm": "ahead of the requests that were expected",
    "schedule": "by schedule",
}
_SHORT_S = 0.05
"""Parts that are shorter are not said."""
_fine = partial(duration, fine=True)


@frozen
class Viewer:
    """Who is told: `names` returns the name of a user as this one may know it."""

    names: Callable[[str], str]
    zone: tzinfo
    now: datetime

    def clock(self, at: datetime) -> str:
        """Return "08:14", with the date of another day."""
        there, today = at.astimezone(self.zone), self.now.astimezone(self.zone).date()
        return f"{there:%H:%M}" if there.date() == today else f"{there:%Y-%m-%d %H:%M}"

    def request(self, user: str, purpose: str) -> str:
        """Return "alice's chat"."""
        return f"{self.names(user)}'s {PURPOSES.get(purpose, purpose) or 'request'}"


# --- a wait -----------------------------------------------------------------------------------------


def request_line(wait: Wait, pod: str = "") -> str:
    """Return why a request waited, and how that ended if it was not admitted.

    `pod`: its name, if there are several.
    """
    request = wait.request
    line = f"request {request.request_id}{_for(pod)} waited {_with_parts(request.waited_s, wait.parts)}"
    if request.error is not None:
        return f"{line}; then it was refused ({request.error.code}: {request.error.message})"
    return f"{line}; then its client left" if request.left else line


def waiting_line(request: OpenRequest, parts: Sequence[Part], status: PodStatus | None, pod: str = "") -> str:
    """Return for what a request waits; `pod` as in `request_line`."""
    line = f"request {request.request_id}{_for(pod)} has waited {_with_parts(request.seconds, parts)}"
    return f"{line}; {_ready_in(status)}" if _ready_in(status) else line


def _for(pod: str) -> str:
    return f" for the pod {pod}" if pod else ""


def _with_parts(seconds: float, parts: Sequence[Part]) -> str:
    said = ", ".join(f"{_part(part)} {_fine(part.seconds)}" for part in parts if part.seconds >= _SHORT_S)
    return f"{_fine(seconds)}: {said}" if said else _fine(seconds)


def _part(part: Part) -> str:
    match part.doing:
        case Doing.NO_GPU:
            return f"{part.provider} had no free GPU for"
        case Doing.FAILING:
            return f"{part.provider} failed to start it ({part.reason}) for"
        case Doing.STOPPING:
            return "the stop before"
        case Doing.LOOKING:
            return "looking for what runs"
        case Doing.BOOTING:
            return "boot"
        case Doing.PULLING:
            return "pull"
        case Doing.LOADING:
            return "model"
        case Doing.SERVING:
            return "requests before it"
        case Doing.OFF:
            return "off"


def _ready_in(status: PodStatus | None) -> str:
    if status is None or not status.ready_in_seconds:
        return ""
    about, most = _fine(status.ready_in_seconds), _fine(status.ready_in_p90_seconds or 0.0)
    return f"ready in about {about}" + (f", at most {most}" if most != about else "")


# --- a session --------------------------------------------------------------------------------------


def session_lines(
    row: Session,
    viewer: Viewer,
    *,
    purpose: str,
    parts: Sequence[Part],
    last_use: tuple[str, str] | None,
    status: PodStatus | None,
    pod: str = "",
) -> Iterator[str]:
    """Yield why a session began, how it became ready, and why it ended or what becomes of it.

    Args:
        purpose: of the request that caused it.
        parts: of the time until it was READY.
        last_use: the user of the last request, and what it was; None for no or an unknown one.
        status: of the pod, if the session is open.
        pod: its name, if there are several.
    """
    where = row.provider + (f" ({row.gpu})" if row.gpu else "")
    yield f"pod {pod}: " * bool(pod) + f"{_start(row, viewer, purpose)}, at {where}"
    if row.ready_at is not None:
        seconds = (row.ready_at - row.asked_at).total_seconds()
        if row.start_reason != "adopted":
            yield f"ready after {_with_parts(seconds, parts or _parts_of(row))}"
    elif row.ended_at is not None:
        yield "it was never ready"
    if row.ended_at is None:
        yield from _open_lines(row, viewer, parts, status)
    else:
        yield _end(row, viewer, last_use)
        lasted = _fine((row.ended_at - row.began_at).total_seconds())
        yield f"ended at {viewer.clock(row.ended_at)}, after {lasted}" + _confirmation(row)
    yield f"this is session {row.id}; times are {viewer.zone}"


def _start(row: Session, viewer: Viewer, purpose: str) -> str:
    at = viewer.clock(row.asked_at)
    if row.start_reason == "request":
        return f"started at {at} for {viewer.request(row.started_by, purpose)}"
    if row.start_reason == "adopted":
        return f"found running at {at}"
    if row.start_reason == "hand":
        return f"started at {at} by hand" + (
            f" by {viewer.names(row.started_by)}" if row.started_by != BY_HAND else ""
        )
    return f"started at {at} {_STARTS.get(row.start_reason, f'({row.start_reason})')}"


def _parts_of(row: Session) -> list[Part]:
    """Return as much of the start as the row tells."""
    if row.running_at is None or row.ready_at is None:
        return []
    boot = (row.running_at - row.asked_at).total_seconds()
    load = (row.ready_at - row.running_at).total_seconds()
    return [Part(Doing.BOOTING, "", "", boot), Part(Doing.LOADING, "", "", load)]


def _open_lines(
    row: Session, viewer: Viewer, parts: Sequence[Part], status: PodStatus | None
) -> Iterator[str]:
    if row.stop_asked_at is not None:
        yield f"being stopped since {viewer.clock(row.stop_asked_at)}; the stop is not confirmed yet"
    elif status is None:
        return
    elif row.ready_at is None:
        seconds = (viewer.now - row.asked_at).total_seconds()
        soon = _ready_in(status)
        yield f"not ready yet, after {_with_parts(seconds, parts)}" + (f"; {soon}" if soon else "")
    elif status.status is Status.READY and status.stops_in_seconds is not None:
        yield f"idle; stops in {_fine(status.stops_in_seconds)} if nothing comes"
    elif status.status is Status.READY:
        yield f"in use: {status.in_flight} in flight"


def _end(row: Session, viewer: Viewer, last_use: tuple[str, str] | None) -> str:
    if row.end_reason == "idle":
        used_at = max((at for at in (row.last_used_at, row.ready_at) if at is not None), default=row.began_at)
        idle = _fine(((row.stop_asked_at or row.last_known_at) - used_at).total_seconds())
        if last_use is not None:
            return f"stopped: idle for {idle} after {viewer.request(*last_use)}"
        return f"stopped: idle for {idle}" + ("" if row.last_used_at else ", and never used")
    reasons: Mapping[str, str] = {cause.value: words for cause, words in STOP_REASONS.items()}
    return f"stopped: {reasons.get(row.end_reason, row.end_reason)}"


def _confirmation(row: Session) -> str:
    if row.stop_asked_at is None or row.ended_at is None:
        return ""
    return f"; the stop was confirmed within {_fine((row.ended_at - row.stop_asked_at).total_seconds())}"
