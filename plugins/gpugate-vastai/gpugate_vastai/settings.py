"""`[providers.vastai]`: every key, its default and what it may be; knows nothing of how it is used."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

from attrs import Attribute, field, frozen

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


@frozen
class VastConfig:
    """`[providers.vastai]` (docs/api.md#configuration), and behind `mode` the keys of ephemeral mode.

    Attributes:
        api_key: needs the rights instance_read and instance_write, and misc in ephemeral mode.
        instance_id: the instance that mode "fixed" starts and stops.
        timeout: of one API call, in seconds.
        headers: sent to the pod's services, such as a template's own token.
        tls: what certificate the pod shows, where scheme is "https": as in `Endpoint.tls`.
        mode: "fixed" starts and stops an instance; "ephemeral" rents one and destroys it.
        instance: tells what this gateway rents from another's: labels are gpugate-<instance>-<8 hex digits>.
        image, template_id: what runs; a template's hash beats the image.
        env: environment of the container; the ports are added.
        disk: of the instance, in GB, fixed for its life.
        gpus: names as Vast.ai spells them; empty: any.
        gpu_ram: of each GPU at least, in GB.
        max_price: per hour, disk included; needed in ephemeral mode.
        min_reliability, min_download, min_duration: of the host; in 0..1, Mbit/s, seconds.
        verified: only hosts that Vast.ai has verified.
        filters: more of Vast.ai's own search filters, laid over these.
    """

    api_key: str = field(repr=False, validator=_is_key)
    instance_id: int = field(default=0, validator=_between(0, 2**63, "the number of an instance"))
    api_base: str = field(default="https://console.vast.ai/api/v0", validator=_is_url)
    scheme: Literal["http", "https"] = "http"
    ollama_port: int = field(default=11434, validator=_is_port)
    comfyui_port: int = field(default=8188, validator=_is_port)
    timeout: float = field(default=10.0, validator=_between(0.01, 100, "a duration of at most 100 s"))
    headers: dict[str, str] = field(factory=dict, repr=False, validator=_are_headers)
    tls: str = field(default="system", validator=_is_tls)
    mode: Literal["fixed", "ephemeral"] = "fixed"
    instance: str = field(default="main", validator=_is_name)
    image: str = "ollama/ollama:latest"
    template_id: str = ""
    env: dict[str, str] = field(factory=dict, repr=False)
    disk: int = field(default=60, validator=_are_gb)
    gpus: list[str] = field(factory=list)
    gpu_count: int = field(default=1, validator=_between(1, 64, "1 to 64"))
    gpu_ram: int = field(default=16, validator=_are_gb)
    max_price: float = field(default=0.0, validator=_between(0, 1000, "a price per hour"))
    min_reliability: float = field(default=0.98, validator=_between(0, 1, "between 0 and 1"))
    min_download: float = field(default=200.0, validator=_between(0, 10**6, "in Mbit/s"))
    min_duration: float = field(default=86_400.0, validator=_between(0, 10**9, "a duration"))
    verified: bool = True
    filters: dict[str, Any] = field(factory=dict)

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
        if self.mode == "ephemeral" and not (self.image or self.template_id):
            raise ValueError("image or template_id is missing: what is to run?")

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be shown, longest first."""
        short = 4  # "1" or "true" as a variable's value is no secret, and would blot out half a message
        shared = [value for value in (*self.env.values(), *self.headers.values()) if len(value) >= short]
        return tuple(sorted([self.api_key, *shared], key=len, reverse=True))
