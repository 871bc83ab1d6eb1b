"""Validators of settings, for `attrs.field(validator=...)`; each raises InvalidValue in a few plain words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from attrs import Attribute

Validator = Callable[[Any, "Attribute[Any]", Any], None]
NOT_SHOWN = object()
WHOLE_VALUE = object()


class InvalidValue(ValueError):
    """A value that a key cannot have.

    Attributes:
        problem: completes the sentence "<key> ..."; never quotes a secret.
        value: what the complaint quotes: a part of the value, WHOLE_VALUE, or NOT_SHOWN.
    """

    def __init__(self, problem: str, value: object = WHOLE_VALUE) -> None:
        super().__init__(problem)
        self.problem, self.value = problem, value


def predicate(test: Callable[[Any], bool], problem: str, *, show_value: bool = True) -> Validator:
    """Accept a value for which `test` is true."""

    def validate(_instance: object, _attribute: Attribute[Any], value: Any) -> None:
        if not test(value):
            raise InvalidValue(problem, WHOLE_VALUE if show_value else NOT_SHOWN)

    return validate


def each(test: Callable[[Any], bool], problem: str) -> Validator:
    """Accept a list for whose every element `test` is true; the complaint quotes the first other element."""

    def validate(_instance: object, _attribute: Attribute[Any], values: Iterable[Any]) -> None:
        for value in values:
            if not test(value):
                raise InvalidValue(problem, value)

    return validate


def above(limit: float) -> Validator:
    """Accept numbers greater than `limit`."""
    return predicate(lambda value: value > limit, f"must be more than {limit:g}")


def at_least(limit: float) -> Validator:
    """Accept numbers not less than `limit`."""
    return predicate(lambda value: value >= limit, f"must be at least {limit:g}")


def between(low: float, high: float) -> Validator:
    """Accept numbers from `low` to `high`, both included."""
    return predicate(lambda value: low <= value <= high, f"must be from {low:g} to {high:g}")


def not_blank(_instance: object, _attribute: Attribute[Any], value: str) -> None:
    """Accept text that has more than white space."""
    if not value.strip():
        raise InvalidValue("must not be empty", NOT_SHOWN)


def url(*schemes: str, or_empty: bool = False) -> Validator:
    """Accept a URL of one of `schemes` with a host; `or_empty` also accepts "", for none."""
    names = " or ".join(f"{scheme}://" for scheme in schemes)
    return predicate(
        lambda value: (or_empty and not value) or is_url(value, schemes), f"must be a URL with {names}"
    )


def is_url(text: str, schemes: Iterable[str]) -> bool:
    """Return whether `text` is a URL of one of `schemes`, with a host and no impossible port."""
    try:
        parts = urlsplit(text)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return port_is_valid and parts.scheme in schemes and bool(parts.hostname) and not re.search(r"\s", text)


def split_address(text: str) -> tuple[str, int] | None:
    """Return host and port of "host:port" or "[::1]:port"; None if it is no such address."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host.replace(":", " ")
    if not colon or not re.fullmatch(r"[^\s/\[\]]+", host) or not re.fullmatch("[0-9]{1,5}", port):
        return None
    return (host, int(port)) if int(port) <= 65535 else None


def is_wake_path(text: str) -> bool:
    """Return whether `text` is a path as it is compared, decoded and without a query; "*" may be its last."""
    path = text.removesuffix("*")
    is_plain = re.fullmatch(r"/[!-~]*", path) is not None and not set(path) & set("*?#%\\")
    return is_plain and len(text) > 1 and not {"", ".", ".."} & set(path.split("/")[1:-1])


def is_own_path(text: str) -> bool:
    """Return whether a path, or what begins with it if it ends in "*", is gpugate's own or holds a token."""
    path = text.removesuffix("*")
    holds_token = path != text and "/k/".startswith(path)
    return holds_token or f"{path}/".startswith(("/api/v1/", "/k/", "/dashboard/", "/metrics/"))


def is_time_zone(name: str) -> bool:
    """Return whether this names a time zone of the IANA database."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True
