"""gpugate_testing.contract: the providers of this tree keep it, and who breaks it is caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gpugate_demo.provider import Demo, DemoConfig
from gpugate_testing import ProviderContract
from gpugate_testing.contract_base import MakeProvider
from gpugate_testing.fakes import FakeCloud, FakeProvider

from gpugate.providers.local import Local, LocalConfig
from gpugate.providers.supervised_process import SupervisorTimeouts

QUICK = SupervisorTimeouts(settle_s=0.05, orphan_grace_s=5, orphan_kill_s=0.2, stop_kill_s=0.2)


class QuickLocal(Local):
    """Local, in a hurry."""

    timeouts = QUICK


class QuickDemo(Demo):
    """Demo, in a hurry."""

    timeouts = QUICK


class TestFake(ProviderContract):
    """The fake that gpugate's own tests are built on."""

    provider_class = FakeProvider
    uses_session = False
    second = 0.01
    pause_s = 0.1

    @pytest.fixture
    def cloud(self) -> FakeCloud:
        return FakeCloud(boot_s=0.01, stop_s=0.01)

    @pytest.fixture
    def config(self) -> None:
        return None

    @pytest.fixture
    def make_provider(self, cloud: FakeCloud) -> MakeProvider:
        return lambda session: FakeProvider(cloud, session)

    @pytest.fixture
    def changes(self, cloud: FakeCloud) -> Callable[[], int]:
        return lambda: sum(1 for call in cloud.calls if call != "inspect")

    @pytest.fixture
    def billing(self, cloud: FakeCloud) -> Callable[[], int]:
        return lambda: 0 if cloud.report().phase in ("stopped", "gone") else 1


class TestLocal(ProviderContract):
    """A process of this machine."""

    provider_class = QuickLocal
    uses_session = False
    second = 0.01
    cancel_growth = 4
    pause_s = 2.0
    patience_s = 1500.0

    @pytest.fixture(autouse=True)
    def _state(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GPUGATE_STATE_DIR", str(tmp_path))

    @pytest.fixture
    def config(self) -> LocalConfig:
        return LocalConfig(command=["sleep", "86400"], ollama_url="http://127.0.0.1:9")


class TestDemo(ProviderContract):
    """The simulated pod."""

    provider_class = QuickDemo
    uses_session = False
    second = 0.01
    cancel_growth = 4
    pause_s = 2.0
    patience_s = 1500.0

    @pytest.fixture(autouse=True)
    def _state(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GPUGATE_STATE_DIR", str(tmp_path))

    @pytest.fixture
    def config(self) -> DemoConfig:
        return DemoConfig(cold_start=0.1)
