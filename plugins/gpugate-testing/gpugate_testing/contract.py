"""The tests that every provider plugin runs, claim by claim (docs/api.md#provider-plugins).

A plugin's test module has `class TestMine(ProviderContract)` with a `provider_class` and a fixture
`config`; docs/write-a-provider.md walks through it. Needs pytest-asyncio in auto mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import ClientSession

from gpugate.errors import ProviderError, RateLimited
from gpugate.provider_api import Phase, Provider
from gpugate_testing.contract_base import ContractBase, MakeProvider
from gpugate_testing.fault_sessions import WRONGS, wrong_session
from gpugate_testing.provider_validation import OFF, ON, class_complaints, leaked_secrets, report_complaints

CALLS = ("start", "stop", "inspect")


class ReadOnlyContract(ContractBase):
    """The tests that are read-only and cost nothing."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Every wrong answer to every call, for a provider that is reached by a session."""
        if "name" in metafunc.fixturenames:
            names = [*WRONGS, "silence"] if self.uses_session else []
            metafunc.parametrize(("name", "call"), [(name, call) for name in names for call in CALLS])

    def test_its_class_is_sound(self) -> None:
        """A `Provider` with async calls, an attrs Config that hides its secrets, sane capabilities."""
        assert class_complaints(self.provider_class) == []

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

        assert leaked_secrets(secrets, raised.value) == []

    async def test_a_wrong_answer(
        self, make_provider: MakeProvider, name: str, call: str, secrets: tuple[str, ...]
    ) -> None:
        """Whatever comes back: a ProviderError without a secret, or a report; in bounded time."""
        wrong = WRONGS.get(name)
        async with wrong_session(wrong) as session:
            provider = make_provider(session)
            report, error = await self.outcome(getattr(provider, call)())
            await provider.aclose()
        if report is None:
            assert leaked_secrets(secrets, error) == []
            assert_sane_pause(error)
            return
        proves_nothing = wrong is None or wrong.proves_nothing

        assert report_complaints(report) == []
        assert not (call == "inspect" and proves_nothing), f"{name} was read as {report.phase}"

    async def test_a_look_that_is_cancelled(self, provider: Provider) -> None:
        """The next one is as good as ever."""
        await self.rest(provider)
        await self.each_cancelled(provider.inspect, lambda: self.rest(provider))

        assert (await self.look(provider)).phase in OFF

    async def test_its_secrets(self, provider: Provider, config: Any, secrets: tuple[str, ...]) -> None:
        """They stand in no repr, neither of the provider nor of its configuration nor of a report."""
        assert leaked_secrets(secrets, provider, config, await self.look(provider)) == []

    async def test_it_is_closed_twice(self, provider: Provider) -> None:
        """That is fine."""
        await self.call(provider.aclose())
        await self.call(provider.aclose())


class PaidContract(ContractBase):
    """The tests that start pods, for use with a simulator."""

    async def test_a_life(
        self, provider: Provider, secrets: tuple[str, ...], billing: Callable[[], int] | None
    ) -> None:
        """Started it runs and says where its Ollama is; stopped it is off; started again it runs again."""
        for _ in range(2):
            report = await self.call(provider.start())
            assert report_complaints(report) == []
            assert report.phase in ON
            running = await self.until(provider, {Phase.RUNNING})
            assert "ollama" in running.endpoints
            assert leaked_secrets(secrets, report, running) == []
            await self.rest(provider)
            report = await self.call(provider.stop())
            assert report_complaints(report) == []
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
            assert report_complaints(await self.call(provider.stop())) == []
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
            pytest.skip("no fixture `queue_start`: at this cloud no start waits for a GPU")
        queue_start()
        report, error = await self.outcome(provider.start())
        assert report is None or report.phase in ON
        assert error is None or getattr(error, "queued", False), f"{error!r} does not say that it is queued"
        await self.rest(provider)
        await self.call(provider.stop())
        await self.until(provider, OFF)  # by that one stop, before it would have fired
        await self.stays_off(provider)

        assert billing is None or billing() == 0

    async def test_a_start_that_is_cancelled(
        self, provider: Provider, billing: Callable[[], int] | None
    ) -> None:
        """Whether or not the cloud heard of it, a stop afterwards leaves nothing that runs or is billed."""

        async def stopped() -> None:
            await self.rest(provider)
            await self.off(provider)
            assert billing is None or billing() == 0
            await self.rest(provider)

        await self.each_cancelled(provider.start, stopped)
        await stopped()
        await self.stays_off(provider)

        assert billing is None or billing() == 0

    async def test_a_stop_that_is_cancelled(self, provider: Provider) -> None:
        """The next one stops it."""

        async def stopped_after_all() -> None:
            await self.rest(provider)
            await self.off(provider)
            await self.on(provider)
            await self.rest(provider)

        await self.on(provider)
        await self.rest(provider)
        await self.each_cancelled(provider.stop, stopped_after_all)

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


class ProviderContract(ReadOnlyContract, PaidContract):
    """All tests: `class TestMine(ProviderContract)`."""


def assert_sane_pause(error: ProviderError | None) -> None:
    """A rate limit says how long to wait in a number of seconds, or does not say it."""
    if isinstance(error, RateLimited):
        assert error.retry_after is None or error.retry_after >= 0
