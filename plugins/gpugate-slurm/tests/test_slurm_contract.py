"""The provider contract, kept by the plugin at a simulated Slurm, through slurmrestd and by commands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from gpugate_slurm import Slurm, SlurmConfig
from gpugate_slurm.commands import CommandClient
from gpugate_testing import ProviderContract
from gpugate_testing.clouds import Delays
from gpugate_testing.contract_base import MakeProvider
from slurm_sim import TOKEN, SimRunner, SlurmSim

from gpugate.errors import Transient
from gpugate.provider_api import Provider

DELAYS = Delays(provision_s=2.0, start_s=1.0, ready_s=0.0, stop_s=3.0)


class _AtSlurm(ProviderContract):
    provider_class = Slurm
    patience_s = 300.0

    @pytest.fixture
    async def cloud(self) -> AsyncIterator[SlurmSim]:
        async with SlurmSim(delays=DELAYS) as cloud:
            cloud.clock.now()
            yield cloud
            assert [] == cloud.violations

    @pytest.fixture
    def changes(self, cloud: SlurmSim) -> Callable[[], int]:
        return lambda: cloud.count("submit") + cloud.count("cancel")

    @pytest.fixture
    def billing(self, cloud: SlurmSim) -> Callable[[], int]:
        return lambda: len(cloud.billing)

    @pytest.fixture
    def queue_start(self, cloud: SlurmSim) -> Callable[[], None]:
        def queue() -> None:
            cloud.queued_s = 200.0

        return queue


class TestRest(_AtSlurm):
    """slurmrestd."""

    @pytest.fixture
    def config(self, cloud: SlurmSim) -> SlurmConfig:
        return SlurmConfig(rest_url=cloud.url, token=TOKEN)


class TestSecondSlot(TestRest):
    """The object that takes over before a time limit, while the other's job runs."""

    @pytest.fixture
    def billing(self, cloud: SlurmSim) -> None:
        """The other's job is billed, too."""

    @pytest.fixture
    async def make_provider(self, cloud: SlurmSim, config: SlurmConfig, session: Any) -> MakeProvider:
        first = Slurm(config, session)
        await first.start()
        await first.aclose()

        def make(session: Any) -> Slurm:
            provider = Slurm(config, session)
            provider.slot = 1
            return provider

        return make


class TestCommands(_AtSlurm):
    """sbatch, squeue, scancel."""

    uses_session = False

    @pytest.fixture
    def config(self) -> SlurmConfig:
        return SlurmConfig()

    @pytest.fixture
    def runner(self, cloud: SlurmSim) -> SimRunner:
        return SimRunner(cloud)

    @pytest.fixture
    def make_provider(self, config: SlurmConfig, runner: SimRunner) -> MakeProvider:
        return lambda session: by_commands(config, session, runner)

    @pytest.fixture
    def blind_provider(self, config: SlurmConfig, session: Any) -> Provider:
        class Cut:
            where = "nowhere"
            export = ""

            async def run(self, *_: object, **__: object) -> None:
                raise Transient("login.example.org cannot be reached by ssh (OSError)")

        return by_commands(config, session, Cut())


def by_commands(config: SlurmConfig, session: Any, runner: Any) -> Slurm:
    """A provider whose commands run there."""
    provider = Slurm(config, session)
    provider._client = CommandClient(config, runner)
    return provider
