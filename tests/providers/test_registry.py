"""Plugins as pip would have installed them: real distributions in a directory of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpugate.errors import SettingsError
from gpugate.provider_api import Capabilities
from gpugate.providers import registry

Install = Callable[..., None]

GOOD = """
from gpugate.provider_api import Capabilities, PodReport, Provider

class Pod(Provider):
    capabilities = Capabilities(first_byte_limit_s=100)
    async def start(self): return PodReport("running")
    async def stop(self): return PodReport("stopped")
    async def inspect(self): return PodReport("stopped")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution with one module and one entry point."""
    monkeypatch.syspath_prepend(tmp_path)

    def distribution(
        name: str,
        text: str = GOOD,
        *,
        as_: str = "",
        value: str = "",
        version: str = "1.2",
        metadata: str | None = None,
    ) -> None:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(text)
        monkeypatch.delitem(sys.modules, module, raising=False)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" if metadata is None else metadata
        )
        (info / "entry_points.txt").write_text(
            f"[gpugate.providers]\n{as_ or name} = {value or f'{module}:Pod'}\n"
        )

    return distribution


def _plugin(name: str) -> registry.Installed:
    return next(plugin for plugin in registry.installed() if plugin.name == name)


def _complaint(name: str) -> str:
    with pytest.raises(SettingsError) as caught:
        registry.find(name)
    (line,) = caught.value.complaints
    assert "\n" not in line
    assert line.startswith("pod.provider: ")
    return line.removeprefix("pod.provider: ")


class TestInstalled:
    def test_a_plugin(self, install):
        """Name, distribution, version and entry point are told, and the plugin is not imported."""
        install("gpugate-cloud", as_="cloud")

        found = _plugin("cloud")

        assert ("gpugate-cloud", "1.2", "gpugate_cloud:Pod") == (
            found.distribution,
            found.version,
            found.value,
        )
        assert "gpugate_cloud" not in sys.modules

    def test_by_name(self, install):
        """The order is that of the names."""
        install("zz-cloud")
        install("aa-cloud")

        names = [plugin.name for plugin in registry.installed()]

        assert sorted(names) == names

    def test_a_damaged_installation(self, install):
        """Without metadata it is listed as unknown, and the others are not hidden."""
        install("gpugate-cloud", as_="cloud", metadata="")
        install("gpugate-other", as_="other")

        assert "unknown unknown" == _plugin("cloud").source
        assert "gpugate-other 1.2" == _plugin("other").source


class TestFind:
    def test_a_plugin(self, install):
        """Its class, ready to be built."""
        install("cloud")

        assert "Pod" == registry.find("cloud").__name__

    def test_case_and_blanks(self, install):
        """Names are lower-case, on both sides."""
        install("cloud", as_="Cloud")

        assert registry.find(" CLOUD ") is registry.find("cloud")

    def test_only_that_one_is_imported(self, install):
        """A broken plugin that is not selected does no harm."""
        install("broken", "raise RuntimeError('boom')")
        install("cloud")

        assert registry.find("cloud").capabilities.first_byte_limit_s == 100

    def test_an_unknown_name(self, install):
        """What is installed is listed with versions, and the nearest name offered."""
        install("gpugate-cloud", as_="cloud")

        complaint = _complaint("clowd")

        assert "no provider 'clowd' is installed" in complaint
        assert "cloud (gpugate-cloud 1.2)" in complaint
        assert complaint.endswith("did you mean 'cloud'?")

    @pytest.mark.parametrize("near", [True, False])
    def test_a_plugin_in_the_checkout(self, install, monkeypatch, tmp_path, near):
        """A folder of that name in the checkout is what pip can install here, as the path from here."""
        install("gpugate-cloud", as_="rentpods" if near else "cloud")
        folder = tmp_path / "plugins" / "gpugate-rentpod"
        folder.mkdir(parents=True)
        (folder / "setup.cfg").touch()
        monkeypatch.chdir(tmp_path)

        assert _complaint("rentpod").endswith("; try: pip install ./plugins/gpugate-rentpod")

    def test_no_checkout(self, install):
        """Without one, the package's usual name is told."""
        install("gpugate-cloud", as_="cloud")

        assert _complaint("zzz-market").endswith("; try: pip install gpugate-zzz-market")

    def test_nothing_is_installed(self, monkeypatch):
        """A checkout that was never installed: that is told instead of an empty list."""
        monkeypatch.setattr(registry, "entry_points", lambda group: ())

        assert "is gpugate installed" in _complaint("local")

    def test_two_of_the_same_name(self, install):
        """Both distributions are named; nobody guesses."""
        install("gpugate-cloud", as_="cloud")
        install("evil-cloud", as_="Cloud", version="6.6")

        complaint = _complaint("cloud")

        assert "by evil-cloud 6.6 and gpugate-cloud 1.2" in complaint

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
            ("raise RuntimeError('boom\\nand\\nmore')", "RuntimeError: boom and more"),
            ("def f(:", "SyntaxError: invalid syntax"),
            ("raise SystemExit(1)", "SystemExit: 1"),
            ("Pot = 1", "AttributeError: module 'cloud' has no attribute 'Pod'"),
            ("class Pod: pass", "cloud:Pod is not a subclass of gpugate.Provider"),
            ("Pod = 1", "cloud:Pod is not a subclass of gpugate.Provider"),
            (GOOD + "    stop = None\nclass Pod(Provider):\n    pass", "does not have inspect, start, stop"),
            (GOOD + "Pod.Config = dict", "cloud:Pod.Config is not an attrs class"),
        ],
    )
    def test_a_broken_one(self, install, text, says):
        """One line names the plugin, its distribution and what is wrong with it."""
        install("cloud", text)

        complaint = _complaint("cloud")

        assert complaint.startswith("the plugin 'cloud' (cloud 1.2) ")
        assert says in complaint

    def test_a_value_that_is_none(self, install):
        """An entry point that names no object is as broken as any."""
        install("cloud", value="not a reference")

        assert "'cloud' (cloud 1.2) cannot be loaded" in _complaint("cloud")


class TestDescribe:
    def test_all(self, install):
        """The broken ones are in the list too, with their error."""
        install("broken", "raise RuntimeError('boom')")
        install("cloud")

        described = {found.plugin.name: found for found in registry.describe_all()}

        assert Capabilities(first_byte_limit_s=100) == described["cloud"].capabilities
        assert described["broken"].capabilities is None
        assert (
            "the plugin 'broken' (broken 1.2) cannot be loaded: RuntimeError: boom"
            == described["broken"].error
        )

    def test_all_with_two_of_the_same_name(self, install):
        """Neither can be used, and both rows say why."""
        install("gpugate-cloud", as_="cloud")
        install("evil-cloud", as_="cloud")

        errors = [found.error for found in registry.describe_all() if found.plugin.name == "cloud"]

        assert 2 == len(errors)
        assert all(error and "installed more than once" in error for error in errors)


def test_the_registry_is_quick_to_import():
    """It is on the path of `serve`: neither aiohttp nor a provider comes with it."""
    code = (
        "import sys, gpugate.providers.registry;"
        "print('aiohttp' in sys.modules, 'gpugate.providers.local' in sys.modules)"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "False False" == said.strip()
