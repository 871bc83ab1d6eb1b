"""A value with the place it was given at, and how a complaint about it reads; knows no key's meaning."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable

from attrs import field, frozen

ENV_PREFIX = "GPUGATE_"
_LONGEST_SHOWN = 60


@frozen
class Given:
    """A raw value and where it stands.

    Attributes:
        value: as the file, the variable or the flag has it; never in a repr, for it may be a secret.
        source: the file's name, the variable or the flag.
        untyped: True for text of a variable or a flag, which may stand for a number or a list.
    """

    value: object = field(repr=False)
    source: str
    untyped: bool = False


def variable(key: str) -> str:
    """Return the environment variable of a dotted key: "pod.provider" is GPUGATE_POD__PROVIDER."""
    return ENV_PREFIX + key.upper().replace("-", "_").replace(".", "__")


def complaint(given: Given, key: str, problem: str, *, hint: bool = True, at: str = "") -> str:
    """Return the one line that says where, which key, what is wrong, and the variable that also sets it.

    `at` is the part of the key's value that is meant, such as "[1]".
    """
    also = f" (or {variable(key)})" if hint and not given.untyped else ""
    return _one_line(f"{given.source}: {key}{at}: {problem}{also}")


def shown(value: object, *, quoted: bool = False) -> str:
    """Return a value as people write it, short and on one line.

    Text that looks like a quantity is shown bare, for a flag has no quotes; `quoted` keeps them, where they
    are the mistake.
    """
    if not quoted and isinstance(value, str) and re.fullmatch(r"[+-]?\.?[0-9][\w. ]*", value, re.ASCII):
        text = value
    elif isinstance(value, dict):
        text = "a table"
    else:
        try:
            text = json.dumps(value, ensure_ascii=False, default=str)
        except ValueError:  # Python writes no integer of more than 4,300 digits
            text = "a huge number"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the word of `known` that `word` may be a slip of."""
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
