"""A home PC with a GPU as gpugate's pod."""

from gpugate_wol.provider import WakeOnLan
from gpugate_wol.settings import WolConfig

__all__ = ["WakeOnLan", "WolConfig"]
