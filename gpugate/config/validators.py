"""What a value may be: validators that say it in words; knows no key, no section and no file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from attrs import Attribute

Validator = Callable[[Any, "Attribute[Any]", Any], None]
_UNSAID = object()


class Impossible(ValueError):
    """A value that cannot be; the message completes "<key> ..." and never quotes a secret.

    Attributes:
        value: the part of the value that is at fault, shown behind the message; the whole if not given.
        say: whether a value may be shown at all ("is empty" needs none).
    """

    def __init__(self, problem: str, value: object = _UNSAID, *, say: bool = True) -> None:
        super().__init__(problem)
        self.problem, self.value, self.say = problem, value, say

    @property
    def has_value(self) -> bool:
        """Tell whether a part of the value was singled out."""
        return self.value is not _UNSAID


def that(test: Callable[[Any], bool], problem: str, *, say: bool = True) -> Validator:
    """Accept a value for which `test` holds."""

    def validate(_instance: object, _attribute: Attribute[Any], value: Any) -> None:
        if not test(value):
            raise Impossible(problem, say=say)

    return validate


def each(test: Callable[[Any], bool], problem: str) -> Validator:
    """Accept a list whose every element passes `test`."""

    def validate(_instance: object, _attribute: Attribute[Any], values: Iterable[Any]) -> None:
        for value in values:
            if not test(value):
                raise Impossible(problem, value)

    return validate


def above(limit: float) -> Validator:
    """Accept numbers greater than `limit`."""
    return that(lambda value: value > limit, f"must be more than {limit:g}")


def at_least(limit: float) -> Validator:
    """Accept numbers not below `limit`."""
    return that(lambda value: value >= limit, f"must be at least {limit:g}")


def between(low: float, high: float) -> Validator:
    """Accept numbers from `low` to `high`, both included."""
    return that(lambda value: low <= value <= high, f"must be from {low:g} to {high:g}")


def one_of(*words: str) -> Validator:
    """Accept one of a few words."""
    return that(lambda value: value in words, "must be " + in_words(words))


def in_words(words: Iterable[str]) -> str:
    """Return `"a", "b" or "c"`."""
    *some, last = (f'"{word}"' for word in words)
    return f"{', '.join(some)} or {last}" if some else last


def filled() -> Validator:
    """Accept text that is not blank."""
    return that(lambda value: bool(value.strip()), "must not be empty", say=False)


def url(*schemes: str, or_empty: bool = False) -> Validator:
    """Accept a URL with a host, of one of `schemes`; or nothing, where nothing means none."""
    names = " or ".join(f"{scheme}://" for scheme in schemes)
    return that(
        lambda value: (or_empty and not value) or is_url(value, schemes), f"must be a URL with {names}"
    )


def is_url(text: str, schemes: Iterable[str]) -> bool:
    """Tell whether `text` is a URL with a host and a possible port, of one of `schemes`."""
    try:
        parts = urlsplit(text)
        good_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return good_port and parts.scheme in schemes and bool(parts.hostname) and not re.search(r"\s", text)


def is_origin(text: str) -> bool:
    """Tell whether `text` is "*" or what a browser sends as Origin: scheme, host and port, nothing behind."""
    return text == "*" or re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#@*,]+", text) is not None
