"""Removes secrets and prompt text from what is about to be logged.

Three filters, because each misses some: the names of fields that hold secrets, the shapes that secrets have,
and the values that this gateway was configured with (`secrets_of`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from typing import Any

import attrs

REDACTED = "[redacted]"

_MAX_DEPTH = 6
_MAX_MEMBERS = 64  # members of one list or mapping
_MAX_LENGTH = 16 * 1024  # characters of one text; a traceback has a few thousand
_MIN_SECRET_LENGTH = 6  # a known secret that is shorter would black out ordinary words
_MAX_INT = 2**63 - 1

_SECRET_NAMES = re.compile(
    r"token|secret|passw|api[-_]?key|private[-_]?key|authori[sz]ation|cookie|credential|jwt|bearer",
    re.IGNORECASE,
)
_PROMPT_NAMES = frozenset(
    {
        "prompt",
        "negative_prompt",
        "system",
        "messages",
        "question",
        "input",
        "content",
        "body",
        "images",
        "story",
    }
)

# Replacements keep what stands around the secret, so that a line can still be understood.
_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?i)\b(bearer(?:\s|%20)+)[^\s\"',;]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)\b(basic(?:\s|%20)+)[\w+/-]{16,}=*"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?)(?:\w+ +)?[^\s\"',;]+"), rf"\1{REDACTED}"),
    # A JWT. Only from a word's start: looked for at every letter, a hostile path would take time in squares.
    (re.compile(r"(?:(?<![\w-])|(?<=%[0-9A-Fa-f]{2}))eyJ[\w-]{4,}\.[\w.-]*"), REDACTED),
    (re.compile(r"(/k/)[^/\s?#\"']+"), rf"\1{REDACTED}"),
    (re.compile(r"(/bot)\d+(?::|%3[Aa])[^/\s\"']+"), rf"\1{REDACTED}"),
    (re.compile(r"(?<![\w.:])\d{5,}:[\w-]{20,}"), REDACTED),  # a bot's token outside a URL
    (re.compile(r"(://)[^/\s@\"']+@"), rf"\1{REDACTED}@"),
    (re.compile(r"(?i)([?&](?:key|sig)=)[^&\s\"'#]+"), rf"\1{REDACTED}"),
    (
        re.compile(r"(?i)((?:api[-_]?key|secret|password|token)(?:=['\"]?|['\"]\s*:\s*['\"]))[^\s\"'&,;)#]+"),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"\b(?:rpa|sk|hf|ghp)[-_][\w-]{16,}"), REDACTED),
)
# A cheap test that sorts out almost every text: each shape above contains one of these.
_SUSPICIOUS = re.compile(r"[:=]|eyJ|/k/|/bot|rpa|sk|hf|ghp|[Bb][Ee][Aa][Rr][Ee][Rr]|[Bb][Aa][Ss][Ii][Cc]")

# Control characters would let a path or a name forge lines or steer the reader's terminal.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
_LINE_ENDS = {ord("\n"): "\\n", ord("\t"): "\\t", 0x2028: "\\u2028", 0x2029: "\\u2029"}

Redactor = Callable[[str], str]


def secrets_of(*configs: object) -> tuple[str, ...]:
    """Return every secret text of these attrs objects, to be redacted: the texts in fields with `repr=False`.

    Texts within mappings, lists and tuples count as well. An object of another class has no secrets.
    """
    found: list[str] = []
    for config in configs:
        kind: type[Any] = type(config)
        if attrs.has(kind):
            hidden = [
                getattr(config, attribute.name) for attribute in attrs.fields(kind) if not attribute.repr
            ]
            found.extend(texts_in(hidden))
    return tuple(found)


def texts_in(value: object) -> Iterator[str]:
    """Yield every text in a value and in its members, except empty ones and the keys of mappings."""
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from texts_in(member)
    elif isinstance(value, list | tuple | set | frozenset):
        for member in value:
            yield from texts_in(member)


def redactor(secrets: Iterable[str] = ()) -> Redactor:
    """Return a function that replaces these secrets, and what has the shape of a secret, in a text."""
    known = sorted({secret for secret in secrets if len(secret) >= _MIN_SECRET_LENGTH}, key=len, reverse=True)

    def redacted(text: str) -> str:
        for secret in known:
            text = text.replace(secret, REDACTED)
        if _SUSPICIOUS.search(text) is not None:
            for shape, instead in _SHAPES:
                text = shape.sub(instead, text)
        return text

    return redacted


def redact_value(name: str, value: object, redacted: Redactor, depth: int = 0) -> object:
    """Return a field's value without secrets, as JSON can hold it, and bounded in size.

    Numbers, booleans, None, dates and times are kept; what is neither text nor collection becomes its `repr`.
    """
    if value is None or isinstance(value, bool | float | date):
        return value
    if isinstance(value, int):
        return value if -_MAX_INT <= value <= _MAX_INT else str(value)
    if _SECRET_NAMES.search(name) is not None or name in _PROMPT_NAMES:
        return REDACTED
    if isinstance(value, str):
        return truncate(redacted(value))
    if depth >= _MAX_DEPTH:
        return "[too deep]"
    if isinstance(value, Mapping):
        items = list(value.items())[:_MAX_MEMBERS]
        return {truncate(str(key)): redact_value(str(key), item, redacted, depth + 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_value(name, item, redacted, depth + 1) for item in list(value)[:_MAX_MEMBERS]]
    return truncate(redacted(_shown(value)))


def truncate(text: str) -> str:
    """Return the text, shortened to a bounded length and encodable as UTF-8."""
    if len(text) > _MAX_LENGTH:
        text = f"{text[:_MAX_LENGTH]}… ({len(text)} characters)"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """Return the text with its control characters and line ends escaped."""
    return text if text.isprintable() else text.translate(_CONTROLS).translate(_LINE_ENDS)


def many_lines(text: str) -> str:
    """Return the text with its control characters escaped, except for newlines and tabs."""
    return text.translate(_CONTROLS)


def _shown(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value[:_MAX_LENGTH]).decode("utf-8", "backslashreplace")
    try:
        return repr(value)
    except Exception:  # a repr may raise anything
        return f"<{type(value).__name__}>"
