"""Fixtures and helpers of the contract's tests: a provider whose pod is off, and calls with a time limit.

They check that calls end in time and that reports are valid; the tests are in `contract`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from math import inf
from typing import Any, ClassVar, TypeVar

import pytest
from aiohttp import ClientSession

from gpugate.errors import ProviderError, RateLimited
from gpugate.observability.redact import secrets_of
from gpugate.provider_api import Phase, PodReport, Provider
from gpugate.tasks import spawn
from gpugate_testing.fault_sessions import cut_session, good_session
from gpugate_testing.provider_validation import OFF, report_complaints

Result = TypeVar("Result")
MakeProvider = Callable[[ClientSession], Provider]
MANY_TURNS = 100
"""A call over a socket of this machine ends within so many turns of the loop; one with a process does not."""
STOP_RETRY_S = 5.0
"""gpugate's own pause before an unproved stop is sent again (docs/api.md#stops)."""
LONGER_S = 30.0
"""A stop that held for so long, in the provider's seconds, has not been undone by a queued start."""


class ContractBase:
    """Fixtures and helpers of the contract's tests; a plugin overrides the fixtures it has to.

    Attributes:
        provider_class: the provider.
        second: how long one second of the provider takes in the test; less than 1 for a simulator that
            runs faster. Under `gpugate_testing.clouds.loopback_time.JumpingLoop` leave it.
        pause_s: the least pause between two looks, in the provider's seconds; its `min_poll_s` wins.
        patience_s: how long a start or a stop may take, in the provider's seconds.
        call_limit_s: how long one call may take; give the provider a short timeout of its own.
        cancel_growth: how much later, in turns of the loop, each cancelled call is cancelled than the last;
            3 for a provider whose calls are slow.
        uses_session: it reaches its cloud through the session that it is given. If not, override the
            fixture `blind_provider`, or live without those tests.
    """

    provider_class: ClassVar[type[Provider]]
    second: ClassVar[float] = 1.0
    pause_s: ClassVar[float] = 0.05
    patience_s: ClassVar[float] = 120.0
    call_limit_s: ClassVar[float] = 30.0
    cancel_growth: ClassVar[float] = 1.4
    uses_session: ClassVar[bool] = True

    # --- fixtures -----------------------------------------------------------------------------

    @pytest.fixture
    def config(self) -> Any:
        """The configuration of a provider whose pod exists, or may be made, and is off. Override it."""
        pytest.fail("the contract needs a fixture `config`: an instance of the provider's Config")

    @pytest.fixture
    def make_provider(self, config: Any) -> MakeProvider:
        """Makes a provider of that configuration, as often as wanted, always for the same pod."""
        return lambda session: self.provider_class(config, session)

    @pytest.fixture
    async def session(self) -> AsyncIterator[ClientSession]:
        """A session as gpugate gives it to a provider."""
        async with good_session() as session:
            yield session

    @pytest.fixture
    async def provider(self, make_provider: MakeProvider, session: ClientSession) -> AsyncIterator[Provider]:
        """A provider whose pod is off; whatever a test does with it, it is off again afterwards."""
        provider = make_provider(session)
        yield provider
        last = make_provider(session)  # the test may have closed the first
        await self.off(last)
        await last.aclose()
        await provider.aclose()

    @pytest.fixture
    async def blind_provider(self, make_provider: MakeProvider) -> AsyncIterator[Provider]:
        """A provider that cannot reach its cloud."""
        if not self.uses_session:
            pytest.skip("it does not use the session, and has no fixture `blind_provider`")
        async with cut_session() as session:
            provider = make_provider(session)
            yield provider
            await provider.aclose()

    @pytest.fixture
    def secrets(self, config: Any) -> tuple[str, ...]:
        """What must never be shown: by default all that Config's fields without a repr hold."""
        return secrets_of(config)

    @pytest.fixture
    def changes(self) -> Callable[[], int] | None:
        """Counts the calls that change something at the cloud, if the simulator can tell."""
        return None

    @pytest.fixture
    def billing(self) -> Callable[[], int] | None:
        """Counts the pods that cost money now, if the simulator can tell."""
        return None

    @pytest.fixture
    def queue_start(self) -> Callable[[], None] | None:
        """Lets the next start wait at the cloud for a GPU, and run later by itself, if a cloud does that."""
        return None

    # --- steps --------------------------------------------------------------------------------

    async def call(self, work: Awaitable[Result]) -> Result:
        """One call, in bounded time."""
        async with asyncio.timeout(self.call_limit_s):
            return await work

    async def outcome(self, work: Awaitable[Result]) -> tuple[Result | None, ProviderError | None]:
        """What one call came to: what it returned, or what it raised."""
        try:
            return await self.call(work), None
        except ProviderError as error:
            return None, error

    async def rest(self, provider: Provider) -> None:
        """The pause that the provider asks for between two calls."""
        await asyncio.sleep(max(provider.capabilities.min_poll_s, self.pause_s) * self.second)

    async def look(self, provider: Provider) -> PodReport:
        """One sound look; a provider that wants to be asked later is asked later."""
        for _ in range(10):
            await self.rest(provider)
            try:
                report = await self.call(provider.inspect())
            except RateLimited as error:
                await asyncio.sleep((error.retry_after or 1.0) * self.second)
                continue
            assert report_complaints(report) == []
            return report
        raise AssertionError("rate limited, however long it is left alone")

    async def until(self, provider: Provider, phases: Collection[Phase]) -> PodReport:
        """Look until the pod is in one of these phases; a look may fail on the way."""
        loop = asyncio.get_running_loop()
        limit = loop.time() + self.patience_s * self.second
        while True:
            report, error = await self.outcome(self.look(provider))
            if report is not None and report.phase in phases:
                return report
            assert loop.time() < limit, f"after {self.patience_s:g} s: {report or repr(error)}"

    async def on(self, provider: Provider) -> PodReport:
        """Start it, and wait until it runs."""
        await self.rest(provider)
        await self.call(provider.start())
        return await self.until(provider, {Phase.RUNNING})

    async def off(self, provider: Provider) -> PodReport:
        """Stop it as gpugate does: ask until it is accepted, and again until a look shows that it is off."""
        loop = asyncio.get_running_loop()
        limit = loop.time() + self.patience_s * self.second
        ask_at, accepted, seen = -inf, False, "never seen"
        while loop.time() < limit:
            if loop.time() >= ask_at:
                ask_at = loop.time() + STOP_RETRY_S * self.second
                await self.rest(provider)
                _, refusal = await self.outcome(provider.stop())
                accepted = accepted or refusal is None
                seen = repr(refusal or seen)
            report, error = await self.outcome(self.look(provider))
            if report is not None and report.phase in OFF and accepted:
                return report
            seen = repr(error or report)
        raise AssertionError(f"not off after {self.patience_s:g} s of stopping: {seen}")

    async def stays_off(self, provider: Provider) -> None:
        """It is off, and nothing at the cloud turns it on again a little later."""
        await self.off(provider)
        await asyncio.sleep(LONGER_S * self.second)
        assert (await self.look(provider)).phase in OFF

    async def each_cancelled(
        self, call: Callable[[], Awaitable[PodReport]], between: Callable[[], Awaitable[object]]
    ) -> None:
        """Cancel a call ever later, from its first turn of the loop until it has ended before; after each
        time do what is `between`.
        """
        turns = 1
        while await self._cancelled(call(), turns):
            await between()
            turns = max(turns + 1, int(turns * (self.cancel_growth if turns < MANY_TURNS else 4)))

    async def _cancelled(self, work: Awaitable[PodReport], turns: int) -> bool:
        """Give a call so many turns of the loop, then cancel it; False if it was quicker."""
        task = spawn(_awaited(work), "contract:cancelled", on_crash=lambda *_: None)
        for _ in range(turns):
            await asyncio.sleep(0)
        quicker = task.done()
        task.cancel()
        await asyncio.wait([task], timeout=self.call_limit_s)
        assert task.done(), "it does not end when it is cancelled"
        if not task.cancelled() and (error := task.exception()) is not None:
            assert isinstance(error, ProviderError)
        return not quicker


async def _awaited(work: Awaitable[PodReport]) -> PodReport:
    return await work
