"""The provider contract, kept by all modes of the Kubernetes plugin at a simulated cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import pytest
from gpugate_kubernetes import Kubernetes, KubernetesConfig
from gpugate_testing import ProviderContract
from gpugate_testing.clouds import KubernetesSim
from gpugate_testing.contract import PaidContract
from gpugate_testing.contract_base import ContractBase, MakeProvider
from kubernetes_support import DELAYS, JOB, POD, Files, schema_complaints

LOOKS = ("get_scale", "get_workload", "list_pods", "list_jobs", "get_node", "get_service")


class _InACluster(ContractBase):
    provider_class = Kubernetes
    settings: ClassVar[dict[str, Any]]

    @pytest.fixture
    async def cloud(self) -> AsyncIterator[KubernetesSim]:
        async with KubernetesSim(delays=DELAYS) as cloud:
            cloud.check = schema_complaints
            cloud.add_workload("StatefulSet", "stateful")
            cloud.clock.now()
            yield cloud
            assert [] == cloud.violations

    @pytest.fixture
    def config(self, cloud: KubernetesSim, tmp_path: Path) -> KubernetesConfig:
        files = Files(tmp_path)
        given = dict(self.settings)
        if "template" in given:
            given["template"] = files.template(given["template"])
        return KubernetesConfig(kubeconfig=files.kubeconfig(cloud.url, cloud.api_key), **given)

    @pytest.fixture
    def make_provider(self, config: KubernetesConfig) -> MakeProvider:
        """The client has a session of its own: a session of the contract that is broken takes its place."""

        def make(session: aiohttp.ClientSession) -> Kubernetes:
            provider = Kubernetes(config, session)
            if isinstance(session.connector, aiohttp.UnixConnector):
                provider.cluster.connection.on_client = lambda made: use(made, session)
            return provider

        def use(made: Any, session: aiohttp.ClientSession) -> None:
            made.rest_client.pool_manager.detach()
            made.rest_client.pool_manager = session

        return make

    @pytest.fixture
    def secrets(self, cloud: KubernetesSim) -> tuple[str, ...]:
        return (cloud.api_key,)

    @pytest.fixture
    def changes(self, cloud: KubernetesSim) -> Callable[[], int]:
        return lambda: sum(1 for asked in cloud.asked if asked.operation not in LOOKS)

    @pytest.fixture
    def billing(self, cloud: KubernetesSim) -> Callable[[], int]:
        return lambda: len(cloud.billing)

    @pytest.fixture
    def queue_start(self, cloud: KubernetesSim) -> Callable[[], None]:
        def queue() -> None:
            cloud.queued_s = 20.0

        return queue


class TestScale(_InACluster, ProviderContract):
    """A Deployment, by the Service's name."""

    settings: ClassVar[dict[str, Any]] = {"hourly_rate": 0.6}


class TestScaleAStatefulSet(_InACluster, PaidContract):
    """A StatefulSet, by a NodePort, with the price of its node."""

    settings: ClassVar[dict[str, Any]] = {
        "kind": "StatefulSet",
        "name": "stateful",
        "endpoint": "nodeport",
        "price_label": "example.org/price-per-hour",
    }


class TestEphemeralPod(_InACluster, ProviderContract):
    """A Pod made for each session, by port-forward."""

    settings: ClassVar[dict[str, Any]] = {"mode": "ephemeral", "template": POD, "endpoint": "port-forward"}


class TestEphemeralJob(_InACluster, PaidContract):
    """A Job made for each session."""

    settings: ClassVar[dict[str, Any]] = {"mode": "ephemeral", "template": JOB}
