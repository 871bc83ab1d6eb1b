"""Secrets and their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpugate.config import load_settings
from tests.config.support import ENOUGH, SECRET, complaints, env_complaints, file_complaints, load, write

SHORT = "hunter2-hunter2"


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_in_a_file(tmp_path: Path, end: str) -> None:
    """A newline at the end of a secret's file is not part of it."""
    write(tmp_path, SECRET[::-1] + end, "key")
    config = write(tmp_path, "[auth]\nsecret_file = 'key'\n[pod]\nprovider = 'demo'")

    assert SECRET[::-1] == load_settings(config, {}).auth.secret
    env = {"GPUGATE_AUTH__SECRET": "", "GPUGATE_AUTH__SECRET_FILE": str(tmp_path / "key")}
    assert SECRET[::-1] == load(env).auth.secret


def test_a_list_of_secrets_in_a_file(tmp_path: Path) -> None:
    """One a line, also from a service manager; both ways are a mistake, an empty list is none."""
    write(tmp_path, "ntfy://my-topic\n\n  json://localhost/a,b \n", "notify_urls")
    both = ("ntfy://my-topic", "json://localhost/a,b")
    config = write(tmp_path, "[notify]\nurls = []\nurls_file = 'notify_urls'")
    assert both == load_settings(config, ENOUGH).notify.urls
    assert both == load({"GPUGATE_NOTIFY__URLS_FILE": str(tmp_path / "notify_urls")}).notify.urls
    assert both == load({"CREDENTIALS_DIRECTORY": str(tmp_path)}).notify.urls

    twice = write(tmp_path, "[notify]\nurls = ['ntfy://x']\nurls_file = 'notify_urls'")
    assert ["gpugate.toml: notify.urls: is given twice, also as notify.urls_file"] == complaints(
        twice, ENOUGH
    )
    write(tmp_path, "ntfy://my-topic\nno-such-thing://secret-part", "notify_urls")
    (line,) = env_complaints({"GPUGATE_NOTIFY__URLS_FILE": str(tmp_path / "notify_urls")})
    assert "notify.urls: apprise does not know what number 2 is" in line
    assert "secret-part" not in line


def test_a_secret_given_both_ways(tmp_path: Path) -> None:
    """Two secrets are a mistake, wherever the two stand; an empty one is none."""
    write(tmp_path, SECRET, "key")
    both = "[auth]\nsecret = 'x'\nsecret_file = 'key'\n[pod]\nprovider = 'demo'"
    said = "gpugate.toml: auth.secret: is given twice, also as auth.secret_file"

    assert [said] == complaints(write(tmp_path, both))
    assert [said] == file_complaints(tmp_path, "[auth]\nsecret_file = 'key'")
    assert [] == complaints(write(tmp_path, both.replace("'x'", "''")))
    assert [] == file_complaints(tmp_path, "[auth]\nsecret_file = ''")


def test_a_secrets_file_that_cannot_be_used(tmp_path: Path) -> None:
    """Missing, empty, no text, no file: one line that names the key."""
    write(tmp_path, "\n", "empty")
    (tmp_path / "bytes").write_bytes(b"\xff" * 40)
    said = {
        name: env_complaints({"GPUGATE_AUTH__SECRET": "", "GPUGATE_AUTH__SECRET_FILE": str(tmp_path / name)})
        for name in ("none", "empty", "bytes", "")
    }

    start = "GPUGATE_AUTH__SECRET_FILE: auth.secret_file: cannot be"
    assert {
        "none": [f"{start} read: No such file or directory"],
        "empty": [f"{start} used: the file is empty"],
        "bytes": [f"{start} read: it is not a text file"],
        "": [f"{start} read: Is a directory"],
    } == said


def test_a_secrets_file_that_is_no_path(tmp_path: Path) -> None:
    """A number, or a NUL in the path, is said like any other mistake."""
    (number,) = complaints(write(tmp_path, "[auth]\nsecret_file = 5\n[pod]\nprovider = 'demo'"))
    (nul,) = complaints(write(tmp_path, '[auth]\nsecret_file = "\\u0000"\n[pod]\nprovider = "demo"'))

    assert "auth.secret_file: must be the path of a file" in number
    assert "auth.secret_file: cannot be read" in nul


@pytest.mark.parametrize(
    "text",
    [
        f"[auth]\nsecret = '{SHORT}'",
        f"[auth]\nsecret = ['{SHORT}']",
        f"[auth]\nsecrett = '{SHORT}'",
        f"[auht]\nsecret = '{SHORT}'",
        f"[auth]\nsecret_file = '{SHORT}'",
        f"[bot]\ntoken = '{SHORT}'",
        f"[bot]\nsecret_token = '{SHORT}!'",
    ],
)
def test_a_secret_is_never_quoted(tmp_path: Path, text: str) -> None:
    """Whatever is wrong with a secret, or with its key, its value is in no complaint."""
    lines = complaints(write(tmp_path, text))

    assert lines
    assert not any(SHORT in line for line in lines)


def test_a_short_secret() -> None:
    """A secret below 32 bytes is refused, and the one complaint is about that; bytes count, not letters."""
    assert ["GPUGATE_AUTH__SECRET: auth.secret: must be at least 32 bytes long"] == env_complaints(
        {"GPUGATE_AUTH__SECRET": "x" * 31}
    )
    assert [] == env_complaints({"GPUGATE_AUTH__SECRET": "ü" * 16})


def test_a_path_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the user's home, as a shell would have it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, SECRET, "key")

    settings = load_settings(
        None, {**ENOUGH, "GPUGATE_AUTH__SECRET": "", "GPUGATE_AUTH__SECRET_FILE": "~/key"}
    )

    assert SECRET == settings.auth.secret


def test_secrets_of_a_service_manager(tmp_path: Path) -> None:
    """A file is named after its key; one that is given otherwise goes before; other files are others' own."""
    for name in ("auth_secret", "providers_runpod_api_key", "providers_other_api_key", "certificate.pem"):
        write(tmp_path, f"{SECRET[::-1]}\n", name)
    env = {
        "HOME": "/home/nobody",
        "CREDENTIALS_DIRECTORY": str(tmp_path),
        "GPUGATE_POD__PROVIDER": "runpod",
        "GPUGATE_PROVIDERS__RUNPOD__POD_ID": "abc",
    }
    settings = load_settings(None, env)
    assert SECRET[::-1] == settings.auth.secret
    assert {"pod_id", "api_key_file"} == set(settings.providers["runpod"])
    assert "other" not in settings.providers

    assert SECRET == load_settings(None, {**env, "GPUGATE_AUTH__SECRET": SECRET}).auth.secret
    own = write(tmp_path, SECRET, "own")
    assert SECRET == load_settings(None, {**env, "GPUGATE_AUTH__SECRET_FILE": str(own)}).auth.secret
    gone = {**env, "CREDENTIALS_DIRECTORY": str(tmp_path / "none")}
    assert [f"CREDENTIALS_DIRECTORY: {tmp_path / 'none'} cannot be read: No such file or directory"] == (
        complaints(None, gone)
    )
