"""Files, where they are found, and what is wrong with them as files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpugate.config import default_state_dir, find_config
from tests.config.support import complaints, load, write


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A file that was named and is missing, or is a folder, is one line."""
    assert ["none.toml: cannot be read: No such file or directory"] == complaints(tmp_path / "none.toml")
    assert ["cannot be read: Is a directory"] == [line.partition(": ")[2] for line in complaints(tmp_path)]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("[pod]\nidle_timeout = 15m\n", "line 2: is no valid TOML: "),
        ("[pod\n", "line 1: is no valid TOML: "),
        ("[pod]\nx = [1,\n\n", "line 4: is no valid TOML: "),
        ("[pod]\n[pod]\n", "line 2: is no valid TOML: "),
        ("[pod]\nx = 2026-02-30\n", ""),
        ("x = " + "[" * 5000, ""),
    ],
)
def test_a_slip_in_the_syntax(tmp_path: Path, text: str, start: str) -> None:
    """What is no TOML is one line, with the line's number where there is one."""
    (line,) = complaints(write(tmp_path, text))

    assert line.startswith(f"gpugate.toml: {start}")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are named with their line."""
    path = tmp_path / "gpugate.toml"
    path.write_bytes(b"[pod]\nprovider = '\xff'\n")

    assert ["gpugate.toml: line 2: is not UTF-8 text"] == complaints(path)


def test_a_file_of_another_editor(tmp_path: Path) -> None:
    """A byte order mark and Windows line ends do no harm."""
    path = tmp_path / "gpugate.toml"
    path.write_bytes(b"\xef\xbb\xbf[pod]\r\nprovider = 'demo'\r\n")

    assert [] == complaints(path, complete=False)


def test_where_a_configuration_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one here comes first, then the user's, then the system's, then none."""
    monkeypatch.setattr("gpugate.config.sources.SYSTEM_FOLDER", tmp_path / "etc")
    here, home = tmp_path / "here", tmp_path / "home"
    (home / "gpugate").mkdir(parents=True)
    here.mkdir()
    env = {"XDG_CONFIG_HOME": str(home)}

    assert None is find_config(env, here)
    (tmp_path / "etc").mkdir()
    assert write(tmp_path / "etc", "") == find_config(env, here)
    users = write(home / "gpugate", "")
    assert users == find_config(env, here)
    assert write(here, "") == find_config(env, here)


def test_the_users_folder_without_xdg(tmp_path: Path) -> None:
    """Without XDG variables, or with relative ones, the home folder counts."""
    (tmp_path / ".config" / "gpugate").mkdir(parents=True)
    config = write(tmp_path / ".config" / "gpugate", "")
    env = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": "relative"}

    assert config == find_config(env, tmp_path)
    assert tmp_path / ".local/state/gpugate" == default_state_dir({"HOME": str(tmp_path)})
    assert Path("/s/gpugate") == default_state_dir({"HOME": "/h", "XDG_STATE_HOME": "/s"})
    of_service = {"STATE_DIRECTORY": "/var/lib/gpugate:/var/lib/more", "XDG_STATE_HOME": "/s"}
    assert Path("/var/lib/gpugate") == default_state_dir(of_service)
    assert os.path.expanduser("~") in str(default_state_dir({"XDG_STATE_HOME": "s"}))


def test_a_provider_with_a_hyphen(tmp_path: Path) -> None:
    """A variable has no hyphen, and finds the provider that has one."""
    settings = load({"GPUGATE_POD__PROVIDER": "my-cloud", "GPUGATE_PROVIDERS__MY_CLOUD__REGION": "eu"})

    assert {"my-cloud": "eu"} == {name: part["region"].value for name, part in settings.providers.items()}  # type: ignore[attr-defined]
