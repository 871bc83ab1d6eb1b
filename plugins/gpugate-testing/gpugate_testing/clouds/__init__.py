"""Simulated clouds, shipped for tests of gpugate and of provider plugins: they answer, they bill, they fail.

They imitate what the clouds' APIs were found to do (docs/providers.md), over real sockets on 127.0.0.1
and in virtual time if wanted (`jumping.run`).
"""

from gpugate_testing.clouds.clocks import Clock, LoopClock, ManualClock
from gpugate_testing.clouds.cloud import API_KEY, Cloud, Operation, RecordedCall
from gpugate_testing.clouds.faults import (
    BalanceZero,
    Capacity,
    Fault,
    Faults,
    Garbage,
    Hang,
    Html1010,
    Http,
    Locked,
    LostResponse,
    RateLimit,
    Reset,
    Stale,
)
from gpugate_testing.clouds.kubernetes import KubernetesSim
from gpugate_testing.clouds.kubernetes_objects import SimReplica, Waiting
from gpugate_testing.clouds.pods import BilledInterval, Delays, SimPod
from gpugate_testing.clouds.runpod import RunPodSim
from gpugate_testing.clouds.runpod_payloads import Gpu
from gpugate_testing.clouds.vast import VastSim
from gpugate_testing.clouds.vast_offers import Offer

__all__ = [
    "API_KEY",
    "BalanceZero",
    "BilledInterval",
    "Capacity",
    "Clock",
    "Cloud",
    "Delays",
    "Fault",
    "Faults",
    "Garbage",
    "Gpu",
    "Hang",
    "Html1010",
    "Http",
    "KubernetesSim",
    "Locked",
    "LoopClock",
    "LostResponse",
    "ManualClock",
    "Offer",
    "Operation",
    "RateLimit",
    "RecordedCall",
    "Reset",
    "RunPodSim",
    "SimPod",
    "SimReplica",
    "Stale",
    "VastSim",
    "Waiting",
]
