"""`[providers.wol]`: which PC, how it is woken and how it is shut down; asks nobody anything."""

from __future__ import annotations

import re
from decimal import Decimal
from urllib.parse import urlsplit

from attrs import Attribute, field, frozen

from gpugate import Duration


def _is_mac(_: object, __: Attribute[str], value: str) -> None:
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", value):
        raise ValueError("must be the network card's address, such as 9c:6b:00:12:34:56")


def _is_port(_: object, __: Attribute[int], value: int) -> None:
    if not 0 < value < 65536:
        raise ValueError("must be a port, 1 to 65535")


def _is_url_or_empty(_: object, __: Attribute[str], value: str) -> None:
    parts = urlsplit(value)
    if value and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("must be a URL such as http://192.168.1.20:8009/poweroff")


@frozen
class WolConfig:
    """The section's keys. A `Duration` is in seconds; the file may say "2m".

    Attributes:
        mac: of the PC's network card.
        url: where its Ollama answers.
        broadcast, wake_port: where the magic packet is sent.
        stop_url: is sent a POST, with `stop_token` as bearer token, to shut the PC down.
        stop_command: is run instead, such as ["ssh", "pc", "sudo systemctl suspend"].
        witness: a URL of something that is always on, such as the router's page: if that does not answer
            either, the silence of the PC proves nothing.
        boot: from the magic packet to an Ollama that answers, at most.
        shutdown: from the order to silence, at most.
        timeout: of one call.
        watts, price_per_kwh, currency: for the cost summary; 0: unknown.
    """

    mac: str = field(validator=_is_mac)
    url: str = field(validator=_is_url_or_empty)
    broadcast: str = "255.255.255.255"
    wake_port: int = field(default=9, validator=_is_port)
    stop_url: str = field(default="", validator=_is_url_or_empty)
    stop_token: str = field(default="", repr=False)
    stop_command: list[str] = field(factory=list)
    witness: str = field(default="", validator=_is_url_or_empty)
    boot: Duration = 120.0
    shutdown: Duration = 60.0
    timeout: Duration = 5.0
    watts: float = 0.0
    price_per_kwh: float = 0.0
    currency: str = "EUR"

    def __attrs_post_init__(self) -> None:
        """Raises ValueError: two keys do not go together."""
        if not self.url:
            raise ValueError("url is missing: where does the PC's Ollama answer?")
        if bool(self.stop_url) == bool(self.stop_command):
            raise ValueError("one of stop_url and stop_command is needed, and not both")

    @property
    def per_hour(self) -> Decimal | None:
        """What an hour costs, if the section tells."""
        return Decimal(str(self.watts)) / 1000 * Decimal(str(self.price_per_kwh)) or None
