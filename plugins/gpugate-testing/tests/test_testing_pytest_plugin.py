"""gpugate_testing.pytest_plugin: loads late, brings fixtures, and lets a broken claim show its values."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PLUGIN = "gpugate_testing.pytest_plugin"
BROKEN = """
import pytest
from gpugate import Phase, PodReport
from gpugate_testing import ProviderContract
from gpugate_testing.fakes import FakeCloud, FakeProvider

class Unwell(FakeProvider):
    async def inspect(self):
        return PodReport(Phase.STOPPED, "p", detail="two\\nlines")

class TestUnwell(ProviderContract):
    provider_class = Unwell
    uses_session = False
    config = pytest.fixture(lambda self: None)

    @pytest.fixture
    def make_provider(self):
        return lambda session: Unwell(FakeCloud(), session)

    @pytest.fixture
    async def provider(self, make_provider, session):
        yield make_provider(session)

async def test_fixtures(gpugate_session, gpugate_runpod, gpugate_vastai):
    for url in (gpugate_runpod.url, gpugate_vastai.url):
        async with gpugate_session.get(url) as answer:
            assert answer.status == 404
"""


def test_in_somebody_elses_tests(tmp_path: Path) -> None:
    """The fixtures work, and a claim that fails says what there was instead; named twice it does no harm."""
    (tmp_path / "test_unwell.py").write_text(f'pytest_plugins = ["{PLUGIN}"]\n{BROKEN}')
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    asked = ("-k", "test_a_look_tells or test_fixtures", str(tmp_path))
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider", "-q", *asked],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert "1 failed, 1 passed" in ended.stdout, ended.stdout + ended.stderr
    assert "assert ['detail must be one line'] == []" in ended.stdout


def test_it_loads_late() -> None:
    """Without a test that asks, nothing of gpugate's own is imported before coverage could begin."""
    code = f"import sys, {PLUGIN}; print(*(name for name in sys.modules if name.startswith('gpugate')))"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50
    )
    loaded = set(ended.stdout.split())

    assert {"gpugate_testing", PLUGIN} <= loaded
    assert not {name for name in loaded if name.startswith(("gpugate.", "gpugate_testing.contract"))}
