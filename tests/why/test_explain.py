"""The words: of a wait, a start, a stop."""

from __future__ import annotations

from datetime import UTC, timedelta
from zoneinfo import ZoneInfo

import pytest
from attrs import evolve

from gpugate.billing.model import Session
from gpugate.core.states import Status
from gpugate.errors import QueueTimeout
from gpugate.lifecycle.lease import OpenRequest
from gpugate.lifecycle.status import PodStatus, RequestWaited
from gpugate.observability.history import Doing, Part, Wait
from gpugate.why.explain import Viewer, request_line, session_lines, waiting_line
from tests.billing.ledger_house import BEGINNING

PARTS = [
    Part(Doing.NO_GPU, "runpod", "", 41.2),
    Part(Doing.FAILING, "vastai", "funds", 0.01),
    Part(Doing.BOOTING, "runpod", "", 38.0),
    Part(Doing.LOADING, "runpod", "", 18.0),
]
WAIT = Wait(RequestWaited(request_id="7f", user="alice", purpose="chat", waited_s=97.3), PARTS)
STATUS = PodStatus(
    status=Status.STARTING,
    provider="runpod",
    pod_id=None,
    since=BEGINNING,
    uptime_seconds=None,
    waiting=1,
    in_flight=0,
    idle_seconds=None,
    stops_in_seconds=None,
    hourly_rate=None,
    estimated_cost=None,
    ready_in_seconds=70.0,
    ready_in_p90_seconds=120.0,
    last_error=None,
)
ROW = Session(
    id="s-1",
    provider="runpod",
    gpu="RTX 4090",
    asked_at=BEGINNING,
    started_at=BEGINNING + timedelta(seconds=5),
    running_at=BEGINNING + timedelta(seconds=60),
    ready_at=BEGINNING + timedelta(seconds=97),
    last_used_at=BEGINNING + timedelta(minutes=10),
    stop_asked_at=BEGINNING + timedelta(minutes=25),
    ended_at=BEGINNING + timedelta(minutes=25, seconds=8),
    started_by="alice",
    start_reason="request",
    end_reason="idle",
)
VIEWER = Viewer(lambda user: user, UTC, BEGINNING + timedelta(minutes=30))


def lines(
    row: Session = ROW, viewer: Viewer = VIEWER, status: PodStatus | None = None, **more: object
) -> list[str]:
    """What is said of a session."""
    told = {"purpose": "chat", "parts": PARTS, "last_use": ("alice", "v1/chat/completions"), **more}
    return list(session_lines(row, viewer, status=status, **told))  # type: ignore[arg-type]


def test_a_request() -> None:
    """How long, and for what; what took no time is not said."""
    line = "request 7f waited 97 s: runpod had no free GPU for 41 s, boot 38 s, model 18 s"
    late = evolve(WAIT, request=evolve(WAIT.request, error=QueueTimeout("too long")))
    left = evolve(WAIT, request=evolve(WAIT.request, left=True))

    assert line == request_line(WAIT)
    assert f"{line}; then it was refused (QUEUE_TIMEOUT: too long)" == request_line(late)
    assert f"{line}; then its client left" == request_line(left)
    assert "request 7f waited 97 s" == request_line(evolve(WAIT, parts=()))


def test_a_request_that_waits() -> None:
    """And for how long it probably will."""
    request = OpenRequest(user="alice", request_id="7f", waiting=True, seconds=12.0)
    parts = [Part(Doing.FAILING, "vastai", "funds", 2.0), Part(Doing.STOPPING, "", "", 10.0)]

    assert (
        "request 7f has waited 12 s: vastai failed to start it (funds) for 2 s, the stop before 10 s;"
        " ready in about 70 s, at most 2 min"
    ) == waiting_line(request, parts, STATUS)
    assert "request 7f has waited 12 s" == waiting_line(request, [], None)


def test_a_session() -> None:
    """Its start, its stop, its length."""
    assert [
        "started at 12:00 for alice's chat, at runpod (RTX 4090)",
        "ready after 97 s: runpod had no free GPU for 41 s, boot 38 s, model 18 s",
        "stopped: idle for 15 min after alice's chat",
        "ended at 12:25, after 25 min; the stop was confirmed within 8 s",
        "this is session s-1; times are UTC",
    ] == lines()


def test_of_an_earlier_process() -> None:
    """As much as the row tells; another day and zone."""
    viewer = Viewer(lambda _: "another user", ZoneInfo("Asia/Tokyo"), BEGINNING + timedelta(days=1))
    said = lines(viewer=viewer, purpose="", parts=(), last_use=None)

    assert "started at 2026-11-21 21:00 for another user's request, at runpod (RTX 4090)" == said[0]
    assert "ready after 97 s: boot 60 s, model 37 s" == said[1]
    assert "stopped: idle for 15 min" == said[2]
    assert "this is session s-1; times are Asia/Tokyo" == said[-1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"start_reason": "hand", "started_by": "hand"}, "started at 12:00 by hand, at"),
        ({"start_reason": "hand"}, "started at 12:00 by hand by alice, at"),
        ({"start_reason": "adopted"}, "found running at 12:00, at"),
        ({"start_reason": "prewarm"}, "started at 12:00 ahead of the requests that were expected, at"),
        ({"start_reason": "new"}, "started at 12:00 (new), at"),
    ],
)
def test_starts(more: dict[str, str], said: str) -> None:
    """Each cause in its words."""
    assert lines(evolve(ROW, **more))[0].startswith(said)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"end_reason": "hand"}, "stopped: stop requested"),
        ({"end_reason": "max_session"}, "stopped: the session is at its limit"),
        ({"end_reason": "failed start: capacity"}, "stopped: failed start: capacity"),
        ({"last_used_at": None}, "stopped: idle for 23 min, and never used"),
    ],
)
def test_ends(more: dict[str, str | None], said: str) -> None:
    """Each cause in its words."""
    assert said in lines(evolve(ROW, **more), last_use=None)


def test_a_session_that_lasts() -> None:
    """What becomes of it."""
    coming = evolve(ROW, ready_at=None, stop_asked_at=None, ended_at=None)
    ready = evolve(ROW, stop_asked_at=None, ended_at=None)
    idle = evolve(STATUS, status=Status.READY, stops_in_seconds=840.0)

    assert lines(coming, parts=[], status=STATUS)[1] == (
        "not ready yet, after 30 min; ready in about 70 s, at most 2 min"
    )
    assert "idle; stops in 14 min if nothing comes" in lines(ready, status=idle)
    assert "in use: 2 in flight" in lines(ready, status=evolve(idle, stops_in_seconds=None, in_flight=2))
    assert "being stopped since 12:25; the stop is not confirmed yet" in lines(evolve(ROW, ended_at=None))
    assert "it was never ready" in lines(evolve(ROW, ready_at=None, end_reason="failed start: capacity"))
