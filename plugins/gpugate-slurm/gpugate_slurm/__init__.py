"""Slurm for gpugate: one job of a cluster, through slurmrestd, its commands, or SSH."""

from gpugate_slurm.provider import Slurm
from gpugate_slurm.settings import SlurmConfig

__all__ = ["Slurm", "SlurmConfig"]
