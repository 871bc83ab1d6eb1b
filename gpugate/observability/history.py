"""What `why` explains: the latest waits for the pod, and what the pod was doing meanwhile.

Listens to the lifecycle's events; keeps nothing of prompts and answers, and a bounded number of all else. The
sessions themselves are in the ledger; here is what their rows do not say.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from time import monotonic

from attrs import define, evolve, frozen

from gpugate.core.commands import StopCause
from gpugate.core.states import StateName
from gpugate.lifecycle.status import (
    LifecycleEvent,
    ProviderCalled,
    ProviderProblem,
    RequestWaited,
    SessionStarted,
    StateChanged,
)

KEPT_WAITS = 500
KEPT_SESSIONS = 200
KEPT_SEGMENTS = 1000
"""Of the pod's time; a wait that began earlier is explained in part."""


class Doing(StrEnum):
    """What a request waits for."""

    LOOKING = "looking"
    OFF = "off"
    STOPPING = "stopping"
    NO_GPU = "no gpu"
    FAILING = "failing"
    BOOTING = "booting"
    PULLING = "pulling"
    LOADING = "loading"
    SERVING = "serving"


@frozen
class Segment:
    """The pod's time from `since` on.

    Attributes:
        reason: of a start that fails: the provider's error.
    """

    since: float
    doing: Doing
    provider: str = ""
    reason: str = ""


@frozen
class Part:
    """How many seconds of a wait went into one thing."""

    doing: Doing
    provider: str
    reason: str
    seconds: float


@frozen
class Wait:
    """A request that has waited, and what for."""

    request: RequestWaited
    parts: Sequence[Part]


@define
class SessionNotes:
    """What is known of a session beside its row.

    Attributes:
        parts: of the time until it was READY first.
        last_use: the user of the last request before the pod was stopped, and what it was.
    """

    parts: Sequence[Part] = ()
    last_use: tuple[str, str] | None = None


_DOING: Mapping[StateName, Doing] = {
    StateName.UNKNOWN: Doing.LOOKING,
    StateName.STOPPED: Doing.OFF,
    StateName.CALLING_START: Doing.BOOTING,
    StateName.BACKING_OFF: Doing.FAILING,
    StateName.VERIFYING_START: Doing.FAILING,
    StateName.PROVISIONING: Doing.BOOTING,
    StateName.WARMING: Doing.BOOTING,
    StateName.PULLING: Doing.PULLING,
    StateName.PRELOADING: Doing.LOADING,
    StateName.READY: Doing.SERVING,
    StateName.DRAINING: Doing.STOPPING,
    StateName.STOPPING: Doing.STOPPING,
    StateName.SHUT_DOWN: Doing.OFF,
}
_COMING_UP = frozenset({StateName.PROVISIONING, StateName.WARMING, StateName.PULLING, StateName.PRELOADING})
_REST = frozenset({Doing.LOOKING, Doing.OFF, Doing.STOPPING, Doing.SERVING})


class History:
    """Takes the lifecycle's events; asked by `why`.

    Args:
        session_of: returns the id of a provider's open session.
        last_use: returns run, user and purpose of the request that ended last.
        clock: in seconds.
    """

    def __init__(
        self,
        session_of: Callable[[str], str | None],
        last_use: Callable[[], tuple[int, str, str] | None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._session_of = session_of
        self._last_use = last_use
        self._clock = clock
        self._segments = deque([Segment(clock(), Doing.LOOKING)], maxlen=KEPT_SEGMENTS)
        self._problems: dict[str, str] = {}  # the latest by provider
        self._start_began_at = clock()
        self._waits: deque[Wait] = deque(maxlen=KEPT_WAITS)
        self._sessions: OrderedDict[str, SessionNotes] = OrderedDict()

    # --- asked ------------------------------------------------------------------------------------

    def waits(self, request_id: str) -> list[Wait]:
        """Return the waits of requests with this id, the newest first; a client may use one id for many."""
        return [wait for wait in reversed(self._waits) if wait.request.request_id == request_id]

    def notes(self, session_id: str) -> SessionNotes:
        """Return what is known of a session; nothing for one of an earlier process."""
        return self._sessions.get(session_id) or SessionNotes()

    def parts(self, seconds: float) -> list[Part]:
        """Return what the last so many seconds went into, in the order in which each thing began."""
        now = self._clock()
        ends = [*self._segments, Segment(now, Doing.OFF)]
        sums: dict[Segment, float] = {}
        for segment, following in pairwise(ends):
            spent = min(now, following.since) - max(now - seconds, segment.since)
            if spent > 0:
                key = evolve(segment, since=0.0)
                sums[key] = sums.get(key, 0.0) + spent
        return [Part(key.doing, key.provider, key.reason, spent) for key, spent in sums.items()]

    def starting_parts(self) -> list[Part]:
        """Return the parts of the start that is under way."""
        return self.parts(self._clock() - self._start_began_at)

    # --- told -------------------------------------------------------------------------------------

    def on_event(self, news: LifecycleEvent) -> None:
        """Take an event."""
        match news:
            case StateChanged():
                self._on_state_changed(news)
            case ProviderCalled(call="start"):
                self._on_start_called(news)
            case ProviderProblem():
                self._problems[news.provider] = news.reason
            case SessionStarted():
                if self._segments[-1].doing is Doing.NO_GPU:  # it waited in the provider's queue
                    self._enter(Doing.BOOTING, news.provider)
            case RequestWaited():
                self._waits.append(Wait(news, self.parts(news.waited_s)))

    def _enter(self, doing: Doing, provider: str, reason: str = "", at: float | None = None) -> None:
        segment = Segment(self._clock() if at is None else at, doing, provider, reason)
        last = self._segments[-1]
        if last.since >= segment.since:  # nothing of the last one's time is left
            self._segments.pop()
            segment = evolve(segment, since=last.since)
        elif evolve(last, since=segment.since) == segment:
            return
        self._segments.append(segment)

    # The result of a call of `start()`:
    #
    # 1. After another provider has failed no change of state tells that this one was called.
    # 2. It failed: what was taken for the boot was none.
    def _on_start_called(self, news: ProviderCalled) -> None:
        began_at = self._clock() - news.seconds
        if self._segments[-1].doing in (Doing.FAILING, Doing.NO_GPU):  # 1
            self._enter(Doing.BOOTING, news.provider, at=max(began_at, self._segments[-1].since))
        if news.outcome != "ok":  # 2
            self._fail(news.provider, news.outcome)

    def _fail(self, provider: str, reason: str) -> None:
        """Count the time of this provider's start, up to now, as failing."""
        since = self._clock()
        while self._segments and self._segments[-1].doing in (Doing.BOOTING, Doing.PULLING, Doing.LOADING):
            since = self._segments.pop().since
        out = Segment(since, Doing.NO_GPU, provider) if reason == "capacity" else None
        self._segments.append(out or Segment(since, Doing.FAILING, provider, reason))

    def _on_state_changed(self, news: StateChanged) -> None:
        provider, doing, last = news.provider or "", _DOING[news.now], self._segments[-1]
        if news.was is StateName.READY:
            self._note_last_use(news.run_id, provider)
        failed = news.now in (StateName.BACKING_OFF, StateName.CALLING_START)
        if news.was in _COMING_UP and (failed or news.stop_cause is StopCause.START_FAILED):
            self._fail(last.provider, self._problems.get(last.provider, "transient"))
        elif doing is Doing.FAILING and last.doing in (Doing.FAILING, Doing.NO_GPU):
            return  # its reason is known
        if news.now is StateName.PROVISIONING and last.doing is Doing.NO_GPU:
            return  # in the provider's queue
        if last.doing in _REST and doing not in _REST:
            self._start_began_at = self._clock()
        if doing is not Doing.FAILING:
            self._enter(doing, "" if doing in _REST else provider)
        if news.now is StateName.READY and news.was in _COMING_UP:
            notes = self._notes_of(provider)
            notes.parts = notes.parts or self.starting_parts()

    def _note_last_use(self, run_id: int, provider: str) -> None:
        use = self._last_use()
        if use is not None and use[0] == run_id:
            self._notes_of(provider).last_use = use[1:]

    def _notes_of(self, provider: str) -> SessionNotes:
        session_id = self._session_of(provider)
        if session_id is None:
            return SessionNotes()
        while len(self._sessions) >= KEPT_SESSIONS and session_id not in self._sessions:
            self._sessions.popitem(last=False)
        return self._sessions.setdefault(session_id, SessionNotes())
