"""The tests that every provider plugin runs: what gpugate relies on, claim by claim (contract section 6).

A plugin's test module has `class TestMine(ProviderContract)` with a `provider_class` and a fixture
`config`; docs/write-a-provider.md walks through it. Needs pytest-asyncio in auto mode. It must not know
any cloud.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from math import inf
from typing import Any, ClassVar, TypeVar

import pytest
from aiohttp import ClientSession

from gpugate.errors import ProviderError, RateLimited
from gpugate.ports.provider import Phase, PodReport, Provider
from gpugate.services.tasks import spawn
from gpugate.testing.reports import OFF, ON, class_complaints, report_complaints, secrets_of, told
from gpugate.testing.wires import WRONGS, cut_session, good_session, wrong_session

Result = TypeVar("Result")
MakeProvider = Callable[[ClientSession], Provider]
CALLS = ("start", "stop", "inspect")
STEPS = (1, 2, 5, 10, 20, 40)
"""How many turns of the loop a call gets before it is cancelled."""
STOP_RETRY_S = 5.0
"""gpugate's own pause before an unproved stop is sent again (contract section 3)."""
LONGER_S = 30.0
"""A stop that held for so long, in the provider's seconds, has not been undone by a queued start."""


class Stage:
    """What the contract's tests stand on; a plugin overrides what does not suit it.

    Attributes:
        provider_class: the provider.
        second: how long one second of the provider takes in the test; less than 1 for a simulator that
            runs faster. Under `gpugate.testing.clouds.jumping.JumpingLoop` leave it.
        pause_s: the least pause between two looks, in the provider's seconds; its `min_poll_s` wins.
        patience_s: how long a start or a stop may take, in the provider's seconds.
        call_limit_s: how long one call may take; give the provider a short timeout of its own.
        uses_session: it reaches its cloud through the session that it is given. If not, override the
            fixture `blind_provider`, or live without those tests.
    """

    provider_class: ClassVar[type[Provider]]
    second: ClassVar[float] = 1.0
    pause_s: ClassVar[float] = 0.05
    patience_s: ClassVar[float] = 120.0
    call_limit_s: ClassVar[float] = 30.0
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
            assert [] == report_complaints(report)
            return report
        raise AssertionError("rate limited, however long it is left alone")

    async def until(self, provider: Provider, phases: Collection[Phase]) -> PodReport:
        """Look until the pod is in one of these phases."""
        loop = asyncio.get_running_loop()
        limit = loop.time() + self.patience_s * self.second
        while True:
            report = await self.look(provider)
            if report.phase in phases:
                return report
            assert loop.time() < limit, f"{report.phase} for {self.patience_s:g} s ({report.detail})"

    async def on(self, provider: Provider) -> PodReport:
        """Start it, and wait until it runs."""
        await self.rest(provider)
        await self.call(provider.start())
        return await self.until(provider, {Phase.RUNNING})

    async def off(self, provider: Provider) -> PodReport:
        """Stop it as gpugate does: ask again and again until a look shows that it is off."""
        loop = asyncio.get_running_loop()
        limit = loop.time() + self.patience_s * self.second
        ask_at, seen = -inf, "never seen"
        while loop.time() < limit:
            try:
                report = await self.look(provider)
                if report.phase in OFF:
                    return report
                seen = f"{report.phase} ({report.detail})"
                if loop.time() >= ask_at:
                    ask_at = loop.time() + STOP_RETRY_S * self.second
                    await self.rest(provider)
                    await self.call(provider.stop())
            except ProviderError as error:
                seen = repr(error)
        raise AssertionError(f"not off after {self.patience_s:g} s of stopping: {seen}")

    async def stays_off(self, provider: Provider) -> None:
        """It is off, and nothing at the cloud turns it on again a little later."""
        await self.off(provider)
        await asyncio.sleep(LONGER_S * self.second)
        assert (await self.look(provider)).phase in OFF

    async def cancelled(self, work: Awaitable[PodReport], steps: int) -> bool:
        """Give a call so many turns of the loop, then cancel it; False if it was quicker."""
        task = spawn(_awaited(work), "contract:cancelled", on_crash=lambda *_: None)
        for _ in range(steps):
            await asyncio.sleep(0)
        quicker = task.done()
        task.cancel()
        await asyncio.wait([task], timeout=self.call_limit_s)
        assert task.done(), "it does not end when it is cancelled"
        if not task.cancelled() and (error := task.exception()) is not None:
            assert isinstance(error, ProviderError)
        return not quicker


class LookingContract(Stage):
    """The part that changes nothing and costs nothing."""

    def test_its_class_is_sound(self) -> None:
        """A `Provider` with async calls, an attrs Config that hides its secrets, sane capabilities."""
        assert [] == class_complaints(self.provider_class)

    async def test_a_look_tells_what_there_is(self, provider: Provider) -> None:
        """A sound report of a pod that is off."""
        report = await self.look(provider)

        assert report.phase in OFF

    async def test_looking_changes_nothing(
        self, provider: Provider, changes: Callable[[], int] | None
    ) -> None:
        """The second look sees the same, and the cloud was never asked for a change."""
        before = changes() if changes is not None else 0
        first = await self.look(provider)
        second = await self.look(provider)

        assert (first.phase, first.pod_id) == (second.phase, second.pod_id)
        assert before == (changes() if changes is not None else 0)

    async def test_who_cannot_look_says_so(self, blind_provider: Provider) -> None:
        """A cloud that cannot be reached is an error, never "stopped"."""
        with pytest.raises(ProviderError):
            await self.call(blind_provider.inspect())

    @pytest.mark.parametrize("call", CALLS)
    async def test_a_cloud_out_of_reach(
        self, blind_provider: Provider, call: str, secrets: tuple[str, ...]
    ) -> None:
        """Every call raises a ProviderError, without a secret in its words."""
        with pytest.raises(ProviderError) as raised:
            await self.call(getattr(blind_provider, call)())

        assert [] == told(secrets, raised.value, raised.value.message)

    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize("name", [*WRONGS, "silence"])
    async def test_a_wrong_answer(
        self, make_provider: MakeProvider, name: str, call: str, secrets: tuple[str, ...]
    ) -> None:
        """Whatever comes back: a ProviderError without a secret, or a report; in bounded time."""
        if not self.uses_session:
            pytest.skip("it does not use the session")
        wrong = WRONGS.get(name)
        async with wrong_session(wrong) as session:
            provider = make_provider(session)
            try:
                report = await self.call(getattr(provider, call)())
            except ProviderError as error:
                assert [] == told(secrets, error, error.message)
                assert_sane_pause(error)
            else:
                assert [] == report_complaints(report)
                proves_nothing = wrong is None or wrong.proves_nothing
                assert not (call == "inspect" and proves_nothing), f"{name} was read as {report.phase}"
            finally:
                await provider.aclose()

    async def test_a_look_that_is_cancelled(self, provider: Provider) -> None:
        """The next one is as good as ever."""
        for steps in STEPS:
            await self.rest(provider)
            await self.cancelled(provider.inspect(), steps)

        assert (await self.look(provider)).phase in OFF

    async def test_its_secrets(self, provider: Provider, config: Any, secrets: tuple[str, ...]) -> None:
        """They stand in no repr, neither of the provider nor of its configuration nor of a report."""
        assert [] == told(secrets, provider, config, await self.look(provider))

    async def test_it_is_closed_twice(self, provider: Provider) -> None:
        """That is fine."""
        await self.call(provider.aclose())
        await self.call(provider.aclose())


class SpendingContract(Stage):
    """The part that starts pods: at a simulator it costs nothing."""

    async def test_a_life(
        self, provider: Provider, secrets: tuple[str, ...], billing: Callable[[], int] | None
    ) -> None:
        """Started it runs and says where its Ollama is; stopped it is off; started again it runs again."""
        for _ in range(2):
            report = await self.call(provider.start())
            assert [] == report_complaints(report)
            assert report.phase in ON
            running = await self.until(provider, {Phase.RUNNING})
            assert "ollama" in running.endpoints
            assert [] == told(secrets, report, running)
            await self.rest(provider)
            report = await self.call(provider.stop())
            assert [] == report_complaints(report)
            await self.off(provider)
            assert billing is None or billing() == 0
            await self.rest(provider)

    async def test_a_start_while_it_starts(
        self, provider: Provider, billing: Callable[[], int] | None
    ) -> None:
        """It is accepted, and there is one pod."""
        first = await self.call(provider.start())
        await self.rest(provider)
        second = await self.call(provider.start())
        running = await self.until(provider, {Phase.RUNNING})

        assert first.pod_id in (None, second.pod_id, running.pod_id)
        assert billing is None or billing() == 1

    async def test_a_start_while_it_runs(self, provider: Provider, billing: Callable[[], int] | None) -> None:
        """It is accepted, and the pod is the same."""
        before = await self.on(provider)
        await self.rest(provider)
        await self.call(provider.start())
        after = await self.until(provider, {Phase.RUNNING})

        assert before.pod_id == after.pod_id
        assert billing is None or billing() == 1

    async def test_a_stop_of_what_is_off(self, provider: Provider) -> None:
        """It is accepted, however often."""
        for _ in range(2):
            assert [] == report_complaints(await self.call(provider.stop()))
            await self.rest(provider)

        assert (await self.look(provider)).phase in OFF

    async def test_a_stop_while_it_stops(self, provider: Provider) -> None:
        """It is accepted."""
        await self.on(provider)
        for _ in range(2):
            await self.rest(provider)
            await self.call(provider.stop())

        assert (await self.until(provider, OFF)).phase in OFF

    async def test_a_stop_while_it_starts(
        self, provider: Provider, billing: Callable[[], int] | None
    ) -> None:
        """It ends up off, and stays off."""
        await self.call(provider.start())
        await self.rest(provider)
        await self.stays_off(provider)

        assert billing is None or billing() == 0

    async def test_a_start_that_is_queued(
        self,
        provider: Provider,
        queue_start: Callable[[], None] | None,
        billing: Callable[[], int] | None,
    ) -> None:
        """A stop takes it back: the pod does not run an hour later with nobody there."""
        if queue_start is None:
            assert not provider.capabilities.queue_on_capacity, "it needs the fixture `queue_start`"
            pytest.skip("nothing is ever queued at this cloud")
        queue_start()
        try:
            report = await self.call(provider.start())
        except ProviderError as error:
            assert getattr(error, "queued", False), f"it is queued, and {error!r} does not say so"
        else:
            assert report.phase in ON
        await self.rest(provider)
        await self.call(provider.stop())
        await self.stays_off(provider)

        assert billing is None or billing() == 0

    @pytest.mark.parametrize("steps", STEPS)
    async def test_a_start_that_is_cancelled(
        self, provider: Provider, steps: int, billing: Callable[[], int] | None
    ) -> None:
        """Whether or not the cloud heard of it, a stop afterwards leaves nothing that runs or is billed."""
        await self.cancelled(provider.start(), steps)
        await self.rest(provider)
        await self.call(provider.stop())
        await self.stays_off(provider)

        assert billing is None or billing() == 0

    @pytest.mark.parametrize("steps", STEPS)
    async def test_a_stop_that_is_cancelled(self, provider: Provider, steps: int) -> None:
        """The next one stops it."""
        await self.on(provider)
        await self.rest(provider)
        await self.cancelled(provider.stop(), steps)
        await self.rest(provider)
        await self.call(provider.stop())

        assert (await self.until(provider, OFF)).phase in OFF

    async def test_another_gateway_comes(
        self, provider: Provider, make_provider: MakeProvider, session: ClientSession
    ) -> None:
        """After a crash a new provider object finds the pod that runs, and can stop it."""
        running = await self.on(provider)
        await provider.aclose()
        heir = make_provider(session)
        try:
            found = await self.until(heir, {Phase.RUNNING})
            await self.rest(heir)
            await self.call(heir.stop())
            gone = await self.until(heir, OFF)
        finally:
            await heir.aclose()

        assert running.pod_id == found.pod_id
        assert gone.phase in OFF

    async def test_it_is_closed_while_its_pod_runs(
        self, provider: Provider, make_provider: MakeProvider, session: ClientSession
    ) -> None:
        """The pod is left alone."""
        await self.on(provider)
        await self.call(provider.aclose())
        other = make_provider(session)
        try:
            assert (await self.look(other)).phase is Phase.RUNNING
        finally:
            await other.aclose()


class ProviderContract(LookingContract, SpendingContract):
    """All of it: `class TestMine(ProviderContract)`."""


def assert_sane_pause(error: ProviderError) -> None:
    """A rate limit says how long to wait in a number of seconds, or does not say it."""
    if isinstance(error, RateLimited):
        assert error.retry_after is None or error.retry_after >= 0


async def _awaited(work: Awaitable[PodReport]) -> PodReport:
    return await work
