"""The rows of the table from an accepted start to a ready pod: watching, health, preload."""

from __future__ import annotations

from typing import TypeVar

from attrs import evolve

from gpugate.core.pending_stops import ON_ITS_WAY, PROOF
from gpugate.core.starting import STARTED, NeverWarm, StartingRows
from gpugate.core.transition_table import transition
from gpugate.core.vocabulary import (
    Draining,
    Failed,
    Looked,
    OnItsWay,
    Preload,
    Preloaded,
    Preloading,
    Probe,
    Probed,
    Provisioning,
    Ready,
    Rest,
    Stopping,
    TimePassed,
    Warming,
    Weigh,
)
from gpugate.errors import Ambiguous, NoCapacity, NotFound, Transient
from gpugate.provider_api import Phase, PodReport

Warms = TypeVar("Warms", Warming, Preloading)

ON_CPU = "the model runs on the CPU only"
NO_GPU = "the pod has no GPU"


def _waits_for(report: PodReport) -> str:
    """What a pod on its way is waiting for, for people."""
    if report.detail or report.phase is not Phase.RUNNING:
        return report.detail
    return "running, but the provider tells no address of its Ollama"


class WarmingRows(StartingRows):
    """Provisioning, Warming, Preloading."""

    # --- from accepted to healthy -------------------------------------------------------------

    @transition
    def _watch_start(self, was: Provisioning, event: Looked, now: float) -> OnItsWay:
        """Running with an address: warm it. Stopped, failed, gone or queued too long: it failed."""
        return was if event.provider != was.provider else self._progress(was, event.report, event.up_s, now)

    def _progress(self, was: Provisioning, report: PodReport, up_s: float, now: float) -> OnItsWay:
        if report.phase in ON_ITS_WAY and report.phase is not Phase.QUEUED:
            self._open_session(was.provider, was.run, self.start_cause, report, up_s, now)
        if report.phase is Phase.RUNNING and report.cpu_only and self._may_move_on(was):
            return self._leave_provider(was, NoCapacity(NO_GPU), now)
        if report.phase is Phase.RUNNING and "ollama" in report.endpoints:
            return Warming(
                run=was.run,
                provider=was.provider,
                attempt=was.attempt,
                endpoints=report.endpoints,
                since=was.since,
                began_at=now,
                probe=None,
                probe_at=now,
                flaw=NO_GPU if report.cpu_only else "",
                said=report.detail,
            )
        if report.phase is Phase.QUEUED and (now >= was.capacity_until or not self._demanded):
            # Left alone it would run some day, and bill unused (docs/providers.md#vastai-queued-starts).
            error = NoCapacity(report.detail or "no GPU is free, the start is queued", queued=True)
            return self._leave_provider(was, error, now)
        if report.phase is Phase.QUEUED:
            return evolve(was, accepted_at=now)  # its time to start begins when it leaves the queue
        if report.phase is Phase.STOPPED and now - was.accepted_at < self.policy.health_interval_s:
            return was  # a read may lag behind the start it should show (docs/providers.md#vastai-creation)
        return self._check_alive(was, report, now) or evolve(was, said=_waits_for(report))

    def _check_alive(self, was: STARTED, report: PodReport, now: float) -> Failed | None:
        if report.phase is Phase.GONE:
            return self._leave_provider(was, NotFound(report.detail or "the pod is gone"), now)
        if report.phase in (Phase.STOPPED, Phase.FAILED):
            said = report.detail or f"the pod is {report.phase}"
            return self._failed(was, Transient(said, output=report.output), now)
        return None

    @transition
    def _run_out_of_time(self, was: Provisioning, event: TimePassed, now: float) -> Rest:
        """Accepted, but not running within `pod.start_timeout`, or its `pod.max_session` is over."""
        if now >= self.session_ends:
            return self._end_unserved(was, now)
        said = f"accepted, but not running within {self.policy.start_timeout_s:g} s"
        return self._leave_provider(was, Ambiguous(self._because(said, was)), now)

    def _because(self, said: str, was: Provisioning | Warming) -> str:
        """With what the last look said: who reads "too late" has to know of what."""
        blind = self.blind.get(was.provider, "").removeprefix(f"{self._name(was.provider)}: ")
        why = blind or was.said
        return f"{said}: {why}" if why else said

    @transition
    def _watch_warming(self, was: Warms, event: Looked, now: float) -> Warms | Failed:
        """A pod that stops while it warms has failed; an address may still change."""
        if event.provider != was.provider:
            return was
        if event.report.phase is Phase.RUNNING and "ollama" in event.report.endpoints:
            return evolve(was, endpoints=event.report.endpoints)
        if was.served and event.report.phase in PROOF | {Phase.FAILED}:
            return self._lose_pod(was, event, now)
        return self._check_alive(was, event.report, now) or was

    def _lose_pod(self, was: Warming | Preloading | Ready | Draining, event: Looked, now: float) -> Rest:
        """A pod that served is gone: who has no answer yet waits for a new start (docs/api.md#retries)."""
        phase = event.report.phase
        said = event.report.detail or f"the pod is {phase} behind our back"
        self._complain(was.provider, Transient(said, output=event.report.output).in_full)
        self._lose_leases(now)
        if phase in PROOF:
            self._close_session(was.provider, "lost")
            self.looks.schedule(was.provider, now + self.policy.watch_pause_s(was.provider))
        else:
            self._order_stop(was.provider, "lost", now)
        return self._rest(now)

    @transition
    def _mind_warming(self, was: Warming, event: TimePassed, now: float) -> Warming | Draining | Rest:
        """Check health again; give up after `pod.warmup_timeout`, or when `pod.max_session` is over."""
        if now >= self.session_ends:
            return self._end_session(was, now)
        if now >= was.began_at + self.policy.warmup_timeout_s:
            return self._leave_provider(was, NeverWarm(self._because("pod failed to become ready", was)), now)
        op = self._next_op()
        self._effects.append(Probe(op, was.endpoints["ollama"]))
        pause = self.policy.probe_pause_s(was.provider, now - was.since)
        return evolve(was, probe=op, probe_at=now + pause)

    @transition
    def _hear_probe(self, was: Warming, event: Probed, now: float) -> Warming | Preloading | Ready:
        """Healthy: preload the first waiting request's model, or serve."""
        if event.op != was.probe:
            return was
        if not event.healthy:
            return evolve(was, probe=None)
        wanted = self._to_preload()
        if wanted is None:
            self._effects.append(Weigh(was.run, was.endpoints["ollama"]))
            return self._ready(was, now)
        op = self._next_op()
        self._effects.append(Preload(op, was.endpoints["ollama"], *wanted))
        return Preloading(
            run=was.run,
            provider=was.provider,
            attempt=was.attempt,
            endpoints=was.endpoints,
            since=was.since,
            op=op,
            give_up_at=now + self.policy.preload_limit_s,
            served=was.served,
            flaw=was.flaw,
        )

    def _to_preload(self) -> tuple[str, bool] | None:
        """The model to load before READY, and whether it embeds."""
        if self.policy.preload == "none":
            return None
        if self.policy.preload != "requested":
            return self.policy.preload, False
        first = next(iter(self.backlog.waiting), None)
        return (first.model, first.embeds) if first is not None and first.model else None

    @transition
    def _end_preload(self, was: Preloading, event: Preloaded, now: float) -> Preloading | Ready | Rest:
        """Loaded or failed: a preload never fails a start. On the CPU: the next provider, if there is one."""
        if event.op != was.op:
            return was
        if not event.on_cpu:
            return self._ready(was, now)
        if not was.served and self._may_move_on(was):
            return self._leave_provider(was, NoCapacity(ON_CPU), now)
        return self._ready(evolve(was, flaw=ON_CPU), now)

    @transition
    def _end_wait(self, was: Preloading, event: TimePassed, now: float) -> Ready | Draining | Rest:
        """The preload takes too long: the pod serves without it, unless its `pod.max_session` is over."""
        return self._end_session(was, now) if now >= self.session_ends else self._ready(was, now)

    # --- the session's limit ------------------------------------------------------------------

    def _end_session(self, was: Warming | Preloading, now: float) -> Draining | Rest:
        return self._drain_out(was, "max_session", now) if was.served else self._end_unserved(was, now)

    def _end_unserved(self, was: Provisioning | Warming | Preloading, now: float) -> Rest:
        """Over before it served. What was older than this start gets a new one; else that would go on so
        for ever, paid each time: it has failed.
        """
        _, began = self.sessions[was.provider]
        if began < was.since:
            return self._stop(was.provider, "max_session", now)
        return self._leave_provider(was, NeverWarm("pod.max_session was over before the pod was ready"), now)

    def _drain_out(self, was: Warming | Preloading | Ready, cause: str, now: float) -> Draining | Stopping:
        if not self.backlog.leases:
            return self._stop(was.provider, cause, now)
        until = now + self.policy.shutdown_grace_s
        return Draining(run=was.run, provider=was.provider, endpoints=was.endpoints, until=until, cause=cause)

    def _stop(self, provider: int, cause: str, now: float) -> Stopping:
        self._order_stop(provider, cause, now)
        return Stopping()

    def _may_move_on(self, was: Provisioning | Preloading) -> bool:
        """Somebody wants a better pod, and the list has one that can be asked now."""
        return self._demanded and self._next_free(was.provider + 1) is not None

    def _ready(self, was: Warming | Preloading, now: float) -> Ready:
        self.start_wanted = False
        self.trouble = None
        if not was.served and self._asked[1] == was.run:
            self.pauses.idle.started(now - was.since)
        if not self.backlog.leases:
            self.backlog.quiet_since = now
        for provider in range(len(self.policy.providers)):
            if provider not in self.stops.orders:
                self.looks.schedule(provider, now + self.policy.watch_pause_s(provider))
        if was.flaw:
            self._complain(was.provider, was.flaw, NoCapacity(was.flaw))
        return Ready(run=was.run, provider=was.provider, endpoints=was.endpoints)
