"""`[providers.kubernetes]`: every key with its default, its validator and its comment."""
# ruff: noqa: RUF009  (`_key` declares a field, as attrs.field does)

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Literal
from urllib.parse import urlsplit

from attrs import Attribute, field, frozen

from gpugate import Duration
from gpugate_kubernetes.template import read_template

NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
LABEL = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
SHORTEST_LEASE_S = 3.0
LONGEST_LEASE_S = 14.0
"""Another gateway has to be able to take over 15 s after the last renewal (docs/api.md#kubernetes)."""


def _is_name(_: object, __: Attribute[str], value: str) -> None:
    if not NAME.fullmatch(value):
        raise ValueError("must be a name of Kubernetes: a-z, 0-9, - and ., such as ollama")


def _is_name_or_empty(self: object, attribute: Attribute[str], value: str) -> None:
    if value:
        _is_name(self, attribute, value)


def _is_label_or_empty(_: object, __: Attribute[str], value: str) -> None:
    if value and not LABEL.fullmatch(value):
        raise ValueError("must be a label's name, such as example.org/price-per-hour")


def _is_port(_: object, __: Attribute[int], value: int) -> None:
    if not 0 < value < 65536:
        raise ValueError("must be a port, 1 to 65535")


def _is_url_or_empty(_: object, __: Attribute[str], value: str) -> None:
    parts = urlsplit(value)
    if value and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("must be a URL such as http://10.0.0.7:11434")


def _is_positive(_: object, __: Attribute[Any], value: float) -> None:
    if not value > 0:
        raise ValueError("must be more than 0")


def _is_not_negative(_: object, __: Attribute[Any], value: float) -> None:
    if value < 0:
        raise ValueError("must not be negative")


def _is_lease_duration(_: object, __: Attribute[Any], value: float) -> None:
    if not SHORTEST_LEASE_S <= value <= LONGEST_LEASE_S:
        raise ValueError(f"must be {SHORTEST_LEASE_S:g} to {LONGEST_LEASE_S:g} s")


def _key(default: Any, help: str, validator: Any = None, **more: Any) -> Any:  # noqa: A002
    """Declare a key; `help` is its comment in the configuration that `gpugate init` writes."""
    return field(default=default, validator=validator, metadata={"help": help}, **more)


@frozen
class KubernetesConfig:
    """A workload in a Kubernetes cluster that is scaled, or a Pod or Job for each session."""

    kubeconfig: str = _key("", "a kubeconfig; empty: gpugate runs in the cluster, with a service account")
    context: str = _key("", "of the kubeconfig; empty: its current one")
    namespace: str = _key("default", "where everything is", _is_name)
    mode: Literal["scale", "ephemeral"] = _key(
        "scale", '"scale": kind and name are scaled; "ephemeral": a Pod or Job from template for each session'
    )
    kind: Literal["Deployment", "StatefulSet"] = _key("Deployment", 'or "StatefulSet"')
    name: str = _key("ollama", "of what is scaled, and of the Service if service is empty", _is_name)
    template: str = _key("", "ephemeral: a YAML file with one Pod or Job; {name} in it is replaced")
    endpoint: Literal["dns", "nodeport", "port-forward"] = _key(
        "dns", '"dns": the Service\'s name in the cluster; "nodeport"; "port-forward": through the API'
    )
    service: str = _key("", "the Service in front of the Pods; empty: as name", _is_name_or_empty)
    port: int = _key(11434, "of the Service; with port-forward, of the Pod", _is_port)
    ollama_url: str = _key("", "where Ollama is reached, whatever endpoint says", _is_url_or_empty)
    price_label: str = _key(
        "", "a node's label with its price per hour; else hourly_rate", _is_label_or_empty
    )
    hourly_rate: float = _key(0.0, "price of one replica per hour; 0: not known", _is_not_negative)
    timeout: Duration = _key(10.0, "of one API call", _is_positive)
    lease: str = _key(
        "", "a Lease's name: of the gateways that share it one is active; empty: off", _is_name_or_empty
    )
    lease_duration: Duration = _key(
        10.0, "without a renewal for so long another gateway takes over", _is_lease_duration
    )

    def __attrs_post_init__(self) -> None:
        """Raises ValueError: a key is missing, or two do not go together."""
        if self.mode == "ephemeral":
            if not self.template:
                raise ValueError("template is missing: a YAML file with the Pod or Job of a session")
            read_template(self.template)
        elif self.template:
            raise ValueError('template is of use only with mode = "ephemeral"')

    @property
    def service_name(self) -> str:
        """The Service in front of the Pods."""
        return self.service or self.name

    @property
    def rate(self) -> Decimal | None:
        """The configured price of one replica per hour, if any."""
        return Decimal(str(self.hourly_rate)) if self.hourly_rate else None
