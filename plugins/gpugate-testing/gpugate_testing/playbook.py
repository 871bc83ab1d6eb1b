"""Plays a script against the pure machine and shows where the two part; knows no loop and no real clock.

A `Play` is a list of moments. Between them the machine's own clock runs: at each `wake_at` it gets its
`TimePassed`. Looks and health checks are answered by the scenery (`sees`, `feels`); starts, stops and
preloads are answered by the script, because their order is what most stories are about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import ndiff
from typing import Any

from attrs import define, field, frozen

from gpugate.core.idle_policy import IdlePolicy
from gpugate.core.machine import PodMachine
from gpugate.core.policy import Pace, Policy
from gpugate.core.vocabulary import (
    Admit,
    Complain,
    Cut,
    Effect,
    Event,
    Look,
    Looked,
    LookFailed,
    Owe,
    Preload,
    Preloaded,
    Probe,
    Probed,
    Refuse,
    Reply,
    Requeue,
    SessionClosed,
    SessionOpened,
    StartAccepted,
    StartPod,
    StartRefused,
    StopAccepted,
    StopPod,
    StopRefused,
    Sweep,
    TimePassed,
    Weigh,
    Weighed,
)
from gpugate.errors import ProviderError
from gpugate.provider_api import Endpoint, Phase, PodReport

STOPPED = PodReport(Phase.STOPPED, "pod-1")
STARTING = PodReport(Phase.STARTING, "pod-1")
QUEUED = PodReport(Phase.QUEUED, "pod-1")
RUNNING = PodReport(Phase.RUNNING, "pod-1", {"ollama": Endpoint("http://127.0.0.1:1")})

ONE = (Pace(name="alpha"),)
TWO = (Pace(name="alpha"), Pace(name="beta"))

_MOST_STEPS = 100_000


@frozen
class Accepted:
    """The oldest start that is out at this provider is accepted."""

    provider: int = 0
    report: PodReport = STARTING
    up_s: float = 0.0


@frozen
class Refused:
    """The oldest start that is out at this provider fails."""

    error: ProviderError
    provider: int = 0


@frozen
class Obeyed:
    """The oldest stop that is out at this provider is accepted."""

    provider: int = 0


@frozen
class Balked:
    """The oldest stop that is out at this provider fails."""

    error: ProviderError
    provider: int = 0


@frozen
class Loaded:
    """The preload ends; `on_cpu` if the model was seen to run on the CPU only."""

    on_cpu: bool = False


Answer = Accepted | Refused | Obeyed | Balked | Loaded


def told(effect: Effect) -> str:
    """Say an effect in a few words, without the number that changes from story to story."""
    match effect:
        case StartPod(provider=provider):
            return f"start {provider}"
        case StopPod(provider=provider):
            return f"stop {provider}"
        case Look(provider=provider):
            return f"look {provider}"
        case Sweep(provider):
            return f"sweep {provider}"
        case Probe():
            return "probe"
        case Preload(model=model, embeds=embeds):
            return f"preload {model}{' (embeds)' if embeds else ''}"
        case Weigh():
            return "weigh"
        case Admit(ticket, run):
            return f"admit {ticket} run {run}"
        case Refuse(ticket, error):
            return f"refuse {ticket} {error.code}"
        case Requeue(ticket):
            return f"requeue {ticket}"
        case Cut(ticket):
            return f"cut {ticket}"
        case Reply(answer):
            return f"reply {answer.code if answer is not None else 'accepted'}"
        case Owe(providers):
            return "owe " + (" ".join(map(str, sorted(providers))) or "nothing")
        case SessionOpened(provider=provider, cause=cause, up_s=up_s):
            return f"session {provider} opens: {cause}" + (f", {up_s:g} s ago" if up_s else "")
        case SessionClosed(provider=provider, cause=cause):
            return f"session {provider} closes: {cause}"
        case Complain(provider=provider, reason=reason, alarm=alarm):
            return f"{'alarm' if alarm else 'complain'} {provider} {reason}"


def _as_set(kinds: Iterable[type[Any]]) -> frozenset[type[Any]]:
    return frozenset(kinds)


@define
class Play:
    """One story, told moment by moment.

    Attributes:
        policy: the numbers.
        chance: the die of the backoff's jitter, in [0, 1); 0.5 is no jitter.
        hidden: effects that the script need not mention.
        views: what a look at each provider shows: a report, an error, or None for no answer.
        healthy: what a health check says; None for no answer.
        on_cpu: whether the models that are loaded run on the CPU only; None for no answer.
        idle: how long a pod is kept that nobody uses; by default for the policy's `idle_timeout_s`.
    """

    policy: Policy = field(factory=lambda: Policy(providers=ONE))
    chance: float = 0.5
    owed: frozenset[int] = frozenset()
    hidden: frozenset[type[Any]] = field(default=(Look, Probe, Weigh, Complain, Owe), converter=_as_set)
    views: dict[int, PodReport | ProviderError | None] = field(factory=dict)
    ages: dict[int, float] = field(factory=dict)
    healthy: bool | None = True
    on_cpu: bool | None = False
    idle: IdlePolicy | None = None
    now: float = 0.0
    machine: PodMachine = field(init=False)
    refusals: dict[int, Any] = field(factory=dict)
    _out: list[Effect] = field(factory=list)
    _script: list[str] = field(factory=list)
    _heard: list[Effect] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.machine = PodMachine(self.policy, lambda: self.chance, self.owed, self.idle)
        for provider in range(len(self.policy.providers)):
            self.views.setdefault(provider, STOPPED)

    # --- scenery ------------------------------------------------------------------------------

    def sees(self, provider: int, view: PodReport | ProviderError | Phase | None, up_s: float = 0.0) -> Play:
        """From now on looks at this provider show this."""
        self.views[provider] = PodReport(view, "pod-1") if isinstance(view, Phase) else view
        self.ages[provider] = up_s
        self._answer_scenery()
        return self

    def feels(self, healthy: bool | None) -> Play:
        """From now on health checks say this."""
        self.healthy = healthy
        self._answer_scenery()
        return self

    # --- script -------------------------------------------------------------------------------

    def at(
        self,
        when: float,
        *events: Event | Answer,
        gives: Sequence[str] | None = None,
        state: type[Any] | None = None,
    ) -> Play:
        """Let the time run until `when`, then these events happen.

        Args:
            when: in seconds; never before the last moment.
            events: what happens, in order.
            gives: every effect since the last moment, `hidden` kinds left out; None does not ask.
            state: what the machine's state is an instance of afterwards.

        Raises:
            AssertionError: the machine does something else; the message shows the story so far.
        """
        __tracebackhide__ = True
        self._run_until(when)
        for event in events:
            self._feed(self._resolve(event))
        happened = [told(effect) for effect in self._heard if type(effect) not in self.hidden]
        self._heard.clear()
        label = f"{when:>8g} s  {', '.join(map(_name, events)) or 'time passes'}"
        if gives is not None and list(gives) != happened:
            raise AssertionError(self._parting(label, gives, happened))
        if state is not None and not isinstance(self.machine.state, state):
            raise AssertionError(self._parting(label, [state.__name__], [repr(self.machine.state)]))
        self._script.append(f"{label} -> {'; '.join(happened) or 'nothing'}")
        return self

    def out(self, kind: type[Any]) -> list[Any]:
        """The effects of this kind that wait for their answer."""
        return [effect for effect in self._out if isinstance(effect, kind)]

    # --- machinery ----------------------------------------------------------------------------

    def _run_until(self, when: float) -> None:
        assert when >= self.now, f"the script goes back from {self.now:g} s to {when:g} s"
        for _ in range(_MOST_STEPS):
            wake_at = self.machine.wake_at
            if wake_at > when:
                self.now = when
                return
            self.now = max(self.now, wake_at)
            self._feed(TimePassed())
        raise AssertionError(self._parting("the clock stands still", ["progress"], [f"at {self.now:g} s"]))

    def _feed(self, event: Event) -> None:
        effects = self.machine.handle(event, self.now)
        self._heard += effects
        self._out += [
            e for e in effects if isinstance(e, StartPod | StopPod | Look | Probe | Preload | Weigh)
        ]
        self.refusals |= {e.ticket: e.error for e in effects if isinstance(e, Refuse)}
        self._answer_scenery()

    def _answer_scenery(self) -> None:
        for effect in list(self._out):
            if effect not in self._out:
                continue
            if isinstance(effect, Probe) and self.healthy is not None:
                self._out.remove(effect)
                self._feed(Probed(effect.op, self.healthy, "" if self.healthy else "connection refused"))
            elif isinstance(effect, Weigh) and self.on_cpu is not None:
                self._out.remove(effect)
                self._feed(Weighed(effect.run, self.on_cpu))
            elif isinstance(effect, Look) and (view := self.views[effect.provider]) is not None:
                self._out.remove(effect)
                self._feed(self._seen(effect, view))

    def _seen(self, look: Look, view: PodReport | ProviderError) -> Event:
        if isinstance(view, ProviderError):
            return LookFailed(look.op, look.provider, view)
        return Looked(look.op, look.provider, view, self.ages.get(look.provider, 0.0))

    def _resolve(self, event: Event | Answer) -> Event:
        match event:
            case Accepted(provider, report, up_s):
                return StartAccepted(self._take(StartPod, provider), report, up_s)
            case Refused(error, provider):
                return StartRefused(self._take(StartPod, provider), error)
            case Obeyed(provider):
                return StopAccepted(self._take(StopPod, provider))
            case Balked(error, provider):
                return StopRefused(self._take(StopPod, provider), error)
            case Loaded(on_cpu):
                return Preloaded(self._take(Preload, None), on_cpu)
        return event

    def _take(self, kind: type[Any], provider: int | None) -> int:
        for effect in self.out(kind):
            if provider is None or effect.provider == provider:
                self._out.remove(effect)
                return int(effect.op)
        waiting = [told(effect) for effect in self._out]
        raise AssertionError(
            self._parting(f"{self.now:>8g} s", [f"a {kind.__name__} that waits for its answer"], waiting)
        )

    def _parting(self, label: str, expected: Sequence[str], happened: Sequence[str]) -> str:
        story = "\n".join(self._script)
        parting = "\n".join(ndiff([f"{line}" for line in expected], [f"{line}" for line in happened]))
        return f"the story so far\n{story}\nparts here (- the script, + the machine)\n{label}\n{parting}"


def _name(event: object) -> str:
    return type(event).__name__


def policy(count: int = 1, **numbers: Any) -> Policy:
    """The contract's defaults for one or two providers, with these numbers changed."""
    return Policy(providers=(ONE if count == 1 else TWO), **numbers)
