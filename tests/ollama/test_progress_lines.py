"""What a held chat is told: the texts as tables, their pace, their shapes."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gpugate.core.states import (
    BackingOff,
    Preloading,
    Provisioning,
    Pulling,
    Ready,
    StartAttempt,
    State,
    Stopped,
    Stopping,
    Unknown,
    Warming,
)
from gpugate.lifecycle.pod_calls import PullProgress
from gpugate.lifecycle.status import WaitProgress
from gpugate.ollama.progress_lines import THINKING, ProgressLines, activity

TRY = StartAttempt(run_id=1, provider=0, number=1, since=0.0, capacity_deadline=0.0)
STARTING = Provisioning(attempt=TRY, accepted_at=0.0)
WARMING = Warming(attempt=TRY, endpoints={}, began_at=0.0, probe_op=None, probe_at=0.0)
ILL = Warming(attempt=TRY, endpoints={}, began_at=0.0, probe_op=None, probe_at=0.0, served=True)
LOADING = Preloading(attempt=TRY, endpoints={}, op=1, give_up_at=9.0, model="llava")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (Unknown(), "Asking whether a pod runs at RunPod"),
        (Stopped(), "Waiting for a pod at RunPod"),
        (STARTING, "Starting a pod at RunPod"),
        (
            BackingOff(attempt=TRY, retry_at=1.0, must_inspect=False),
            "Waiting to ask again for a pod at RunPod",
        ),
        (WARMING, "Waiting for the engine of the pod at RunPod"),
        (LOADING, "Loading the model at RunPod"),
        (ILL, "Waiting for the pod at RunPod to recover"),
        (Ready(run_id=1, provider=0, endpoints={}), "Waiting for earlier answers of the pod at RunPod"),
        (Stopping(), "Waiting for the last pod at RunPod to stop"),
    ],
)
def test_activity(state: State, said: str) -> None:
    """One line for each thing that can be waited for; no names of models, which another user may have asked
    for."""
    assert said == activity(state, "at RunPod")


def test_a_pull() -> None:
    """Its model is the configuration's; how far it is comes in tenths, and not before something is known."""
    pulls = Pulling(attempt=TRY, endpoints={}, op=1, give_up_at=9.0, models=("llava",))
    assert "Waiting for the engine of the pod at RunPod" == activity(pulls, "at RunPod")
    assert "Pulling llava at RunPod" == activity(pulls, "at RunPod", PullProgress(model="llava"))
    part = PullProgress(model="llava", percent=39)
    assert "Pulling llava (30 %) at RunPod" == activity(pulls, "at RunPod", part)


class Told:
    """A held request whose pod a test moves, and the texts that it got."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {"state": STARTING, "place": 2, "ready_in_s": 71.0}
        self.lines = ProgressLines(lambda lease: WaitProgress(provider="runpod", **self.seen), str.encode)

    def at(self, now: float, **seen: object) -> str:
        """The text at this time."""
        self.seen |= seen
        lease: Any = None
        return self.lines.next_line(lease, now).decode()


def test_the_first_line() -> None:
    """At once, with all that is known."""
    assert "Starting a pod at RunPod, about 70 s (2nd in the queue)\n" == Told().at(1)


@pytest.mark.parametrize(
    ("ready_in_s", "said"),
    [
        (None, ""),
        (0.0, ", longer than usual"),
        (1.2, ", about 5 s"),
        (23, ", about 25 s"),
        (96, ", about 100 s"),
        (200, ", about 3 min"),
        (4000, ", about 1 h 7 min"),
    ],
)
def test_the_time_left(ready_in_s: float | None, said: str) -> None:
    """Rounded, as it is a guess."""
    assert f"Starting a pod at RunPod{said}\n" == Told().at(1, ready_in_s=ready_in_s, place=0)


def test_changes() -> None:
    """A new place or activity after 3 s, a new time alone after 15 s, the same never."""
    told = Told()
    told.at(1)
    assert "" == told.at(2, place=1)
    assert "(1st in the queue)" in told.at(4)
    assert "" == told.at(8, ready_in_s=52.0)
    assert "about 50 s" in told.at(19)
    assert told.at(22, state=LOADING).startswith("Loading the model at RunPod, about 50 s")
    assert "" == told.at(600)


def test_a_native_line() -> None:
    """As Ollama's thinking models stream it: an empty text, and all that its clients require."""
    line = THINKING["chat"]("llava", "r-1")("Hm\n")
    assert line.endswith(b"}\n")
    told = orjson.loads(line)
    assert told.pop("created_at").endswith("Z")
    message = {"role": "assistant", "content": "", "thinking": "Hm\n"}
    assert {"model": "llava", "message": message, "done": False} == told


def test_an_openai_event() -> None:
    """No role: the pod's first event has it, and libraries join them."""
    event = THINKING["v1/chat/completions"]("llava", "r-1")("Hm\n")
    told = orjson.loads(event.removeprefix(b"data: ").removesuffix(b"\n\n"))
    assert isinstance(told.pop("created"), int)
    delta = {"content": "", "reasoning_content": "Hm\n"}
    assert {
        "id": "chatcmpl-r-1",
        "object": "chat.completion.chunk",
        "model": "llava",
        "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
    } == told
