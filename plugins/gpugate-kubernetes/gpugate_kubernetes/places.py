"""Where the Ollama of a cluster is reached, and what its nodes cost."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from gpugate import Endpoint, Misconfigured, NotFound, Price
from gpugate_kubernetes.cluster import Cluster
from gpugate_kubernetes.port_forward import PortForward
from gpugate_kubernetes.reading import Pod, Seen
from gpugate_kubernetes.settings import KubernetesConfig

GPU_LABEL = "nvidia.com/gpu.product"
"""Set by NVIDIA's GPU feature discovery."""


class Places:
    """The endpoint and the price of what runs; remembers nodes' labels and the Service's port."""

    def __init__(self, config: KubernetesConfig, cluster: Cluster) -> None:
        self._config = config
        self._cluster = cluster
        self._forward = PortForward(cluster, config.port)
        self._labels: dict[str, dict[str, str]] = {}
        self._node_port = 0

    async def aclose(self) -> None:
        """Close the local listener, if there is one."""
        await self._forward.aclose()

    async def endpoints(self, seen: Seen) -> dict[str, Endpoint]:
        """Where Ollama is, as far as it is known."""
        url = self._config.ollama_url or await self._url(seen.running)
        return {"ollama": Endpoint(url)} if url else {}

    async def _url(self, running: Sequence[Pod]) -> str:
        config = self._config
        if config.endpoint == "dns":
            return f"http://{config.service_name}.{config.namespace}.svc:{config.port}"
        if not running:
            return ""
        if config.endpoint == "port-forward":
            ready = [pod.name for pod in running if pod.ready == running[0].ready]
            return await self._forward.to(ready)
        host = running[0].host_ip
        if not host:
            return ""
        return f"http://{f'[{host}]' if ':' in host else host}:{await self._read_node_port()}"

    async def _read_node_port(self) -> int:
        if self._node_port:
            return self._node_port
        name = self._config.service_name
        try:
            service = await self._cluster.read_service(name)
        except NotFound as error:
            raise Misconfigured(f"{error.message}: set providers.kubernetes.service") from error
        ports = (service.get("spec") or {}).get("ports") or []
        for port in ports:
            if port.get("port") == self._config.port and isinstance(port.get("nodePort"), int):
                self._node_port = port["nodePort"]
                return self._node_port
        raise Misconfigured(
            f"Service {name} has no nodePort for port {self._config.port}: is it of type NodePort?"
        )

    # --- money --------------------------------------------------------------------------------

    async def price(self, paid: Sequence[Pod]) -> Price | None:
        """What these Pods cost together: each node once by its label, else the rate of each replica."""
        config = self._config
        if not config.price_label:
            return Price(config.rate * max(1, len(paid))) if config.rate is not None else None
        total, known = Decimal(0), bool(paid)
        for node in sorted({pod.node for pod in paid}):
            price = _amount((await self._node_labels(node)).get(config.price_label))
            if price is None and config.rate is not None:
                price = config.rate * sum(1 for pod in paid if pod.node == node)
            known = known and price is not None
            total += price or 0
        return Price(total) if known else None

    async def gpu(self, paid: Sequence[Pod]) -> str | None:
        """The GPU of a node whose labels are known."""
        labels = (self._labels.get(pod.node, {}) for pod in paid)
        return next((found[GPU_LABEL] for found in labels if GPU_LABEL in found), None)

    async def _node_labels(self, name: str) -> dict[str, str]:
        """A node's labels; none where it is gone by now, as nodes of an autoscaler are."""
        if name not in self._labels:
            try:
                node = await self._cluster.read_node(name)
            except NotFound:
                return {}
            labels = (node.get("metadata") or {}).get("labels")
            self._labels[name] = dict(labels) if isinstance(labels, dict) else {}
        return self._labels[name]


def _amount(said: str | None) -> Decimal | None:
    try:
        amount = Decimal(said or "")
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and amount >= 0 else None
