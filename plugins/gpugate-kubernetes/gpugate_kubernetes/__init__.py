"""Kubernetes for gpugate: scales a workload of yours, or makes a Pod or Job for each session."""

from gpugate_kubernetes.provider import Kubernetes
from gpugate_kubernetes.settings import KubernetesConfig

__all__ = ["Kubernetes", "KubernetesConfig"]
