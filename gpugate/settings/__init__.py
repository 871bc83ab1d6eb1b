"""The configuration: its classes, its one loader, and the text that `gpugate init` writes."""

from gpugate.settings.crosschecks import notes
from gpugate.settings.given import Given
from gpugate.settings.load import load_settings, provider_config, structure_provider_config
from gpugate.settings.schema import (
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
from gpugate.settings.sources import default_state_dir, find_config
from gpugate.settings.template import commented_config
from gpugate.settings.units import duration, show_duration, size

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
