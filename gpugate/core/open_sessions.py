"""The billed sessions that are open: from an accepted start to a confirmed stop."""

from __future__ import annotations

from attrs import define, field

from gpugate.core.commands import RecordSessionEnd, RecordSessionStart, StartCause, StopCause
from gpugate.provider_api import PodReport


@define
class OpenSessions:
    """At most one session per provider; `by_provider` holds its run and when it began."""

    by_provider: dict[int, tuple[int, float]] = field(factory=dict)

    def __contains__(self, provider: object) -> bool:
        return provider in self.by_provider

    def began_at(self, provider: int) -> float:
        """Return when the session of this provider began; it must be open."""
        return self.by_provider[provider][1]

    def open(
        self, provider: int, run_id: int, cause: StartCause, report: PodReport, up_s: float, now: float
    ) -> list[RecordSessionStart]:
        """Open a session that began `up_s` ago. An open one, whose stop was never confirmed, goes on."""
        if provider in self.by_provider:
            return []
        self.by_provider[provider] = (run_id, now - up_s)
        return [RecordSessionStart(run_id=run_id, provider=provider, cause=cause, report=report, up_s=up_s)]

    def close(self, provider: int, cause: StopCause) -> list[RecordSessionEnd]:
        """Close the session of this provider, if one is open."""
        session = self.by_provider.pop(provider, None)
        if session is None:
            return []
        return [RecordSessionEnd(run_id=session[0], provider=provider, cause=cause)]
