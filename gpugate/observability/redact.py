"""Takes secrets and prompts out of what is about to be logged; must not know where it is logged.

Three nets, since each has holes: names of fields that hold secrets, shapes that secrets have, and
the very values that this gateway was configured with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date

REDACTED = "[redacted]"

_DEEPEST = 6
_WIDEST = 64  # members of one list or mapping
_LONGEST = 16 * 1024  # characters of one text; a traceback has a few thousand
_SHORTEST_SECRET = 6  # a known secret that is shorter would black out ordinary words
_BIGGEST = 2**63 - 1

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
# One cheap look that almost every text passes; each shape above has one of these in it.
_SUSPICIOUS = re.compile(r"[:=]|eyJ|/k/|/bot|rpa|sk|hf|ghp|[Bb][Ee][Aa][Rr][Ee][Rr]")

# Control characters would let a path or a name write lines of its own on somebody's terminal.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
_LINE_ENDS = {ord("\n"): "\\n", ord("\t"): "\\t", 0x2028: "\\u2028", 0x2029: "\\u2029"}

Redactor = Callable[[str], str]


def redactor(secrets: Iterable[str] = ()) -> Redactor:
    """A function that takes secrets out of a text: these, and whatever has the shape of one."""
    known = sorted({secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}, key=len, reverse=True)

    def redacted(text: str) -> str:
        for secret in known:
            text = text.replace(secret, REDACTED)
        if _SUSPICIOUS.search(text) is not None:
            for shape, instead in _SHAPES:
                text = shape.sub(instead, text)
        return text

    return redacted


def redact_value(name: str, value: object, redacted: Redactor, depth: int = 0) -> object:
    """A field's value, free of secrets, made of what JSON has, and bounded in size.

    Numbers, booleans, None, dates and times stay. All else that is no text or collection becomes its `repr`.
    """
    if value is None or isinstance(value, bool | float | date):
        return value
    if isinstance(value, int):
        return value if -_BIGGEST <= value <= _BIGGEST else str(value)
    if _SECRET_NAMES.search(name) is not None or name in _PROMPT_NAMES:
        return REDACTED
    if isinstance(value, str):
        return truncate(redacted(value))
    if depth >= _DEEPEST:
        return "[too deep]"
    if isinstance(value, Mapping):
        items = list(value.items())[:_WIDEST]
        return {truncate(str(key)): redact_value(str(key), item, redacted, depth + 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_value(name, item, redacted, depth + 1) for item in list(value)[:_WIDEST]]
    return truncate(redacted(_shown(value)))


def truncate(text: str) -> str:
    """A text that any output can encode, of bounded length."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}… ({len(text)} characters)"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """A text that cannot break out of its line, nor steer a terminal."""
    return text if text.isprintable() else text.translate(_CONTROLS).translate(_LINE_ENDS)


def many_lines(text: str) -> str:
    """A traceback, which may have lines but must not steer a terminal either."""
    return text.translate(_CONTROLS)


def _shown(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value[:_LONGEST]).decode("utf-8", "backslashreplace")
    try:
        return repr(value)
    except Exception:  # a repr may do anything; a log line must not
        return f"<{type(value).__name__}>"
