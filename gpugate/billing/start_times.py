"""How long starts take, learned from the ledger's sessions and from the starts of this process.

A start lasts from the first call of its provider to READY. The ledger does not know which model was loaded,
so its starts count for every model of their provider.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from attrs import define, field, frozen

from gpugate.billing.model import Session

KEPT_STARTS = 50
"""How many starts are kept of each provider and model; older ones tell too little of today's."""
KEPT_MODELS = 100
"""Of how many providers and models starts are kept; the one that was first learned makes room."""
NO_MODEL = ""
"""The model of a start that loaded none."""


@frozen
class ReadyIn:
    """How long a start will still take: the median, and what nine starts of ten did not exceed."""

    p50_s: float
    p90_s: float


@define
class StartTimes:
    """The durations of a pod's latest starts by provider and model; the model is None if it is not known."""

    _seconds: dict[tuple[str, str | None], deque[float]] = field(factory=dict)

    def add(self, provider: str, model: str | None, seconds: float) -> None:
        """Take up a start that has ended with READY."""
        key = provider, model and model.removesuffix(":latest")
        if key not in self._seconds and len(self._seconds) >= KEPT_MODELS:
            del self._seconds[next(iter(self._seconds))]
        self._seconds.setdefault(key, deque(maxlen=KEPT_STARTS)).append(seconds)

    def add_sessions(self, sessions: Iterable[Session]) -> None:
        """Take up the starts in the ledger, oldest first; adopted pods were not started by gpugate."""
        for row in sessions:
            if row.ready_at is not None and row.start_reason != "adopted":
                self.add(row.provider, None, (row.ready_at - row.asked_at).total_seconds())

    # Which starts are compared with:
    #
    # 1. Those of the same model, and those of which the model is not known.
    # 2. If there are none: all of the provider.
    # 3. Of these the ones that took longer than this one has taken: an estimate never says "now" while
    #    there is one from which more can be expected.
    def ready_in(self, provider: str, model: str, elapsed_s: float) -> ReadyIn | None:
        """Return how long a start that has taken `elapsed_s` will still take; None: it is not known."""
        known = [*self._of(provider, model), *self._of(provider, None)]  # 1
        if not known:  # 2
            known = [
                seconds for name, each in self._seconds.items() if name[0] == provider for seconds in each
            ]
        if not known:
            return None
        left = sorted(seconds - elapsed_s for seconds in known if seconds > elapsed_s)  # 3
        return ReadyIn(quantile(left, 0.5), quantile(left, 0.9)) if left else ReadyIn(0.0, 0.0)

    def _of(self, provider: str, model: str | None) -> Iterable[float]:
        return self._seconds.get((provider, model and model.removesuffix(":latest")), ())


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which this share of the values lies, between two neighbours in proportion."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
