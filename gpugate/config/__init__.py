"""The configuration: its classes, its one loader, and the text that `gpugate init` writes."""

from gpugate.config.consistency import notes
from gpugate.config.given import Given
from gpugate.config.loader import load_settings, provider_config, structure_provider_config
from gpugate.config.schema import (
    Auth,
    Bot,
    Catalog,
    ComfyUI,
    Cost,
    Log,
    Models,
    Pod,
    Queue,
    Server,
    Settings,
    State,
)
from gpugate.config.sources import default_state_dir, find_config
from gpugate.config.template import commented_config
from gpugate.config.units import duration, show_duration, size

__all__ = [
    "Auth",
    "Bot",
    "Catalog",
    "ComfyUI",
    "Cost",
    "Given",
    "Log",
    "Models",
    "Pod",
    "Queue",
    "Server",
    "Settings",
    "State",
    "commented_config",
    "default_state_dir",
    "duration",
    "find_config",
    "load_settings",
    "notes",
    "provider_config",
    "show_duration",
    "size",
    "structure_provider_config",
]
