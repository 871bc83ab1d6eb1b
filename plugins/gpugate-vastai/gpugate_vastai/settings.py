"""`[providers.vastai]`: every key with its default, its validator and its comment."""
# ruff: noqa: RUF009  (`_key` declares a field, as attrs.field does)

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

from attrs import Attribute, Factory, field, frozen

from gpugate import Duration

Check = Callable[[Any, "Attribute[Any]", Any], None]


def _is_key(_: object, attribute: Attribute[str], value: str) -> None:
    if not re.fullmatch(r"[\x21-\x7e]*", value):
        raise ValueError("must be one word of printable ASCII")


def _is_url(_: object, attribute: Attribute[str], value: str) -> None:
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port of 99999, half a bracket
        good = False
    if not good:
        raise ValueError("must be a URL such as https://console.vast.ai/api/v0")


def _is_tls(_: object, attribute: Attribute[str], value: str) -> None:
    if value.startswith("sha256:") and not re.fullmatch("sha256:[0-9A-Fa-f]{64}", value):
        raise ValueError("must be sha256: and 64 hexadecimal digits")
    if not value:
        raise ValueError('must be "system", "insecure", "sha256:<fingerprint>" or a CA file')


def _are_headers(_: object, attribute: Attribute[dict[str, str]], value: dict[str, str]) -> None:
    for name, content in value.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(r"[\r\n\0]", content):
            raise ValueError("must be a table of header names and one-line values")


def _is_name(_: object, attribute: Attribute[str], value: str) -> None:
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?", value):
        raise ValueError("must be 1 to 32 of a-z, 0-9 and -, such as home")


def _between(least: float, most: float, words: str) -> Check:
    def check(_: object, attribute: Attribute[Any], value: float) -> None:
        if not least <= value <= most:
            raise ValueError(f"must be {words}")

    return check


_is_port = _between(1, 65535, "a port, 1 to 65535")
_are_gb = _between(1, 100_000, "a number of GB")


def _are_gb_or_auto(_: object, attribute: Attribute[Any], value: Any) -> None:
    if value != "auto":
        _are_gb(_, attribute, value)


def _key(default: Any, help: str, validator: Any = None, **more: Any) -> Any:  # noqa: A002
    """Declare a key; `help` is its comment in the configuration that `gpugate init` writes."""
    return field(default=default, validator=validator, metadata={"help": help}, **more)


@frozen
class VastConfig:
    """Instances at Vast.ai: one that you rented, or one for each session."""

    api_key: str = field(
        repr=False,
        validator=_is_key,
        metadata={"help": "cloud.vast.ai, Keys: instance_read, instance_write, in ephemeral mode also misc"},
    )
    instance_id: int = _key(
        0,
        'mode "fixed": an instance that you rented; it is started and stopped',
        _between(0, 2**63, "the number of an instance"),
    )
    api_base: str = _key("https://console.vast.ai/api/v0", "Vast.ai's API", _is_url)
    scheme: Literal["http", "https"] = _key(
        "http", 'of the pod\'s services; "https" if the template adds TLS'
    )
    ollama_port: int = _key(11434, "inside the instance; the external port comes from the API", _is_port)
    comfyui_port: int = _key(8188, "inside the instance", _is_port)
    timeout: Duration = _key(10.0, "of one API call", _between(0.01, 100, "a duration of at most 100 s"))
    headers: dict[str, str] = _key(
        Factory(dict),
        "sent to the pod's services, such as a template's own token",
        _are_headers,
        repr=False,
    )
    tls: str = _key(
        "system",
        'with https: "system", "insecure" (self-signed), "sha256:<fingerprint>" or a CA file',
        _is_tls,
    )
    mode: Literal["fixed", "ephemeral"] = _key(
        "fixed", '"ephemeral": rent an instance for each session and destroy it; the keys below are for it'
    )
    instance: str = _key(
        "main",
        "unique per gateway of an account: labels are gpugate-<instance>-<8 hex digits>",
        _is_name,
    )
    image: str = _key("ollama/ollama:latest", "container image")
    template_id: str = _key("", "a template's hash, instead of the image")
    env: dict[str, str] = _key(Factory(dict), "environment of the container", repr=False)
    disk: int = _key(60, "GB, fixed for the instance's life", _are_gb)
    gpus: list[str] = _key(Factory(list), "names as Vast.ai spells them; empty: any")
    gpu_count: int = _key(1, "per instance", _between(1, 64, "1 to 64"))
    gpu_ram: int | Literal["auto"] = _key(
        16, 'GB of each GPU, at least; "auto": so much as the models need', _are_gb_or_auto
    )
    max_price: float = _key(
        0.0, "USD per hour, disk included; required", _between(0, 1000, "a price per hour")
    )
    spot: bool = _key(
        False, "rent interruptible instances; for an hour after one was taken away, on-demand ones"
    )
    bid: float = _key(
        0.0,
        "USD per hour for the GPU of a spot instance; 0: a tenth above the least that is accepted",
        _between(0, 1000, "a price per hour"),
    )
    min_reliability: float = _key(0.98, "of the host, 0 to 1", _between(0, 1, "between 0 and 1"))
    min_download: float = _key(200.0, "of the host, Mbit/s", _between(0, 10**6, "in Mbit/s"))
    min_duration: Duration = _key(
        86_400.0, "how long the host must still be offered", _between(0, 10**9, "a duration")
    )
    verified: bool = _key(True, "only hosts that Vast.ai has verified")
    filters: dict[str, Any] = _key(Factory(dict), "more of Vast.ai's own search filters, over these")

    def __attrs_post_init__(self) -> None:
        """Raises ValueError: a key is missing, or two do not go together."""
        if not self.api_key:
            raise ValueError("api_key is missing: create one at cloud.vast.ai, Keys")
        if self.mode == "fixed" and not self.instance_id:
            raise ValueError('instance_id is missing: the instance to start and stop (or mode = "ephemeral")')
        if self.mode == "ephemeral" and self.instance_id:
            raise ValueError('instance_id is for mode = "fixed"; ephemeral mode rents instances of its own')
        if self.mode == "ephemeral" and not self.max_price:
            raise ValueError("max_price is missing: the most that a rented instance may cost per hour")
        if self.spot and self.mode != "ephemeral":
            raise ValueError('spot is for mode = "ephemeral": it is for instances that are rented')
        if self.bid and not self.spot:
            raise ValueError("bid is of no use without spot = true")
        if self.bid and self.bid > self.max_price:
            raise ValueError("bid must not be above max_price, which is for GPU and disk together")
        if self.mode == "ephemeral" and not (self.image or self.template_id):
            raise ValueError("image or template_id is missing: what is to run?")

    @property
    def chooses_gpu(self) -> bool:
        """The GPU is chosen by what the models need."""
        return self.mode == "ephemeral" and self.gpu_ram == "auto"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be shown, longest first."""
        short = 4  # "1" or "true" as a variable's value is no secret, and would blot out half a message
        shared = [value for value in (*self.env.values(), *self.headers.values()) if len(value) >= short]
        return tuple(sorted([self.api_key, *shared], key=len, reverse=True))
