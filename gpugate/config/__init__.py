"""The configuration: its schema, the loader, and the text that `gpugate init` writes."""

from gpugate.config.consistency import warnings
from gpugate.config.loader import load_settings, provider_config, structure_provider_config
from gpugate.config.schema import Server, Settings
from gpugate.config.sources import SourcedValue, default_configs, default_state_dir, find_config
from gpugate.config.template import commented_config
from gpugate.config.units import duration, show_duration

__all__ = [
    "Server",
    "Settings",
    "SourcedValue",
    "commented_config",
    "default_configs",
    "default_state_dir",
    "duration",
    "find_config",
    "load_settings",
    "provider_config",
    "show_duration",
    "structure_provider_config",
    "warnings",
]
