"""Both clouds' plugins without their pauses, for gateways in processes of their own.

A simulated cloud that is not strict takes calls as often as they come, and its pods boot within a second.
"""

from __future__ import annotations

from typing import Any

from attrs import evolve
from gpugate_runpod import RunPod
from gpugate_vastai import VastAi, api, ephemeral, fixed

for _module in (api, fixed, ephemeral):
    for _name in ("SHOW", "LIST", "STOP", "START", "DESTROY", "SEARCH", "CREATE"):
        if hasattr(_module, _name):
            setattr(_module, _name, evolve(getattr(_module, _name), interval_s=0.0))


class HastyRunPod(RunPod):
    """RunPod's plugin, which looks as often as it is told to."""

    def __init__(self, config: Any, session: Any) -> None:
        super().__init__(config, session)
        self.capabilities = evolve(self.capabilities, min_poll_s=0.05, min_probe_s=0.02)  # type: ignore[misc]


class HastyVastAi(VastAi):
    """Vast.ai's plugin, the same."""

    capabilities = evolve(VastAi.capabilities, min_poll_s=0.05, min_probe_s=0.02)
