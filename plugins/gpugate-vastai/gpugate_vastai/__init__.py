"""Vast.ai for gpugate; the entry point `vastai` is `VastAi`."""

from gpugate_vastai.provider import VastAi
from gpugate_vastai.settings import VastConfig

__all__ = ["VastAi", "VastConfig"]
