"""`[providers.runpod]`: every key with its default, its validator and its comment."""
# ruff: noqa: RUF009  (`_key` declares a field, as attrs.field does)

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from attrs import Attribute, Factory, field, frozen

from gpugate import Duration

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
POD_ID = re.compile(r"[A-Za-z0-9_-]*")


def _is_api(_: object, __: Attribute[str], value: str) -> None:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL such as https://api.runpod.io/v2")
    if parts.hostname == "rest.runpod.io" or parts.path.rstrip("/").endswith("/v1"):
        raise ValueError("REST v1 is retired; use https://api.runpod.io/v2")


def _is_pattern(_: object, __: Attribute[str], value: str) -> None:
    try:
        parts = urlsplit(value.format(pod_id="pod", port=1))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError("may hold {pod_id} and {port}, and no other braces") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL such as https://{pod_id}-{port}.proxy.runpod.net")


def _is_port(_: object, __: Attribute[int], value: int) -> None:
    if not 0 < value < 65536:
        raise ValueError("must be a port, 1 to 65535")


def _is_key(_: object, __: Attribute[str], value: str) -> None:
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("must be an API key: no spaces, no line breaks")


def _is_pod_id(_: object, __: Attribute[str], value: str) -> None:
    if not POD_ID.fullmatch(value):
        raise ValueError("must be a pod's id, such as k3x9v2m7q1, as RunPod shows it under the pod's name")


def _are_headers(_: object, __: Attribute[dict[str, str]], value: dict[str, str]) -> None:
    for name, content in value.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(r"[\r\n\0]", content):
            raise ValueError("must be a table of header names and one-line values")


def _is_name(_: object, __: Attribute[str], value: str) -> None:
    if not NAME.fullmatch(value):
        raise ValueError("must be 1 to 32 of a-z, 0-9 and -, such as home")


def _is_positive(_: object, __: Attribute[Any], value: float) -> None:
    if not value > 0:
        raise ValueError("must be more than 0")


def _is_not_negative(_: object, __: Attribute[Any], value: float) -> None:
    if value < 0:
        raise ValueError("must not be negative")


def _is_path(_: object, __: Attribute[str], value: str) -> None:
    if not value.startswith("/"):
        raise ValueError("must be an absolute path, such as /workspace")


def _key(default: Any, help: str, validator: Any = None, **more: Any) -> Any:  # noqa: A002
    """Declare a key; `help` is its comment in the configuration that `gpugate init` writes."""
    return field(default=default, validator=validator, metadata={"help": help}, **more)


@frozen
class RunPodConfig:
    """Pods at RunPod: one that you created, or one for each session."""

    api_key: str = _key(
        "", "RunPod, Settings > API Keys, with read and write access to pods", _is_key, repr=False
    )
    pod_id: str = _key("", 'mode "fixed": a pod that you created; it is started and stopped', _is_pod_id)
    api_base: str = _key("https://api.runpod.io/v2", "REST v2", _is_api)
    proxy_url: str = _key(
        "https://{pod_id}-{port}.proxy.runpod.net", "http, a port and a path are allowed", _is_pattern
    )
    ollama_port: int = _key(11434, "inside the pod, exposed as HTTP", _is_port)
    comfyui_port: int = _key(8188, "inside the pod, exposed as HTTP", _is_port)
    timeout: Duration = _key(10.0, "of one API call", _is_positive)
    headers: dict[str, str] = _key(
        Factory(dict), "sent to the pod's services, such as the key of its engine", _are_headers, repr=False
    )
    mode: Literal["fixed", "ephemeral"] = _key(
        "fixed", '"ephemeral": create a pod for each session and delete it; the keys below are for it'
    )
    instance: str = _key(
        "main",
        "unique per gateway of an account: pods are named gpugate-<instance>-<8 hex digits>",
        _is_name,
    )
    template_id: str = _key("", "of RunPod; image or template_id is required")
    image: str = _key("", "container image; with template_id it replaces the template's")
    gpus: list[str] | Literal["auto"] = _key(
        Factory(list),
        'GPU ids of RunPod\'s catalogue, best first; or "auto": the cheapest that holds the models',
    )
    gpu_count: int = _key(1, "per pod", _is_positive)
    min_cuda: str = _key("", 'lowest CUDA version of the host, such as "12.4"; empty: any')
    data_centers: list[str] = _key(Factory(list), "best first; empty: any. With volume_id: the volume's")
    cloud: Literal["secure", "community"] = _key("secure", 'or "community"')
    max_price: float = _key(0.0, "most USD per hour that a pod may cost; 0: no limit", _is_not_negative)
    spot: bool = _key(
        False, "interruptible pods, through GraphQL; for an hour after one was taken away, on-demand ones"
    )
    bid: float = _key(
        0.0,
        "USD per hour and GPU of a spot pod; 0: a tenth above the least that is accepted",
        _is_not_negative,
    )
    graphql_base: str = _key("https://api.runpod.io/graphql", "for spot pods; REST v2 has none", _is_api)
    disk: int = _key(0, "container disk in GB; 0: the template's, or 30", _is_not_negative)
    volume_id: str = _key("", "a network volume, secure cloud only")
    volume_path: str = _key("/workspace", "where the pod has the volume", _is_path)
    env: Mapping[str, str] = _key(
        Factory(dict), "environment of the pod, over the template's", repr=False, hash=False
    )

    def __attrs_post_init__(self) -> None:
        """Raises ValueError: a key is missing, or two do not go together."""
        if not self.api_key:
            raise ValueError("api_key is missing: make one at RunPod under Settings, API Keys")
        if self.bid and not self.spot:
            raise ValueError("bid is of no use without spot = true")
        if self.spot and self.min_cuda:
            raise ValueError("min_cuda cannot be asked for with spot = true")
        if self.mode == "fixed":
            if self.spot:
                raise ValueError('spot is for mode = "ephemeral": it is for pods that are made')
            if not self.pod_id:
                raise ValueError('pod_id is missing: name a pod, or set mode = "ephemeral"')
            return
        if self.pod_id:
            raise ValueError("pod_id is of no use with mode = 'ephemeral': pods are made and deleted")
        if not (self.template_id or self.image):
            raise ValueError("image or template_id is missing: what is a pod to be made from?")
        if not self.gpus:
            raise ValueError(
                "gpus is missing: name at least one, such as 'NVIDIA GeForce RTX 4090', or set 'auto'"
            )
        if self.volume_id and self.cloud != "secure":
            raise ValueError("volume_id needs cloud = 'secure': network volumes exist only there")

    @property
    def chooses_gpu(self) -> bool:
        """The GPU is chosen by what the models need."""
        return self.mode == "ephemeral" and self.gpus == "auto"

    def url(self, pod_id: str, port: int) -> str:
        """Where this port of this pod is reached."""
        return self.proxy_url.format(pod_id=pod_id, port=port)

    @property
    def uses_runpods_proxy(self) -> bool:
        """The pod is reached as RunPod means it to be, not through a tunnel or a proxy of one's own."""
        return (urlsplit(self.url("pod", 1)).hostname or "").endswith(".proxy.runpod.net")

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be shown, longest first."""
        short = 4  # "1" or "true" as a variable's value is no secret, and would blot out half a message
        shared = [value for value in (*self.env.values(), *self.headers.values()) if len(value) >= short]
        return tuple(sorted(filter(None, [self.api_key, *shared]), key=len, reverse=True))
