"""The settings that commands work with: which file is read, and how much of it must be valid."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpugate.config import Settings, default_configs, find_config, load_settings
from gpugate.config.schema import NO_FILE
from gpugate.errors import SettingsError
from gpugate.generation.workflows import load as load_workflows
from gpugate.lifecycle import state_dir

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}  # all addresses: reached on loopback
_OLLAMA_PORT = 11434


def config_path(args: Namespace) -> Path | None:
    """Return the file that --config names, else the default one that exists, else None."""
    return Path(args.config) if args.config else find_config(os.environ, Path())


def settings_for_serving(args: Namespace, overrides: Mapping[str, object] | None = None) -> Settings:
    """Return complete settings; the providers' sections, the workflows and the state folder are checked too.

    Raises:
        SettingsError: with every complaint.
    """
    path = config_path(args)
    try:
        settings = load_settings(
            path,
            os.environ,
            overrides=overrides,
            config_of=config_of,
            max_replicas_of=max_replicas_of,
            state_problem=state_dir.check,
        )
    except SettingsError as error:
        if path is None:
            hint = f"looked for {searched()}; --config names another, `gpugate init` writes one"
            raise SettingsError([*error.complaints, f"{NO_FILE}: {hint}"]) from None
        raise
    comfyui = settings.comfyui
    load_workflows(comfyui.workflow, comfyui.workflows_dir, comfyui.checkpoint)
    return settings


def searched() -> str:
    """Return the places at which a configuration is looked for, for people."""
    return ", ".join(str(path) for path in default_configs(os.environ, Path()))


def settings_as_given(args: Namespace) -> Settings:
    """Return settings that may lack what only `serve` needs."""
    return load_settings(config_path(args), os.environ, complete=False)


def config_of(name: str) -> type[Any]:
    """Return the Config class of an installed provider; raise SettingsError if there is none."""
    from gpugate.providers import registry

    return registry.find(name).Config


def max_replicas_of(name: str) -> int:
    """Return how many replicas a pod of this installed provider can have at most."""
    from gpugate.providers import registry

    return registry.max_replicas(registry.find(name))


def url_of(settings: Settings) -> str:
    """Return the base URL at which this machine reaches a gateway with these settings."""
    host = _WILDCARDS.get(settings.server.host[0], settings.server.host[0])
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{settings.server.port or _OLLAMA_PORT}"
