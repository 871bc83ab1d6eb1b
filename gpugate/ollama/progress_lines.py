"""What a held chat is told as thinking while it waits (`queue.progress`): texts, their pace and their shape.

The answer's own text stays empty in each line, so that a client which shows no thinking shows nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import orjson

from gpugate.core.states import (
    BackingOff,
    CallingStart,
    Draining,
    Preloading,
    Provisioning,
    Pulling,
    Ready,
    State,
    Stopping,
    Unknown,
    VerifyingStart,
    Warming,
)
from gpugate.lifecycle.lease import Lease
from gpugate.lifecycle.pod_calls import PullProgress
from gpugate.lifecycle.status import WaitProgress
from gpugate.ollama.validation import go_time
from gpugate.wording import at_provider, duration, ordinal

LOOK_EVERY_S = 1.0
"""How often is looked for something new; first after so long, so that a quick refusal keeps its status."""
CHANGE_EVERY_S = 3.0
"""How soon a line for another activity or place may follow a line."""
ETA_EVERY_S = 15.0
"""How soon a line may follow that has nothing new but the time left."""


class ProgressLines:
    """The lines of one held request.

    Args:
        look: returns what the request waits for.
        write: puts a text into the shape of the response.
    """

    def __init__(self, look: Callable[[Lease], WaitProgress], write: Callable[[str], bytes]) -> None:
        self._look = look
        self._write = write
        self._told = ("", 0, "")
        self._told_at = -ETA_EVERY_S

    def next_line(self, lease: Lease, now: float) -> bytes:
        """Return the line that is due at loop time `now`; empty if there is nothing new to tell yet."""
        seen = self._look(lease)
        news = (
            activity(seen.state, at_provider(seen.provider), seen.pulling),
            seen.place,
            _eta(seen.ready_in_s),
        )
        pause_s = ETA_EVERY_S if news[:2] == self._told[:2] else CHANGE_EVERY_S
        if news == self._told or now - self._told_at < pause_s:
            return b""
        self._told, self._told_at = news, now
        place = f" ({ordinal(seen.place)} in the queue)" if seen.place else ""
        return self._write(f"{news[0]}{news[2]}{place}\n")


def activity(state: State, place: str, pulling: PullProgress | None = None) -> str:
    """Return what is being waited for in this state; `place` is where the pod is, such as "at RunPod".

    How far a pull is, is said in tenths: a line for each per cent would be too many.
    """
    match state:
        case Unknown():
            return f"Asking whether a pod runs {place}"
        case CallingStart() | VerifyingStart() | Provisioning():
            return f"Starting a pod {place}"
        case BackingOff():
            return f"Waiting to ask again for a pod {place}"
        case Warming(served=True) | Pulling(served=True) | Preloading(served=True):
            return f"Waiting for the pod {place} to recover"
        case Pulling() if pulling is not None:
            done = f" ({pulling.percent // 10 * 10} %)" if pulling.percent is not None else ""
            return f"Pulling {pulling.model}{done} {place}"
        case Warming() | Pulling():
            return f"Waiting for the engine of the pod {place}"
        case Preloading():
            return f"Loading the model {place}"
        case Ready():
            return f"Waiting for earlier answers of the pod {place}"
        case Draining() | Stopping():
            return f"Waiting for the last pod {place} to stop"
        case _:
            return f"Waiting for a pod {place}"


def _eta(ready_in_s: float | None) -> str:
    if ready_in_s is None:
        return ""
    if ready_in_s <= 0:
        return ", longer than usual"
    step = 5 if ready_in_s < 30 else 10 if ready_in_s < 120 else 60
    rounded = max(step, round(ready_in_s / step) * step)
    return f", about {f'{rounded} s' if rounded < 120 else duration(rounded)}"


# --- the shapes -----------------------------------------------------------------------------------


def _native(model: str, request_id: str) -> Callable[[str], bytes]:
    """Return what writes lines of `/api/chat`; clients require `message` with a role and a content."""

    def write(text: str) -> bytes:
        message = {"role": "assistant", "content": "", "thinking": text}
        line = {"model": model, "created_at": go_time(datetime.now(UTC)), "message": message, "done": False}
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)

    return write


def _openai(model: str, request_id: str) -> Callable[[str], bytes]:
    """Return what writes events of `/v1/chat/completions`; the role is left to the pod's first event.

    OpenAI's Python library joins the roles of all events.
    """
    about = {
        "id": f"chatcmpl-{request_id}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
    }

    def write(text: str) -> bytes:
        choice = {"index": 0, "delta": {"content": "", "reasoning_content": text}, "finish_reason": None}
        return b"data: " + orjson.dumps({**about, "choices": [choice]}) + b"\n\n"

    return write


THINKING: Mapping[str | None, Callable[[str, str], Callable[[str], bytes]]] = {
    "chat": _native,
    "v1/chat/completions": _openai,
}
"""By endpoint: returns, for a model and the request's id, what puts a text into a response as thinking."""
