"""RunPod for gpugate, through REST v2."""

from gpugate_runpod.provider import RunPod
from gpugate_runpod.settings import RunPodConfig

__all__ = ["RunPod", "RunPodConfig"]
