"""Runs scripted scenarios against the pure state machine and shows where script and machine differ.

A `Scenario` is a list of moments in time. Between them the machine's deadlines are run: at each
`next_deadline_at` it gets a `DeadlineReached`. Inspections and health probes are answered from what
`set_report` and `set_health` say; starts, stops, scale calls and preloads are answered by the script, because
most scenarios are about their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import ndiff
from typing import Any

from attrs import define, evolve, field, frozen

from gpugate.core.commands import (
    AbortResponse,
    Admit,
    CheckDevice,
    CleanUpOrphans,
    Command,
    InspectPod,
    ListModels,
    PersistPendingStops,
    PreloadModel,
    Probe,
    PublishProviderProblem,
    PullModel,
    RecordSessionEnd,
    RecordSessionStart,
    Reject,
    Requeue,
    ResolveManualRequest,
    ScalePod,
    StartPod,
    StopPod,
)
from gpugate.core.events import (
    DeadlineReached,
    DeviceChecked,
    Event,
    InspectFailed,
    ModelPulled,
    ModelsListed,
    PodInspected,
    PreloadFinished,
    ProbeFinished,
    ScaleAnswered,
    StartAccepted,
    StartCallFailed,
    StopAccepted,
    StopCallFailed,
)
from gpugate.core.idle_policy import IdlePolicy
from gpugate.core.machine import PodMachine
from gpugate.core.policy import Policy, ProviderLimits
from gpugate.core.transitions import TABLE
from gpugate.errors import ProviderError
from gpugate.provider_api import Endpoint, Phase, PodReport

STOPPED = PodReport(Phase.STOPPED, "pod-1")
STARTING = PodReport(Phase.STARTING, "pod-1")
QUEUED = PodReport(Phase.QUEUED, "pod-1")
RUNNING = PodReport(Phase.RUNNING, "pod-1", {"ollama": Endpoint("http://127.0.0.1:1")})

ONE = (ProviderLimits(name="alpha"),)
TWO = (ProviderLimits(name="alpha"), ProviderLimits(name="beta"))

_MOST_STEPS = 100_000


@frozen
class StartOk:
    """The oldest start that is out at this provider is accepted."""

    provider: int = 0
    report: PodReport = STARTING
    up_s: float = 0.0


@frozen
class StartError:
    """The oldest start that is out at this provider fails."""

    error: ProviderError
    provider: int = 0


@frozen
class StopOk:
    """The oldest stop that is out at this provider is accepted."""

    provider: int = 0


@frozen
class StopError:
    """The oldest stop that is out at this provider fails."""

    error: ProviderError
    provider: int = 0


@frozen
class PreloadOk:
    """The preload ends; `on_cpu` if the model was seen to run on the CPU only."""

    on_cpu: bool = False


@frozen
class Listed:
    """The pod tells which models it has."""

    models: tuple[str, ...] = ()


@frozen
class PullEnd:
    """The pull that is out ends, as `ModelPulled` says."""

    error: str = ""
    anywhere: bool = False


@frozen
class ScaleOk:
    """The scale call that is out is accepted; `report` None: so many replicas run at once."""

    report: PodReport | None = None


@frozen
class ScaleError:
    """The scale call that is out fails."""

    error: ProviderError


Answer = StartOk | StartError | StopOk | StopError | PreloadOk | Listed | PullEnd | ScaleOk | ScaleError


def describe_command(effect: Command) -> str:
    """Say an effect in a few words, without the number that changes from story to story."""
    match effect:
        case StartPod(provider=provider):
            return f"start {provider}"
        case StopPod(provider=provider):
            return f"stop {provider}"
        case InspectPod(provider=provider):
            return f"look {provider}"
        case ScalePod(provider=provider, replicas=replicas):
            return f"scale {provider} to {replicas}"
        case CleanUpOrphans(provider):
            return f"sweep {provider}"
        case Probe():
            return "probe"
        case ListModels():
            return "list models"
        case PullModel(model=model):
            return f"pull {model}"
        case PreloadModel(model=model, options=options):
            return f"preload {model}{' (embeds)' if options.embeds else ''}"
        case CheckDevice():
            return "weigh"
        case Admit(ticket, run):
            return f"admit {ticket} run {run}"
        case Reject(ticket, error):
            return f"refuse {ticket} {error.code}"
        case Requeue(ticket):
            return f"requeue {ticket}"
        case AbortResponse(ticket):
            return f"cut {ticket}"
        case ResolveManualRequest(answer):
            return f"reply {answer.code if answer is not None else 'accepted'}"
        case PersistPendingStops(providers):
            return "owe " + (" ".join(map(str, sorted(providers))) or "nothing")
        case RecordSessionStart(provider=provider, cause=cause, up_s=up_s):
            return f"session {provider} opens: {cause}" + (f", {up_s:g} s ago" if up_s else "")
        case RecordSessionEnd(provider=provider, cause=cause):
            return f"session {provider} closes: {cause}"
        case PublishProviderProblem(provider=provider, reason=reason, alarm=alarm):
            return f"{'alarm' if alarm else 'complain'} {provider} {reason}"


def _as_set(kinds: Iterable[type[Any]]) -> frozenset[type[Any]]:
    return frozenset(kinds)


@define
class Scenario:
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
    inherited: frozenset[int] = frozenset()
    hidden: frozenset[type[Any]] = field(
        default=(InspectPod, Probe, CheckDevice, PublishProviderProblem, PersistPendingStops),
        converter=_as_set,
    )
    views: dict[int, PodReport | ProviderError | None] = field(factory=dict)
    ages: dict[int, float] = field(factory=dict)
    healthy: bool | None = True
    on_cpu: bool | None = False
    idle: IdlePolicy | None = None
    now: float = 0.0
    machine: PodMachine = field(init=False)
    refusals: dict[int, Any] = field(factory=dict)
    _out: list[Command] = field(factory=list)
    _script: list[str] = field(factory=list)
    _heard: list[Command] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.machine = PodMachine(
            TABLE, self.policy, lambda: self.chance, self.owed, self.idle, self.inherited
        )
        for provider in range(len(self.policy.providers)):
            self.views.setdefault(provider, STOPPED)

    # --- scenery ------------------------------------------------------------------------------

    def set_report(
        self, provider: int, view: PodReport | ProviderError | Phase | None, up_s: float = 0.0
    ) -> Scenario:
        """From now on looks at this provider show this."""
        self.views[provider] = PodReport(view, "pod-1") if isinstance(view, Phase) else view
        self.ages[provider] = up_s
        self._answer_scenery()
        return self

    def set_health(self, healthy: bool | None) -> Scenario:
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
    ) -> Scenario:
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
        happened = [describe_command(effect) for effect in self._heard if type(effect) not in self.hidden]
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
            wake_at = self.machine.next_deadline_at
            if wake_at > when:
                self.now = when
                return
            self.now = max(self.now, wake_at)
            self._feed(DeadlineReached())
        raise AssertionError(self._parting("the clock stands still", ["progress"], [f"at {self.now:g} s"]))

    def _feed(self, event: Event) -> None:
        effects = self.machine.handle(event, self.now)
        self._heard += effects
        self._out += [
            e
            for e in effects
            if isinstance(
                e,
                StartPod
                | StopPod
                | ScalePod
                | InspectPod
                | Probe
                | ListModels
                | PullModel
                | PreloadModel
                | CheckDevice,
            )
        ]
        self.refusals |= {e.ticket: e.error for e in effects if isinstance(e, Reject)}
        self._answer_scenery()

    def _answer_scenery(self) -> None:
        for effect in list(self._out):
            if effect not in self._out:
                continue
            if isinstance(effect, Probe) and self.healthy is not None:
                self._out.remove(effect)
                self._feed(
                    ProbeFinished(effect.op, self.healthy, "" if self.healthy else "connection refused")
                )
            elif isinstance(effect, CheckDevice) and self.on_cpu is not None:
                self._out.remove(effect)
                self._feed(DeviceChecked(effect.run_id, self.on_cpu))
            elif isinstance(effect, InspectPod) and (view := self.views[effect.provider]) is not None:
                self._out.remove(effect)
                self._feed(self._seen(effect, view))

    def _seen(self, look: InspectPod, view: PodReport | ProviderError) -> Event:
        if isinstance(view, ProviderError):
            return InspectFailed(look.op, look.provider, view)
        return PodInspected(look.op, look.provider, view, self.ages.get(look.provider, 0.0))

    def _resolve(self, event: Event | Answer) -> Event:
        match event:
            case StartOk(provider, report, up_s):
                return StartAccepted(self._take(StartPod, provider), report, up_s)
            case StartError(error, provider):
                return StartCallFailed(self._take(StartPod, provider), error)
            case StopOk(provider):
                return StopAccepted(self._take(StopPod, provider))
            case StopError(error, provider):
                return StopCallFailed(self._take(StopPod, provider), error)
            case Listed(models):
                return ModelsListed(self._take(ListModels, None), frozenset(models))
            case PullEnd(error, anywhere):
                return ModelPulled(self._take(PullModel, None), error, anywhere)
            case PreloadOk(on_cpu):
                return PreloadFinished(self._take(PreloadModel, None), on_cpu)
            case ScaleOk(report):
                asked = self.out(ScalePod)[0].replicas if self.out(ScalePod) else 1
                return ScaleAnswered(self._take(ScalePod, None), report or evolve(RUNNING, replicas=asked))
            case ScaleError(error):
                return ScaleAnswered(self._take(ScalePod, None), error)
        return event

    def _take(self, kind: type[Any], provider: int | None) -> int:
        for effect in self.out(kind):
            if provider is None or effect.provider == provider:
                self._out.remove(effect)
                return int(effect.op)
        waiting = [describe_command(effect) for effect in self._out]
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
