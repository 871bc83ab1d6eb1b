"""`gpugate provider-check`: checks a plugin against the user's own account.

Without `--spend` it is read-only. With it the pod is started once, and whatever happens in between, the
command ends by stopping it until an inspection confirms the stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable
from decimal import ROUND_UP, Decimal
from typing import Any, TextIO

import aiohttp
from attrs import define, evolve, field, frozen

from gpugate.cli.errors import FAILED, OK
from gpugate.cli.parser import gpugate_version
from gpugate.cli.settings import settings_as_given
from gpugate.config import Settings, provider_config
from gpugate.errors import ProviderError, RateLimited
from gpugate.lifecycle.pod_calls import OllamaPodClient
from gpugate.observability.redact import secrets_of
from gpugate.provider_api import MAIN_POD, Capabilities, Endpoint, Phase, PodReport, Price, Provider
from gpugate.providers import registry
from gpugate.signals import handled
from gpugate_testing.fault_sessions import cut_session
from gpugate_testing.provider_validation import (
    OFF,
    ON,
    class_complaints,
    leaked_secrets,
    report_complaints,
)

CALL_LIMIT_S = 30.0
"""For one call: three times a provider's own timeout (docs/api.md#configuration)."""
CENT = Decimal("0.01")
STOP_LIMIT_S = 900.0
"""How long a stop is sent and looked after before the user is asked to do it."""


def _put(line: str, stream: TextIO) -> None:
    """Print a line; a terminal that was closed must not keep the pod from its stop."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=stream, flush=True)


class CheckFailed(Exception):
    """A check failed; the message is for the user and holds no secret."""


@frozen
class CheckLimits:
    """The intervals and time limits of a check, in seconds.

    Attributes:
        look_s: between two looks.
        start_limit_s: from an accepted start to a pod that runs.
        warmup_limit_s: from there to a healthy Ollama.
        stop_retry_s: before a stop that is not proved is sent again.
    """

    look_s: float
    start_limit_s: float
    warmup_limit_s: float
    stop_retry_s: float

    @classmethod
    def of(cls, settings: Settings, capabilities: Capabilities) -> CheckLimits:
        """That of the `[pod]` section, and the provider's own minimum."""
        pod = settings.pod
        look_s = max(pod.health_interval, capabilities.min_poll_s)
        return cls(look_s, pod.start_timeout, pod.warmup_timeout, max(pod.stop_retry, look_s))


def add_command(parser: ArgumentParser) -> Callable[[Namespace], int]:
    """Add the arguments of the command to its parser and return the function that runs it."""
    parser.description = "Check a provider plugin against your own account; read-only without --spend."
    parser.add_argument("name", metavar="NAME", help="as `gpugate providers` lists it")
    parser.add_argument(
        "--spend", action="store_true", help="also start the pod once; always ends with a confirmed stop"
    )
    return provider_check


def provider_check(args: Namespace) -> int:
    """Print a line a check; return 1 if one failed, or if the pod may still run."""
    settings = settings_as_given(args)
    kind = registry.find(args.name)
    pod = next((one for one in settings.pods if args.name in one.pod.provider), settings.pods[0])
    config = provider_config(settings, args.name, kind.Config, pod)
    os.environ["GPUGATE_STATE_DIR"] = settings.state.dir  # as `serve` hands it to the providers
    check = Check(args.name, kind, config, evolve(settings, pod=pod.pod), pod_name=pod.name)
    try:
        asyncio.run(check.run(spend=args.spend))
    except (KeyboardInterrupt, asyncio.CancelledError):
        check.fail("interrupted")
    finally:
        if check.owes_stop:
            check.fail(
                f"THE STOP IS NOT PROVED: {check.pod} may still be billed; stop it at the provider now"
            )
    return FAILED if check.failed else OK


@define
class Check:
    """One run of the command.

    Attributes:
        pod_name: in the configuration.
        failed: a claim did not hold.
        owes_stop: a start may have been accepted, and no look has proved the pod off since.
        price: as the last report had it.
        stop_limit_s: after so many seconds without a proof the user is asked to stop the pod.
    """

    name: str
    kind: type[Provider]
    config: Any = field(repr=False)
    settings: Settings = field(repr=False)
    failed: bool = False
    owes_stop: bool = False
    pod_name: str = MAIN_POD
    pod: str = "the pod"
    price: Price | None = None
    stop_limit_s: float = STOP_LIMIT_S
    _secrets: tuple[str, ...] = field(init=False, repr=False)
    _asked_at: float = field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        self._secrets = secrets_of(self.config)

    @property
    def pace(self) -> CheckLimits:
        """How patient this run is."""
        return CheckLimits.of(self.settings, self.kind.capabilities)

    def _provider(self, session: aiohttp.ClientSession) -> Provider:
        provider = self.kind(self.config, session)
        provider.pod_name = self.pod_name
        return provider

    # --- what is printed ----------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A claim that holds."""
        _put(f"ok    {text}", sys.stdout)

    def note(self, text: str) -> None:
        """Something that is neither."""
        _put(f"--    {text}", sys.stdout)

    def fail(self, text: str) -> None:
        """A claim that does not hold."""
        self.failed = True
        _put(f"FAIL  {text}", sys.stderr)

    # --- the run ------------------------------------------------------------------------------

    async def run(self, *, spend: bool) -> None:
        """All checks; with `spend` also those that start the pod."""
        task = asyncio.current_task()
        assert task is not None
        for number in handled() - {signal.SIGINT}:  # asyncio handles that one itself
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        headers = {"User-Agent": f"gpugate/{gpugate_version()}"}
        async with aiohttp.ClientSession(headers=headers, cookie_jar=aiohttp.DummyCookieJar()) as session:
            provider = self._provider(session)
            try:
                report = await self.look_only(provider)
                if spend:
                    await self.spend(provider, report, session)
                else:
                    self.note("nothing was started; the rest of the contract needs --spend")
            finally:
                await provider.aclose()

    async def look_only(self, provider: Provider) -> PodReport | None:
        """The part that changes nothing; returns the last sound report."""
        complaints = [*class_complaints(self.kind), *leaked_secrets(self._secrets, self.config, provider)]
        self.claim("its class is sound, and its secrets stay inside", complaints)
        if complaints:
            return None
        if (first := await self.step("it looks", self.sound(provider.inspect))) is None:
            return None
        self.learn(first)
        self.say(f"it looks: {self.pod} is {first.phase.value}" + f" ({first.detail})" * bool(first.detail))
        second: PodReport | None = await self.step("it looks again", self.sound(provider.inspect))
        if second is not None:
            same = (first.phase, first.pod_id) == (second.phase, second.pod_id)
            self.claim("two looks agree", [] if same else [f"{first.phase.value}, then {second.phase.value}"])
        await self.without_network()
        return second

    async def spend(
        self, provider: Provider, report: PodReport | None, session: aiohttp.ClientSession
    ) -> None:
        """The part that starts the pod; ends with a proved stop, or with `owes_stop`."""
        if self.failed or report is None:
            return self.fail("nothing was started: first the above must be right")
        if report.phase not in OFF:
            return self.fail(f"{self.pod} is {report.phase.value}: it is left alone; stop it first")
        self.note(self.estimate())
        began = self.now()
        self.owes_stop = True
        try:
            await self.life(provider, session)
        finally:
            await self.stop(provider)
            if not self.owes_stop:
                self.note(self.spent(self.now() - began))
        return None

    async def life(self, provider: Provider, session: aiohttp.ClientSession) -> None:
        """Start it, twice, and see it run from two sides."""
        began = self.now()
        if await self.step("a start is accepted", self.begun(provider), tell=True) is None:
            return
        if await self.step("a second start is accepted", self.begun(provider), tell=True) is None:
            return
        running = await self.step("it runs", self.until(provider, {Phase.RUNNING}, self.pace.start_limit_s))
        if running is None:
            return
        self.learn(running)
        self.say(f"it runs: {self.pod}, {running.gpu or 'GPU unknown'}, after {self.now() - began:.0f} s")
        await self.step("its Ollama is healthy", self.healthy(running, session), tell=True)
        other = self._provider(session)
        try:
            await self.step("a second gateway would find it", self.found(other, running), tell=True)
        finally:
            await other.aclose()

    async def stop(self, provider: Provider) -> None:
        """Stop it until a look proves it; a second Ctrl-C ends even that."""
        began, ask_at = self.now(), self.now()
        problem = "no look"
        while self.now() < began + self.stop_limit_s:
            try:
                if self.now() >= ask_at:
                    ask_at = self.now() + self.pace.stop_retry_s
                    await self.within(provider.stop)
                report = await self.sound(provider.inspect)
                if report.phase in OFF:
                    self.owes_stop = False
                    self.say(f"it is off, {self.now() - began:.0f} s after the stop: {report.phase.value}")
                    await self.step("a stop of what is off is accepted", self.stopped(provider), tell=True)
                    return
                problem = report.phase.value
            except (ProviderError, CheckFailed) as error:
                problem = str(error)
        self.fail(f"it is not off {self.stop_limit_s:.0f} s after the stop: {problem}")

    # --- single checks ------------------------------------------------------------------------

    async def without_network(self) -> None:
        """What it says when its cloud cannot be reached, if it uses the network at all."""
        asked: list[object] = []

        async def count(*about: object) -> None:
            asked.append(about)

        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(count)
        async with cut_session(trace) as session:
            provider = self._provider(session)
            try:
                report = await self.within(provider.inspect)
            except ProviderError as error:
                self.claim(
                    "without a network it says that it cannot look", leaked_secrets(self._secrets, error)
                )
            except CheckFailed as error:
                self.fail(f"without a network: {error}")
            else:
                if asked:
                    self.fail(f"without a network it says {report.phase.value} instead of raising an error")
                else:
                    self.note("it calls nobody through gpugate's session: no check of a broken network")
            finally:
                await provider.aclose()

    async def begun(self, provider: Provider) -> PodReport:
        """An accepted start."""
        report = await self.sound(provider.start)
        if report.phase not in ON:
            raise CheckFailed(f"the start was accepted, and the pod is {report.phase.value}")
        return report

    async def stopped(self, provider: Provider) -> PodReport:
        """An accepted stop."""
        return await self.sound(provider.stop)

    async def until(self, provider: Provider, phases: set[Phase], limit_s: float) -> PodReport:
        """Look until it is in one of these phases."""
        end = self.now() + limit_s
        while True:
            try:
                report = await self.sound(provider.inspect)
            except RateLimited as error:
                await asyncio.sleep(error.retry_after or self.pace.look_s)
                continue
            if report.phase in phases:
                return report
            if report.phase in OFF or report.phase is Phase.FAILED or self.now() > end:
                why = f" ({report.detail})" if report.detail else ""
                raise CheckFailed(f"it is {report.phase.value}{why}")

    async def healthy(self, running: PodReport, session: aiohttp.ClientSession) -> Endpoint:
        """Its Ollama answers, as the gateway asks it."""
        endpoint = running.endpoints.get("ollama")
        if endpoint is None:
            raise CheckFailed('the report of a running pod has no endpoint "ollama"')
        pod = OllamaPodClient(session, self.settings.pod.health_path)
        end = self.now() + self.pace.warmup_limit_s
        while (seen := await pod.check(endpoint)) is not None:
            if self.now() > end:
                raise CheckFailed(seen)
            await asyncio.sleep(min(self.pace.look_s, 1.0))
        return endpoint

    async def found(self, other: Provider, running: PodReport) -> PodReport:
        """Another object of the same configuration sees the same pod."""
        report = await self.until(other, {Phase.RUNNING}, self.pace.start_limit_s)
        if report.pod_id != running.pod_id:
            raise CheckFailed(f"it finds {report.pod_id}, not {running.pod_id}")
        return report

    # --- calls --------------------------------------------------------------------------------

    async def step(self, claim: str, work: Awaitable[Any], *, tell: bool = False) -> Any:
        """Do one thing; None, and a line about it, if it fails."""
        try:
            done = await work
        except (ProviderError, CheckFailed) as error:
            self.fail(f"{claim}: {self.clean(str(error))}")
            return None
        if tell:
            self.say(claim)
        return done

    async def sound(self, call: Callable[[], Awaitable[PodReport]]) -> PodReport:
        """One call at the provider's pace, and its report judged."""
        await asyncio.sleep(max(0.0, self._asked_at + self.pace.look_s - self.now()))
        try:
            report = await self.within(call)
        finally:
            self._asked_at = self.now()
        if complaints := [*report_complaints(report), *leaked_secrets(self._secrets, report)]:
            raise CheckFailed("; ".join(complaints))
        return report

    async def within(self, call: Callable[[], Awaitable[PodReport]]) -> PodReport:
        """One call in bounded time; only a ProviderError may come out of a plugin."""
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                return await call()
        except ProviderError:
            raise
        except TimeoutError:
            raise CheckFailed(f"no answer within {CALL_LIMIT_S:g} s") from None
        except Exception as error:  # a stranger's code: its words may hold a secret, so only its kind is told
            raise CheckFailed(
                f"the plugin raised {type(error).__name__}, which is no ProviderError"
            ) from None

    # --- words --------------------------------------------------------------------------------

    def claim(self, text: str, complaints: list[str]) -> None:
        """A line about something that was judged."""
        if complaints:
            self.fail(f"{text}: {self.clean('; '.join(complaints))}")
        else:
            self.say(text)

    def clean(self, words: str) -> str:
        """One line without a secret; a plugin that quotes one has been told off elsewhere."""
        for secret in self._secrets:
            words = words.replace(secret, "***")
        return " ".join(words.split())

    def learn(self, report: PodReport) -> None:
        """Keep what later lines tell of."""
        self.pod = f"pod {report.pod_id}" if report.pod_id else "the pod"
        self.price = report.price or self.price

    @property
    def rate(self) -> Decimal | None:
        """What an hour costs: the provider's price, else `cost.hourly_rate`."""
        if self.price is not None and self.price.running_per_hour is not None:
            return self.price.running_per_hour
        return Decimal(str(self.settings.cost.hourly_rate)) or None

    def estimate(self) -> str:
        """What is going to be spent, at most."""
        pace = self.pace
        longest_s = pace.start_limit_s + pace.warmup_limit_s + 2 * CALL_LIMIT_S
        if self.rate is None:
            return f"this starts {self.pod}; what it costs is not known (cost.hourly_rate)"
        price = f"{self.rate:g} {self.currency} per hour"
        limit = f"{longest_s / 60:.0f} minutes and the stop, {self.money(longest_s)}"
        return f"this starts {self.pod}, at {price}: usually for a few minutes, at most {limit}"

    def spent(self, seconds: float) -> str:
        """What it has cost, about."""
        return f"it was on for {seconds:.0f} s" + (f", {self.money(seconds)}" if self.rate else "")

    def money(self, seconds: float) -> str:
        """An amount for so many seconds, rounded up to a cent."""
        amount = (self.rate or Decimal(0)) * Decimal(seconds) / 3600
        return f"about {amount.quantize(CENT, ROUND_UP)} {self.currency}"

    @property
    def currency(self) -> str:
        """Of the rate."""
        return self.price.currency if self.price is not None else str(self.settings.cost.currency)

    @staticmethod
    def now() -> float:
        """The loop's time."""
        return asyncio.get_running_loop().time()
