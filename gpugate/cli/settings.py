"""Which configuration a command means, and its settings; knows no command."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpugate.config import Settings, find_config, load_settings
from gpugate.generation.workflows import load as load_workflows
from gpugate.lifecycle import state_dir


def config_path(args: Namespace) -> Path | None:
    """Return the file that --config names, else the one that is found, else None."""
    return Path(args.config) if args.config else find_config(os.environ, Path())


def settings_for_serving(args: Namespace, overrides: Mapping[str, object] | None = None) -> Settings:
    """Return settings with all that `serve` needs: providers' sections, workflows, state folder checked too.

    Raises:
        SettingsError: with every complaint.
    """
    settings = load_settings(
        config_path(args),
        os.environ,
        overrides=overrides,
        config_of=config_of,
        state_problem=state_dir.problem_of,
    )
    comfyui = settings.comfyui
    load_workflows(comfyui.workflow, comfyui.workflows_dir, comfyui.checkpoint)
    return settings


def settings_as_given(args: Namespace) -> Settings:
    """Return settings for a command that only wants to look something up in them."""
    return load_settings(config_path(args), os.environ, complete=False)


def config_of(name: str) -> type[Any]:
    """Return the Config class of an installed provider; raise SettingsError if there is none."""
    from gpugate.providers import registry

    return registry.find(name).Config
