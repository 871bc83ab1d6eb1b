"""What messages say to install."""

from __future__ import annotations

from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from gpugate import install_hints
from gpugate.install_hints import install_command


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run from an environment, in a folder that is no checkout; return the folder of gpugate's metadata."""
    package, about = tmp_path / "site/gpugate", tmp_path / "site/gpugate-1.dist-info"
    for folder in (package, about, tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(install_hints, "__file__", str(package / "install_hints.py"))
    monkeypatch.setattr(install_hints, "distribution", lambda name: PathDistribution(about))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return about


def checkout(folder: Path) -> Path:
    (folder / "plugins/gpugate-demo").mkdir(parents=True)
    (folder / "setup.cfg").touch()
    (folder / "plugins/gpugate-demo/setup.cfg").touch()
    return folder


def test_installed_from_a_checkout(installed: Path, tmp_path: Path) -> None:
    """The checkout that pip installed from is named, wherever the command is run."""
    folder = checkout(tmp_path / "my checkout")
    (installed / "direct_url.json").write_text(f'{{"url": "{folder.as_uri()}", "dir_info": {{}}}}')

    assert f"pip install '{folder}[telegram]'" == install_command("gpugate", "gpugate[telegram]")
    assert f"pip install '{folder}/plugins/gpugate-demo'" == install_command("gpugate-demo", "gpugate[demo]")


def test_in_a_checkout(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is named as a person would."""
    monkeypatch.chdir(checkout(tmp_path / "checkout"))

    assert "pip install '.[metrics]'" == install_command("gpugate", "gpugate[metrics]")
    assert "pip install ./plugins/gpugate-demo" == install_command("gpugate-demo")


@pytest.mark.parametrize("url", [None, "", "{", '{"url": "https://pypi.org/x"}', '{"url": "file:///gone"}'])
def test_installed_from_an_index(installed: Path, url: str | None) -> None:
    """Then the name is right, and so it is when the checkout is gone."""
    if url is not None:
        (installed / "direct_url.json").write_text(url)

    assert "pip install 'gpugate[telegram]'" == install_command("gpugate", "gpugate[telegram]")
    assert "pip install gpugate-runpod" == install_command("gpugate-runpod")
