"""The provider contract at a real cluster: `make kubernetes KUBECONFIG=...`; skipped without one.

The Deployment `gpugate-contract` has to be there at 0 replicas: the Makefile makes it, in a namespace of its
own.
"""

from __future__ import annotations

import os

import pytest
from gpugate_kubernetes import Kubernetes, KubernetesConfig
from gpugate_testing.contract import PaidContract, ReadOnlyContract

KUBECONFIG = os.environ.get("GPUGATE_TEST_KUBECONFIG", "")


@pytest.mark.skipif(not KUBECONFIG, reason="no cluster: make kubernetes KUBECONFIG=...")
class TestRealCluster(ReadOnlyContract, PaidContract):
    """In the cluster's own time."""

    provider_class = Kubernetes
    patience_s = 180.0
    uses_session = False

    @pytest.fixture
    def config(self) -> KubernetesConfig:
        return KubernetesConfig(
            kubeconfig=KUBECONFIG,
            namespace=os.environ.get("GPUGATE_TEST_NAMESPACE", "gpugate-test"),
            name=os.environ.get("GPUGATE_TEST_DEPLOYMENT", "gpugate-contract"),
        )
