"""What the tests of the settings share: a good environment, and the complaints about a bad one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpugate.config import Settings, load_settings
from gpugate.errors import SettingsError

SECRET = "0123456789abcdef0123456789abcdef"
GOOD = f"""
[auth]
secret = "{SECRET}"
[pod]
provider = "demo"
"""
ENOUGH = {"GPUGATE_AUTH__SECRET": SECRET, "GPUGATE_POD__PROVIDER": "demo", "HOME": "/home/nobody"}


def write(folder: Path, text: str, name: str = "gpugate.toml") -> Path:
    """Write a configuration and return its path."""
    path = folder / name
    path.write_text(text)
    return path


def load(env: Mapping[str, str] | None = None, **more: Any) -> Settings:
    """Load settings of variables alone, which hold enough to serve unless they say otherwise."""
    return load_settings(None, {**ENOUGH, **(env or {})}, **more)


def complaints(path: Path | None, env: Mapping[str, str] | None = None, **more: Any) -> list[str]:
    """Return what is wrong with a configuration, without the folder in which a test put it."""
    try:
        load_settings(path, {"HOME": "/home/nobody", **(env or {})}, **more)
    except SettingsError as error:
        folder = f"{path.parent}/" if path else ""
        return [line.replace(folder, "") if folder else line for line in error.complaints]
    return []


def file_complaints(folder: Path, text: str, env: Mapping[str, str] | None = None, **more: Any) -> list[str]:
    """Return what is wrong with a configuration's text beside a secret and a provider from variables."""
    return complaints(write(folder, text), {**ENOUGH, **(env or {})}, **more)


def env_complaints(env: Mapping[str, str], **more: Any) -> list[str]:
    """Return what is wrong with variables beside a good secret and provider."""
    return complaints(None, {**ENOUGH, **env}, **more)
