"""What the history makes of the lifecycle's events, second by second."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from attrs import define, field

from gpugate.core.commands import StartCause, StopCause
from gpugate.core.events import Cause
from gpugate.core.states import StateName
from gpugate.errors import QueueTimeout
from gpugate.lifecycle.status import (
    LifecycleEvent,
    ProviderCalled,
    ProviderProblem,
    RequestWaited,
    SessionStarted,
    StateChanged,
)
from gpugate.observability.history import (
    KEPT_SEGMENTS,
    KEPT_SESSIONS,
    KEPT_WAITS,
    Doing,
    History,
    SessionNotes,
)
from gpugate.provider_api import Phase, PodReport
from tests.billing.ledger_house import BEGINNING as AT

REPORT = PodReport(Phase.RUNNING)


@define
class House:
    """A history whose clock the test sets."""

    now: float = 0.0
    session: str = "s-1"
    last_use: tuple[int, str, str] | None = None
    was: StateName = StateName.UNKNOWN
    history: History = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.history = History(lambda _: self.session, lambda: self.last_use, lambda: self.now)

    def goes(self, at: float, now: StateName, provider: str = "a", stop: StopCause | None = None) -> None:
        """The pod is in another state."""
        self.tell(
            at,
            StateChanged(
                was=self.was,
                now=now,
                was_status=None,
                status=None,
                cause=Cause.DEADLINE_REACHED,
                run_id=1,
                provider=provider,
                at=AT,
                stop_cause=stop,
            ),
        )
        self.was = now

    def tell(self, at: float, *events: LifecycleEvent) -> None:
        """These happen."""
        self.now = at
        for event in events:
            self.history.on_event(event)

    def start_called(self, at: float, seconds: float, outcome: str = "ok", provider: str = "a") -> None:
        """A call of `start()` has returned."""
        self.tell(at, ProviderCalled(provider=provider, call="start", outcome=outcome, seconds=seconds))

    def trouble(self, at: float, reason: str, provider: str = "a") -> None:
        """A provider's problem."""
        self.tell(at, ProviderProblem(provider=provider, message="", reason=reason, alarm=False, at=AT))

    def parts(self, seconds: float) -> list[tuple[str, str, str, float]]:
        """What the last seconds went into."""
        return [
            (part.doing.value, part.provider, part.reason, part.seconds)
            for part in self.history.parts(seconds)
        ]


@pytest.fixture
def house() -> House:
    """Off, at 10."""
    house = House()
    house.goes(10, StateName.STOPPED)
    return house


def waited(name: str = "r-1", seconds: float = 10.0, **more: object) -> RequestWaited:
    """A request waits no longer."""
    return RequestWaited(request_id=name, user="ann", purpose="chat", waited_s=seconds, **more)  # type: ignore[arg-type]


def test_a_simple_start(house: House) -> None:
    """Boot, and the model; nothing of the time before the request came."""
    house.goes(100, StateName.CALLING_START)
    house.start_called(102, 2)
    house.goes(102, StateName.PROVISIONING)
    house.goes(110, StateName.WARMING)
    house.goes(138, StateName.PRELOADING)
    house.now = 156

    assert [("booting", "a", "", 38.0), ("loading", "a", "", 18.0)] == house.parts(56)
    assert [("loading", "a", "", 5.0)] == house.parts(5)


def test_no_capacity_then_a_gpu(house: House) -> None:
    """From the first call that was refused to the one that was not."""
    house.goes(100, StateName.CALLING_START)
    house.start_called(101, 1, "capacity")
    house.goes(101, StateName.BACKING_OFF)
    house.goes(116, StateName.CALLING_START)
    house.start_called(117, 1, "capacity")
    house.goes(117, StateName.BACKING_OFF)
    house.goes(141, StateName.CALLING_START)
    house.start_called(142, 1)
    house.goes(142, StateName.PROVISIONING)
    house.goes(179, StateName.PRELOADING)
    house.now = 197

    assert [("no gpu", "a", "", 41.0), ("booting", "a", "", 38.0), ("loading", "a", "", 18.0)] == (
        house.parts(97)
    )


def test_in_the_provider_s_queue(house: House) -> None:
    """Accepted, but not billed: it has no GPU for it."""
    house.goes(100, StateName.CALLING_START)
    house.start_called(101, 1, "capacity")
    house.goes(101, StateName.PROVISIONING)
    house.tell(150, SessionStarted(run_id=1, provider="a", cause=StartCause.REQUEST, report=REPORT, at=AT))
    house.goes(170, StateName.WARMING)
    house.now = 180

    assert [("no gpu", "a", "", 50.0), ("booting", "a", "", 30.0)] == house.parts(80)


def test_the_next_provider(house: House) -> None:
    """No change of state tells of it: the call does."""
    house.goes(100, StateName.CALLING_START)
    house.start_called(110, 10, "funds")
    house.start_called(115, 5, provider="b")
    house.goes(115, StateName.PROVISIONING, "b")
    house.now = 120

    assert [("failing", "a", "funds", 10.0), ("booting", "b", "", 10.0)] == house.parts(20)


def test_a_boot_that_fails(house: House) -> None:
    """All of it was lost, and the pause after it."""
    house.goes(100, StateName.CALLING_START)
    house.start_called(101, 1)
    house.goes(101, StateName.PROVISIONING)
    house.goes(120, StateName.WARMING)
    house.trouble(150, "timeout")
    house.goes(150, StateName.BACKING_OFF)
    house.goes(155, StateName.CALLING_START)
    house.start_called(156, 1)
    house.goes(156, StateName.PROVISIONING)
    house.now = 160

    assert [("failing", "a", "timeout", 55.0), ("booting", "a", "", 5.0)] == house.parts(60)


def test_waits(house: House) -> None:
    """Kept with their parts, the newest first; a bounded number of them."""
    house.goes(100, StateName.CALLING_START)
    house.tell(110, waited("old"))
    for number in range(KEPT_WAITS - 2):
        house.tell(111 + number, waited("other"))
    house.tell(2000, waited("r-1", 3.0))
    house.tell(2001, waited("r-1", 5.0, error=QueueTimeout()))

    assert [5.0, 3.0] == [wait.request.waited_s for wait in house.history.waits("r-1")]
    assert [] == house.history.waits("old")
    assert [Doing.BOOTING] == [part.doing for part in house.history.waits("r-1")[0].parts]


def play(house: House, states: Iterable[StateName]) -> None:
    """Each a second after the other."""
    for state in states:
        house.goes(house.now + 1, state)


CYCLE = (StateName.CALLING_START, StateName.WARMING, StateName.READY, StateName.STOPPING, StateName.STOPPED)


def test_notes_of_a_session(house: House) -> None:
    """How its start went, and who used it last; not who used an earlier run's pod."""
    play(house, CYCLE[:3])
    house.last_use = 1, "ann", "chat"
    play(house, CYCLE[3:])
    notes = house.history.notes("s-1")
    assert ("ann", "chat") == notes.last_use
    assert [(Doing.BOOTING, 2.0)] == [(part.doing, part.seconds) for part in notes.parts]

    house.session, house.last_use = "s-2", (7, "bob", "chat")
    play(house, CYCLE)
    assert house.history.notes("s-2").last_use is None
    assert SessionNotes() == house.history.notes("s-3")


def test_bounded(house: House) -> None:
    """However long it runs."""
    for number in range(max(KEPT_SESSIONS, KEPT_SEGMENTS) + 1):
        house.session = f"s-{number}"
        play(house, CYCLE)

    assert KEPT_SESSIONS == len(house.history._sessions)
    assert KEPT_SEGMENTS == len(house.history._segments)
